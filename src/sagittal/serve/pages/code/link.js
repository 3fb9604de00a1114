// A link that works once: the first administrator, or a first password. Its secret stands behind # and reaches no log.

import { ApiError, get, post } from "./api.js";
import { byId } from "./dom.js";
import { beginOutside, explain } from "./page.js";
import { t } from "./text.js";

await beginOutside();
const form = /** @type {HTMLFormElement} */ (byId("form"));
const problem = byId("problem");
const secret = location.hash.slice(1) || location.pathname.split("/")[2] || "";
history.replaceState(null, "", "/link"); // it does not stay in the history
try {
  if (!/^[\w-]{20,100}$/.test(secret)) throw new ApiError(404, "");
  const about = await get(`/api/links/${secret}`);
  // The first administrator chooses a name; everyone else has one.
  const first = about.purpose === "first-administrator";
  byId("name").hidden = byId("name-hint").hidden = !first;
  const name = /** @type {HTMLInputElement} */ (form.elements.namedItem("name"));
  name.required = first;
  name.value = first ? "" : about.name;
  if (!first) byId("about").textContent = t("link.for", { name: about.name });
  form.hidden = false;
} catch (error) {
  show(error instanceof ApiError && error.status === 404 ? t("link.wrong") : explain(error));
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const given = new FormData(form);
  const password = String(given.get("password"));
  if (password !== given.get("again")) {
    show(t("link.differ"));
    return;
  }
  const button = /** @type {HTMLButtonElement} */ (form.querySelector("button"));
  button.disabled = true;
  problem.hidden = true;
  try {
    const name = byId("name").hidden ? "" : String(given.get("name")).trim();
    await post(`/api/links/${secret}`, name ? { name, password } : { password });
    location.replace("/");
  } catch (error) {
    const used = error instanceof ApiError && [401, 403, 404, 410].includes(error.status);
    show(used ? t("link.wrong") : explain(error));
    button.disabled = false;
  }
});

function show(text) {
  problem.textContent = text;
  problem.hidden = false;
  problem.scrollIntoView({ block: "nearest" });
}
