// The worklist: filters, rows that change while one looks, keys.

import { get, query } from "./api.js";
import { askPerson } from "./dialog.js";
import { byId, el, replaceChildrenKeepingFocus, sign } from "./dom.js";
import { fetchStudy, knownPacs } from "./fetch.js";
import { count, duration } from "./format.js";
import { listen } from "./live.js";
import { begin, isTyping, may, quietly, showProblem } from "./page.js";
import { t } from "./text.js";
import { STATUSES, makeRow } from "./worklist_row.js";

const PAGE = 50;
const MOST = 500; // rows that are kept fresh in one request
const MODALITIES = ["CR", "CT", "DX", "MG", "MR", "NM", "OP", "OT", "PT", "SM", "US", "XA", "XC"];
const KEPT = "sagittal.worklist";

const state = {
  filters: { text: "", urgency: "", modality: "", verdict: "", from: "", to: "", sort: "urgency", status: "" },
  /** @type {any[]} */ studies: [],
  next: null,
  counts: {},
  asked: 0, // the number of the last request: an answer that was overtaken is thrown away
  loadedAt: 0,
};
/** @type {Map<number, import("./worklist_row.js").Row>} */
const rows = new Map();

const me = await begin("worklist");
const form = /** @type {HTMLFormElement} */ (byId("filters"));
restore();
drawStatuses();
await load();

form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("change", () => changed());
byId("search").addEventListener("input", quietly(() => changed(), 250));
byId("clear").addEventListener("click", () => {
  form.reset();
  state.filters.status = "";
  changed();
});
byId("more").addEventListener("click", () => load({ more: true }));
byId("keys").addEventListener("click", showKeys);
document.addEventListener("keydown", onKey);
if (may(me, "steer")) offerFetching();
setInterval(tick, 1000);
new IntersectionObserver((seen) => {
  if (seen.some((one) => one.isIntersecting) && !byId("more").hidden) load({ more: true });
}, { root: byId("scroll"), rootMargin: "200px" }).observe(byId("more"));
listen(quietly(() => load({ fresh: true }), 300), showLive);

/** Take the filters from the form and ask again. */
function changed() {
  const given = new FormData(form);
  for (const name of Object.keys(state.filters)) {
    if (given.has(name)) state.filters[name] = String(given.get(name)).trim();
  }
  sessionStorage.setItem(KEPT, JSON.stringify(state.filters));
  load();
}

/** A button for fetching a study, where the service knows a PACS. */
async function offerFetching() {
  const pacs = await knownPacs();
  byId("fetch").hidden = !pacs.length;
  byId("fetch").addEventListener("click", () => fetchStudy(pacs));
}

/** The filters as they were before a study was opened. They may hold a name: kept in this window only, not in addresses. */
function restore() {
  const choice = /** @type {HTMLSelectElement} */ (form.elements.namedItem("modality"));
  choice.append(...MODALITIES.map((one) => el("option", { value: one }, one)));
  try {
    Object.assign(state.filters, JSON.parse(sessionStorage.getItem(KEPT) ?? "{}"));
  } catch {
    sessionStorage.removeItem(KEPT);
  }
  for (const [name, value] of Object.entries(state.filters)) {
    const field = /** @type {any} */ (form.elements.namedItem(name));
    if (field) field.value = value;
  }
}

/**
 * Ask for studies.
 * @param {{more?: boolean, fresh?: boolean}} how `more` adds a page; `fresh` asks again for what is shown
 */
async function load({ more = false, fresh = false } = {}) {
  if (more && !state.next) return;
  const number = ++state.asked;
  const limit = fresh ? Math.min(MOST, Math.max(PAGE, state.studies.length)) : PAGE;
  const after = more ? state.next : "";
  const tail = fresh ? state.studies.slice(limit) : [];
  const nextBefore = state.next;
  byId("scroll").setAttribute("aria-busy", "true");
  try {
    const found = await get(`/api/studies${query({ ...state.filters, limit, after })}`);
    if (number !== state.asked) return;
    state.studies = more ? [...state.studies, ...found.studies] : [...found.studies, ...tail];
    state.next = tail.length ? nextBefore : found.next;
    state.counts = found.counts ?? state.counts;
    state.loadedAt = Date.now();
    draw();
  } catch (error) {
    if (number === state.asked && !fresh) showProblem(error);
  } finally {
    if (number === state.asked) byId("scroll").removeAttribute("aria-busy");
  }
}

