// The trail: who did what, when; and whether it was changed since.

import { get, query } from "./api.js";
import { el, sign } from "./dom.js";
import { count, moment } from "./format.js";
import { showProblem } from "./page.js";
import { actionButton, table } from "./table.js";
import { t, word } from "./text.js";

/** The newest records, and a check of the whole chain. @param {import("./admin.js").Given} given */
export async function auditPanel(given) {
  const verdict = el("p", { role: "status" });
  const records = [];
  const place = el("div");
  const verify = actionButton(
    t("admin.verify"),
    async () => {
      verdict.replaceChildren(t("admin.verifying"));
      try {
        const said = await get("/api/audit/verify");
        verdict.replaceChildren(
          el("span", { class: `mark ${said.sound ? "good" : "bad"}` }, sign(said.sound ? "tick" : "cross"), t(said.sound ? "admin.sound" : "admin.unsound", { n: count(said.records) })),
          said.problem ? ` ${said.problem}` : "",
        );
      } catch (error) {
        verdict.replaceChildren();
        showProblem(error);
      }
    },
    { id: "verify" },
  );
  const more = async (after) => {
    const found = await get(`/api/audit${query({ limit: 100, after })}`);
    records.push(...found.records);
    place.replaceChildren(trail(records), found.next ? el("div", { class: "actions" }, actionButton(t("worklist.more"), () => more(found.next))) : "");
  };
  await more("");
  return [el("div", { class: "panel-head" }, el("h2", {}, t("admin.audit")), verify), el("p", { class: "muted" }, t("admin.audit-about")), verdict, place];
}

function trail(records) {
  const details = (one) =>
    Object.entries(one.details ?? {})
      .map(([key, value]) => `${key}: ${typeof value === "object" ? JSON.stringify(value) : value}`)
      .join(", ");
  return table(
    t("admin.audit"),
    [
      { title: t("admin.number"), kind: "right", cell: (one) => one.number },
      { title: t("admin.when"), kind: "number", cell: (one) => moment(one.at) },
      { title: t("admin.who"), cell: (one) => one.actor },
      { title: t("admin.role"), cell: (one) => word("role", one.role) },
      { title: t("admin.what"), cell: (one) => el("span", { class: "mark" }, word("action", one.action)) },
      { title: t("admin.study"), cell: (one) => (one.study_id ? el("a", { href: `/study/${Number(one.study_id)}` }, `#${one.study_id}`) : "") },
      { title: t("admin.outcome"), cell: (one) => el("span", { class: one.outcome === "done" ? "" : "bad" }, word("outcome", one.outcome)) },
      { title: t("admin.details"), kind: "long", cell: details },
      { title: t("admin.address"), cell: (one) => one.address },
    ],
    records,
  );
}
