// What each page begins with: its words, who is signed in, the bar at the top, messages.

import { ApiError, post, whoAmI } from "./api.js";
import { byId, el, svg } from "./dom.js";
import { chooseLanguage, language, languageChosen, loadText, t, word } from "./text.js";

const PAGES = [
  { name: "worklist", path: "/", needs: "see" },
  { name: "agreement", path: "/agreement", needs: "see" },
  { name: "admin", path: "/admin", needs: "operate" },
];

/**
 * Begin a page for people who are signed in; others are sent to sign in.
 * @param {string} name of the page
 * @returns {Promise<import("./api.js").Me>}
 */
export async function begin(name) {
  await loadText();
  watchErrors();
  let me = null;
  try {
    me = await whoAmI();
  } catch (error) {
    showProblem(error);
    throw error;
  }
  if (!me) {
    signIn();
    return new Promise(() => {}); // the page is being left
  }
  if (me.language && me.language !== language() && !languageChosen()) {
    chooseLanguage(me.language);
    location.reload();
    return new Promise(() => {});
  }
  drawTop(name, me);
  return me;
}

/** Begin a page for people who are not signed in yet. */
export async function beginOutside() {
  await loadText();
  watchErrors();
  byId("foot").append(languageSwitch());
}

/**
 * Whether somebody may do something.
 * @param {import("./api.js").Me} me
 * @param {string} permission
 */
export function may(me, permission) {
  return (me.permissions ?? []).includes(permission);
}

/** Go to the page for signing in, and come back to this one. */
export function signIn() {
  const here = location.pathname + location.hash;
  location.replace(`/signin${here === "/" ? "" : `?next=${encodeURIComponent(here)}`}`);
}

function drawTop(name, me) {
  const top = byId("top");
  const links = PAGES.filter((page) => may(me, page.needs) || (page.name === "admin" && (may(me, "users") || may(me, "audit"))));
  top.append(
    el("a", { class: "brand", href: "/" }, logo(), "Sagittal"),
    el(
      "nav",
      { "aria-label": t("page.pages") },
      ...links.map((page) =>
        el("a", { href: page.path, "aria-current": page.name === name ? "page" : null }, t(`page.${page.name}`)),
      ),
    ),
    themeSwitch(),
    languageSwitch(),
    el("a", { class: "who", href: "/account", title: t("page.account") }, `${me.name} · ${word("role", me.role)}`),
    el("button", { type: "button", class: "plain", on: { click: leave } }, t("page.sign-out")),
  );
}

async function leave() {
  try {
    await post("/api/logout");
  } catch (error) {
    if (!(error instanceof ApiError && error.status === 401)) {
      showProblem(error);
      return;
    }
  }
  sessionStorage.clear(); // the filters may hold a patient's name
  location.replace("/signin");
}

function languageSwitch() {
  const other = language() === "zh" ? "en" : "zh";
  const name = other === "zh" ? "中文" : "English";
  const change = () => {
    chooseLanguage(other);
    location.reload();
  };
  return el("button", { type: "button", class: "plain", lang: other === "zh" ? "zh-CN" : "en", on: { click: change } }, name);
}

function themeSwitch() {
  const order = ["auto", "dark", "light"];
  let now = "auto";
  try {
    now = localStorage.getItem("sagittal.theme") ?? "auto";
  } catch {
    // kept for this page only
  }
  const change = () => {
    const next = order[(order.indexOf(now) + 1) % order.length];
    try {
      localStorage.setItem("sagittal.theme", next);
    } catch {
      return;
    }
    location.reload();
  };
  return el(
    "button",
    { type: "button", class: "plain", title: t("page.theme-change"), on: { click: change } },
    t(`page.theme-${now}`),
  );
}

function logo() {
  return svg(
    "svg",
    { viewBox: "0 0 20 20", "aria-hidden": "true" },
    svg("path", { d: "M10 1.5a8.5 8.5 0 1 0 0 17", fill: "none", stroke: "currentColor", "stroke-width": 2 }),
    svg("path", { d: "M10 1v18", stroke: "currentColor", "stroke-width": 2 }),
    svg("path", { d: "M14 5.5a6 6 0 0 1 0 9", fill: "none", stroke: "currentColor", "stroke-width": 2 }),
  );
}

/**
 * Tell something in the corner; bad news stays until it is closed.
 * @param {string} text
 * @param {"good"|"bad"|""} [kind]
 */
export function tell(text, kind = "") {
  const place = byId("notices");
  const close = () => note.remove();
  const note = el(
    "div",
    { class: `notice ${kind}` },
    text,
    " ",
    kind === "bad" && el("button", { type: "button", class: "plain", on: { click: close } }, t("dialog.close")),
  );
  place.append(note);
  while (place.childElementCount > 4) place.firstElementChild?.remove();
  if (kind !== "bad") setTimeout(close, 4000);
}

/**
 * What went wrong, in words for a reader.
 * @param {unknown} error
 * @returns {string}
 */
export function explain(error) {
  if (!(error instanceof ApiError)) return t("error.page", { what: error instanceof Error ? error.message : String(error) });
  const what = error.message || "";
  if (error.status === 0) return t("error.no-answer");
  if (error.status === 403) return t("error.not-allowed");
  if (error.status === 404) return t("error.not-found");
  if (error.status === 409 || error.status === 422 || error.status === 400) return t("error.refused", { what });
  if (error.status === 429) return t("error.too-often");
  return t("error.service", { what });
}

/**
 * Tell that something went wrong; who is no longer signed in is sent to sign in.
 * @param {unknown} error
 */
export function showProblem(error) {
  if (error instanceof ApiError && error.status === 401) {
    signIn();
    return;
  }
  tell(explain(error), "bad");
}

function watchErrors() {
  addEventListener("unhandledrejection", (event) => {
    if (event.reason instanceof ApiError) showProblem(event.reason);
  });
}

/**
 * A function that waits until it was not called for a while.
 * @param {(...given: any[]) => void} action
 * @param {number} wait_ms
 */
export function quietly(action, wait_ms) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...given), wait_ms);
  };
}

/**
 * Whether a key was pressed while something is typed, so that it is no command.
 * @param {KeyboardEvent} event
 */
export function isTyping(event) {
  const target = /** @type {HTMLElement} */ (event.target);
  return (
    event.ctrlKey ||
    event.metaKey ||
    event.altKey ||
    event.isComposing ||
    Boolean(document.querySelector("dialog[open]")) ||
    /^(INPUT|SELECT|TEXTAREA)$/.test(target.tagName) && !/^(checkbox|radio|range|button)$/.test(target.getAttribute("type") ?? "") ||
    target.isContentEditable
  );
}
