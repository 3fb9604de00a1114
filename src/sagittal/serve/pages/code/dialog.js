// Questions that must be answered before work goes on. The browser's own dialog keeps the focus inside and gives it back.

import { el } from "./dom.js";
import { t } from "./text.js";

/**
 * Ask with a form.
 * @param {object} question
 * @param {string} question.title
 * @param {(Node|string)[]} question.content
 * @param {string} [question.yes] on the button that agrees; none where there is nothing to agree to
 * @param {boolean} [question.danger]
 * @param {(form: HTMLFormElement) => any} [question.read] what the answer is; true where left out
 * @returns {Promise<any>} null where it was left
 */
export function askPerson({ title, content, yes, danger = false, read = () => true }) {
  return new Promise((resolve) => {
    let answer = null;
    const form = /** @type {HTMLFormElement} */ (
      el(
        "form",
        { method: "dialog" },
        el("h2", { id: "dialog-title" }, title),
        ...content,
        el(
          "div",
          { class: "actions" },
          el("button", { type: "button", on: { click: () => box.close() } }, yes ? t("dialog.cancel") : t("dialog.close")),
          yes && el("button", { type: "submit", class: danger ? "danger" : "primary" }, yes),
        ),
      )
    );
    const box = /** @type {HTMLDialogElement} */ (el("dialog", { "aria-labelledby": "dialog-title" }, form));
    form.addEventListener("submit", () => {
      answer = read(form);
    });
    // Tab goes round inside: the browser alone would let it leave for its own bars.
    box.addEventListener("keydown", (event) => {
      if (event.key !== "Tab") return;
      const stops = [...box.querySelectorAll("button, input, select, textarea, a[href]")].filter(
        (one) => !(/** @type {any} */ (one).disabled) && one.getClientRects().length,
      );
      const first = /** @type {HTMLElement} */ (stops[0]);
      const last = /** @type {HTMLElement} */ (stops.at(-1));
      if (event.shiftKey && document.activeElement === first) {
        last.focus();
        event.preventDefault();
      } else if (!event.shiftKey && document.activeElement === last) {
        first.focus();
        event.preventDefault();
      }
    });
    box.addEventListener("close", () => {
      box.remove();
      resolve(answer);
    });
    document.body.append(box);
    box.showModal();
    /** @type {HTMLElement|null} */ (box.querySelector("[autofocus], textarea, input"))?.focus();
  });
}

/**
 * Ask for a yes.
 * @param {string} title
 * @param {string} text
 * @param {string} yes
 * @param {boolean} [danger]
 * @returns {Promise<boolean>}
 */
export async function confirmPerson(title, text, yes, danger = false) {
  return Boolean(await askPerson({ title, content: [el("p", {}, text)], yes, danger }));
}
