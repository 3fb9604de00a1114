// What a result lays over the image: masks, maps and boxes, on the image's own grid.

import { bytes } from "../api.js";
import { percent } from "../format.js";
import { onGridOf, readLayer, sameGrid } from "./nifti.js";

/** Told apart by colour-blind readers and bright on black (Okabe and Ito, lightened). */
export const COLOURS = [
  [86, 180, 233], [230, 159, 0], [0, 190, 140], [240, 228, 66], [225, 110, 60], [214, 140, 190], [140, 150, 255], [200, 200, 200],
];

/**
 * @typedef {{name: string, value: number, colour: number[], on: boolean, opacity: number}} Structure
 * @typedef {{url: string, data: Uint8Array, structures: Structure[], exact: boolean}} Labels
 * @typedef {{name: string, data: any, low: number, high: number, on: boolean, opacity: number}} HeatMap
 * @typedef {{label: string, score: number|null, low: number[], high: number[], colour: number[], caption: string, chosen?: boolean, hidden?: boolean, weak?: boolean}} Box
 * @typedef {{labels: Labels[], maps: HeatMap[], boxes: {on: boolean, opacity: number, list: Box[]}}} Overlays
 */

/** Nothing over the image. @returns {Overlays} */
export function noOverlays() {
  return { labels: [], maps: [], boxes: { on: true, opacity: 1, list: [] } };
}

/**
 * The structures of a result, with their masks fetched.
 * @param {any[]} masks as the service lists them
 * @param {import("./source.js").Source} source
 * @returns {Promise<Labels[]>}
 */
export async function loadMasks(masks, source) {
  const groups = new Map();
  masks.forEach((mask, n) => {
    const group = groups.get(mask.url) ?? [];
    group.push({
      name: mask.name,
      value: Number(mask.index ?? 1),
      colour: parseColour(mask.colour) ?? COLOURS[n % COLOURS.length],
      on: true,
      opacity: 0.45,
    });
    groups.set(mask.url, group);
  });
  return Promise.all(
    [...groups].map(async ([url, structures]) => ({ url, structures, ...(await labelsOf(url, source)) })),
  );
}

async function labelsOf(url, source) {
  const { values, exact } = fitted(await readLayer(await bytes(url)), source);
  // A copy of its own: a reader may paint on it.
  const data = new Uint8Array(values.length);
  for (let at = 0; at < values.length; at += 1) data[at] = values[at];
  return { data, exact };
}

/**
 * The maps of an explanation, fetched.
 * @param {{name: string, url: string}[]} maps
 * @param {import("./source.js").Source} source
 * @returns {Promise<HeatMap[]>}
 */
export async function loadMaps(maps, source) {
  return Promise.all(
    maps.map(async (map) => {
      const { values: data } = fitted(await readLayer(await bytes(map.url)), source);
      let [low, high] = [Infinity, -Infinity];
      for (const value of data) {
        if (value < low) low = value;
        if (value > high) high = value;
      }
      return { name: map.name, data, low: Math.max(0, low), high, on: false, opacity: 0.6 };
    }),
  );
}

/** The values on the image's grid, and whether they came from exactly that grid. */
function fitted(layer, source) {
  const same = layer.dims.every((n, axis) => n === source.dims[axis]);
  if (layer.volume?.placed && source.volume.placed) {
    return { values: onGridOf(layer.volume, source.volume), exact: sameGrid(layer.volume, source.volume) };
  }
  // Without a place in the patient only pixels can be laid over pixels.
  return { values: same ? layer.data : new Uint8Array(source.dims.reduce((all, n) => all * n, 1)), exact: same };
}

/**
 * The boxes of a result.
 * @param {any[]} boxes as the service lists them
 * @returns {Box[]}
 */
export function makeBoxes(boxes) {
  const labels = [...new Set(boxes.map((box) => box.label))];
  return boxes.map((box) => {
    const [low, high] = box.corners_voxels;
    return withCaption({
      // Weaker ones than the model's operating point are there to be looked at, not shown from the start.
      weak: box.chosen === false,
      hidden: box.chosen === false,
      label: box.label,
      score: box.score ?? null,
      low: [...low],
      high: [...high],
      colour: COLOURS[labels.indexOf(box.label) % COLOURS.length],
      caption: "",
    });
  });
}

/**
 * A box with the words that stand at it.
 * @param {Box} box
 * @returns {Box}
 */
export function withCaption(box) {
  box.caption = [box.label, percent(box.score)].filter(Boolean).join(" ");
  return box;
}

/**
 * A colour as the service writes it: "#rrggbb" or three numbers.
 * @param {any} colour
 * @returns {number[]|null}
 */
export function parseColour(colour) {
  if (Array.isArray(colour) && colour.length >= 3) {
    const scale = colour.every((part) => part <= 1) && colour.some((part) => part % 1) ? 255 : 1;
    return colour.slice(0, 3).map((part) => Math.round(part * scale));
  }
  const found = /^#?([0-9a-f]{2})([0-9a-f]{2})([0-9a-f]{2})$/i.exec(String(colour ?? ""));
  return found ? found.slice(1).map((part) => parseInt(part, 16)) : null;
}

/**
 * The voxel in the middle of what a result marks, so that its page opens there: the strongest box, the largest mask's
 * fullest slice, the strongest spot of a map.
 * @param {Overlays} overlays
 * @param {import("./source.js").Source} source
 * @returns {number[]|null}
 */
export function decisiveVoxel(overlays, source) {
  const shown = overlays.boxes.list.filter((box) => !box.hidden);
  const best = shown.reduce((top, box) => (!top || (box.score ?? 0) > (top.score ?? 0) ? box : top), null);
  if (best) return best.low.map((low, axis) => (low + best.high[axis]) / 2);
  const [ni, nj, nk] = source.dims;
  for (const { data } of overlays.labels) {
    const sums = Array.from({ length: nk }, () => [0, 0, 0]);
    for (let k = 0, at = 0; k < nk; k += 1) {
      for (let j = 0; j < nj; j += 1) {
        for (let i = 0; i < ni; i += 1, at += 1) {
          if (!data[at]) continue;
          sums[k][0] += 1;
          sums[k][1] += i;
          sums[k][2] += j;
        }
      }
    }
    const k = sums.reduce((top, sum, n) => (sum[0] > sums[top][0] ? n : top), 0);
    const [n, i, j] = sums[k];
    if (n) return [i / n, j / n, k];
  }
  for (const { data } of overlays.maps) {
    let top = 0;
    for (let at = 1; at < data.length; at += 1) if (data[at] > data[top]) top = at;
    if (data[top] > 0) return [top % ni, Math.floor(top / ni) % nj, Math.floor(top / (ni * nj))];
  }
  return null;
}
