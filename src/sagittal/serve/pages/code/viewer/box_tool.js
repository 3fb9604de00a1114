// Boxes put right by hand: drawn, moved, made larger or smaller, taken away.

import { toVoxel } from "./planes.js";
import { withCaption } from "./overlays.js";

const GRIP = 9; // pixels of the screen around an edge that take hold of it

/** Draws and moves boxes; corners lie on the outer sides of voxels. */
export class BoxTool {
  /**
   * @param {import("./canvas_viewer.js").CanvasViewer} viewer
   * @param {() => void} changed
   */
  constructor(viewer, changed) {
    this.viewer = viewer;
    this.changed = changed;
    this.name = "box";
    this.cursor = "crosshair";
    this.label = "";
    this.colour = [86, 180, 233];
    /** @type {any} what is held: a box, and which of its sides */
    this.grip = null;
    /** @type {string[]} */
    this.past = [];
  }

  get list() {
    return this.viewer.overlays.boxes.list;
  }

  get chosen() {
    return this.list.find((box) => box.chosen) ?? null;
  }

  /** Choose a box, or none. */
  choose(box) {
    for (const one of this.list) one.chosen = one === box;
    this.changed();
    this.viewer.redraw();
  }

  /** Remember how the boxes are before they change. */
  remember() {
    this.past.push(JSON.stringify(this.list));
    if (this.past.length > 100) this.past.shift();
  }

  /** Take the last change back; gives whether there was one. */
  undo() {
    const before = this.past.pop();
    if (!before) return false;
    this.list.splice(0, this.list.length, ...JSON.parse(before));
    this.changed();
    this.viewer.redraw();
    return true;
  }

  /** Take the chosen box away. */
  remove() {
    if (!this.chosen) return;
    this.remember();
    this.list.splice(this.list.indexOf(this.chosen), 1);
    this.changed();
    this.viewer.redraw();
  }

  down(pane, event) {
    const found = this.find(pane, event);
    this.remember();
    if (found) {
      this.choose(found.box);
      this.grip = { ...found, start: pane.toVoxel(event), low: [...found.box.low], high: [...found.box.high] };
      return;
    }
    const at = pane.toVoxel(event);
    const { across, down, through } = pane.plane;
    const low = at.map(edge);
    const high = [...low];
    // Of the axis that is not seen: as deep as the box will be wide, seen to when it is done.
    low[through] = Math.round(at[through]) - 0.5;
    high[through] = low[through] + 1;
    const box = withCaption({ label: this.label, score: null, low, high, colour: this.colour, caption: "" });
    this.list.push(box);
    this.choose(box);
    this.grip = { box, fresh: true, sides: [across, down], start: at, low: [...low], high: [...high] };
  }

  move(pane, event) {
    const { grip } = this;
    if (!grip) return;
    const at = pane.toVoxel(event);
    if (grip.fresh) {
      for (const axis of grip.sides) {
        grip.box.low[axis] = edge(Math.min(at[axis], grip.start[axis]));
        grip.box.high[axis] = Math.max(grip.box.low[axis] + 1, edge(Math.max(at[axis], grip.start[axis])));
      }
    } else if (grip.edges.length) {
      for (const { axis, side } of grip.edges) {
        if (side === "low") grip.box.low[axis] = Math.min(edge(at[axis]), grip.high[axis] - 1);
        else grip.box.high[axis] = Math.max(edge(at[axis]), grip.low[axis] + 1);
      }
    } else {
      for (const axis of [pane.plane.across, pane.plane.down]) this.shift(grip, axis, Math.round(at[axis] - grip.start[axis]));
    }
    this.limit(grip.box);
    this.viewer.redraw();
  }

  shift(grip, axis, by) {
    const size = this.viewer.source.dims[axis];
    const kept = Math.max(-0.5 - grip.low[axis], Math.min(size - 0.5 - grip.high[axis], by));
    grip.box.low[axis] = grip.low[axis] + kept;
    grip.box.high[axis] = grip.high[axis] + kept;
  }

