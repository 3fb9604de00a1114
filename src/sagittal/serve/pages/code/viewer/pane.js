// One plane on the screen: where its pixels lie, what lies over them, and the hands of the reader.

import { el } from "../dom.js";
import { t } from "../text.js";
import { paintHeat, paintLabels } from "./paint.js";
import { fromVoxel, toVoxel } from "./planes.js";

/** One plane of an image. */
export class Pane {
  /**
   * @param {import("./canvas_viewer.js").CanvasViewer} viewer
   * @param {import("./planes.js").Plane} plane
   */
  constructor(viewer, plane) {
    this.viewer = viewer;
    this.plane = plane;
    this.slice = Math.floor((plane.depth - 1) / 2);
    this.zoom = 1;
    this.pan = [0, 0];
    this.canvas = /** @type {HTMLCanvasElement} */ (
      el("canvas", { tabindex: 0, role: "img", "data-plane": plane.name, "aria-label": t(`plane.${plane.name}`) })
    );
    this.corner = el("div", { class: "corner top-left number" });
    this.below = el("div", { class: "corner bottom-left number" });
    const letters = plane.letters.map((letter, n) => el("div", { class: `letter l${n}` }, letter));
    this.node = el("div", { class: `pane pane-${plane.name}` }, this.canvas, this.corner, this.below, ...letters);
    this.ink = /** @type {CanvasRenderingContext2D} */ (this.canvas.getContext("2d"));
    this.layer = new OffscreenCanvas(1, 1);
    this.sized = new ResizeObserver(() => this.resize());
    this.sized.observe(this.node);
    /** @type {Map<number, [number, number]>} */
    this.fingers = new Map();
    this.listen();
  }

  /** Let go of what watches the page. */
  close() {
    this.sized.disconnect();
    this.node.remove();
  }

  resize() {
    const { clientWidth, clientHeight } = this.node;
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.max(1, Math.round(clientWidth * ratio));
    this.canvas.height = Math.max(1, Math.round(clientHeight * ratio));
    this.viewer.redraw();
  }

  /** Pixels of the screen a pixel of the plane, across and down, and where its corner lies. */
  place() {
    const { plane, canvas } = this;
    const perMm = Math.min(canvas.width / (plane.width * plane.mmAcross), canvas.height / (plane.height * plane.mmDown));
    const across = perMm * plane.mmAcross * this.zoom;
    const down = perMm * plane.mmDown * this.zoom;
    return {
      across,
      down,
      left: (canvas.width - plane.width * across) / 2 + this.pan[0],
      top: (canvas.height - plane.height * down) / 2 + this.pan[1],
    };
  }

  /** A point of the plane on the canvas. */
  toScreen(x, y) {
    const at = this.place();
    return [at.left + x * at.across, at.top + y * at.down];
  }

  /** The point of the plane under the pointer. */
  toPlane(event) {
    const box = this.canvas.getBoundingClientRect();
    const ratio = this.canvas.width / Math.max(1, box.width);
    const at = this.place();
    return {
      x: ((event.clientX - box.left) * ratio - at.left) / at.across,
      y: ((event.clientY - box.top) * ratio - at.top) / at.down,
    };
  }

  /** The voxel under the pointer. */
  toVoxel(event) {
    const { x, y } = this.toPlane(event);
    return toVoxel(this.plane, x, y, this.slice);
  }

  /** Show another slice; gives whether there was one. */
  goTo(slice) {
    const next = Math.max(0, Math.min(this.plane.depth - 1, Math.round(slice)));
    const moved = next !== this.slice;
    this.slice = next;
    if (moved) this.viewer.moved(this);
    return moved;
  }

  /** Make the image larger around a point of the canvas. */
  zoomBy(factor, x = this.canvas.width / 2, y = this.canvas.height / 2) {
    const before = this.place();
    const px = (x - before.left) / before.across;
    const py = (y - before.top) / before.down;
    this.zoom = Math.max(0.5, Math.min(20, this.zoom * factor));
    const after = this.place();
    this.pan[0] += x - (after.left + px * after.across);
    this.pan[1] += y - (after.top + py * after.down);
    this.viewer.redraw();
  }

