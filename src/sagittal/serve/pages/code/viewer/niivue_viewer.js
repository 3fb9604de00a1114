// NiiVue as the viewer, where it is installed: the same hands as Sagittal's own viewer, and a view in three dimensions.

import { el } from "../dom.js";
import { makeNifti } from "./nifti.js";

const SLICES = { axial: 0, coronal: 1, sagittal: 2, three: 3, render: 4 };
const DRAG = { look: "crosshair", window: "windowing", pan: "pan", zoom: "pan", measure: "measurement" };

// Left, top, width and height as shares of the canvas: the axial plane large, the others beside it.
const THREE = [
  { sliceType: 0, position: [0, 0, 0.6, 1] },
  { sliceType: 1, position: [0.6, 0, 0.4, 0.5] },
  { sliceType: 2, position: [0.6, 0.5, 0.4, 0.5] },
];

/** NiiVue behind the interface of {@link import("./canvas_viewer.js").CanvasViewer}. */
export class NiivueViewer {
  /**
   * @param {any} library NiiVue's module
   * @param {HTMLElement} host
   * @param {any} told
   */
  constructor(library, host, told = {}) {
    this.library = library;
    this.told = told;
    this.name = "niivue";
    this.host = host;
    this.canvas = el("canvas", { class: "niivue", tabindex: 0, role: "img", id: "niivue", "aria-label": "NiiVue" });
    host.replaceChildren(el("div", { class: "panes one" }, el("div", { class: "pane" }, this.canvas)));
    this.layout = "three";
    this.window = { low: 0, high: 255, inverted: false };
    this.overlays = { labels: [], maps: [], boxes: { on: true, opacity: 1, list: [] } };
    this.outlined = false;
    this.cine = 0;
    this.tool = { name: "look" };
  }

  get layouts() {
    return this.source.dims.every((n) => n > 1) ? ["axial", "coronal", "sagittal", "three", "render"] : ["axial"];
  }

  /** Begin: WebGL may be missing, then this fails and the other viewer is taken. */
  async start() {
    const { Niivue, SHOW_RENDER } = this.library;
    this.nv = new Niivue({
      backColor: [0, 0, 0, 1],
      crosshairColor: [0.48, 0.72, 0.94, 0.7],
      crosshairWidth: 0.25,
      crosshairWidthUnit: "percent",
      crosshairGap: 8,
      isRadiologicalConvention: true,
      sagittalNoseLeft: true,
      showAllOrientationMarkers: true,
      multiplanarShowRender: SHOW_RENDER.NEVER,
      dragAndDropEnabled: false, // a file of somebody else over this patient's image would be a wrong diagnosis
      loadingText: "",
      isColorbar: false,
      measureLineColor: [1, 0.83, 0.47, 1],
      measureTextColor: [1, 0.83, 0.47, 1],
      logLevel: "error",
      viewModeHotKey: "",
      clipPlaneHotKey: "",
      cycleClipPlaneHotKey: "",
    });
    await this.nv.attachToCanvas(this.canvas);
    this.nv.onLocationChange = (at) => {
      const value = at?.values?.[0];
      this.told.pointed?.(value && Number.isFinite(value.value) ? `${Number(value.value).toFixed(0)} ${this.source?.unit ?? ""}`.trim() : "");
      this.told.moved?.(this);
    };
    this.nv.onIntensityChange = (volume) => {
      this.window = { ...this.window, low: volume.cal_min, high: volume.cal_max };
      this.told.windowed?.();
    };
    this.canvas.addEventListener("keydown", (event) => this.onKey(event));
  }

  /**
   * Show a volume.
   * @param {import("./source.js").Source} source
   */
  async open(source) {
    this.stopCine();
    this.source = source;
    this.layers = new Map();
    const { low, high } = source.presets[0];
    const { NVImage } = this.library;
    const image = await NVImage.new(/** @type {any} */ (source.volume).file, "image.nii", "gray", 1, null, low, high);
    while (this.nv.volumes.length) this.nv.removeVolumeByIndex(this.nv.volumes.length - 1);
    this.nv.addVolume(image);
    this.window = { low, high, inverted: false };
    this.setLayout(this.layouts.includes(this.layout) ? this.layout : this.layouts[0]);
    this.setTool("look");
    this.setWindow(low, high);
  }

