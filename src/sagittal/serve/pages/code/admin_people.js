// Users, and the tokens of programs.

import { get, patch, post, remove } from "./api.js";
import { askPerson, confirmPerson } from "./dialog.js";
import { el } from "./dom.js";
import { moment } from "./format.js";
import { showProblem } from "./page.js";
import { actionButton, table } from "./table.js";
import { t, word } from "./text.js";

const ROLES = ["reader", "engineer", "administrator", "machine"];

/** Everyone who may come in, and every token. @param {import("./admin.js").Given} given */
export async function peoplePanel(given) {
  const [{ users }, tokens] = await Promise.all([get("/api/users"), tokensPart(given, t("admin.tokens-all"))]);
  const change = async (user, values) => {
    try {
      const changed = await patch(`/api/users/${Number(user.id)}`, values);
      if (changed.link) await showLink(changed.link, user.name);
      await given.again();
    } catch (error) {
      showProblem(error);
    }
  };
  const role = (user) =>
    el(
      "select",
      { "aria-label": t("admin.role-of", { name: user.name }), disabled: !user.active, on: { change: (event) => change(user, { role: event.target.value }) } },
      ...ROLES.map((one) => el("option", { value: one, selected: one === user.role }, word("role", one))),
    );
  const actions = (user) =>
    el(
      "div",
      { class: "actions" },
      user.active && !user.by_provider && user.role !== "machine"
        ? actionButton(t("admin.new-link"), () => change(user, { link: true }), { "aria-label": `${t("admin.new-link")} ${user.name}` })
        : "",
      actionButton(
        t(user.active ? "admin.put-out" : "admin.put-back"),
        async () => {
          if (user.active && !(await confirmPerson(t("admin.put-out"), t("admin.put-out-text", { name: user.name }), t("admin.put-out"), true))) return;
          await change(user, { active: !user.active });
        },
        { "aria-label": `${t(user.active ? "admin.put-out" : "admin.put-back")} ${user.name}` },
      ),
    );
  return [
    el("div", { class: "panel-head" }, el("h2", {}, t("admin.users")), actionButton(t("admin.add-user"), () => addUser(given), { id: "add-user" })),
    table(
      t("admin.users"),
      [
        { title: t("admin.name"), kind: "long", cell: (one) => el("strong", {}, one.name) },
        { title: t("admin.role"), cell: role },
        { title: t("admin.state"), cell: (one) => (one.active ? t("admin.in-use") : el("span", { class: "muted" }, t("admin.out-of-use"))) },
        { title: t("admin.comes-by"), cell: (one) => t(one.by_provider ? "admin.by-provider" : one.has_password ? "admin.by-password" : one.role === "machine" ? "admin.by-token" : "admin.by-link") },
        { title: t("admin.since"), kind: "number", cell: (one) => moment(one.created_at) },
        { title: "", cell: actions },
      ],
      users,
    ),
    ...tokens,
  ];
}

async function addUser(given) {
  const name = el("input", { name: "name", required: true, maxlength: 128, autocomplete: "off" });
  const role = el("select", { name: "role" }, ...ROLES.map((one) => el("option", { value: one }, word("role", one))));
  const answer = await askPerson({
    title: t("admin.add-user"),
    content: [
      el("label", { class: "field" }, el("span", {}, t("admin.name")), name),
      el("label", { class: "field" }, el("span", {}, t("admin.role")), role),
    ],
    yes: t("admin.add"),
    read: () => ({ name: name.value.trim(), role: role.value }),
  });
  if (!answer) return;
  try {
    const made = await post("/api/users", answer);
    if (made.link) await showLink(made.link, answer.name);
    await given.again();
  } catch (error) {
    showProblem(error);
  }
}

/** A link is told once: it is shown until it was taken down. */
async function showLink(secret, name) {
  await showSecret(t("admin.link-for", { name }), t("admin.link-text"), `${location.origin}/link#${secret}`);
}

async function showSecret(title, text, secret) {
  const field = el("input", { class: "secret", readonly: true, value: secret, "aria-label": title, autofocus: true });
  field.addEventListener("focus", () => field.select());
  await askPerson({ title, content: [el("p", {}, text), field] });
}

/**
 * Tokens, and a way to make one.
 * @param {import("./admin.js").Given} given
 * @param {string} title
 * @returns {Promise<Node[]>}
 */
export async function tokensPart(given, title) {
  const { tokens } = await get("/api/tokens");
  const make = async () => {
    const name = el("input", { name: "name", required: true, maxlength: 128, autocomplete: "off" });
    const days = el("input", { name: "days", type: "number", min: 1, max: 3660, value: 365 });
    const answer = await askPerson({
      title: t("admin.add-token"),
      content: [
        el("label", { class: "field" }, el("span", {}, t("admin.token-name")), name),
        el("label", { class: "field" }, el("span", {}, t("admin.token-days")), days),
      ],
      yes: t("admin.add"),
      read: () => ({ name: name.value.trim(), days: Number(days.value) || null }),
    });
    if (!answer) return;
    try {
      const made = await post("/api/tokens", answer);
      await showSecret(t("admin.token-made"), t("admin.token-text"), made.token);
      await given.again();
    } catch (error) {
      showProblem(error);
    }
  };
  const revoke = (token) =>
    token.revoked_at
      ? el("span", { class: "muted" }, t("admin.revoked"))
      : actionButton(
          t("admin.revoke"),
          async () => {
            if (!(await confirmPerson(t("admin.revoke"), t("admin.revoke-text", { name: token.name }), t("admin.revoke"), true))) return;
            try {
              await remove(`/api/tokens/${Number(token.id)}`);
              await given.again();
            } catch (error) {
              showProblem(error);
            }
          },
          { "aria-label": `${t("admin.revoke")} ${token.name}` },
        );
  return [
    el("div", { class: "panel-head" }, el("h2", {}, title), actionButton(t("admin.add-token"), make, { id: "add-token" })),
    table(
      title,
      [
        { title: t("admin.name"), kind: "long", cell: (one) => one.name },
        { title: t("admin.user"), cell: (one) => one.user },
        { title: t("admin.made"), kind: "number", cell: (one) => moment(one.created_at) },
        { title: t("admin.ends"), kind: "number", cell: (one) => moment(one.expires_at) || t("admin.never") },
        { title: t("admin.last-used"), kind: "number", cell: (one) => moment(one.used_at) || t("admin.never") },
        { title: "", cell: revoke },
      ],
      tokens,
      t("admin.no-tokens"),
    ),
  ];
}