  up(pane) {
    const { grip } = this;
    this.grip = null;
    if (!grip) return;
    if (grip.fresh) {
      const { across, down, through, mmAcross, mmDown, mmThrough, depth } = pane.plane;
      const wide = grip.box.high[across] - grip.box.low[across];
      const high = grip.box.high[down] - grip.box.low[down];
      if (wide < 2 && high < 2) {
        this.list.splice(this.list.indexOf(grip.box), 1); // a click, not a box
        this.past.pop();
      } else if (depth > 1) {
        const deep = Math.max(1, Math.round((wide * mmAcross + high * mmDown) / 2 / mmThrough));
        grip.box.low[through] = Math.round((grip.box.low[through] + grip.box.high[through]) / 2 - deep / 2) - 0.5;
        grip.box.high[through] = grip.box.low[through] + deep;
        this.limit(grip.box);
      }
    }
    this.changed();
    this.viewer.redraw();
  }

  cancel() {
    this.grip = null;
    this.undo();
  }

  /** The box under the pointer, with those of its sides that are close enough to take hold of. */
  find(pane, event) {
    const { x, y } = pane.toPlane(event);
    const at = pane.place();
    const ratio = window.devicePixelRatio || 1;
    const [gx, gy] = [(GRIP * ratio) / at.across, (GRIP * ratio) / at.down];
    const order = this.list.filter((box) => !box.hidden).sort((a, b) => Number(Boolean(b.chosen)) - Number(Boolean(a.chosen)));
    for (const box of order) {
      const seen = pane.outline(box);
      if (!seen || x < seen.left - gx || x > seen.right + gx || y < seen.top - gy || y > seen.bottom + gy) continue;
      const { plane } = pane;
      const edges = [];
      const side = (back, first) => (back === first ? "high" : "low");
      if (Math.abs(x - seen.left) <= gx) edges.push({ axis: plane.across, side: side(plane.acrossBack, true) });
      else if (Math.abs(x - seen.right) <= gx) edges.push({ axis: plane.across, side: side(plane.acrossBack, false) });
      if (Math.abs(y - seen.top) <= gy) edges.push({ axis: plane.down, side: side(plane.downBack, true) });
      else if (Math.abs(y - seen.bottom) <= gy) edges.push({ axis: plane.down, side: side(plane.downBack, false) });
      return { box, edges };
    }
    return null;
  }

  limit(box) {
    this.viewer.source.dims.forEach((size, axis) => {
      box.low[axis] = Math.max(-0.5, Math.min(size - 1.5, box.low[axis]));
      box.high[axis] = Math.max(box.low[axis] + 1, Math.min(size - 0.5, box.high[axis]));
    });
  }

  /** Arrows move the chosen box, with Shift its far sides; Insert makes one, Delete takes it away. */
  key(pane, event) {
    if (event.key === "Insert" || event.key === "Enter") {
      this.add(pane);
      return true;
    }
    if (event.key === "Delete" || event.key === "Backspace") {
      this.remove();
      return true;
    }
    const { plane } = pane;
    const [axis, way] =
      {
        ArrowLeft: [plane.across, plane.acrossBack ? 1 : -1],
        ArrowRight: [plane.across, plane.acrossBack ? -1 : 1],
        ArrowUp: [plane.down, plane.downBack ? 1 : -1],
        ArrowDown: [plane.down, plane.downBack ? -1 : 1],
      }[event.key] ?? [];
    if (axis === undefined || !this.chosen) return false;
    this.remember();
    const box = this.chosen;
    if (event.shiftKey) {
      const back = axis === plane.across ? plane.acrossBack : plane.downBack;
      if (back) box.low[axis] = Math.min(box.high[axis] - 1, box.low[axis] + way);
      else box.high[axis] = Math.max(box.low[axis] + 1, box.high[axis] + way);
    } else {
      this.shift({ box, low: [...box.low], high: [...box.high] }, axis, way);
    }
    this.limit(box);
    this.changed();
    this.viewer.redraw();
    return true;
  }

  /** A new box in the middle of what is shown. */
  add(pane) {
    this.remember();
    const { plane } = pane;
    const middle = toVoxel(plane, plane.width / 2, plane.height / 2, pane.slice);
    const half = [0, 1, 2].map((axis) => Math.max(0, Math.round(10 / this.viewer.source.spacing[axis])));
    const box = withCaption({
      label: this.label,
      score: null,
      low: middle.map((value, axis) => Math.round(value) - half[axis] - 0.5),
      high: middle.map((value, axis) => Math.round(value) + half[axis] + 0.5),
      colour: this.colour,
      caption: "",
    });
    this.limit(box);
    this.list.push(box);
    this.choose(box);
  }
}

/** The side of a voxel that is nearest to a place. */
function edge(value) {
  return Math.round(value + 0.5) - 0.5;
}