  reset() {
    this.zoom = 1;
    this.pan = [0, 0];
    this.viewer.redraw();
  }

  draw() {
    const { ink, canvas, plane, viewer } = this;
    ink.setTransform(1, 0, 0, 1, 0, 0);
    ink.fillStyle = "#000";
    ink.fillRect(0, 0, canvas.width, canvas.height);
    const at = this.place();
    const image = viewer.source.image(plane, this.slice, viewer.window);
    ink.imageSmoothingEnabled = viewer.tool.name !== "brush"; // who paints voxels must see them
    ink.imageSmoothingQuality = "high";
    ink.drawImage(image, at.left, at.top, plane.width * at.across, plane.height * at.down);
    for (const map of viewer.overlays.maps) {
      if (map.on) this.cover(paintHeat(map.data, viewer.source.dims, plane, this.slice, map.low, map.high), at, map.opacity, true);
    }
    for (const group of viewer.overlays.labels) {
      const colours = viewer.coloursOf(group);
      if (colours) {
        this.cover(paintLabels(group.data, viewer.source.dims, plane, this.slice, colours, viewer.outlined), at, 1, false);
      }
    }
    this.drawBoxes();
    viewer.drawMeasures(this);
    viewer.tool.draw?.(this);
    if (viewer.panes.length > 1) this.drawCross();
    this.say();
  }

  cover(pixels, at, opacity, smooth) {
    const { layer, ink, plane } = this;
    layer.width = pixels.width;
    layer.height = pixels.height;
    /** @type {OffscreenCanvasRenderingContext2D} */ (layer.getContext("2d")).putImageData(pixels, 0, 0);
    ink.globalAlpha = opacity;
    ink.imageSmoothingEnabled = smooth;
    ink.drawImage(layer, at.left, at.top, plane.width * at.across, plane.height * at.down);
    ink.globalAlpha = 1;
  }

  /** The rectangle of a box in this slice, in pixels of the plane; null where it does not reach here. */
  outline(box) {
    const { plane } = this;
    const low = fromVoxel(plane, box.low);
    const high = fromVoxel(plane, box.high);
    const [near, far] = [Math.min(low.slice, high.slice), Math.max(low.slice, high.slice)];
    if (this.slice < near || this.slice > far) return null;
    return {
      left: Math.min(low.x, high.x), right: Math.max(low.x, high.x),
      top: Math.min(low.y, high.y), bottom: Math.max(low.y, high.y),
    };
  }

  drawBoxes() {
    const { ink, viewer } = this;
    const { boxes } = viewer.overlays;
    if (!boxes.on) return;
    const ratio = window.devicePixelRatio || 1;
    for (const box of boxes.list) {
      if (box.hidden) continue;
      const seen = this.outline(box);
      if (!seen) continue;
      const [x, y] = this.toScreen(seen.left, seen.top);
      const [right, bottom] = this.toScreen(seen.right, seen.bottom);
      ink.globalAlpha = boxes.opacity;
      ink.lineWidth = (box.chosen ? 3 : 2) * ratio;
      ink.strokeStyle = `rgb(${box.colour.join(" ")})`;
      ink.strokeRect(x, y, right - x, bottom - y);
      ink.font = `${12 * ratio}px system-ui, sans-serif`;
      ink.textBaseline = "bottom";
      const width = ink.measureText(box.caption).width;
      ink.fillStyle = "rgb(0 0 0 / 70%)";
      ink.fillRect(x, y - 16 * ratio, width + 8 * ratio, 16 * ratio);
      ink.fillStyle = `rgb(${box.colour.join(" ")})`;
      ink.fillText(box.caption, x + 4 * ratio, y - 2 * ratio);
      ink.globalAlpha = 1;
    }
  }

