// One's own account: language, password, tokens.

import { patch } from "./api.js";
import { byId, el } from "./dom.js";
import { tokensPart } from "./admin_people.js";
import { begin, explain, tell } from "./page.js";
import { chooseLanguage, language, t, word } from "./text.js";

const me = await begin("account");
const tokens = el("section");

byId("content").append(
  el("p", {}, el("strong", { class: "wraps" }, me.name), el("span", { class: "muted" }, ` · ${word("role", me.role)}`)),
  languagePart(),
  passwordPart(),
  tokens,
);
await drawTokens();

async function drawTokens() {
  tokens.replaceChildren(...(await tokensPart({ me, again: drawTokens }, t("account.tokens"))), el("p", { class: "small muted" }, t("account.tokens-about")));
}

function languagePart() {
  const choose = async (event) => {
    const chosen = event.target.value;
    try {
      await patch("/api/me", { language: chosen });
    } catch (error) {
      tell(explain(error), "bad");
      return;
    }
    chooseLanguage(chosen);
    location.reload();
  };
  return el(
    "section",
    { class: "card narrow" },
    el(
      "label",
      { class: "field" },
      el("span", {}, t("account.language")),
      el("select", { id: "language", on: { change: choose } }, ...[["en", "English"], ["zh", "中文"]].map(([code, name]) => el("option", { value: code, selected: code === language() }, name))),
    ),
  );
}

function passwordPart() {
  const old = el("input", { name: "old", type: "password", autocomplete: "current-password", required: true, maxlength: 256 });
  const fresh = el("input", { name: "fresh", type: "password", autocomplete: "new-password", required: true, minlength: 12, maxlength: 256 });
  const again = el("input", { name: "again", type: "password", autocomplete: "new-password", required: true, maxlength: 256 });
  const form = el(
    "form",
    { class: "card narrow" },
    el("h2", {}, t("account.password")),
    el("label", { class: "field" }, el("span", {}, t("account.old")), old),
    el("label", { class: "field" }, el("span", {}, t("account.new")), fresh),
    el("label", { class: "field" }, el("span", {}, t("link.again")), again),
    el("p", { class: "small muted" }, t("link.hint")),
    el("button", { type: "submit" }, t("account.change")),
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (fresh.value !== again.value) {
      tell(t("link.differ"), "bad");
      return;
    }
    try {
      await patch("/api/me", { password: fresh.value, old_password: old.value });
      location.reload(); // the session is a new one
    } catch (error) {
      tell(explain(error), "bad");
    }
  });
  return form;
}
