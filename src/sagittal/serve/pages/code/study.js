// The study page: the patient, the images, what the models found, and what the reader says to it.

import { ApiError, get, post } from "./api.js";
import { askPerson } from "./dialog.js";
import { byId, el, refill } from "./dom.js";
import { knownPacs } from "./fetch.js";
import { age, day, duration, moment, personName } from "./format.js";
import { listen } from "./live.js";
import { begin, isTyping, may, quietly, showProblem, tell } from "./page.js";
import { Review } from "./review.js";
import { drawResult } from "./study_result.js";
import { t } from "./text.js";
import { Stage } from "./viewer/stage.js";
import { statusMark } from "./worklist_row.js";

const id = Number(location.pathname.split("/")[2]);
const me = await begin("study");
const state = {
  /** @type {any} */ study: null,
  /** @type {any} */ result: null,
  /** @type {any} */ series: null,
  shown: "",
  /** @type {string[]} */ pacs: [], // that this person may fetch from
};
const stage = new Stage();
const review = new Review({
  stage,
  may: may(me, "review"),
  result: () => state.result,
  answered: () => load({ next: true }),
  redrawn: () => drawSide(),
});

stage.changed = () => drawSide();
document.addEventListener("keydown", onKey);
listen(
  quietly((change) => {
    if (change.kind === "all" || change.id === id) load({});
  }, 300),
  () => {},
);
if (may(me, "steer")) state.pacs = await knownPacs();
await load({});

/**
 * Ask for the study, and show what changed.
 * @param {{next?: boolean}} how
 */
async function load({ next = false }) {
  try {
    state.study = await get(`/api/studies/${id}`);
  } catch (error) {
    stage.say(error instanceof ApiError && error.status === 404 ? t("study.gone") : t("study.not-loaded"));
    showProblem(error);
    return;
  }
  const { study } = state;
  const before = state.result?.id;
  study.results = study.results.filter((one) => !one.replaced_by); // of late slices there is a newer one
  state.result =
    study.results.find((one) => one.id === before) ?? study.results.find((one) => one.role === "answers") ?? study.results[0] ?? null;
  drawPatient();
  drawSide();
  if (next) byId("verdicts").focus({ preventScroll: true });
  if (review.busy) return; // the image stays while it is being corrected
  const wanted = chooseSeries(study);
  const key = JSON.stringify([wanted?.id, wanted?.instances, state.result?.id, state.result?.created_at]);
  if (key === state.shown) return;
  state.shown = key;
  await showImages(wanted);
}

/** The series that the model used, else the one that a reader would open first. */
function chooseSeries(study) {
  if (state.series && study.series.some((one) => one.id === state.series)) {
    return study.series.find((one) => one.id === state.series);
  }
  const used = state.result?.series ?? [];
  return study.series.find((one) => used.includes(one.id) && one.volume) ?? study.series.find((one) => one.volume) ?? study.series[0] ?? null;
}

async function showImages(series) {
  if (!series) {
    stage.say(t("study.no-series"));
    return;
  }
  // A result's masks and boxes belong to the series that it was made of, not to any other.
  const result = (state.result?.series ?? []).includes(series.id) ? state.result : null;
  await stage.show(series, result, state.study.series, (chosen) => {
    state.series = chosen.id;
    state.shown = "";
    load({});
  });
  drawSide();
}

function drawPatient() {
  const { study } = state;
  const place = byId("patient");
  const focused = document.activeElement?.id;
  const facts = [
    study.patient_id,
    [study.sex, age(study.birth_date, study.study_date)].filter(Boolean).join(" "),
  ].filter(Boolean);
  const born = study.birth_date && t("patient.born", { date: day(study.birth_date) });
  const about = [
    (study.modalities ?? []).join(" "),
    study.description,
    day(study.study_date),
    study.accession && t("patient.accession", { n: study.accession }),
  ].filter(Boolean);
  const urgency = /** @type {HTMLSelectElement} */ (
    el(
      "select",
      { id: "urgency", "aria-label": t("worklist.urgency"), disabled: !may(me, "steer"), on: { change: changeUrgency } },
      ...[0, 1, 2].map((n) => el("option", { value: n, selected: n === study.urgency }, t(`urgency.${n}`))),
    )
  );
  refill(
    place,
    el("h1", { class: "wraps" }, personName(study.patient_name)),
    ...facts.map((one) => el("span", { class: "number wraps" }, one)),
    born && el("span", { class: "number born" }, born),
    el("span", { class: "muted about", title: about.join(" · ") }, about.join(" · ")),
    statusMark(study.status),
    study.answered_at
      ? el("span", { class: "muted number", title: t("study.answered-at") }, moment(study.answered_at))
      : el("span", { class: "muted number" }, duration(study.waiting_s)),
    urgency,
    steps(),
    may(me, "steer") && el("button", { type: "button", id: "again", on: { click: runAgain } }, t("study.run-again")),
    document.documentElement.dataset.ohif === "yes" &&
      el("a", { class: "button", href: `/open/ohif/${id}`, target: "_blank", rel: "noopener" }, "OHIF"),
  );
  if (focused) document.getElementById(focused)?.focus();
}