  drawCross() {
    const { ink, canvas } = this;
    const { x, y } = fromVoxel(this.plane, this.viewer.cursor);
    const [sx, sy] = this.toScreen(x, y);
    const gap = 14 * (window.devicePixelRatio || 1);
    ink.strokeStyle = "rgb(122 184 239 / 55%)";
    ink.lineWidth = 1;
    ink.beginPath();
    for (const [fromX, fromY, toX, toY] of [
      [0, sy, sx - gap, sy], [sx + gap, sy, canvas.width, sy], [sx, 0, sx, sy - gap], [sx, sy + gap, sx, canvas.height],
    ]) {
      ink.moveTo(fromX, fromY);
      ink.lineTo(toX, toY);
    }
    ink.stroke();
  }

  say() {
    const n = t("viewer.slice", { n: this.slice + 1, of: this.plane.depth });
    if (this.corner.textContent !== n) {
      this.corner.textContent = n;
      this.canvas.setAttribute("aria-label", `${t(`plane.${this.plane.name}`)}, ${n}`);
    }
    const text = this.viewer.windowText();
    if (this.below.textContent !== text) this.below.textContent = text;
  }

  listen() {
    const { canvas, viewer } = this;
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      viewer.chosen = this;
      if (event.ctrlKey) {
        const box = canvas.getBoundingClientRect();
        const ratio = canvas.width / Math.max(1, box.width);
        this.zoomBy(event.deltaY < 0 ? 1.15 : 1 / 1.15, (event.clientX - box.left) * ratio, (event.clientY - box.top) * ratio);
      } else {
        this.goTo(this.slice + (event.deltaY > 0 ? 1 : -1));
      }
    }, { passive: false });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("focus", () => {
      viewer.chosen = this;
    });
    canvas.addEventListener("keydown", (event) => viewer.onKey(this, event));
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => this.up(event));
    canvas.addEventListener("pointerleave", () => viewer.pointed(null, null));
  }

  down(event) {
    const { viewer } = this;
    viewer.chosen = this;
    this.canvas.focus({ preventScroll: true });
    this.canvas.setPointerCapture(event.pointerId);
    if (event.pointerType === "touch") {
      this.fingers.set(event.pointerId, [event.clientX, event.clientY]);
      if (this.fingers.size === 2) {
        viewer.hand?.tool.cancel?.(this);
        viewer.hand = null;
        return;
      }
    }
    const tool = event.button === 2 ? viewer.tools.window : event.button === 1 ? viewer.tools.pan : viewer.tool;
    viewer.hand = { tool, pane: this, x: event.clientX, y: event.clientY };
    tool.down?.(this, event);
  }

  move(event) {
    const { viewer } = this;
    if (this.fingers.has(event.pointerId) && this.fingers.size === 2) {
      this.pinch(event);
      return;
    }
    viewer.pointed(this, event);
    const hand = viewer.hand;
    if (!hand || hand.pane !== this) {
      viewer.tool.hover?.(this, event);
      return;
    }
    hand.tool.move?.(this, event, event.clientX - hand.x, event.clientY - hand.y);
    hand.x = event.clientX;
    hand.y = event.clientY;
  }

  up(event) {
    this.fingers.delete(event.pointerId);
    const hand = this.viewer.hand;
    if (hand?.pane === this) {
      this.viewer.hand = null;
      hand.tool.up?.(this, event);
    }
  }

  /** Two fingers: larger or smaller, and moved. */
  pinch(event) {
    const before = [...this.fingers.values()];
    const old = this.fingers.get(event.pointerId) ?? [event.clientX, event.clientY];
    this.fingers.set(event.pointerId, [event.clientX, event.clientY]);
    const after = [...this.fingers.values()];
    const apart = (/** @type {any} */ [a, b]) => Math.hypot(a[0] - b[0], a[1] - b[1]);
    const box = this.canvas.getBoundingClientRect();
    const ratio = this.canvas.width / Math.max(1, box.width);
    this.pan[0] += ((event.clientX - old[0]) / 2) * ratio;
    this.pan[1] += ((event.clientY - old[1]) / 2) * ratio;
    const middle = [(after[0][0] + after[1][0]) / 2 - box.left, (after[0][1] + after[1][1]) / 2 - box.top];
    this.zoomBy(apart(after) / Math.max(1, apart(before)), middle[0] * ratio, middle[1] * ratio);
  }
}
