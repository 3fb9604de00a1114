// NIfTI-1 volumes: read into typed arrays, and masks written back on the same grid.

const KINDS = {
  2: Uint8Array, 4: Int16Array, 8: Int32Array, 16: Float32Array, 64: Float64Array, 256: Int8Array, 512: Uint16Array, 768: Uint32Array,
};
const RGB = 128;
const MOST_VOXELS = 2 ** 30;

/**
 * @typedef {object} Volume
 * @property {[number, number, number]} dims
 * @property {any} data typed array, the first axis fastest; three values a voxel where it is coloured
 * @property {number} slope
 * @property {number} intercept
 * @property {number[][]} affine (4, 4), voxel index to RAS+ mm
 * @property {number[]} spacing mm
 * @property {boolean} coloured
 * @property {boolean} placed whether the file says where the voxels lie in the patient
 * @property {Uint8Array} header the 348 bytes, for writing a mask on this grid
 * @property {ArrayBuffer} file the whole file, unpacked
 */

/**
 * Unpack gzip; bytes that are not packed are given back.
 * @param {ArrayBuffer} packed
 * @returns {Promise<ArrayBuffer>}
 */
export async function unpack(packed) {
  const head = new Uint8Array(packed, 0, Math.min(2, packed.byteLength));
  if (head[0] !== 0x1f || head[1] !== 0x8b) return packed;
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

/**
 * Read a volume.
 * @param {ArrayBuffer} packed bytes of a .nii or .nii.gz file
 * @returns {Promise<Volume>}
 */
export async function readNifti(packed) {
  const buffer = await unpack(packed);
  if (buffer.byteLength < 352) throw new Error("the volume is cut off");
  const view = new DataView(buffer);
  const little = view.getInt32(0, true) === 348;
  if (!little && view.getInt32(0, false) !== 348) throw new Error("the volume is not NIfTI-1");
  const short = (at) => view.getInt16(at, little);
  const float = (at) => view.getFloat32(at, little);
  const dims = [42, 44, 46].map((at, n) => (short(40) > n ? Math.max(1, short(at)) : 1));
  const code = short(70);
  const coloured = code === RGB;
  const Kind = coloured ? Uint8Array : KINDS[code];
  if (!Kind) throw new Error(`the volume's kind of number, ${code}, is not shown`);
  const count = dims[0] * dims[1] * dims[2] * (coloured ? 3 : 1);
  if (!(count > 0 && count <= MOST_VOXELS)) throw new Error("the volume is absurdly large");
  const start = Math.max(352, Math.floor(float(108)));
  const length = count * Kind.BYTES_PER_ELEMENT;
  if (start + length > buffer.byteLength) throw new Error("the volume is cut off");
  let data;
  if ((little || Kind.BYTES_PER_ELEMENT === 1) && start % Kind.BYTES_PER_ELEMENT === 0) {
    data = new Kind(buffer, start, count);
  } else {
    const copy = new Uint8Array(buffer.slice(start, start + length));
    if (!little) swap(copy, Kind.BYTES_PER_ELEMENT);
    data = new Kind(copy.buffer);
  }
  const affine = placeOf(short, float);
  const slope = float(112);
  return {
    dims: /** @type {any} */ (dims),
    data,
    slope: Number.isFinite(slope) && slope !== 0 ? slope : 1,
    intercept: Number.isFinite(slope) && slope !== 0 ? float(116) : 0,
    affine,
    spacing: [0, 1, 2].map((c) => Math.hypot(affine[0][c], affine[1][c], affine[2][c]) || 1),
    coloured,
    placed: short(252) > 0 || short(254) > 0,
    header: new Uint8Array(buffer.slice(0, 348)),
    file: buffer,
  };
}

/**
 * The affine of a header: sform, else qform (nifti1.h, methods 3 and 2). Where there is neither, one by which the first
 * axis runs to the right of the screen, the second down and the third on: a picture as it was taken.
 */
function placeOf(short, float) {
  const sizes = [80, 84, 88].map((at) => Math.abs(float(at)) || 1);
  if (short(254) > 0) {
    const row = (at) => [0, 4, 8, 12].map((n) => float(at + n));
    return [row(280), row(296), row(312), [0, 0, 0, 1]];
  }
  if (short(252) > 0) {
    const [b, c, d] = [256, 260, 264].map(float);
    const a = Math.sqrt(Math.max(0, 1 - b * b - c * c - d * d));
    const [x, y, z] = [268, 272, 276].map(float);
    const [i, j, k] = [sizes[0], sizes[1], sizes[2] * (float(76) < 0 ? -1 : 1)];
    return [
      [(a * a + b * b - c * c - d * d) * i, 2 * (b * c - a * d) * j, 2 * (b * d + a * c) * k, x],
      [2 * (b * c + a * d) * i, (a * a + c * c - b * b - d * d) * j, 2 * (c * d - a * b) * k, y],
      [2 * (b * d - a * c) * i, 2 * (c * d + a * b) * j, (a * a + d * d - b * b - c * c) * k, z],
      [0, 0, 0, 1],
    ];
  }
  return [[-sizes[0], 0, 0, 0], [0, -sizes[1], 0, 0], [0, 0, -sizes[2], 0], [0, 0, 0, 1]];
}

function swap(bytes, width) {
  for (let at = 0; at + width <= bytes.length; at += width) bytes.subarray(at, at + width).reverse();
}

/**
 * Whether two volumes have the same voxels in the same place.
 * @param {Volume} one
 * @param {Volume} other
 */
export function sameGrid(one, other) {
  if (one.dims.some((n, axis) => n !== other.dims[axis])) return false;
  const near = Math.min(...one.spacing) * 0.05;
  return one.affine.every((row, r) => row.every((value, c) => Math.abs(value - other.affine[r][c]) <= near));
}

/**
 * The values of a volume on another's grid, from the nearest voxel; 0 outside.
 * @param {Volume} from
 * @param {Volume} like
 * @returns {any} typed array of the same kind
 */
export function onGridOf(from, like) {
  if (sameGrid(from, like)) return from.data;
  const m = multiply(invert(from.affine), like.affine);
  const [ni, nj, nk] = like.dims;
  const [fi, fj, fk] = from.dims;
  const out = new from.data.constructor(ni * nj * nk);
  let at = 0;
  for (let k = 0; k < nk; k += 1) {
    for (let j = 0; j < nj; j += 1) {
      for (let i = 0; i < ni; i += 1, at += 1) {
        const x = Math.round(m[0][0] * i + m[0][1] * j + m[0][2] * k + m[0][3]);
        const y = Math.round(m[1][0] * i + m[1][1] * j + m[1][2] * k + m[1][3]);
        const z = Math.round(m[2][0] * i + m[2][1] * j + m[2][2] * k + m[2][3]);
        if (x >= 0 && y >= 0 && z >= 0 && x < fi && y < fj && z < fk) out[at] = from.data[x + fi * (y + fj * z)];
      }
    }
  }
  return out;
}

/**
 * The inverse of an affine.
 * @param {number[][]} a (4, 4)
 * @returns {number[][]}
 */
export function invert(a) {
  const [[p, q, r, x], [s, t, u, y], [v, w, o, z]] = a;
  const det = p * (t * o - u * w) - q * (s * o - u * v) + r * (s * w - t * v);
  if (!det) throw new Error("the volume's affine cannot be inverted");
  const m = [
    [(t * o - u * w) / det, (r * w - q * o) / det, (q * u - r * t) / det],
    [(u * v - s * o) / det, (p * o - r * v) / det, (r * s - p * u) / det],
    [(s * w - t * v) / det, (q * v - p * w) / det, (p * t - q * s) / det],
  ];
  return [...m.map((row) => [...row, -(row[0] * x + row[1] * y + row[2] * z)]), [0, 0, 0, 1]];
}

function multiply(a, b) {
  return a.map((row) => [0, 1, 2, 3].map((c) => row.reduce((sum, value, n) => sum + value * b[n][c], 0)));
}

/**
 * Values as a NIfTI file on a volume's grid, not packed.
 * @param {Uint8Array|Float32Array} values as many as the volume has voxels
 * @param {Volume} like
 * @returns {ArrayBuffer}
 */
export function makeNifti(values, like) {
  const file = new Uint8Array(352 + values.byteLength);
  file.set(like.header, 0);
  const view = new DataView(file.buffer);
  if (view.getInt32(0, true) !== 348) for (const [at, width] of MANY) swap(file.subarray(at[0], at[1]), width);
  const [ni, nj, nk] = like.dims;
  [3, ni, nj, nk, 1, 1, 1, 1].forEach((n, at) => view.setInt16(40 + 2 * at, n, true));
  const bits = 8 * values.BYTES_PER_ELEMENT;
  view.setInt16(70, bits === 8 ? 2 : 16, true); // uint8 or float32
  view.setInt16(72, bits, true);
  for (const [at, value] of [[108, 352], [112, 1], [116, 0], [124, 0], [128, 0]]) view.setFloat32(at, value, true);
  file.fill(0, 148, 252); // free text of the header does not go along
  file.set([0x6e, 0x2b, 0x31, 0], 344); // "n+1": data in the same file
  file.set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength), 352);
  return file.buffer;
}

