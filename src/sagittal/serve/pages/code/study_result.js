// What a model found, in words and numbers: the panel beside the images.

import { post, remove } from "./api.js";
import { confirmPerson } from "./dialog.js";
import { bar, el, refill, sign } from "./dom.js";
import { fetchEarlier } from "./fetch.js";
import { count, day, moment, percent, version } from "./format.js";
import { overlayList } from "./overlay_list.js";
import { may, showProblem, tell } from "./page.js";
import { actionButton } from "./table.js";
import { t, word } from "./text.js";
import { valueList } from "./values.js";

/** The measurements that are shown, of all that the service made. */
const MEASURES = [
  "volume_ml", "area_mm2", "area_px2", "long_axis_mm", "short_axis_mm", "long_axis_px", "short_axis_px", "components", "mean",
];

/** Which parts a reader has opened; kept while the page is there. */
const opened = new Set(["overlays"]);

/**
 * Draw the panel.
 * @param {HTMLElement} place
 * @param {{study: any, result: any, stage: any, me: any, pacs: string[], choose: (result: any) => void}} given
 */
export function drawResult(place, { study, result, stage, me, pacs, choose }) {
  const focused = document.activeElement instanceof HTMLElement && place.contains(document.activeElement) ? document.activeElement.id : "";
  refill(
    place,
    tabs(study, result, choose),
    result ? finding(result) : nothing(study),
    result && overlays(stage),
    result && measurements(result),
    result && purpose(result),
    choices(study),
    earlier(study, pacs),
    result && downloads(result),
    may(me, "steer") && troubles(study),
    manage(study, me),
  );
  if (focused) document.getElementById(focused)?.focus();
}

/** A part that opens and closes, and stays so when the panel is drawn again. */
function part(name, title, ...content) {
  const toggle = (event) => {
    if (event.target.open) opened.add(name);
    else opened.delete(name);
  };
  return el("details", { open: opened.has(name), id: `part-${name}`, on: { toggle } }, el("summary", {}, ...[title].flat()), ...content);
}

/** One button a model where several have looked; those that only watch are marked. */
function tabs(study, result, choose) {
  if (study.results.length < 2) return null;
  return el(
    "div",
    { class: "tabs", role: "group", "aria-label": t("study.models") },
    ...study.results.map((one) =>
      el(
        "button",
        { type: "button", id: `model-${one.id}`, "aria-pressed": String(one === result), on: { click: () => choose(one) } },
        `${one.model} ${version(one.version)}`,
        one.role === "watches" && el("span", { class: "muted small" }, t("study.watches")),
      ),
    ),
  );
}

function nothing(study) {
  return el("section", {}, el("h2", {}, t("study.finding")), el("p", { class: "muted" }, word("study.none", study.status)));
}

function finding(result) {
  const abstained = result.state === "abstained";
  const refused = result.state === "refused";
  return el(
    "section",
    { "aria-labelledby": "finding-title" },
    el("h2", { id: "finding-title", class: "muted small" }, t("study.finding")),
    el("p", { class: "finding", id: "finding" }, result.summary || word("status", result.state)),
    (abstained || refused) &&
      el(
        "p",
        { class: "caution" },
        el("span", { class: "mark doubt" }, sign(abstained ? "bar" : "triangle"), t(abstained ? "study.abstained" : "study.refused")),
        result.reason && el("span", { class: "wraps" }, " ", result.reason),
      ),
    !abstained && !refused && result.reason && el("p", { class: "caution" }, el("span", { class: "wraps" }, result.reason)),
    result.confidence !== null && result.confidence !== undefined && confidence(result.confidence),
    abstained ? unsaid(classes(result)) : classes(result),
    notExcluded(result),
    el(
      "p",
      { class: "by wraps" },
      t("study.made-by", { model: result.model, version: version(result.version), at: moment(result.created_at) }),
      " ",
      t("study.by-algorithm"),
    ),
  );
}

/** Classes that the model cannot exclude, where that are others than those it names. */
function notExcluded(result) {
  const named = new Set(result.finding?.decision ?? []);
  const others = (result.finding?.conformal ?? []).filter((one) => !named.has(one));
  return others.length > 0 && el("p", { class: "wraps" }, t("study.not-excluded", { classes: others.join(", ") }));
}

/** What the model computed though it does not stand by it: there for those who ask, not to be read as an answer. */
function unsaid(list) {
  return list && el("details", { open: opened.has("unsaid"), on: { toggle: (event) => (event.target.open ? opened.add("unsaid") : opened.delete("unsaid")) } }, el("summary", { class: "muted" }, t("study.unsaid")), list);
}

function confidence(value) {
  const text = percent(value);
  return el(
    "div",
    { class: "confidence" },
    el("span", {}, t("study.confidence")),
    bar(value, t("worklist.confidence-of", { p: text })),
    el("span", { class: "number" }, text),
  );
}

/** The probability of each class, the likeliest first. */
function classes(result) {
  const list = result.finding?.classes;
  if (!Array.isArray(list) || !list.length) return null;
  const sorted = [...list].sort((a, b) => (b.probability ?? 0) - (a.probability ?? 0));
  return el(
    "table",
    { class: "classes" },
    el("caption", { class: "visually-hidden" }, t("study.classes")),
    el(
      "tbody",
      {},
      ...sorted.slice(0, 8).map((one) =>
        el(
          "tr",
          { class: one.held ? "held" : "" },
          el("th", { scope: "row", class: "wraps" }, one.name),
          el("td", {}, bar(one.probability ?? 0, percent(one.probability))),
          el("td", { class: "number" }, percent(one.probability)),
        ),
      ),
    ),
  );
}

