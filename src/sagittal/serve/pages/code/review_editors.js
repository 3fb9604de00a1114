// Putting a result right: another class, boxes, or the brush.

import { el } from "./dom.js";
import { t } from "./text.js";
import { BoxTool } from "./viewer/box_tool.js";
import { Brush } from "./viewer/brush.js";
import { base64, packMask } from "./viewer/nifti.js";
import { COLOURS } from "./viewer/overlays.js";
import { tell } from "./page.js";

/**
 * @typedef {object} Editor
 * @property {HTMLElement} node
 * @property {() => boolean} changed
 * @property {() => Promise<any>} read the correction; null where it cannot be sent, which was told
 * @property {() => void} [undo]
 * @property {(saved: boolean) => void} close
 */

/**
 * The editor that fits what a result found.
 * @param {any} result
 * @param {any} stage
 * @returns {Promise<Editor>}
 */
export async function makeEditor(result, stage) {
  const kind = kindOf(result);
  if (kind === "classes") return classEditor(result);
  await stage.loaded;
  if (!stage.viewer || !stage.source) throw new Error(t("review.no-image"));
  if (kind === "boxes") return boxEditor(result, stage);
  if (!stage.overlays.labels.length) throw new Error(t("review.no-mask"));
  return maskEditor(result, stage);
}

/** What a result found: classes, a mask or boxes. */
function kindOf(result) {
  const said = result.finding?.kind;
  if (["classes", "mask", "boxes"].includes(said)) return said;
  if (result.masks?.length) return "mask";
  return result.boxes?.length ? "boxes" : "classes";
}

/** Another class, or others where several can hold at once. */
function classEditor(result) {
  const names = (result.finding?.classes ?? []).map((one) => one.name);
  const held = new Set(result.finding?.decision ?? []);
  // Of classes that exclude each other the probabilities make one.
  const sum = (result.finding?.classes ?? []).reduce((all, one) => all + (one.probability ?? 0), 0);
  const several = names.length > 0 && (held.size > 1 || Math.abs(sum - 1) > 0.02);
  const choices = names.map((name) =>
    el("input", { type: several ? "checkbox" : "radio", name: "class", value: name, checked: held.has(name) }),
  );
  const free = el("input", { type: "text", maxlength: 200, "aria-label": t("review.class"), placeholder: t("review.class") });
  const list = el(
    "fieldset",
    { class: "class-choice" },
    el("legend", {}, t(several ? "review.which-classes" : "review.which-class")),
    ...(names.length ? names.map((name, n) => el("label", { class: "choice wraps" }, choices[n], name)) : [free]),
  );
  let touched = false;
  list.addEventListener("change", () => {
    touched = true;
  });
  return {
    node: list,
    changed: () => touched,
    async read() {
      const chosen = names.length ? choices.filter((one) => one.checked).map((one) => one.value) : [free.value.trim()].filter(Boolean);
      if (several) return { classes: chosen };
      if (chosen.length) return { class: chosen[0] };
      tell(t("review.choose-class"), "bad");
      return null;
    },
    close() {},
  };
}

/** Boxes drawn, moved and taken away. */
async function boxEditor(result, stage) {
  const before = JSON.stringify(stage.overlays.boxes.list);
  // Only what the model stands by is corrected: its weaker boxes are no statement.
  stage.overlays.boxes.list = stage.overlays.boxes.list.filter((box) => !box.hidden).map((box) => ({ ...box }));
  stage.overlays.boxes.on = true;
  const first = JSON.stringify(plain(stage.overlays.boxes.list));
  const viewer = await stage.edit();
  const place = el("div");
  const tool = new BoxTool(viewer, () => draw());
  const labels = [...new Set([...(result.boxes ?? []).map((box) => box.label), ...(result.intended_use?.classes ?? [])])];
  tool.label = labels[0] ?? t("review.finding");
  viewer.tools.box = tool;

  const choose = (event) => {
    tool.label = event.target.value;
    tool.colour = COLOURS[Math.max(0, labels.indexOf(tool.label)) % COLOURS.length];
    if (tool.chosen) {
      tool.remember();
      Object.assign(tool.chosen, { label: tool.label, caption: tool.label, score: null, colour: tool.colour });
      draw();
      viewer.redraw();
    }
  };
  function draw() {
    const { list } = viewer.overlays.boxes;
    place.replaceChildren(
      el("p", { class: "small" }, t("review.box-hint")),
      el(
        "div",
        { class: "tools" },
        labels.length > 1
          ? el("select", { "aria-label": t("review.label"), on: { change: choose } }, ...labels.map((one) => el("option", { selected: one === tool.label }, one)))
          : el("span", { class: "muted" }, tool.label),
        el("button", { type: "button", on: { click: () => tool.add(viewer.panes[0]) } }, t("review.add-box")),
        el("button", { type: "button", disabled: !tool.chosen, on: { click: () => tool.remove() } }, t("review.remove-box")),
        el("button", { type: "button", disabled: !tool.past.length, on: { click: () => tool.undo() } }, t("review.undo"), " ", el("kbd", {}, "Z")),
      ),
      el(
        "ul",
        { class: "boxes" },
        ...list.map((box, n) => {
          const go = () => {
            tool.choose(box);
            viewer.setCursor(box.low.map((low, axis) => (low + box.high[axis]) / 2));
            viewer.panes[0].canvas.focus();
          };
          return el("li", {}, el("button", { type: "button", "aria-pressed": String(Boolean(box.chosen)), on: { click: go } }, `${n + 1}. ${box.label}`));
        }),
      ),
    );
  }
  draw();
  stage.setTool("box", tool);
  return {
    node: place,
    changed: () => JSON.stringify(plain(viewer.overlays.boxes.list)) !== first,
    read: async () => ({ boxes: plain(viewer.overlays.boxes.list) }),
    undo: () => tool.undo(),
    close(saved) {
      const list = viewer.overlays.boxes.list;
      for (const box of list) delete box.chosen;
      if (!saved) stage.overlays.boxes.list = JSON.parse(before);
      viewer.setOverlays(stage.overlays);
    },
  };
}

