// What the service is doing, what it gave up, and what an administrator should know.

import { get, post, query } from "./api.js";
import { confirmPerson } from "./dialog.js";
import { el, sign } from "./dom.js";
import { count, moment } from "./format.js";
import { may, showProblem, tell } from "./page.js";
import { actionButton, table } from "./table.js";
import { t, word } from "./text.js";

/** Troubles that last; those that are over on request. @param {import("./admin.js").Given} given */
export async function eventsPanel(given) {
  const { events } = await get("/api/events?over=true");
  const lasting = events.filter((one) => !one.over_at);
  const over = events.filter((one) => one.over_at);
  const level = (one) =>
    el(
      "span",
      { class: `mark ${{ error: "bad", warning: "doubt" }[one.level] ?? "muted"}` },
      sign(one.level === "info" ? "dot" : "triangle"),
      word("level", one.level),
    );
  const columns = [
    { title: t("admin.level"), cell: level },
    { title: t("admin.what"), kind: "long", cell: (one) => one.message },
    { title: t("admin.about"), cell: (one) => one.about },
    { title: t("admin.since"), kind: "number", cell: (one) => moment(one.first_at) },
    { title: t("admin.last"), kind: "number", cell: (one) => moment(one.last_at) },
    { title: t("admin.times"), kind: "right", cell: (one) => count(one.count) },
  ];
  return [
    el("div", { class: "panel-head" }, el("h2", {}, t("admin.events-lasting"))),
    table(t("admin.events-lasting"), columns, lasting, t("admin.no-events")),
    el("div", { class: "panel-head" }, el("h2", {}, t("admin.events-over"))),
    table(t("admin.events-over"), [...columns, { title: t("admin.over"), kind: "number", cell: (one) => moment(one.over_at) }], over),
  ];
}

/** Jobs that wait or run. @param {import("./admin.js").Given} given */
export async function queuePanel(given) {
  const found = await get(`/api/jobs${query({ state: "waiting,leased", limit: 200 })}`);
  const pause = actionButton(t(found.paused ? "admin.go-on" : "admin.pause"), async () => {
    try {
      await post("/api/queue", { paused: !found.paused });
      await given.again();
    } catch (error) {
      showProblem(error);
    }
  }, { id: "pause" });
  return [
    el("div", { class: "panel-head" }, el("h2", {}, t("admin.queue")), may(given.me, "operate") && pause),
    ...(found.paused ? [el("p", { class: "caution" }, t("admin.paused"))] : []),
    jobs(found.jobs, given, t("admin.queue"), t("admin.queue-empty")),
  ];
}

/** Jobs that were given up, with the reason. @param {import("./admin.js").Given} given */
export async function deadPanel(given) {
  const found = await get(`/api/jobs${query({ state: "dead", limit: 200 })}`);
  const all = actionButton(t("admin.retry-all"), async () => {
    for (const job of found.jobs) await act(job, "retry");
    await given.again();
  });
  return [
    el("div", { class: "panel-head" }, el("h2", {}, t("admin.dead")), found.jobs.length > 1 && may(given.me, "steer") && all),
    el("p", { class: "muted" }, t("admin.dead-about")),
    jobs(found.jobs, given, t("admin.dead"), t("admin.no-dead")),
  ];
}

function jobs(rows, given, caption, none) {
  const actions = (job) => {
    if (!may(given.me, "steer")) return "";
    const open = ["waiting", "leased"].includes(job.state);
    const run = async () => {
      const sure = !open || (await confirmPerson(t("admin.cancel"), t("admin.cancel-text"), t("admin.cancel"), true));
      if (!sure) return;
      await act(job, open ? "cancel" : "retry");
      await given.again();
    };
    return actionButton(t(open ? "admin.cancel" : "admin.retry"), run, { "aria-label": `${t(open ? "admin.cancel" : "admin.retry")} ${job.id}` });
  };
  return table(
    caption,
    [
      { title: t("admin.number"), kind: "right", cell: (job) => job.id },
      { title: t("admin.job"), cell: (job) => word("job", job.kind) },
      { title: t("admin.state"), cell: (job) => word("job-state", job.state) },
      { title: t("admin.study"), cell: (job) => (job.study_id ? el("a", { href: `/study/${Number(job.study_id)}` }, `#${job.study_id}`) : "") },
      { title: t("admin.attempts"), kind: "right", cell: (job) => `${job.attempts} / ${job.most_attempts ?? "–"}` },
      { title: t("admin.due"), kind: "number", cell: (job) => moment(job.due_at ?? job.created_at) },
      { title: t("admin.why"), kind: "long", cell: (job) => job.error },
      { title: "", cell: actions },
    ],
    rows,
    none,
  );
}

async function act(job, what) {
  try {
    await post(`/api/jobs/${Number(job.id)}/${what}`);
    tell(t(what === "retry" ? "admin.retried" : "admin.cancelled", { n: job.id }), "good");
  } catch (error) {
    showProblem(error);
  }
}