  setLayout(layout) {
    this.layout = layout;
    if (layout === "three") this.nv.setCustomLayout(THREE);
    else this.nv.clearCustomLayout();
    this.nv.setSliceType(SLICES[layout]);
    this.told.moved?.(this);
  }

  setWindow(low, high) {
    this.window = { ...this.window, low, high };
    const [image] = this.nv.volumes;
    image.cal_min = low;
    image.cal_max = high;
    this.nv.updateGLVolume();
    this.told.windowed?.();
  }

  invert() {
    this.window.inverted = !this.window.inverted;
    const [image] = this.nv.volumes;
    image.colormapInvert = this.window.inverted;
    this.nv.updateGLVolume();
  }

  setTool(name) {
    this.tool = { name };
    const { DRAG_MODE } = this.library;
    const primary = DRAG_MODE[DRAG[name] ?? "crosshair"] ?? DRAG_MODE.crosshair;
    this.nv.setMouseEventConfig({ leftButton: { primary }, rightButton: DRAG_MODE.windowing ?? DRAG_MODE.contrast, centerButton: DRAG_MODE.pan });
    this.nv.setTouchEventConfig?.({ singleTouch: primary, doubleTouch: DRAG_MODE.pan });
  }

  zoomBy(factor) {
    const [x, y, z, zoom] = this.nv.scene.pan2Dxyzmm;
    this.nv.setPan2Dxyzmm([x, y, z, Math.max(0.5, Math.min(20, zoom * factor))]);
  }

  /** The axis that is scrolled in this layout, as NiiVue counts voxels (RAS order). */
  get axis() {
    return { axial: 2, coronal: 1, sagittal: 0 }[this.layout] ?? 2;
  }

  /** Slices are counted from the head, the front and the right, as in our own viewer; NiiVue counts the other way. */
  get position() {
    const depth = this.depth;
    return { slice: depth - 1 - Math.round(this.nv.scene.crosshairPos[this.axis] * depth - 0.5), depth };
  }

  get depth() {
    return this.nv.volumes[0]?.dimsRAS?.[this.axis + 1] ?? 1;
  }

  step(by, around = false) {
    const { slice, depth } = this.position;
    const wanted = around ? (slice + by + depth) % depth : Math.max(0, Math.min(depth - 1, slice + by));
    const at = [...this.nv.scene.crosshairPos];
    at[this.axis] = (depth - 1 - wanted + 0.5) / depth;
    this.nv.scene.crosshairPos = at;
    this.nv.drawScene();
    this.told.moved?.(this);
  }

  /** Show the slices through a voxel of the file. */
  setCursor(voxel) {
    const [image] = this.nv.volumes;
    const mm = this.source.volume.affine.slice(0, 3).map((row) => row[0] * voxel[0] + row[1] * voxel[1] + row[2] * voxel[2] + row[3]);
    this.nv.scene.crosshairPos = image.convertMM2Frac(mm, true); // by the exact affine: the other way is off for tilted ones
    this.nv.drawScene();
    this.told.moved?.(this);
  }

  reset() {
    this.nv.setPan2Dxyzmm([0, 0, 0, 1]);
    this.nv.clearAllMeasurements?.();
    const first = this.source.presets[0];
    this.setWindow(first.low, first.high);
  }

  startCine(perSecond) {
    this.stopCine();
    this.cine = window.setInterval(() => this.step(1, true), 1000 / perSecond);
  }

  stopCine() {
    clearInterval(this.cine);
    this.cine = 0;
  }

