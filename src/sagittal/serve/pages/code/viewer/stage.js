// The stage: chooses the viewer, loads image and overlays, and holds the buttons around it.

import { byId, el } from "../dom.js";
import { size } from "../format.js";
import { explain } from "../page.js";
import { t } from "../text.js";
import { CanvasViewer } from "./canvas_viewer.js";
import { NiivueViewer, loadNiivue } from "./niivue_viewer.js";
import { decisiveVoxel, loadMaps, loadMasks, makeBoxes, noOverlays } from "./overlays.js";
import { openVolume } from "./source.js";

const TOOLS = ["look", "window", "pan", "zoom", "measure"];
const KEPT = "sagittal.viewer";

/** The images of a study with their tools. */
export class Stage {
  constructor() {
    this.place = byId("stage");
    this.text = byId("stage-text");
    /** @type {any} */
    this.viewer = null;
    /** @type {import("./source.js").Source|null} */
    this.source = null;
    this.overlays = noOverlays();
    this.editing = false;
    this.layout = "";
    this.asked = 0;
    this.loaded = Promise.resolve();
    /** @type {(() => void)|null} called when overlays were switched by key */
    this.changed = null;
    /** @type {[any, boolean][]|null} what was on before all overlays were hidden */
    this.hidden = null;
    this.shownReview = null;
    this.series = null;
    byId("cine").addEventListener("click", () => this.cine());
    byId("scrub").addEventListener("input", (event) => this.scrub(Number(event.target.value)));
    byId("speed").addEventListener("change", () => {
      if (this.viewer?.cine) this.viewer.startCine(this.speed);
    });
  }

  get speed() {
    return Number(byId("speed").value);
  }

  /** Words in place of images. */
  say(text) {
    this.viewer?.close();
    this.viewer = null;
    this.text.textContent = text;
    this.place.replaceChildren(this.text);
  }

  /**
   * Show a series with what a result found in it.
   * @param {any} series
   * @param {any} result
   * @param {any[]} all series of the study
   * @param {(series: any) => void} choose
   * @returns {Promise<void>} resolved once image and overlays are there
   */
  show(series, result, all, choose) {
    this.loaded = this.load(series, result, all, choose);
    return this.loaded;
  }

  async load(series, result, all, choose) {
    const number = ++this.asked;
    this.choose = choose;
    this.all = all;
    const same = this.series?.id === series.id && this.series?.instances === series.instances && this.source;
    this.series = series;
    if (!series.volume) {
      this.source = null;
      this.say(series.problem || t("study.no-images"));
      this.overlays = noOverlays();
      this.drawSeriesOnly();
      return;
    }
    try {
      if (!same) {
        this.say(t("viewer.loading"));
        this.source = null;
        const came = (seen, of) => {
          if (number === this.asked) this.text.textContent = t("viewer.loading-size", { n: size(seen), of: of ? ` / ${size(of)}` : "" });
        };
        const source = await openVolume(`/api/series/${Number(series.id)}/volume.nii.gz`, series.modality, came);
        if (number !== this.asked) return;
        this.source = source;
        await this.openViewer();
      }
      this.overlays = noOverlays();
      this.shownReview = null;
      this.overlays.boxes.list = makeBoxes(result?.boxes ?? []);
      this.viewer.setOverlays(this.overlays);
      this.drawToolbar();
      const [labels, maps] = await Promise.all([
        loadMasks(result?.masks ?? [], this.source),
        loadMaps(result?.maps ?? [], this.source),
      ]);
      if (number !== this.asked) return;
      this.overlays.labels = labels;
      this.overlays.maps = maps;
      this.viewer.setOverlays(this.overlays);
      const voxel = decisiveVoxel(this.overlays, this.source);
      if (voxel) this.viewer.setCursor(voxel);
      else if (!same) this.viewer.setCursor(this.source.dims.map((n) => Math.floor((n - 1) / 2)));
    } catch (error) {
      if (number !== this.asked) return;
      if (this.viewer) throw error; // the image is there; its overlays are not
      this.say(series.problem || explain(error));
      this.drawSeriesOnly();
    }
  }

  /** NiiVue where it is installed and fits the image, else our own viewer; always our own to correct. */
  async openViewer() {
    const told = {
      moved: () => this.moved(),
      pointed: (text) => {
        byId("probe").textContent = text;
      },
      windowed: () => this.windowed(),
    };
    this.viewer?.close();
    this.viewer = null;
    const source = /** @type {import("./source.js").Source} */ (this.source);
    this.canNiivue = source.volume.placed && source.dims.every((n) => n > 1);
    const wanted = this.canNiivue && !this.editing && chosenViewer() !== "canvas";
    const library = wanted ? await loadNiivue() : null;
    this.hasNiivue = this.canNiivue && document.documentElement.dataset.niivue === "yes";
    if (library) {
      const viewer = new NiivueViewer(library, this.place, told);
      try {
        await viewer.start();
        await viewer.open(source);
        this.viewer = viewer;
      } catch {
        viewer.close(); // no WebGL here
      }
    }
    if (!this.viewer) {
      this.viewer = new CanvasViewer(this.place, told);
      this.viewer.layout = this.layout || "axial";
      this.viewer.open(source);
    }
    this.moved();
  }