function overlays(stage) {
  const list = overlayList(stage);
  return list && part("overlays", t("study.overlays"), list);
}

/** Volumes and diameters of structures, as the service measured them. */
function measurements(result) {
  const structures = (result.finding?.structures ?? []).filter((one) => one.measurements);
  if (!structures.length) return null;
  const names = MEASURES.filter((name) => structures.some((one) => typeof one.measurements[name] === "number"));
  if (!names.length) return null;
  const number = (value) => (typeof value === "number" ? (Math.abs(value) >= 100 ? value.toFixed(0) : value.toPrecision(3)) : "–");
  return part(
    "measurements",
    t("study.measurements"),
    ...structures.map((one) =>
      el(
        "dl",
        {},
        el("dt", {}, el("strong", {}, one.name)),
        el("dd", {}),
        ...names.flatMap((name) => [el("dt", {}, word("measure", name)), el("dd", { class: "number" }, number(one.measurements[name]))]),
      ),
    ),
  );
}

/** What the model was trained for, and where it ends. */
function purpose(result) {
  const use = result.intended_use;
  if (!use || !Object.keys(use).length) return null;
  return part("purpose", t("study.intended-use"), valueList(use), el("p", { class: "small muted" }, t("page.not-a-device")));
}

/** Why each series was used, or not. */
function choices(study) {
  if (!study.choices.length && !study.series.some((one) => one.problem)) return null;
  const name = (id) => {
    const one = study.series.find((series) => series.id === id);
    return one ? [one.number, one.modality, one.description].filter((p) => p !== null && p !== "").join(" ") : `#${id}`;
  };
  const problems = study.series.filter((one) => one.problem);
  return part(
    "choices",
    t("study.why-series"),
    el(
      "ul",
      {},
      ...study.choices.map((choice) =>
        el(
          "li",
          { class: "wraps" },
          el("span", { class: `mark ${choice.used ? "good" : "muted"}` }, sign(choice.used ? "tick" : "ring"), t(choice.used ? "study.used" : "study.not-used")),
          ` ${name(choice.series_id)} · ${choice.model}: ${choice.reason}`,
        ),
      ),
      ...problems.map((one) =>
        el("li", { class: "wraps" }, el("span", { class: "mark bad" }, sign("triangle"), t("study.problem")), ` ${name(one.id)}: ${one.problem}`),
      ),
    ),
  );
}

function earlier(study, pacs) {
  const known = study.earlier ?? [];
  if (!known.length && !pacs.length) return null;
  return part(
    "earlier",
    [t("study.earlier"), el("span", { class: "muted" }, ` (${count(known.length)})`)],
    el(
      "ul",
      {},
      ...known.map((one) =>
        el(
          "li",
          { class: "wraps" },
          el("a", { href: `/study/${Number(one.id)}` }, day(one.study_date) || t("study.undated")),
          ` ${one.description ?? ""}`,
          one.finding && el("span", { class: "muted" }, ` · ${one.finding}`),
        ),
      ),
    ),
    pacs.length > 0 && el("div", { class: "downloads" }, actionButton(t("fetch.earlier"), () => fetchEarlier(study.id, pacs), { id: "fetch-earlier" })),
  );
}

/** The objects of a result, to be kept or looked at elsewhere. */
function downloads(result) {
  if (!result.objects?.length) return null;
  return part(
    "objects",
    t("study.objects"),
    el(
      "div",
      { class: "downloads" },
      ...result.objects.map((one) =>
        el("a", { class: "button", href: `/api/objects/${Number(one.id)}`, download: "", title: one.media_type }, word("object", one.kind)),
      ),
    ),
  );
}

/** What is done rarely: say that a series is whole, delete the study. */
function manage(study, me) {
  const open = may(me, "steer") ? study.series.filter((one) => one.complete_at === null) : [];
  if (!open.length && !may(me, "delete")) return null;
  const name = (one) => [one.number, one.modality, one.description].filter((p) => p !== null && p !== "").join(" ");
  const complete = (one) =>
    actionButton(t("study.complete", { series: name(one) }), async () => {
      try {
        await post(`/api/series/${Number(one.id)}/complete`);
        tell(t("study.queued"), "good");
      } catch (error) {
        showProblem(error);
      }
    });
  const drop = async () => {
    if (!(await confirmPerson(t("study.delete"), t("study.delete-text"), t("study.delete"), true))) return;
    try {
      await remove(`/api/studies/${Number(study.id)}`);
      location.assign("/");
    } catch (error) {
      showProblem(error);
    }
  };
  return part(
    "manage",
    t("study.manage"),
    el("div", { class: "downloads" }, ...open.map(complete), may(me, "delete") && actionButton(t("study.delete"), drop, { class: "danger", id: "delete" })),
  );
}

/** Jobs that are not done: what is happening, or went wrong. */
function troubles(study) {
  const jobs = (study.jobs ?? []).filter((job) => job.state !== "done");
  if (!jobs.length) return null;
  return part(
    "jobs",
    [t("study.jobs"), el("span", { class: "muted" }, ` (${count(jobs.length)})`)],
    el(
      "ul",
      {},
      ...jobs.map((job) =>
        el(
          "li",
          { class: "wraps" },
          `${word("job", job.kind)}: ${word("job-state", job.state)}, ${t("study.attempts", { n: job.attempts })}`,
          job.error && el("span", { class: "bad" }, ` ${job.error}`),
        ),
      ),
    ),
  );
}