  onKey(event) {
    const by = { ArrowUp: -1, ArrowDown: 1, PageUp: -10, PageDown: 10 }[event.key];
    if (!by || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    this.step(by);
  }

  /** Masks, maps and boxes become one coloured volume each over the image. */
  setOverlays(overlays) {
    this.overlays = overlays;
    this.redraw();
  }

  redraw() {
    clearTimeout(this.later);
    this.later = setTimeout(() => this.lay(), 60);
  }

  async lay() {
    const { labels, maps, boxes } = this.overlays;
    const layers = [];
    for (const group of labels) {
      const on = group.structures.filter((one) => one.on && one.opacity > 0);
      // NiiVue fades a whole layer, not one label: one layer for those that are equally strong.
      const strengths = [...new Set(on.map((one) => one.opacity))];
      for (const [n, strength] of strengths.entries()) {
        const layer = await this.layer(group.data, "", n);
        layers.push(paintedWith(layer, group.structures, on.filter((one) => one.opacity === strength), strength));
      }
    }
    const seen = boxes.list.filter((box) => !box.hidden);
    if (boxes.on && seen.length) {
      const colours = [...new Map(seen.map((box) => [box.colour.join(), box.colour])).values()];
      const frames = await this.layer(this.frames(seen, colours), "");
      const every = colours.map((colour, n) => ({ value: n + 1, colour }));
      layers.push(paintedWith(frames, every, every, boxes.opacity));
    }
    for (const map of maps) {
      if (!map.on) continue;
      const layer = await this.layer(map.data, "warm");
      layer.cal_min = map.low + (map.high - map.low) * 0.1;
      layer.cal_max = map.high;
      layer.opacity = map.opacity;
      layers.push(layer);
    }
    const wanted = new Set([...labels.map((group) => group.data), ...maps.map((map) => map.data)]);
    for (const data of this.layers.keys()) if (!wanted.has(data)) this.layers.delete(data); // of boxes and results before
    const there = this.nv.volumes.slice(1);
    for (const old of there) if (!layers.includes(old)) this.nv.removeVolume(old);
    for (const layer of layers) if (!there.includes(layer)) this.nv.addVolume(layer);
    this.nv.updateGLVolume();
  }

  /** Values on the image's grid as one of NiiVue's volumes, made once; `n` tells several of the same values apart. */
  async layer(data, colours, n = 0) {
    const kept = this.layers.get(data) ?? [];
    this.layers.set(data, kept);
    if (!kept[n]) {
      const values = data instanceof Uint8Array ? data : Float32Array.from(data);
      kept[n] = await this.library.NVImage.new(makeNifti(values, this.source.volume), "layer.nii", colours || "gray", 1);
      if (n) kept[n].img = kept[0].img; // the same voxels lie in memory once
    }
    return kept[n];
  }

  /** The sides of boxes as voxels. */
  frames(list, colours) {
    const [ni, nj, nk] = this.source.dims;
    const data = new Uint8Array(ni * nj * nk);
    for (const box of list) {
      const value = colours.findIndex((colour) => colour.join() === box.colour.join()) + 1;
      const low = box.low.map((v, axis) => Math.max(0, Math.min(this.source.dims[axis] - 1, Math.round(v + 0.5))));
      const high = box.high.map((v, axis) => Math.max(0, Math.min(this.source.dims[axis] - 1, Math.round(v - 0.5))));
      for (let k = low[2]; k <= high[2]; k += 1) {
        for (let j = low[1]; j <= high[1]; j += 1) {
          for (let i = low[0]; i <= high[0]; i += 1) {
            const side = i === low[0] || i === high[0] || j === low[1] || j === high[1] || k === low[2] || k === high[2];
            if (side) data[i + ni * (j + nj * k)] = value;
          }
        }
      }
    }
    return data;
  }

  close() {
    this.stopCine();
    clearTimeout(this.later);
    this.nv?.cleanup?.();
    this.host.replaceChildren();
  }
}

/** Give a label map our colours: those of some structures, nothing for the others. Values past a table take its last row. */
function paintedWith(layer, every, structures, opacity) {
  const size = Math.max(...every.map((one) => one.value)) + 2;
  const table = { R: [], G: [], B: [], A: [], I: [], labels: [] };
  for (let n = 0; n < size; n += 1) {
    const found = structures.find((one) => one.value === n);
    const [red, green, blue] = found?.colour ?? [0, 0, 0];
    table.R.push(red);
    table.G.push(green);
    table.B.push(blue);
    table.A.push(found ? 255 : 0);
    table.I.push(n);
    table.labels.push("");
  }
  layer.setColormapLabel(table);
  layer.opacity = opacity;
  return layer;
}

/**
 * NiiVue's module, where the page says that it is installed.
 * @returns {Promise<any>} null where it is not, or does not work here
 */
export async function loadNiivue() {
  if (document.documentElement.dataset.niivue !== "yes") return null;
  const probe = document.createElement("canvas");
  if (!probe.getContext("webgl2")) return null;
  try {
    return await import(/** @type {any} */ ("/viewer/niivue/index.js"));
  } catch {
    return null;
  }
}