  /**
   * Lay what a reader corrected over the image instead of what the model found; `null` brings the model's own back.
   * @param {any} review
   * @param {any} result
   */
  async showCorrection(review, result) {
    const source = /** @type {any} */ (this.source);
    const { mask, boxes } = review?.correction ?? {};
    this.overlays.labels = await loadMasks((result.masks ?? []).map((one) => (mask ? { ...one, url: mask.url } : one)), source);
    this.overlays.boxes.list = makeBoxes(boxes ?? result.boxes ?? []);
    this.shownReview = review?.id ?? null;
    this.viewer.setOverlays(this.overlays);
    const voxel = decisiveVoxel(this.overlays, source);
    if (voxel) this.viewer.setCursor(voxel);
  }

  /** Go over to our own viewer with its tools for correcting; the image stays where it is. */
  async edit() {
    const { window } = this.viewer;
    this.editing = true;
    this.shownReview = null;
    if (this.viewer.name !== "canvas") await this.openViewer();
    this.viewer.setWindow(window.low, window.high);
    this.viewer.setOverlays(this.overlays);
    const voxel = decisiveVoxel(this.overlays, /** @type {any} */ (this.source));
    if (voxel) this.viewer.setCursor(voxel);
    this.drawToolbar();
    return this.viewer;
  }

  /** Correcting is over. */
  async editDone() {
    this.editing = false;
    this.viewer?.setTool("look");
    this.drawToolbar();
  }

  drawToolbar() {
    const { viewer, source } = this;
    if (!viewer || !source) return;
    const press = (on) => String(Boolean(on));
    const group = (...children) => el("div", { class: "group" }, ...children);
    const button = (text, pressed, action, attributes = {}) =>
      el("button", { type: "button", "aria-pressed": pressed === null ? null : press(pressed), on: { click: action }, ...attributes }, text);
    const layouts = viewer.layouts;
    const windows = source.presets.map((preset, n) =>
      el("option", { value: n }, `${n < 9 ? `${n + 1}  ` : ""}${t(`window.${preset.key}`)}`),
    );
    byId("toolbar").replaceChildren(
      this.all.length > 1 ? group(this.seriesChoice()) : "",
      group(
        ...TOOLS.map((name) =>
          button(t(`viewer.${name}`), viewer.tool.name === name, () => this.setTool(name), { "data-tool": name }),
        ),
      ),
      windows.length > 1
        ? group(
            el(
              "select",
              { id: "window", "aria-label": t("viewer.window"), on: { change: (event) => this.preset(Number(event.target.value)) } },
              ...windows,
              el("option", { value: -1, hidden: true }, t("window.own")),
            ),
            button(t("viewer.invert"), viewer.window.inverted, () => this.invert(), { id: "invert" }),
          )
        : "",
      layouts.length > 1
        ? group(...layouts.map((name) => button(t(`plane.${name}`), viewer.layout === name, () => this.setLayout(name), { "data-layout": name })))
        : "",
      group(
        button(t("viewer.reset"), null, () => this.reset()),
        this.hasNiivue && !this.editing
          ? button(t("viewer.niivue"), viewer.name === "niivue", () => this.swap(), { id: "swap", title: t("viewer.swap") })
          : "",
      ),
    );
    this.windowed();
  }

  /** Where there is no image, at least another series can be chosen. */
  drawSeriesOnly() {
    byId("toolbar").replaceChildren(this.all.length > 1 ? this.seriesChoice() : "");
  }

  seriesChoice() {
    return el(
      "select",
      {
        id: "series",
        "aria-label": t("study.series"),
        disabled: this.editing,
        on: { change: (event) => this.choose(this.all.find((one) => one.id === Number(event.target.value))) },
      },
      ...this.all.map((one) =>
        el(
          "option",
          { value: one.id, selected: one.id === this.series.id },
          [one.number, one.modality, one.description, `(${one.instances})`].filter((part) => part !== null && part !== "").join(" "),
        ),
      ),
    );
  }

  /** Which preset the window is, if any. */
  windowed() {
    const choice = /** @type {HTMLSelectElement|null} */ (document.getElementById("window"));
    if (!choice || !this.viewer || !this.source) return;
    const { low, high } = this.viewer.window;
    const near = (a, b) => Math.abs(a - b) <= Math.max(1e-6, (high - low) * 0.01);
    const at = this.source.presets.findIndex((preset) => near(preset.low, low) && near(preset.high, high));
    choice.value = String(at);
  }

