// Agreement: how often readers accept what a model said, over time, with intervals.

import { get, query } from "./api.js";
import { drawChart } from "./chart.js";
import { byId, el } from "./dom.js";
import { count, percent, version } from "./format.js";
import { begin, explain, may } from "./page.js";
import { table } from "./table.js";
import { t, word } from "./text.js";

const me = await begin("agreement");
const form = el(
  "form",
  { class: "panel-head" },
  el("select", { name: "model", "aria-label": t("admin.model") }, el("option", { value: "" }, t("agreement.every-model"))),
  el("select", { name: "by", "aria-label": t("agreement.by") }, ...["week", "month", "day"].map((one) => el("option", { value: one }, t(`agreement.by-${one}`)))),
  el("span", { class: "spacer" }),
  may(me, "export") && el("a", { class: "button", id: "export", href: "/api/export/truth", download: "", hidden: true }, t("agreement.export")),
  may(me, "export") && el("span", { class: "muted", id: "export-hint", hidden: true }, t("agreement.export-hint")),
);
const place = el("div", { "aria-live": "polite" });
byId("content").append(el("p", { class: "muted" }, t("agreement.about")), form, place);
form.addEventListener("change", load);
form.addEventListener("submit", (event) => event.preventDefault());
await load();

async function load() {
  const given = new FormData(/** @type {HTMLFormElement} */ (form));
  const [model, by] = [String(given.get("model") ?? ""), String(given.get("by") ?? "week")];
  try {
    draw(await get(`/api/agreement${query({ model, by })}`), model);
  } catch (error) {
    place.replaceChildren(el("p", { class: "problem" }, explain(error)));
  }
}

function draw(found, model) {
  const choice = /** @type {HTMLSelectElement} */ (form.querySelector("select"));
  const known = new Set([...choice.options].map((one) => one.value));
  for (const name of new Set(found.models.map((one) => one.model))) {
    if (!known.has(name)) choice.append(el("option", { value: name }, name));
  }
  const link = document.getElementById("export");
  if (link) {
    // Each model has classes of its own: the truth of one at a time.
    const one = Boolean(model) || choice.options.length < 3;
    link.setAttribute("href", `/api/export/truth${query({ model })}`);
    link.hidden = !one || !found.all.n;
    byId("export-hint").hidden = one || !found.all.n;
  }
  if (!found.all.n) {
    place.replaceChildren(el("p", { class: "muted" }, t("agreement.none")));
    return;
  }
  const share = (one) => `${percent(one.agreement)} (${percent(one.low)} – ${percent(one.high)})`;
  const columns = [
    { title: t("agreement.agreement"), kind: "right", cell: share },
    { title: t("said.accept"), kind: "right", cell: (one) => count(one.accept) },
    { title: t("said.correct"), kind: "right", cell: (one) => count(one.correct) },
    { title: t("said.reject"), kind: "right", cell: (one) => count(one.reject) },
    { title: t("agreement.reviews"), kind: "right", cell: (one) => count(one.n) },
  ];
  place.replaceChildren(
    el(
      "div",
      { class: "facts" },
      fact(t("agreement.agreement"), percent(found.all.agreement), `${percent(found.all.low)} – ${percent(found.all.high)}`),
      fact(t("agreement.reviews"), count(found.all.n), ""),
      fact(t("said.correct"), count(found.all.correct), ""),
      fact(t("said.reject"), count(found.all.reject), ""),
    ),
    el("section", { class: "card" }, el("h2", {}, t("agreement.over-time")), drawChart(points(found), t("agreement.over-time")), el("p", { class: "small muted" }, t("agreement.interval"))),
    el("h2", {}, t("admin.models")),
    table(
      t("admin.models"),
      [
        { title: t("admin.model"), cell: (one) => el("strong", {}, one.model) },
        { title: t("admin.version"), cell: (one) => el("span", { title: one.version }, version(one.version)) },
        { title: t("admin.role"), cell: (one) => word("model-role", one.role) },
        ...columns,
      ],
      found.models,
    ),
    el("details", {}, el("summary", {}, t("agreement.as-table")), table(t("agreement.over-time"), [{ title: t("agreement.begin"), cell: (one) => one.begin }, { title: t("admin.model"), cell: (one) => one.model }, ...columns], found.periods)),
  );
}

function fact(name, value, below) {
  return el("div", {}, el("div", { class: "muted small" }, name), el("div", { class: "value number" }, value), el("div", { class: "muted small number" }, below));
}

/** A point a period, of all models that are shown together. */
function points(found) {
  const byBegin = new Map();
  for (const one of found.periods) {
    const sum = byBegin.get(one.begin) ?? { begin: one.begin, accept: 0, n: 0, one };
    sum.accept += one.accept;
    sum.n += one.n;
    byBegin.set(one.begin, sum);
  }
  return [...byBegin.values()]
    .sort((a, b) => a.begin.localeCompare(b.begin))
    .map((sum) => {
      const [low, high] = wilson(sum.accept, sum.n);
      return { label: sum.begin.slice(5), value: sum.n ? sum.accept / sum.n : null, low, high, n: sum.n };
    });
}

/**
 * Wilson's interval of a share at 95 % (Wilson, J Am Stat Assoc 22:209, 1927), as the service computes it for each model.
 * @param {number} successes
 * @param {number} n
 * @returns {[number|null, number|null]}
 */
function wilson(successes, n) {
  if (!n) return [null, null];
  const z = 1.959963984540054;
  const share = successes / n;
  const middle = (share + (z * z) / (2 * n)) / (1 + (z * z) / n);
  const half = (z / (1 + (z * z) / n)) * Math.sqrt((share * (1 - share)) / n + (z * z) / (4 * n * n));
  return [Math.max(0, middle - half), Math.min(1, middle + half)];
}
