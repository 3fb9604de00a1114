// Tables of the administrator's pages.

import { el } from "./dom.js";
import { t } from "./text.js";

/**
 * @typedef {object} Column
 * @property {string} title
 * @property {(row: any) => any} cell text, a node, or several of them
 * @property {string} [kind] "right", "number" or "long"
 */

/**
 * A table, or a sentence where it has no rows.
 * @param {string} caption for those who do not see it
 * @param {Column[]} columns
 * @param {any[]} rows
 * @param {string} [none]
 * @returns {HTMLElement}
 */
export function table(caption, columns, rows, none = t("admin.none")) {
  if (!rows.length) return el("p", { class: "muted" }, none);
  const shape = (column) => ({ right: "right number", number: "number", long: "long" })[column.kind ?? ""] ?? "";
  return el(
    "div",
    { class: "scroll-x", tabindex: 0, role: "region", "aria-label": caption },
    el(
      "table",
      {},
      el("caption", { class: "visually-hidden" }, caption),
      el("thead", {}, el("tr", {}, ...columns.map((column) => el("th", { scope: "col", class: shape(column) }, column.title)))),
      el(
        "tbody",
        {},
        ...rows.map((row) =>
          el("tr", {}, ...columns.map((column) => el("td", { class: shape(column) }, ...[column.cell(row)].flat().map(shown)))),
        ),
      ),
    ),
  );
}

function shown(value) {
  if (value instanceof Node) return value;
  return value === null || value === undefined ? "" : String(value);
}

/**
 * A button that does something and is not pressed twice meanwhile.
 * @param {string} text
 * @param {() => Promise<any>} action
 * @param {Record<string, any>} [attributes]
 */
export function actionButton(text, action, attributes = {}) {
  const button = /** @type {HTMLButtonElement} */ (el("button", { type: "button", ...attributes }, text));
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      await action();
    } finally {
      button.disabled = false;
    }
  });
  return button;
}