// Where a header has numbers of some bytes (nifti1.h), to turn one that was written the other way round.
const MANY = [[[0, 4], 4], [[32, 36], 4], [[36, 38], 2], [[40, 56], 2], [[56, 68], 4], [[68, 76], 2], [[76, 120], 4], [[120, 122], 2], [[124, 148], 4], [[252, 256], 2], [[256, 328], 4]];

/**
 * A label map as .nii.gz on a volume's grid.
 * @param {Uint8Array} labels
 * @param {Volume} like
 * @returns {Promise<Uint8Array>}
 */
export async function packMask(labels, like) {
  const packed = new Blob([makeNifti(labels, like)]).stream().pipeThrough(new CompressionStream("gzip"));
  return new Uint8Array(await new Response(packed).arrayBuffer());
}

/**
 * A mask or map: NIfTI, or a grey picture where there is no place in a patient.
 * @param {ArrayBuffer} file
 * @returns {Promise<{dims: number[], data: any, volume: Volume|null}>}
 */
export async function readLayer(file) {
  const head = new Uint8Array(file, 0, Math.min(4, file.byteLength));
  if (head[0] !== 0x89 || head[1] !== 0x50) {
    const volume = await readNifti(file);
    return { dims: volume.dims, data: volume.data, volume };
  }
  const picture = await createImageBitmap(new Blob([file]), { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const canvas = new OffscreenCanvas(picture.width, picture.height);
  const ink = /** @type {OffscreenCanvasRenderingContext2D} */ (canvas.getContext("2d"));
  ink.drawImage(picture, 0, 0);
  const pixels = ink.getImageData(0, 0, picture.width, picture.height).data;
  const data = new Uint8Array(pixels.length / 4);
  for (let at = 0; at < data.length; at += 1) data[at] = pixels[4 * at];
  return { dims: [picture.width, picture.height, 1], data, volume: null };
}

/**
 * Bytes as base64.
 * @param {Uint8Array} data
 * @returns {string}
 */
export function base64(data) {
  let text = "";
  for (let at = 0; at < data.length; at += 0x8000) text += String.fromCharCode(...data.subarray(at, at + 0x8000));
  return btoa(text);
}
