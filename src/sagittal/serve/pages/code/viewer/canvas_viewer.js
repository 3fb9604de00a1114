// Sagittal's own viewer: one plane or three, on plain canvases. It also holds the tools that correct a result.

import { el } from "../dom.js";
import { t } from "../text.js";
import { rgba } from "./paint.js";
import { Pane } from "./pane.js";
import { fromVoxel } from "./planes.js";
import { distance, drawMeasures, lookingTools } from "./tools.js";

/** A viewer on canvases. */
export class CanvasViewer {
  /**
   * @param {HTMLElement} host
   * @param {{moved?: (viewer: any) => void, pointed?: (text: string) => void, windowed?: () => void}} [told]
   */
  constructor(host, told = {}) {
    this.host = host;
    this.told = told;
    this.name = "canvas";
    /** @type {Pane[]} */
    this.panes = [];
    /** @type {Pane|null} */
    this.chosen = null;
    this.window = { low: 0, high: 255, inverted: false };
    this.outlined = false;
    this.cursor = [0, 0, 0];
    this.measures = [];
    this.hand = null;
    this.overlays = { labels: [], maps: [], boxes: { on: true, opacity: 1, list: [] } };
    this.layout = "axial";
    this.tools = lookingTools(this);
    this.tool = this.tools.look;
    this.cine = 0;
    this.waiting = 0;
    this.grid = el("div", { class: "panes" });
    host.replaceChildren(this.grid);
  }

  /** The layouts that this image can be shown in. */
  get layouts() {
    if (Object.keys(this.source.planes).length === 1) return Object.keys(this.source.planes);
    return this.source.dims.every((n) => n > 1) ? ["axial", "coronal", "sagittal", "three"] : [this.flat()];
  }

  /** The plane of a volume of one slice. */
  flat() {
    const planes = Object.values(this.source.planes);
    return (planes.find((plane) => plane.depth === 1) ?? planes[0]).name;
  }

  /**
   * Show an image.
   * @param {import("./source.js").Source} source
   */
  open(source) {
    this.stopCine();
    this.source = source;
    this.measures = [];
    this.overlays = { labels: [], maps: [], boxes: { on: true, opacity: 1, list: [] } };
    this.cursor = source.dims.map((n) => Math.floor((n - 1) / 2));
    const first = source.presets[0];
    this.window = { low: first?.low ?? 0, high: first?.high ?? 255, inverted: false };
    this.setLayout(this.layouts.includes(this.layout) ? this.layout : this.layouts[0]);
  }

  /** Put the panes up anew: "axial", "coronal", "sagittal" or "three". */
  setLayout(layout) {
    this.layout = layout;
    for (const pane of this.panes) pane.close();
    const names = layout === "three" ? ["axial", "coronal", "sagittal"] : [layout];
    this.panes = names.map((name) => new Pane(this, this.source.planes[name]));
    this.grid.className = `panes ${layout === "three" ? "three" : "one"}`;
    this.grid.replaceChildren(...this.panes.map((pane) => pane.node));
    this.chosen = this.panes[0];
    this.setCursor(this.cursor);
    this.setTool(this.tool.name, this.tool);
  }

  /** Show the slices through a voxel in every plane. */
  setCursor(voxel) {
    this.cursor = voxel.map((value, axis) => Math.max(0, Math.min(this.source.dims[axis] - 1, value)));
    for (const pane of this.panes) {
      pane.slice = Math.max(0, Math.min(pane.plane.depth - 1, Math.round(fromVoxel(pane.plane, this.cursor).slice)));
    }
    this.told.moved?.(this);
    this.redraw();
  }

  /** A pane shows another slice. */
  moved(pane) {
    this.cursor[pane.plane.through] = pane.plane.throughBack ? pane.plane.depth - 1 - pane.slice : pane.slice;
    this.told.moved?.(this);
    this.redraw();
  }

  /** Go some slices on in the chosen plane; round again where cine runs. */
  step(by, around = false) {
    const pane = this.chosen ?? this.panes[0];
    const next = pane.slice + by;
    pane.goTo(around ? (next + pane.plane.depth) % pane.plane.depth : next);
  }

