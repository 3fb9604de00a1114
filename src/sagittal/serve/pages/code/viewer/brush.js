// The brush: voxels of a mask put right by hand, each stroke of which can be taken back.

import { fromVoxel, toVoxel } from "./planes.js";

const MOST_UNDO = 100;

/** Paints one structure of a label map, or rubs it out. */
export class Brush {
  /**
   * @param {import("./canvas_viewer.js").CanvasViewer} viewer
   * @param {import("./overlays.js").Labels} labels
   * @param {() => void} changed
   */
  constructor(viewer, labels, changed) {
    this.viewer = viewer;
    this.labels = labels;
    this.changed = changed;
    this.name = "brush";
    this.cursor = "none";
    this.value = labels.structures[0]?.value ?? 1;
    this.rubbing = false;
    this.size_mm = 6;
    this.depth = false; // whether neighbouring slices are painted too
    /** @type {{at: number[], old: number[]}[]} */
    this.past = [];
    this.future = [];
    this.stroke = null;
    this.last = null;
    this.point = null; // where the ring is drawn, in pixels of the plane
  }

  down(pane, event) {
    this.stroke = new Map();
    this.last = null;
    this.paint(pane, event);
  }

  move(pane, event) {
    if (this.stroke) this.paint(pane, event);
  }

  hover(pane, event) {
    this.point = { pane, ...pane.toPlane(event) };
    this.viewer.redraw();
  }

  up() {
    this.keep();
  }

  cancel() {
    this.keep();
    this.undo();
    this.future.pop();
  }

  paint(pane, event) {
    const here = pane.toPlane(event);
    this.point = { pane, ...here };
    const from = this.last ?? here;
    const { mmAcross, mmDown } = pane.plane;
    const far = Math.hypot((here.x - from.x) * mmAcross, (here.y - from.y) * mmDown);
    const steps = Math.max(1, Math.ceil(far / Math.max(this.size_mm / 4, Math.min(mmAcross, mmDown) / 2)));
    for (let n = 1; n <= steps; n += 1) {
      this.dab(pane, from.x + ((here.x - from.x) * n) / steps, from.y + ((here.y - from.y) * n) / steps);
    }
    this.last = here;
    this.viewer.redraw();
  }

  /** One round spot; a ball where neighbouring slices are painted too. */
  dab(pane, x, y) {
    const { plane, slice } = pane;
    const radius = this.size_mm / 2;
    const [rx, ry] = [radius / plane.mmAcross, radius / plane.mmDown];
    const rz = this.depth ? Math.floor(radius / plane.mmThrough) : 0;
    for (let z = -rz; z <= rz; z += 1) {
      if (slice + z < 0 || slice + z >= plane.depth) continue;
      const room = radius * radius - (z * plane.mmThrough) ** 2;
      for (let py = Math.max(0, Math.floor(y - ry)); py <= Math.min(plane.height - 1, Math.floor(y + ry)); py += 1) {
        for (let px = Math.max(0, Math.floor(x - rx)); px <= Math.min(plane.width - 1, Math.floor(x + rx)); px += 1) {
          const dx = (px + 0.5 - x) * plane.mmAcross;
          const dy = (py + 0.5 - y) * plane.mmDown;
          const middle = px === Math.floor(x) && py === Math.floor(y) && z === 0; // the smallest brush paints one voxel
          if (dx * dx + dy * dy <= room || middle) this.set(toVoxel(plane, px + 0.5, py + 0.5, slice + z));
        }
      }
    }
  }

  set([i, j, k]) {
    const [ni, nj] = this.viewer.source.dims;
    const at = i + ni * (j + nj * k);
    const old = this.labels.data[at];
    const next = this.rubbing ? (old === this.value ? 0 : old) : this.value;
    if (old === next) return;
    if (!this.stroke.has(at)) this.stroke.set(at, old);
    this.labels.data[at] = next;
  }

  keep() {
    if (this.stroke?.size) {
      this.past.push({ at: [...this.stroke.keys()], old: [...this.stroke.values()] });
      if (this.past.length > MOST_UNDO) this.past.shift();
      this.future = [];
    }
    this.stroke = null;
    this.last = null;
    this.changed();
  }

  /** Take the last stroke back; gives whether there was one. */
  undo() {
    return this.turn(this.past, this.future);
  }

  /** Do again what was taken back. */
  redo() {
    return this.turn(this.future, this.past);
  }

  turn(from, to) {
    const stroke = from.pop();
    if (!stroke) return false;
    to.push({ at: stroke.at, old: stroke.at.map((at) => this.labels.data[at]) });
    stroke.at.forEach((at, n) => {
      this.labels.data[at] = stroke.old[n];
    });
    this.changed();
    this.viewer.redraw();
    return true;
  }

  /** Arrows move the brush, the space bar paints: no mouse is needed. */
  key(pane, event) {
    if (event.key === " ") {
      this.begin(pane);
      this.stroke = new Map();
      this.dab(pane, this.point.x, this.point.y);
      this.keep();
      this.viewer.redraw();
      return true;
    }
    const step = event.shiftKey ? 5 : 1;
    const [dx, dy] = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key] ?? [0, 0];
    if (!dx && !dy) return false;
    this.begin(pane);
    this.point.x = Math.max(0.5, Math.min(pane.plane.width - 0.5, this.point.x + dx));
    this.point.y = Math.max(0.5, Math.min(pane.plane.height - 0.5, this.point.y + dy));
    this.viewer.redraw();
    return true;
  }

  begin(pane) {
    if (this.point?.pane === pane) return;
    const { x, y } = fromVoxel(pane.plane, this.viewer.cursor);
    this.point = { pane, x, y };
  }

  /** The ring that shows how large the brush is. */
  draw(pane) {
    if (this.point?.pane !== pane) return;
    const at = pane.place();
    const [x, y] = pane.toScreen(this.point.x, this.point.y);
    const { ink, plane } = pane;
    const [rx, ry] = [plane.mmAcross, plane.mmDown].map((mm, n) => (this.size_mm / 2 / mm) * [at.across, at.down][n]);
    for (const [colour, width] of [["#000", 3], [this.rubbing ? "#f2958a" : "#ffffff", 1.5]]) {
      ink.strokeStyle = String(colour);
      ink.lineWidth = Number(width) * (window.devicePixelRatio || 1);
      ink.beginPath();
      ink.ellipse(x, y, Math.max(3, rx), Math.max(3, ry), 0, 0, 2 * Math.PI);
      ink.stroke();
    }
  }
}
