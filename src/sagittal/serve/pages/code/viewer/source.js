// Where images come from: a series as one volume, with its exact place in the patient.

import { bytes } from "../api.js";
import { readNifti } from "./nifti.js";
import { paintGrey } from "./paint.js";
import { planesOf } from "./planes.js";
import { presets, valueRange } from "./windows.js";

/**
 * @typedef {object} Source
 * @property {Record<string, import("./planes.js").Plane>} planes
 * @property {number[]} dims
 * @property {number[]} spacing mm
 * @property {import("./nifti.js").Volume} volume
 * @property {import("./windows.js").Preset[]} presets
 * @property {string} unit
 * @property {boolean} measured whether a pixel has a size in mm
 * @property {(plane: import("./planes.js").Plane, slice: number, window: any) => CanvasImageSource} image
 * @property {(voxel: number[]) => number|null} value
 */

/**
 * A volume, fetched whole.
 * @param {string} url
 * @param {string} modality
 * @param {(bytes: number, of: number) => void} [came]
 * @returns {Promise<Source>}
 */
export async function openVolume(url, modality, came) {
  const volume = await readNifti(await bytes(url, came));
  const canvas = new OffscreenCanvas(1, 1);
  const ink = /** @type {OffscreenCanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const [ni, nj, nk] = volume.dims;
  return {
    planes: volume.placed ? planesOf(volume) : unplaced(volume),
    dims: volume.dims,
    spacing: volume.spacing,
    volume,
    presets: presets(modality, valueRange(volume)),
    unit: { CT: "HU", PT: "SUV" }[modality] ?? "",
    measured: volume.placed || volume.spacing.some((mm) => mm !== 1),
    image(plane, slice, window) {
      const drawn = paintGrey(volume, plane, slice, window);
      canvas.width = drawn.width;
      canvas.height = drawn.height;
      ink.putImageData(drawn, 0, 0);
      return canvas;
    },
    value(voxel) {
      const [i, j, k] = voxel.map(Math.round);
      if (volume.coloured || i < 0 || j < 0 || k < 0 || i >= ni || j >= nj || k >= nk) return null;
      return volume.data[i + ni * (j + nj * k)] * volume.slope + volume.intercept;
    },
  };
}

/** A picture, or a loop of pictures, as it was taken: one plane, no sides of a patient. */
function unplaced(volume) {
  return { axial: { ...planesOf(volume).axial, letters: /** @type {any} */ (["", "", "", ""]) } };
}
