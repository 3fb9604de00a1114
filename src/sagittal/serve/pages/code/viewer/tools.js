// What the reader's hand does on an image: look around, window, move, enlarge, measure.

import { fromVoxel } from "./planes.js";

/**
 * @typedef {object} Tool
 * @property {string} name
 * @property {string} cursor
 * @property {(pane: any, event: PointerEvent) => void} [down]
 * @property {(pane: any, event: PointerEvent, dx: number, dy: number) => void} [move]
 * @property {(pane: any, event: PointerEvent) => void} [up]
 * @property {(pane: any, event: PointerEvent) => void} [hover]
 * @property {(pane: any) => void} [cancel]
 * @property {(pane: any, event: KeyboardEvent) => boolean} [key] whether it took the key
 * @property {(pane: any) => void} [draw]
 */

/**
 * The tools of a viewer, by name.
 * @param {import("./canvas_viewer.js").CanvasViewer} viewer
 * @returns {Record<string, Tool>}
 */
export function lookingTools(viewer) {
  let travelled = 0;
  return {
    look: {
      name: "look",
      cursor: "crosshair",
      down(pane, event) {
        travelled = 0;
        if (viewer.panes.length > 1) viewer.setCursor(pane.toVoxel(event));
      },
      move(pane, event, _dx, dy) {
        if (viewer.panes.length > 1) {
          viewer.setCursor(pane.toVoxel(event));
          return;
        }
        // As many slices as the pane is high take one drag; of few slices one each 12 pixels.
        const step = Math.max(2, Math.min(12, pane.node.clientHeight / pane.plane.depth));
        travelled += dy;
        const whole = Math.trunc(travelled / step);
        if (whole) {
          travelled -= whole * step;
          pane.goTo(pane.slice + whole);
        }
      },
    },
    window: {
      name: "window",
      cursor: "ns-resize",
      move(_pane, _event, dx, dy) {
        const { low, high } = viewer.window;
        const width = high - low;
        const step = Math.max(width, 1e-6) / 250;
        const wide = Math.max(width + dx * step * 1.5, (viewer.source.presets.at(-1)?.high ?? 255) * 1e-4, 1e-6);
        const centre = (low + high) / 2 + dy * step;
        viewer.setWindow(centre - wide / 2, centre + wide / 2);
      },
    },
    pan: {
      name: "pan",
      cursor: "grab",
      move(pane, _event, dx, dy) {
        const ratio = pane.canvas.width / Math.max(1, pane.canvas.clientWidth);
        pane.pan[0] += dx * ratio;
        pane.pan[1] += dy * ratio;
        viewer.redraw();
      },
    },
    zoom: {
      name: "zoom",
      cursor: "zoom-in",
      move(pane, _event, _dx, dy) {
        pane.zoomBy(Math.exp(-dy / 150));
      },
    },
    measure: measureTool(viewer),
  };
}

/** A line with its length in mm; the newest can be taken back with Delete. */
function measureTool(viewer) {
  let open = null;
  return {
    name: "measure",
    cursor: "crosshair",
    down(pane, event) {
      const at = pane.toVoxel(event);
      open = { plane: pane.plane.name, from: at, to: at };
      viewer.measures.push(open);
    },
    move(pane, event) {
      if (!open) return;
      open.to = pane.toVoxel(event);
      viewer.redraw();
    },
    up() {
      if (open && viewer.lengthOf(open) < 0.5) viewer.measures.pop();
      open = null;
      viewer.redraw();
    },
    cancel() {
      if (open) viewer.measures.pop();
      open = null;
      viewer.redraw();
    },
    key(_pane, event) {
      if (event.key !== "Delete" && event.key !== "Backspace") return false;
      viewer.measures.pop();
      viewer.redraw();
      return true;
    },
  };
}

/**
 * Draw the lengths that belong to the slice of a pane.
 * @param {any} viewer
 * @param {import("./pane.js").Pane} pane
 */
export function drawMeasures(viewer, pane) {
  const ratio = window.devicePixelRatio || 1;
  const { ink } = pane;
  for (const one of viewer.measures) {
    const from = fromVoxel(pane.plane, one.from);
    const to = fromVoxel(pane.plane, one.to);
    if (one.plane !== pane.plane.name || Math.round(from.slice) !== pane.slice) continue;
    const [x1, y1] = pane.toScreen(from.x, from.y);
    const [x2, y2] = pane.toScreen(to.x, to.y);
    ink.strokeStyle = "#ffd479";
    ink.lineWidth = 1.5 * ratio;
    ink.beginPath();
    ink.moveTo(x1, y1);
    ink.lineTo(x2, y2);
    for (const [x, y] of [[x1, y1], [x2, y2]]) {
      ink.moveTo(x - 4 * ratio, y);
      ink.lineTo(x + 4 * ratio, y);
      ink.moveTo(x, y - 4 * ratio);
      ink.lineTo(x, y + 4 * ratio);
    }
    ink.stroke();
    const text = viewer.lengthText(one);
    ink.font = `${13 * ratio}px system-ui, sans-serif`;
    ink.textBaseline = "middle";
    const width = ink.measureText(text).width;
    ink.fillStyle = "rgb(0 0 0 / 70%)";
    ink.fillRect(x2 + 8 * ratio, y2 - 9 * ratio, width + 8 * ratio, 18 * ratio);
    ink.fillStyle = "#ffd479";
    ink.fillText(text, x2 + 12 * ratio, y2);
  }
}

/**
 * The length between two voxels.
 * @param {number[]} spacing mm
 * @param {number[]} from
 * @param {number[]} to
 */
export function distance(spacing, from, to) {
  return Math.hypot(...from.map((value, axis) => (value - to[axis]) * spacing[axis]));
}

