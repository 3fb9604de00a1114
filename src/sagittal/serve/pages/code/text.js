// What the pages say, in the language of this page. Nothing is said that is not in text/*.json.

/** @type {Record<string, string>} */
let known = {};

/** @returns {string} the language of this page, as its root element says */
export function language() {
  return document.documentElement.lang || "en";
}

/** Load the words of this page's language; called once, before anything is shown. */
export async function loadText() {
  const answer = await fetch(new URL(`../text/${language()}.json`, import.meta.url));
  if (!answer.ok) throw new Error(`the words of this page could not be loaded (${answer.status})`);
  known = await answer.json();
}

/**
 * The words for a key, with `{name}` filled in.
 * @param {string} key
 * @param {Record<string, string|number>} [values]
 * @returns {string}
 */
export function t(key, values = {}) {
  const words = known[key];
  if (words === undefined) return key;
  return words.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

/**
 * The words for a value out of a fixed list, or the value itself where a newer service says one that we do not know.
 * @param {string} group
 * @param {string} value
 * @returns {string}
 */
export function word(group, value) {
  return known[`${group}.${value}`] ?? value;
}

/**
 * Change the language: kept in a cookie, as the server writes the page.
 * @param {string} chosen
 */
export function chooseLanguage(chosen) {
  const secure = location.protocol === "https:" ? "; Secure" : "";
  document.cookie = `sagittal_language=${chosen}; Path=/; Max-Age=31536000; SameSite=Lax${secure}`;
}

/** @returns {boolean} whether a language was chosen in this browser */
export function languageChosen() {
  return /(?:^|; )sagittal_language=/.test(document.cookie);
}
