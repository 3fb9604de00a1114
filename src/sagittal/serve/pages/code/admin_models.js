// Models, the rules by which they are given series, and the places that results go to.

import { get, post } from "./api.js";
import { confirmPerson } from "./dialog.js";
import { el, sign } from "./dom.js";
import { count, moment, percent, size, version } from "./format.js";
import { showProblem, tell } from "./page.js";
import { actionButton, table } from "./table.js";
import { t, word } from "./text.js";
import { valueList } from "./values.js";

/** Each model with its state, and how often readers agreed: versions stand side by side. @param {import("./admin.js").Given} given */
export async function modelsPanel(given) {
  const [{ models }, agreement] = await Promise.all([get("/api/models"), get("/api/agreement").catch(() => ({ models: [] }))]);
  const agreed = (model) => agreement.models.find((one) => one.model === model.name && one.version === model.version);
  const turn = (model) =>
    actionButton(
      t(model.on ? "admin.switch-off" : "admin.switch-on"),
      async () => {
        if (model.on && !(await confirmPerson(t("admin.switch-off"), t("admin.switch-off-text", { model: model.name }), t("admin.switch-off"), true))) return;
        try {
          await post(`/api/models/${encodeURIComponent(model.name)}/switch`, { on: !model.on });
          await given.again();
        } catch (error) {
          showProblem(error);
        }
      },
      { "aria-label": `${t(model.on ? "admin.switch-off" : "admin.switch-on")} ${model.name} ${model.version}` },
    );
  const columns = [
    { title: t("admin.model"), cell: (one) => el("strong", {}, one.name) },
    { title: t("admin.version"), cell: (one) => el("span", { title: one.version }, version(one.version)) },
    { title: t("admin.role"), cell: (one) => word("model-role", one.role) },
    {
      title: t("admin.state"),
      cell: (one) => el("span", { class: `mark ${one.error ? "bad" : one.on ? "good" : "muted"}` }, sign(one.error ? "triangle" : one.on ? "tick" : "bar"), one.on ? word("model-state", one.state) : t("admin.off")),
    },
    { title: t("admin.memory"), kind: "right", cell: (one) => (one.bytes ? `${size(one.bytes)} / ${size(one.most_bytes)}` : "–") },
    { title: t("admin.busy"), kind: "right", cell: (one) => count(one.busy) },
    {
      title: t("admin.agreement"),
      kind: "right",
      cell: (one) => {
        const found = agreed(one);
        return found?.n ? `${percent(found.agreement)} (${percent(found.low)} – ${percent(found.high)}), n = ${found.n}` : "–";
      },
    },
    { title: "", cell: turn },
  ];
  return [
    el("div", { class: "panel-head" }, el("h2", {}, t("admin.models"))),
    table(t("admin.models"), columns, models, t("admin.no-models")),
    ...models.filter((one) => one.error).map((one) => el("p", { class: "problem wraps" }, `${one.name} ${one.version}: ${one.error}`)),
    ...models.map((one) =>
      el("details", { class: "card" }, el("summary", {}, t("admin.made-for", { model: `${one.name} ${version(one.version)}` })), valueList({ task: one.task, classes: one.classes, ...one.intended_use })),
    ),
  ];
}

/** Which series each model is given. @param {import("./admin.js").Given} given */
export async function rulesPanel(given) {
  const { rules, completeness } = await get("/api/rules");
  return [
    el("div", { class: "panel-head" }, el("h2", {}, t("admin.rules"))),
    el("p", { class: "muted" }, t("admin.rules-about")),
    ...rules.map((rule) =>
      el(
        "section",
        { class: "card" },
        el("h3", {}, `${rule.model} ${version(rule.version)} · ${word("model-role", rule.role)}`),
        valueList({ inputs: rule.inputs, results: rule.results, to: rule.to, urgency: rule.urgency }),
        ...(rule.series.length ? rule.series.map((series) => valueList(set(series))) : [el("p", { class: "muted" }, t("admin.rules-none"))]),
      ),
    ),
    el("section", { class: "card" }, el("h3", {}, t("admin.completeness")), valueList(completeness)),
  ];
}

function set(values) {
  return Object.fromEntries(Object.entries(values).filter(([, value]) => value !== null && value !== "" && !(Array.isArray(value) && !value.length)));
}

/** Where results go, and how it went. @param {import("./admin.js").Given} given */
export async function destinationsPanel(given) {
  const { destinations } = await get("/api/destinations");
  const tryIt = (one) =>
    actionButton(t("admin.test"), async () => {
      try {
        const said = await post(`/api/destinations/${encodeURIComponent(one.name)}/test`);
        tell(`${one.name}: ${said.message || t(said.ok ? "admin.test-good" : "admin.test-bad")}`, said.ok ? "good" : "bad");
      } catch (error) {
        showProblem(error);
      }
    }, { "aria-label": `${t("admin.test")} ${one.name}` });
  const where = (one) => [one.host, one.port, one.url, one.folder].filter(Boolean).join(":");
  const went = (one) => Object.entries(one.deliveries ?? {}).map(([state, n]) => `${word("delivery", state)} ${count(n)}`).join(", ") || "–";
  return [
    el("div", { class: "panel-head" }, el("h2", {}, t("admin.destinations"))),
    table(
      t("admin.destinations"),
      [
        { title: t("admin.name"), cell: (one) => el("strong", {}, one.name) },
        { title: t("admin.kind"), cell: (one) => one.kind },
        { title: t("admin.where"), kind: "long", cell: where },
        { title: t("admin.deliveries"), cell: went },
        { title: t("admin.last"), kind: "number", cell: (one) => moment(one.last_sent_at) },
        { title: t("admin.trouble"), kind: "long", cell: (one) => (one.trouble ? el("span", { class: "bad" }, one.trouble.message) : "") },
        { title: "", cell: tryIt },
      ],
      destinations,
      t("admin.no-destinations"),
    ),
  ];
}
