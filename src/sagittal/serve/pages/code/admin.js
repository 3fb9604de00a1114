// The administrator's page: one panel a subject, chosen by tabs.

import { get } from "./api.js";
import { auditPanel } from "./admin_audit.js";
import { destinationsPanel, modelsPanel, rulesPanel } from "./admin_models.js";
import { peoplePanel } from "./admin_people.js";
import { conflictsPanel, refusalsPanel, storagePanel } from "./admin_storage.js";
import { deadPanel, eventsPanel, queuePanel } from "./admin_work.js";
import { byId, el } from "./dom.js";
import { count } from "./format.js";
import { listen } from "./live.js";
import { begin, explain, may, quietly, showProblem } from "./page.js";
import { t } from "./text.js";

/**
 * @typedef {{me: import("./api.js").Me, again: () => Promise<void>}} Given
 * @typedef {{name: string, needs: string, draw: (given: Given) => Promise<Node[]>}} Panel
 */

/** @type {Panel[]} */
const PANELS = [
  { name: "events", needs: "operate", draw: eventsPanel },
  { name: "queue", needs: "operate", draw: queuePanel },
  { name: "dead", needs: "operate", draw: deadPanel },
  { name: "models", needs: "operate", draw: modelsPanel },
  { name: "rules", needs: "operate", draw: rulesPanel },
  { name: "destinations", needs: "operate", draw: destinationsPanel },
  { name: "storage", needs: "operate", draw: storagePanel },
  { name: "conflicts", needs: "operate", draw: conflictsPanel },
  { name: "refusals", needs: "operate", draw: refusalsPanel },
  { name: "users", needs: "users", draw: peoplePanel },
  { name: "audit", needs: "audit", draw: auditPanel },
];

const me = await begin("admin");
const panels = PANELS.filter((panel) => may(me, panel.needs));
const list = el("div", { role: "tablist", "aria-label": t("page.admin"), "aria-orientation": "vertical" });
const place = el("section", { role: "tabpanel", id: "panel", tabindex: 0, "aria-live": "off" });
byId("content").append(el("div", { class: "split" }, list, place));
/** @type {Map<string, HTMLElement>} */
const tabs = new Map();
let now = "";
let asked = 0;

for (const panel of panels) {
  const tab = el(
    "button",
    { type: "button", role: "tab", id: `tab-${panel.name}`, "aria-controls": "panel", on: { click: () => choose(panel.name) } },
    t(`admin.${panel.name}`),
    el("span", { class: "count", hidden: true }),
  );
  tabs.set(panel.name, tab);
  list.append(tab);
}
list.addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const names = panels.map((panel) => panel.name);
  const next = names[(names.indexOf(now) + step + names.length) % names.length];
  choose(next);
  tabs.get(next)?.focus();
});
addEventListener("hashchange", () => choose(location.hash.slice(1)));
await choose(location.hash.slice(1));
drawCounts();
const refresh = quietly(() => {
  drawCounts();
  // What a person is about to press stays in its place.
  if (["queue", "events"].includes(now) && !place.contains(document.activeElement)) draw();
}, 1500);
listen((change) => {
  if (change.kind !== "study") refresh();
}, () => {});

async function choose(name) {
  const panel = panels.find((one) => one.name === name) ?? panels[0];
  if (!panel || panel.name === now) return;
  now = panel.name;
  for (const [key, tab] of tabs) {
    tab.setAttribute("aria-selected", String(key === now));
    tab.tabIndex = key === now ? 0 : -1;
  }
  place.setAttribute("aria-labelledby", `tab-${now}`);
  history.replaceState(null, "", `#${now}`);
  await draw();
}

async function draw() {
  const number = ++asked;
  const panel = panels.find((one) => one.name === now);
  if (!panel) return;
  place.setAttribute("aria-busy", "true");
  try {
    const nodes = await panel.draw({ me, again: draw });
    if (number === asked) place.replaceChildren(...nodes);
  } catch (error) {
    if (number !== asked) return;
    place.replaceChildren(el("p", { class: "problem" }, explain(error)));
    showProblem(error);
  } finally {
    if (number === asked) place.removeAttribute("aria-busy");
  }
}

/** How many troubles, dead jobs and conflicts there are, beside their tabs. */
async function drawCounts() {
  if (!may(me, "operate")) return;
  const [events, jobs, conflicts] = await Promise.all(
    ["/api/events", "/api/jobs?limit=1", "/api/conflicts"].map((path) => get(path).catch(() => null)),
  );
  const sum = (state) => Object.values(jobs?.counts ?? {}).reduce((all, states) => all + (states[state] ?? 0), 0);
  mark("events", events?.events.filter((one) => one.level !== "info").length ?? 0, true);
  mark("queue", sum("waiting") + sum("leased"), false);
  mark("dead", sum("dead"), true);
  mark("conflicts", conflicts?.conflicts.length ?? 0, true);
}

function mark(name, n, bad) {
  const badge = tabs.get(name)?.lastElementChild;
  if (!(badge instanceof HTMLElement)) return;
  badge.hidden = !n;
  badge.textContent = count(n);
  badge.className = `count number ${bad ? "bad" : ""}`;
}
