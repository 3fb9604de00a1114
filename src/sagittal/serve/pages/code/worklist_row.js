// One line of the worklist.

import { bar, el, sign } from "./dom.js";
import { age, day, duration, moment, percent, personName } from "./format.js";
import { t, word } from "./text.js";

/** The states of a study, as the service names them, in the order of its life. */
export const STATUSES = ["receiving", "waiting", "running", "answered", "abstained", "refused", "failed", "no-model"];

const SIGNS = {
  receiving: "down", waiting: "ring", running: "half", answered: "tick",
  abstained: "bar", refused: "triangle", failed: "cross", "no-model": "ring",
};
const VERDICT_SIGNS = { accept: "tick", correct: "pen", reject: "cross" };
const WAITS = new Set(["receiving", "waiting", "running"]);

/**
 * @typedef {object} Row
 * @property {HTMLTableRowElement} node
 * @property {(study: any) => void} update
 * @property {(passed_s: number, write: (seconds: number) => string) => void} wait shows how long it has waited by now
 */

/**
 * A line that shows one study, and is changed rather than made again, so that the focus stays.
 * @param {number} id
 * @returns {Row}
 */
export function makeRow(id) {
  const cell = (name = "", attributes = {}) => el("td", { class: name, ...attributes });
  const link = el("a", { href: `/study/${Number(id)}` });
  const cells = {
    urgency: cell("c-urgency"),
    status: cell(),
    waiting: cell("right number"),
    patient: cell(),
    patientId: cell("c-id number"),
    sex: cell("c-sex"),
    modality: cell(),
    description: cell("c-description"),
    date: cell("c-date number"),
    accession: cell("c-accession number"),
    finding: cell("c-finding"),
    confidence: cell("c-confidence"),
    verdict: cell(),
  };
  cells.patient.append(link);
  const open = (event) => {
    if (event.target instanceof Element && event.target.closest("a")) return;
    if (!String(getSelection()).trim()) link.click();
  };
  const node = /** @type {HTMLTableRowElement} */ (
    el("tr", { "data-id": id, on: { click: open } }, ...Object.values(cells))
  );
  let shown = "";
  let waiting_s = null;
  let ticking = false;

  const update = (study) => {
    waiting_s = study.waiting_s;
    ticking = WAITS.has(study.status);
    const now = JSON.stringify({ ...study, waiting_s: ticking ? 0 : waiting_s });
    if (now === shown) return;
    shown = now;
    node.className = study.verdict ? "read" : "";
    cells.urgency.replaceChildren(study.urgency > 0 ? urgencyMark(study.urgency) : "");
    cells.status.replaceChildren(statusMark(study.status));
    link.textContent = personName(study.patient_name);
    link.title = personName(study.patient_name);
    set(cells.patientId, study.patient_id);
    set(cells.sex, [study.sex, age(study.birth_date, study.study_date)].filter(Boolean).join(" "));
    cells.modality.textContent = (study.modalities ?? []).join(" ");
    set(cells.description, study.description);
    cells.date.textContent = day(study.study_date);
    set(cells.accession, study.accession);
    set(cells.finding, study.finding);
    cells.confidence.replaceChildren(...confidence(study));
    cells.verdict.replaceChildren(study.verdict ? verdictMark(study.verdict) : "");
    cells.waiting.title = t("worklist.arrived", { at: moment(study.arrived_at) });
  };

  const wait = (passed_s) => {
    const text = duration(waiting_s === null || waiting_s === undefined ? null : waiting_s + (ticking ? passed_s : 0));
    if (cells.waiting.textContent !== text) cells.waiting.textContent = text;
  };
  return { node, update, wait };
}

function set(cell, text) {
  cell.textContent = text ?? "";
  cell.title = text ?? "";
}

function confidence(study) {
  if (study.abstained) return [el("span", { class: "mark doubt" }, sign("bar"), t("worklist.abstained"))];
  if (study.confidence === null || study.confidence === undefined) return [""];
  const text = percent(study.confidence);
  return [el("span", { class: "number" }, text), " ", bar(study.confidence, t("worklist.confidence-of", { p: text }))];
}

/**
 * The state of a study as a sign and a word.
 * @param {string} status
 */
export function statusMark(status) {
  return el("span", { class: `mark s-${status}` }, sign(SIGNS[status] ?? "ring"), word("status", status));
}

/**
 * What a reader said, or can say, as a sign and a word.
 * @param {string} verdict
 * @param {"said"|"verdict"} [group] "accepted" or "Accept"
 */
export function verdictMark(verdict, group = "said") {
  const kind = { accept: "good", correct: "doubt", reject: "bad" }[verdict] ?? "";
  return el("span", { class: `mark ${kind}` }, sign(VERDICT_SIGNS[verdict] ?? "ring"), word(group, verdict));
}

/**
 * How urgent a study is, as a sign with its word.
 * @param {number} urgency
 */
export function urgencyMark(urgency) {
  const name = word("urgency", String(urgency));
  return el(
    "span",
    { class: `mark u-${urgency}`, title: name },
    sign(urgency > 1 ? "upup" : "up"),
    el("span", { class: "visually-hidden" }, name),
  );
}