/** To the study before and after this one in the worklist. */
function steps() {
  let order = [];
  try {
    order = JSON.parse(sessionStorage.getItem("sagittal.order") ?? "[]");
  } catch {
    // no list was seen in this window
  }
  const at = order.indexOf(id);
  const link = (n, words, key, name) =>
    at >= 0 && order[n] !== undefined
      ? el("a", { class: "button plain", id: name, href: `/study/${Number(order[n])}`, title: words, "aria-label": words }, key)
      : null;
  return el(
    "span",
    { class: "steps" },
    link(at - 1, t("study.previous"), "‹", "previous"),
    link(at + 1, t("study.next"), "›", "next"),
  );
}

function drawSide() {
  const scroll = byId("result").parentElement.scrollTop;
  drawResult(byId("result"), {
    study: state.study,
    result: state.result,
    stage,
    me,
    pacs: state.pacs,
    choose: (result) => {
      state.result = result;
      state.shown = "";
      load({});
    },
  });
  review.draw(byId("verdicts"));
  byId("result").parentElement.scrollTop = scroll;
}

async function changeUrgency(event) {
  try {
    await post(`/api/studies/${id}/urgency`, { urgency: Number(event.target.value) });
    await load({});
  } catch (error) {
    showProblem(error);
  }
}

async function runAgain() {
  const sure = await askPerson({
    title: t("study.run-again"),
    content: [el("p", {}, t("study.run-again-text"))],
    yes: t("study.run-again"),
  });
  if (!sure) return;
  try {
    await post(`/api/studies/${id}/run`, {});
    tell(t("study.queued"), "good");
    await load({});
  } catch (error) {
    showProblem(error);
  }
}

function onKey(event) {
  if (isTyping(event)) return;
  const { key } = event;
  const actions = {
    a: () => review.accept(),
    c: () => review.correct(),
    r: () => review.reject(),
    "[": () => document.getElementById("previous")?.click(),
    "]": () => document.getElementById("next")?.click(),
    n: () => document.getElementById("next")?.click(),
    p: () => document.getElementById("previous")?.click(),
    Escape: () => review.leave(),
    z: () => review.undo(),
    "?": showKeys,
    w: () => location.assign("/"),
  };
  // A control that has the focus keeps the keys that it knows itself.
  const control = event.target instanceof Element && event.target.closest("button, a, input, summary");
  if (control && (key === " " || key === "Enter")) return;
  if (control instanceof HTMLInputElement && key.length > 1 && key !== "Escape") return;
  const action = actions[key.length === 1 ? key.toLowerCase() : key];
  if (action) {
    event.preventDefault();
    action();
  } else if (stage.onKey(event)) {
    event.preventDefault();
  }
}

function showKeys() {
  const lines = [
    ["A", "verdict.accept"], ["C", "verdict.correct"], ["R", "verdict.reject"], ["Z", "review.undo"], ["Esc", "keys.leave"],
    ["↑ ↓", "keys.slices"], ["Space", "viewer.cine"], ["1 … 9", "keys.windows"], ["I", "viewer.invert"], ["+ −", "keys.zoom"],
    ["0", "viewer.reset"], ["L", "keys.layout"], ["M", "viewer.measure"], ["O", "keys.overlays"], ["V", "keys.tools"],
    ["[ ]", "keys.studies"], ["W", "keys.worklist"], ["?", "keys.this"],
  ];
  askPerson({
    title: t("worklist.keys"),
    content: [
      el("table", {}, el("tbody", {}, ...lines.map(([k, what]) => el("tr", {}, el("td", {}, el("kbd", {}, k)), el("td", {}, t(what)))))),
    ],
  });
}
