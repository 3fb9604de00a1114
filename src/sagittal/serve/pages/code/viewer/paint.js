// One slice as pixels: grey values through a window, masks and maps in colour above them.

import { strides } from "./planes.js";

/**
 * Grey (or coloured) pixels of a slice.
 * @param {import("./nifti.js").Volume} volume
 * @param {import("./planes.js").Plane} plane
 * @param {number} slice
 * @param {{low: number, high: number, inverted: boolean}} window
 * @returns {ImageData}
 */
export function paintGrey(volume, plane, slice, window) {
  const { width, height } = plane;
  const image = new ImageData(width, height);
  const out = new Uint32Array(image.data.buffer);
  const { start, acrossStep, downStep } = strides(volume.dims, plane, slice);
  const data = volume.data;
  const turn = window.inverted ? 0x00ffffff : 0;
  let at = 0;
  if (volume.coloured) {
    for (let y = 0; y < height; y += 1) {
      for (let x = 0, from = start + y * downStep; x < width; x += 1, from += acrossStep, at += 1) {
        const n = from * 3;
        out[at] = (0xff000000 | (data[n + 2] << 16) | (data[n + 1] << 8) | data[n]) ^ turn;
      }
    }
    return image;
  }
  const gain = 255 / Math.max(1e-9, window.high - window.low);
  const scale = volume.slope * gain;
  const shift = (volume.intercept - window.low) * gain;
  for (let y = 0; y < height; y += 1) {
    for (let x = 0, from = start + y * downStep; x < width; x += 1, from += acrossStep, at += 1) {
      const value = data[from] * scale + shift;
      const grey = value >= 255 ? 255 : value > 0 ? value | 0 : 0; // NaN becomes black
      out[at] = (0xff000000 | (grey * 0x010101)) ^ turn;
    }
  }
  return image;
}

/**
 * Colours of a label map in a slice.
 * @param {Uint8Array} labels
 * @param {number[]} dims
 * @param {import("./planes.js").Plane} plane
 * @param {number} slice
 * @param {Uint32Array} colours 256 of them, as little-endian RGBA; 0 shows nothing
 * @param {boolean} outlined only the outermost pixels of each structure
 * @returns {ImageData}
 */
export function paintLabels(labels, dims, plane, slice, colours, outlined) {
  const { width, height } = plane;
  const image = new ImageData(width, height);
  const out = new Uint32Array(image.data.buffer);
  const { start, acrossStep, downStep } = strides(dims, plane, slice);
  let at = 0;
  for (let y = 0; y < height; y += 1) {
    for (let x = 0, from = start + y * downStep; x < width; x += 1, from += acrossStep, at += 1) {
      const label = labels[from];
      if (!label || !colours[label]) continue;
      const inside =
        outlined &&
        x > 0 && x < width - 1 && y > 0 && y < height - 1 &&
        labels[from - acrossStep] === label && labels[from + acrossStep] === label &&
        labels[from - downStep] === label && labels[from + downStep] === label;
      if (!inside) out[at] = colours[label];
    }
  }
  return image;
}

// A run from nothing over red to yellow, so that strong places stand out and weak ones let the image through.
const HEAT = new Uint32Array(256);
for (let n = 0; n < 256; n += 1) {
  const red = Math.min(255, 90 + n * 1.6) | 0;
  const green = Math.max(0, n * 1.35 - 110) | 0;
  const blue = Math.max(0, n * 2.4 - 440) | 0;
  const alpha = n < 26 ? 0 : Math.min(235, n * 1.15) | 0;
  HEAT[n] = ((alpha << 24) | (Math.min(255, blue) << 16) | (Math.min(255, green) << 8) | red) >>> 0;
}

/**
 * The colours of a map in a slice.
 * @param {any} data
 * @param {number[]} dims
 * @param {import("./planes.js").Plane} plane
 * @param {number} slice
 * @param {number} low value that shows nothing
 * @param {number} high value that shows most
 * @returns {ImageData}
 */
export function paintHeat(data, dims, plane, slice, low, high) {
  const { width, height } = plane;
  const image = new ImageData(width, height);
  const out = new Uint32Array(image.data.buffer);
  const { start, acrossStep, downStep } = strides(dims, plane, slice);
  const gain = 255 / Math.max(1e-12, high - low);
  let at = 0;
  for (let y = 0; y < height; y += 1) {
    for (let x = 0, from = start + y * downStep; x < width; x += 1, from += acrossStep, at += 1) {
      const n = (data[from] - low) * gain;
      out[at] = HEAT[n >= 255 ? 255 : n > 0 ? n | 0 : 0];
    }
  }
  return image;
}

/**
 * A colour as little-endian RGBA.
 * @param {number[]} rgb 0 to 255
 * @param {number} opacity 0 to 1
 */
export function rgba(rgb, opacity) {
  return ((Math.round(opacity * 255) << 24) | (rgb[2] << 16) | (rgb[1] << 8) | rgb[0]) >>> 0;
}
