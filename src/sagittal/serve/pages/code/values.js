// Values of any shape as a list of names and values, as far as they can be said in words.

import { el } from "./dom.js";
import { t, word } from "./text.js";

/**
 * A list of names and values.
 * @param {Record<string, any>} values
 * @returns {HTMLElement}
 */
export function valueList(values) {
  return el(
    "dl",
    { class: "values" },
    ...Object.entries(values).flatMap(([key, value]) => [el("dt", {}, word("use", key)), el("dd", { class: "wraps" }, shown(value))]),
  );
}

function shown(value) {
  if (value === null || value === undefined || value === "") return "–";
  if (Array.isArray(value)) {
    const numbers = value.length === 2 && value.every((one) => typeof one === "number");
    return numbers ? `${shown(value[0])} – ${shown(value[1])}` : value.map(shown).join(", ") || "–";
  }
  if (typeof value === "object") return Object.entries(value).map(([k, v]) => `${word("use", k)}: ${shown(v)}`).join("; ") || "–";
  if (typeof value === "boolean") return t(value ? "yes" : "no");
  if (value === "not stated") return t("use.not-stated");
  return typeof value === "number" && !Number.isInteger(value) ? String(Number(value.toPrecision(4))) : String(value);
}
