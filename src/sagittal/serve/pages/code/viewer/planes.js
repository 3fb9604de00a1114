// How voxels lie on the screen: three planes through a volume, as radiologists look at them, without resampling.

/**
 * @typedef {object} Plane
 * @property {"axial"|"coronal"|"sagittal"} name
 * @property {number} across voxel axis that runs to the right on the screen
 * @property {number} down voxel axis that runs downwards
 * @property {number} through voxel axis that is scrolled
 * @property {boolean} acrossBack whether it runs against the voxels' order
 * @property {boolean} downBack
 * @property {boolean} throughBack
 * @property {number} width pixels
 * @property {number} height
 * @property {number} depth slices
 * @property {number} mmAcross of a pixel
 * @property {number} mmDown
 * @property {number} mmThrough
 * @property {[string, string, string, string]} letters at the left, right, top and bottom
 */

// In RAS+ axes: 0 grows to the right, 1 to the front, 2 to the head.
// The reader looks from the feet and from the front: the patient's right is on the left of the screen.
const VIEWS = {
  axial: { across: 0, down: 1, through: 2, letters: ["R", "L", "A", "P"] },
  coronal: { across: 0, down: 2, through: 1, letters: ["R", "L", "S", "I"] },
  sagittal: { across: 1, down: 2, through: 0, letters: ["A", "P", "S", "I"] },
};

/**
 * Which patient axis each voxel axis runs along most, and in which direction.
 * @param {number[][]} affine (4, 4), to RAS+ mm
 * @returns {{axis: number[], sign: number[]}} by patient axis: the voxel axis and +1 or -1
 */
export function orientation(affine) {
  const lengths = [0, 1, 2].map((c) => Math.hypot(affine[0][c], affine[1][c], affine[2][c]) || 1);
  const axis = [-1, -1, -1];
  const sign = [1, 1, 1];
  const pairs = [];
  for (let world = 0; world < 3; world += 1) {
    for (let voxel = 0; voxel < 3; voxel += 1) pairs.push([Math.abs(affine[world][voxel]) / lengths[voxel], world, voxel]);
  }
  pairs.sort((a, b) => b[0] - a[0]);
  const taken = new Set();
  for (const [, world, voxel] of pairs) {
    if (axis[world] >= 0 || taken.has(voxel)) continue;
    axis[world] = voxel;
    sign[world] = affine[world][voxel] < 0 ? -1 : 1;
    taken.add(voxel);
  }
  return { axis, sign };
}

/**
 * The three planes of a volume.
 * @param {{dims: number[], spacing: number[], affine: number[][]}} volume
 * @returns {Record<string, Plane>}
 */
export function planesOf(volume) {
  const { axis, sign } = orientation(volume.affine);
  /** @type {any} */
  const made = {};
  for (const [name, view] of Object.entries(VIEWS)) {
    const [across, down, through] = [axis[view.across], axis[view.down], axis[view.through]];
    made[name] = {
      name,
      across,
      down,
      through,
      // The screen runs to the left, back and feet, and slices from head, front and right: all against RAS+.
      acrossBack: sign[view.across] > 0,
      downBack: sign[view.down] > 0,
      throughBack: sign[view.through] > 0,
      width: volume.dims[across],
      height: volume.dims[down],
      depth: volume.dims[through],
      mmAcross: volume.spacing[across],
      mmDown: volume.spacing[down],
      mmThrough: volume.spacing[through],
      letters: view.letters,
    };
  }
  return made;
}

/**
 * The voxel under a point of a plane, as whole or broken indices.
 * @param {Plane} plane
 * @param {number} x pixels from the left edge: the first pixel's middle is 0.5
 * @param {number} y
 * @param {number} slice as the reader counts, from 0
 * @returns {[number, number, number]} (i, j, k); voxel middles are whole numbers
 */
export function toVoxel(plane, x, y, slice) {
  const at = [0, 0, 0];
  at[plane.across] = plane.acrossBack ? plane.width - 0.5 - x : x - 0.5;
  at[plane.down] = plane.downBack ? plane.height - 0.5 - y : y - 0.5;
  at[plane.through] = plane.throughBack ? plane.depth - 1 - slice : slice;
  return /** @type {[number, number, number]} */ (at);
}

/**
 * Where a voxel lies on a plane.
 * @param {Plane} plane
 * @param {number[]} voxel
 * @returns {{x: number, y: number, slice: number}}
 */
export function fromVoxel(plane, voxel) {
  const a = voxel[plane.across];
  const d = voxel[plane.down];
  const t = voxel[plane.through];
  return {
    x: plane.acrossBack ? plane.width - 0.5 - a : a + 0.5,
    y: plane.downBack ? plane.height - 0.5 - d : d + 0.5,
    slice: plane.throughBack ? plane.depth - 1 - t : t,
  };
}

/**
 * Visit the voxels of one slice in the order of the screen's pixels.
 * @param {number[]} dims
 * @param {Plane} plane
 * @param {number} slice
 * @returns {{start: number, acrossStep: number, downStep: number}} offsets into a volume's data
 */
export function strides(dims, plane, slice) {
  const step = [1, dims[0], dims[0] * dims[1]];
  const [i, j, k] = toVoxel(plane, 0.5, 0.5, slice);
  return {
    start: i * step[0] + j * step[1] + k * step[2],
    acrossStep: plane.acrossBack ? -step[plane.across] : step[plane.across],
    downStep: plane.downBack ? -step[plane.down] : step[plane.down],
  };
}