function draw() {
  const seen = new Set();
  const nodes = [];
  for (const study of state.studies) {
    if (seen.has(study.id)) continue; // it moved between two pages while they were fetched
    seen.add(study.id);
    let row = rows.get(study.id);
    if (!row) {
      row = makeRow(study.id);
      rows.set(study.id, row);
    }
    row.update(study);
    nodes.push(row.node);
  }
  for (const [id, row] of rows) {
    if (!seen.has(id)) {
      row.node.remove();
      rows.delete(id);
    }
  }
  replaceChildrenKeepingFocus(byId("rows"), nodes);
  sessionStorage.setItem("sagittal.order", JSON.stringify([...seen]));
  byId("more").hidden = !state.next;
  const empty = byId("empty");
  empty.hidden = nodes.length > 0;
  const filtered = Object.entries(state.filters).some(([name, value]) => value && name !== "sort");
  empty.textContent = t(filtered ? "worklist.none-match" : "worklist.none");
  drawStatuses();
  tick();
}

/** Buttons with a count; made once, so that the focus stays. */
function drawStatuses() {
  const place = byId("statuses");
  if (!place.childElementCount) {
    for (const status of ["", ...STATUSES]) {
      const choose = () => {
        state.filters.status = status;
        changed();
      };
      place.append(
        el(
          "button",
          { type: "button", "data-status": status, on: { click: choose } },
          status ? t(`status.${status}`) : t("worklist.all"),
          el("span", { class: "number" }),
        ),
      );
    }
  }
  const all = Object.values(state.counts).reduce((sum, n) => sum + n, 0);
  for (const button of place.querySelectorAll("button")) {
    const status = button.dataset.status;
    button.setAttribute("aria-pressed", String(status === state.filters.status));
    const n = status ? (state.counts[status] ?? 0) : all;
    /** @type {HTMLElement} */ (button.lastElementChild).textContent = count(n);
    button.hidden = Boolean(status) && !n && status !== state.filters.status;
  }
}

/** Waiting times go on while nothing is asked. */
function tick() {
  const passed = (Date.now() - state.loadedAt) / 1000;
  for (const study of state.studies) rows.get(study.id)?.wait(passed, duration);
}

function showLive(connected) {
  const place = byId("live");
  place.className = `live ${connected ? "on" : "off"}`;
  place.replaceChildren(sign(connected ? "dot" : "ring"), t(connected ? "worklist.live" : "worklist.not-live"));
  if (connected && Date.now() - state.loadedAt > 5000) load({ fresh: true }); // what was missed meanwhile
}

function onKey(event) {
  if (isTyping(event)) {
    if (event.key === "Escape" && event.target === byId("search")) move(0);
    return;
  }
  const links = [...byId("rows").querySelectorAll("a")];
  const at = links.indexOf(document.activeElement);
  const actions = {
    j: () => move(at + 1),
    ArrowDown: () => move(at + 1),
    k: () => move(at - 1),
    ArrowUp: () => move(at - 1),
    Home: () => move(0),
    End: () => move(links.length - 1),
    "/": () => byId("search").focus(),
    "?": showKeys,
  };
  const action = actions[event.key];
  if (!action || (event.key.startsWith("Arrow") && at < 0)) return;
  event.preventDefault();
  action();
}

function move(to) {
  const links = [...byId("rows").querySelectorAll("a")];
  links[Math.max(0, Math.min(links.length - 1, to))]?.focus();
}

function showKeys() {
  const line = (key, what) => el("tr", {}, el("td", {}, el("kbd", {}, key)), el("td", {}, what));
  askPerson({
    title: t("worklist.keys"),
    content: [
      el(
        "table",
        {},
        el(
          "tbody",
          {},
          line("J  ↓", t("keys.next")),
          line("K  ↑", t("keys.previous")),
          line("Enter", t("keys.open")),
          line("/", t("keys.search")),
          line("Esc", t("keys.back-to-list")),
          line("?", t("keys.this")),
        ),
      ),
    ],
  });
}
