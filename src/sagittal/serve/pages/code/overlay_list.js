// The list of what lies over the image: each with a switch and how strongly it is shown.

import { el, svg } from "./dom.js";
import { percent } from "./format.js";
import { t } from "./text.js";

/**
 * The list for what is on the stage.
 * @param {any} stage
 * @returns {HTMLElement|null} null where nothing lies over the image
 */
export function overlayList(stage) {
  const { overlays, viewer } = stage;
  const structures = overlays.labels.flatMap((group) => group.structures.map((one) => ({ one, exact: group.exact })));
  const boxes = overlays.boxes.list;
  if (!viewer || (!structures.length && !overlays.maps.length && !boxes.length)) return null;
  const changed = () => {
    stage.hidden = null;
    viewer.setOverlays(overlays);
  };
  return el(
    "div",
    {},
    ...structures.map(({ one }, n) => line(`mask-${n}`, one.name, one, one.colour, changed)),
    structures.length > 0 && viewer.name === "canvas" && outlineSwitch(viewer, changed),
    structures.some(({ exact }) => !exact) && el("p", { class: "caution small" }, t("study.other-grid")),
    ...overlays.maps.map((map, n) => line(`map-${n}`, t("study.map", { name: map.name }), map, [240, 150, 40], changed)),
    overlays.maps.length > 0 && el("p", { class: "small muted" }, t("study.map-hint")),
    boxes.length > 0 && line("boxes", t("study.boxes", { n: boxes.filter((box) => !box.weak).length }), overlays.boxes, null, changed),
    boxes.length > 0 && boxList(boxes, stage, changed),
  );
}

function line(id, name, one, colour, changed) {
  const onSwitch = (event) => {
    one.on = event.target.checked;
    changed();
  };
  const onFade = (event) => {
    one.opacity = Number(event.target.value) / 100;
    if (one.opacity > 0 && !one.on) {
      one.on = true;
      /** @type {any} */ (document.getElementById(`on-${id}`)).checked = true;
    }
    changed();
  };
  return el(
    "div",
    { class: "overlay" },
    el("input", { type: "checkbox", id: `on-${id}`, checked: one.on, on: { change: onSwitch } }),
    colour ? swatch(colour) : el("span"),
    el("label", { for: `on-${id}` }, name),
    el("input", {
      type: "range", id: `fade-${id}`, min: 0, max: 100, value: Math.round(one.opacity * 100),
      "aria-label": t("study.opacity-of", { name }), on: { input: onFade },
    }),
  );
}

function swatch(colour) {
  return svg(
    "svg",
    { class: "swatch", viewBox: "0 0 14 14", "aria-hidden": "true" },
    svg("rect", { width: 14, height: 14, rx: 2, fill: `rgb(${colour.map(Number).join(" ")})` }),
  );
}

function outlineSwitch(viewer, changed) {
  const onChange = (event) => {
    viewer.outlined = event.target.checked;
    changed();
  };
  return el("label", { class: "small" }, el("input", { type: "checkbox", id: "outlined", checked: viewer.outlined, on: { change: onChange } }), t("study.outlines"));
}

/** The boxes that the model stands by; its weaker ones are there for those who ask. */
function boxList(boxes, stage, changed) {
  const rows = boxes.map((box, n) => ({ box, row: boxRow(box, n, stage, changed) }));
  const weak = rows.filter(({ box }) => box.weak);
  return el(
    "div",
    {},
    el("ul", { class: "boxes" }, ...rows.filter(({ box }) => !box.weak).map(({ row }) => row)),
    weak.length > 0 && el("details", {}, el("summary", { class: "muted" }, t("study.weaker", { n: weak.length })), el("ul", { class: "boxes" }, ...weak.map(({ row }) => row))),
  );
}

/** A box: where it is, how sure; a click goes there. */
function boxRow(box, n, stage, changed) {
  const show = (event) => {
    box.hidden = !event.target.checked;
    changed();
  };
  const go = () => {
    box.hidden = false;
    stage.viewer.setCursor(box.low.map((low, axis) => (low + box.high[axis]) / 2));
    changed();
    /** @type {any} */ (document.getElementById(`on-box-${n}`)).checked = true;
  };
  return el(
    "li",
    {},
    el("input", { type: "checkbox", id: `on-box-${n}`, checked: !box.hidden, "aria-label": t("study.show-box", { n: n + 1 }), on: { change: show } }),
    swatch(box.colour),
    el("button", { type: "button", id: `go-box-${n}`, on: { click: go } }, box.label, el("span", { class: "number muted" }, percent(box.score))),
  );
}