  moved() {
    const { slice, depth } = this.viewer?.position ?? { slice: 0, depth: 1 };
    const scrub = byId("scrub");
    scrub.max = String(Math.max(0, depth - 1));
    scrub.value = String(slice);
    scrub.setAttribute("aria-valuetext", t("viewer.slice", { n: slice + 1, of: depth }));
    scrub.disabled = depth < 2;
    byId("cine").disabled = depth < 2;
  }

  scrub(slice) {
    const now = this.viewer?.position;
    if (now) this.viewer.step(slice - now.slice);
  }

  setTool(name, tool = undefined) {
    if (tool) this.viewer.setTool(name, tool);
    else this.viewer.setTool(name);
    for (const button of byId("toolbar").querySelectorAll("[data-tool]")) {
      button.setAttribute("aria-pressed", String(button.getAttribute("data-tool") === name));
    }
  }

  setLayout(name) {
    this.layout = name;
    this.viewer.setLayout(name);
    this.viewer.setOverlays(this.overlays);
    for (const button of byId("toolbar").querySelectorAll("[data-layout]")) {
      button.setAttribute("aria-pressed", String(button.getAttribute("data-layout") === name));
    }
    this.moved();
  }

  preset(n) {
    const preset = this.source?.presets[n];
    if (preset) this.viewer.setWindow(preset.low, preset.high);
  }

  invert() {
    this.viewer.invert();
    document.getElementById("invert")?.setAttribute("aria-pressed", String(this.viewer.window.inverted));
  }

  reset() {
    this.viewer.measures = [];
    this.viewer.reset();
    this.viewer.redraw();
  }

  cine() {
    if (!this.viewer) return;
    if (this.viewer.cine) this.viewer.stopCine();
    else this.viewer.startCine(this.speed);
    byId("cine").setAttribute("aria-pressed", String(Boolean(this.viewer.cine)));
  }

  /** The other viewer, where both are there. */
  async swap() {
    keepViewer(this.viewer.name === "niivue" ? "canvas" : "niivue");
    const { window } = this.viewer;
    await this.openViewer();
    this.viewer.setWindow(window.low, window.high);
    this.viewer.setOverlays(this.overlays);
    const voxel = decisiveVoxel(this.overlays, /** @type {any} */ (this.source));
    if (voxel) this.viewer.setCursor(voxel);
    this.drawToolbar();
  }

  /** All overlays off, or as they were. */
  toggleOverlays() {
    const every = [...this.overlays.labels.flatMap((group) => group.structures), ...this.overlays.maps, this.overlays.boxes];
    if (this.hidden) {
      for (const [one, on] of this.hidden) one.on = on;
      this.hidden = null;
    } else {
      this.hidden = every.map((one) => [one, one.on]);
      for (const one of every) one.on = false;
    }
    this.viewer.setOverlays(this.overlays);
    this.changed?.();
  }

  /** Keys that hold anywhere on the page; gives whether one was taken. */
  onKey(event) {
    const { viewer } = this;
    if (!viewer || !this.source) return false;
    const { key } = event;
    if (/^[1-9]$/.test(key) && this.source.presets[Number(key) - 1]) {
      this.preset(Number(key) - 1);
      return true;
    }
    const next = (list, now) => list[(list.indexOf(now) + 1) % list.length];
    const actions = {
      " ": () => this.cine(),
      "0": () => this.reset(),
      i: () => this.invert(),
      m: () => this.setTool("measure"),
      v: () => this.setTool(next(TOOLS, viewer.tool.name)),
      o: () => this.toggleOverlays(),
      l: () => this.setLayout(next(viewer.layouts, viewer.layout)),
      "+": () => this.zoom(1.25),
      "=": () => this.zoom(1.25),
      "-": () => this.zoom(0.8),
      ArrowUp: () => viewer.step(-1),
      ArrowDown: () => viewer.step(1),
      PageUp: () => viewer.step(-10),
      PageDown: () => viewer.step(10),
    };
    const action = actions[key.length === 1 ? key.toLowerCase() : key];
    if (!action) return false;
    action();
    return true;
  }

  zoom(factor) {
    if (this.viewer.zoomBy) this.viewer.zoomBy(factor);
    else this.viewer.chosen?.zoomBy(factor);
  }
}

function chosenViewer() {
  try {
    return localStorage.getItem(KEPT) ?? "niivue";
  } catch {
    return "niivue";
  }
}

function keepViewer(name) {
  try {
    localStorage.setItem(KEPT, name);
  } catch {
    // chosen for this page only, which cannot be kept
  }
}
