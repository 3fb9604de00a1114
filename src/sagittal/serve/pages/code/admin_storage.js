// What is kept: room, integrity, contradictions, and what was not taken.

import { get, post } from "./api.js";
import { confirmPerson } from "./dialog.js";
import { el } from "./dom.js";
import { count, moment, size } from "./format.js";
import { showProblem } from "./page.js";
import { actionButton, table } from "./table.js";
import { t, word } from "./text.js";

/** How much room there is, and when hashes were compared. @param {import("./admin.js").Given} given */
export async function storagePanel(given) {
  const kept = await get("/api/storage");
  const fact = (name, value, kind = "") => el("div", {}, el("div", { class: "muted small" }, name), el("div", { class: `value number ${kind}` }, value));
  const low = kept.reserve && kept.free < 2 * kept.reserve;
  return [
    el("div", { class: "panel-head" }, el("h2", {}, t("admin.storage"))),
    el(
      "div",
      { class: "facts" },
      fact(t("admin.used"), size(kept.used)),
      fact(t("admin.free"), size(kept.free), low ? "bad" : ""),
      fact(t("admin.studies"), count(kept.studies)),
      fact(t("admin.instances"), count(kept.instances)),
      fact(t("admin.last-check"), moment(kept.last_check) || t("admin.never")),
      fact(t("admin.damaged"), count(kept.damaged), kept.damaged ? "bad" : "good"),
    ),
    ...(low ? [el("p", { class: "caution" }, t("admin.free-low", { reserve: size(kept.reserve) }))] : []),
    ...(kept.damaged ? [el("p", { class: "problem" }, t("admin.damaged-text"))] : []),
  ];
}

/** Objects that came under a UID that is there already, with other bytes. @param {import("./admin.js").Given} given */
export async function conflictsPanel(given) {
  const { conflicts } = await get("/api/conflicts");
  const decide = (one, decision) =>
    actionButton(
      t(`admin.${decision}`),
      async () => {
        if (!(await confirmPerson(t(`admin.${decision}`), t("admin.conflict-text"), t(`admin.${decision}`)))) return;
        try {
          await post(`/api/conflicts/${Number(one.id)}`, { decision });
          await given.again();
        } catch (error) {
          showProblem(error);
        }
      },
      { "aria-label": `${t(`admin.${decision}`)} ${one.id}` },
    );
  return [
    el("div", { class: "panel-head" }, el("h2", {}, t("admin.conflicts"))),
    el("p", { class: "muted" }, t("admin.conflicts-about")),
    table(
      t("admin.conflicts"),
      [
        { title: t("admin.number"), kind: "right", cell: (one) => one.id },
        { title: t("admin.study"), cell: (one) => el("a", { href: `/study/${Number(one.study_id)}` }, `#${one.study_id}`) },
        { title: t("admin.first"), cell: (one) => `${one.first_source} · ${moment(one.first_at)}` },
        { title: t("admin.second"), cell: (one) => `${one.source} · ${moment(one.arrived_at)}` },
        { title: t("admin.size"), kind: "right", cell: (one) => size(one.size) },
        { title: "", cell: (one) => el("div", { class: "actions" }, decide(one, "keep-first"), decide(one, "take-second")) },
      ],
      conflicts,
      t("admin.no-conflicts"),
    ),
  ];
}

/** What was received and not kept. @param {import("./admin.js").Given} given */
export async function refusalsPanel(given) {
  const { refusals } = await get("/api/refusals?limit=200");
  return [
    el("div", { class: "panel-head" }, el("h2", {}, t("admin.refusals"))),
    el("p", { class: "muted" }, t("admin.refusals-about")),
    table(
      t("admin.refusals"),
      [
        { title: t("admin.when"), kind: "number", cell: (one) => moment(one.at) },
        { title: t("admin.source"), cell: (one) => one.source },
        { title: t("admin.code"), cell: (one) => word("refusal", one.code) },
        { title: t("admin.why"), kind: "long", cell: (one) => one.reason },
        { title: t("admin.times"), kind: "right", cell: (one) => count(one.count) },
      ],
      refusals,
      t("admin.no-refusals"),
    ),
  ];
}