  /** The slice that is shown in the chosen plane, and how many there are. */
  get position() {
    const pane = this.chosen ?? this.panes[0];
    return pane ? { slice: pane.slice, depth: pane.plane.depth } : { slice: 0, depth: 1 };
  }

  setWindow(low, high) {
    this.window = { ...this.window, low, high };
    this.told.windowed?.();
    this.redraw();
  }

  invert() {
    this.window = { ...this.window, inverted: !this.window.inverted };
    this.redraw();
  }

  windowText() {
    if (this.source.volume.coloured) return "";
    const { low, high } = this.window;
    const digits = high - low < 10 ? 2 : 0;
    return t("viewer.window-text", { c: ((low + high) / 2).toFixed(digits), w: (high - low).toFixed(digits) });
  }

  setTool(name, tool = this.tools[name]) {
    this.tool = tool;
    for (const pane of this.panes) pane.canvas.dataset.cursor = tool.cursor;
    this.redraw();
  }

  reset() {
    for (const pane of this.panes) pane.reset();
    const first = this.source.presets[0];
    if (first) this.setWindow(first.low, first.high);
    this.window.inverted = false;
  }

  /** Run through the slices. */
  startCine(perSecond) {
    this.stopCine();
    this.cine = window.setInterval(() => this.step(1, true), 1000 / perSecond);
  }

  stopCine() {
    clearInterval(this.cine);
    this.cine = 0;
  }

  /** Colours of a group of structures, little-endian RGBA by value; null where none is on. */
  coloursOf(group) {
    const colours = new Uint32Array(256);
    let any = false;
    for (const one of group.structures) {
      if (!one.on || one.opacity <= 0) continue;
      colours[one.value] = rgba(one.colour, this.outlined ? Math.max(one.opacity, 0.8) : one.opacity);
      any = true;
    }
    return any ? colours : null;
  }

  /** Length of a measured line: mm, or pixels where a pixel has no size. */
  lengthOf(one) {
    return distance(this.source.spacing, one.from, one.to);
  }

  lengthText(one) {
    return `${this.lengthOf(one).toFixed(1)} ${this.source.measured ? "mm" : "px"}`;
  }

  drawMeasures(pane) {
    drawMeasures(this, pane);
  }

  /** The pointer is over a voxel, or has left. */
  pointed(pane, event) {
    if (!this.told.pointed) return;
    if (!pane) {
      this.told.pointed("");
      return;
    }
    const value = this.source.value(pane.toVoxel(event));
    const whole = this.source.presets.at(-1);
    const digits = whole && whole.high - whole.low < 10 ? 3 : 0;
    this.told.pointed(value === null ? "" : `${value.toFixed(digits)} ${this.source.unit}`.trim());
  }

  onKey(pane, event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (this.tool.key?.(pane, event)) {
      event.preventDefault();
      event.stopPropagation();
      return;
    }
    const actions = {
      ArrowUp: () => pane.goTo(pane.slice - 1),
      ArrowDown: () => pane.goTo(pane.slice + 1),
      PageUp: () => pane.goTo(pane.slice - 10),
      PageDown: () => pane.goTo(pane.slice + 10),
      Home: () => pane.goTo(0),
      End: () => pane.goTo(pane.plane.depth - 1),
    };
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    event.stopPropagation();
    action();
  }

  /** Draw soon, once for all changes of this moment. */
  redraw() {
    if (this.waiting || !this.source) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      for (const pane of this.panes) pane.draw();
    });
  }

  /** Set what lies over the image; {@link import("./overlays.js")} makes it. */
  setOverlays(overlays) {
    this.overlays = overlays;
    this.redraw();
  }

  /** Let go of everything. */
  close() {
    this.stopCine();
    cancelAnimationFrame(this.waiting);
    for (const pane of this.panes) pane.close();
    this.panes = [];
    this.host.replaceChildren();
  }
}
