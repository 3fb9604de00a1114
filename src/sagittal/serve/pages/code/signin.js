// The page for signing in.

import { ApiError, post, whoAmI } from "./api.js";
import { byId } from "./dom.js";
import { beginOutside, explain } from "./page.js";
import { t } from "./text.js";

/**
 * Where to go afterwards: a page of this service, never another place.
 * @param {string} search of the address
 * @returns {string}
 */
export function nextPage(search) {
  const wanted = new URLSearchParams(search).get("next") ?? "/";
  return /^\/(study\/\d+|agreement|admin|account)?(#[a-z-]*)?$/.test(wanted) ? wanted : "/";
}

await beginOutside();
const form = /** @type {HTMLFormElement} */ (byId("form"));
const problem = byId("problem");
byId("oidc").hidden = document.documentElement.dataset.oidc !== "yes";
const search = new URLSearchParams(location.search);
if (search.has("problem")) show(t(search.get("problem") === "provider" ? "signin.oidc-silent" : "signin.oidc-failed"));

if (await whoAmI().catch(() => null)) location.replace(nextPage(location.search));
else sessionStorage.clear(); // what the one before looked for is nobody else's

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = /** @type {HTMLButtonElement} */ (form.querySelector("button"));
  button.disabled = true;
  problem.hidden = true;
  const given = new FormData(form);
  try {
    await post("/api/login", { name: given.get("name"), password: given.get("password") });
    location.replace(nextPage(location.search));
  } catch (error) {
    const wrong = error instanceof ApiError && (error.status === 401 || error.status === 403);
    show(wrong ? t("signin.wrong") : explain(error));
    button.disabled = false;
    const password = /** @type {HTMLInputElement} */ (form.elements.namedItem("password"));
    password.value = "";
    password.focus();
  }
});

function show(text) {
  problem.textContent = text;
  problem.hidden = false;
}