function plain(list) {
  return list.map((box) => ({ label: box.label, corners_voxels: [box.low, box.high] }));
}

/** The brush on a mask. */
async function maskEditor(result, stage) {
  const viewer = await stage.edit();
  const groups = stage.overlays.labels;
  const before = groups.map((group) => group.data.slice());
  let group = groups[0];
  const strokes = new Map();
  const brushOf = (one) => {
    if (!strokes.has(one)) strokes.set(one, new Brush(viewer, one, () => drawUndo()));
    return strokes.get(one);
  };
  let brush = brushOf(group);
  const every = groups.flatMap((one) => one.structures.map((structure) => ({ one, structure })));

  const press = (pressed) => String(Boolean(pressed));
  const paint = el("button", { type: "button", id: "brush", on: { click: () => rub(false) } }, t("review.brush"), " ", el("kbd", {}, "B"));
  const erase = el("button", { type: "button", id: "eraser", on: { click: () => rub(true) } }, t("review.eraser"), " ", el("kbd", {}, "E"));
  const undo = el("button", { type: "button", id: "undo", on: { click: () => brush.undo() } }, t("review.undo"), " ", el("kbd", {}, "Z"));
  const redo = el("button", { type: "button", id: "redo", on: { click: () => brush.redo() } }, t("review.redo"));
  const size = el("input", { type: "range", id: "brush-size", min: 1, max: 40, step: 1, value: brush.size_mm, "aria-label": t("review.brush-size") });
  const said = el("span", { class: "number" });
  const depth = el("input", { type: "checkbox", id: "brush-depth" });
  const choice = el(
    "select",
    { id: "structure", "aria-label": t("review.structure") },
    ...every.map(({ structure }, n) => el("option", { value: n }, structure.name)),
  );

  const rub = (on) => {
    brush.rubbing = on;
    paint.setAttribute("aria-pressed", press(!on));
    erase.setAttribute("aria-pressed", press(on));
    stage.setTool("brush", brush);
  };
  const drawUndo = () => {
    undo.disabled = !brush.past.length;
    redo.disabled = !brush.future.length;
  };
  size.addEventListener("input", () => {
    brush.size_mm = Number(size.value);
    said.textContent = `${size.value} mm`;
    viewer.redraw();
  });
  depth.addEventListener("change", () => {
    brush.depth = depth.checked;
  });
  choice.addEventListener("change", () => {
    const { one, structure } = every[Number(choice.value)];
    const { rubbing, size_mm, depth: deep } = brush;
    group = one;
    brush = brushOf(group);
    Object.assign(brush, { value: structure.value, size_mm, depth: deep });
    structure.on = true;
    rub(rubbing);
    drawUndo();
  });
  const onKey = (event) => {
    if (event.ctrlKey || event.metaKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    const action = { b: () => rub(false), e: () => rub(true), ",": () => resize(-1), ".": () => resize(1) }[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  };
  const resize = (by) => {
    size.value = String(Number(size.value) + by);
    size.dispatchEvent(new Event("input"));
  };
  document.addEventListener("keydown", onKey);
  said.textContent = `${brush.size_mm} mm`;
  rub(false);
  drawUndo();

  const changedGroups = () => groups.filter((one, n) => one.data.some((value, at) => value !== before[n][at]));
  return {
    node: el(
      "div",
      {},
      el("p", { class: "small" }, t("review.brush-hint")),
      el("label", { class: "field" }, el("span", {}, t("review.structure")), choice),
      el("div", { class: "tools" }, paint, erase, undo, redo),
      el("label", { class: "field" }, el("span", {}, t("review.brush-size"), " ", said, " ", el("kbd", {}, ","), el("kbd", {}, ".")), size),
      el("label", {}, depth, t("review.brush-depth")),
    ),
    changed: () => changedGroups().length > 0,
    async read() {
      if (groups.some((one) => !one.exact)) {
        tell(t("review.other-grid"), "bad");
        return null;
      }
      // One label map with each structure's own value; where two overlap, the later in the list is kept.
      const merged = groups.length === 1 ? groups[0].data : mergedOf(groups);
      return { mask: base64(await packMask(merged, stage.source.volume)) };
    },
    undo: () => brush.undo(),
    close(saved) {
      document.removeEventListener("keydown", onKey);
      if (!saved) groups.forEach((one, n) => one.data.set(before[n]));
      viewer.setOverlays(stage.overlays);
    },
  };
}

function mergedOf(groups) {
  const merged = new Uint8Array(groups[0].data.length);
  for (const group of groups) {
    for (let at = 0; at < merged.length; at += 1) if (group.data[at]) merged[at] = group.data[at];
  }
  return merged;
}
