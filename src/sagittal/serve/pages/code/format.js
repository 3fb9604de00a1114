// Numbers, times and names as people of the page's language write them.

import { language, t } from "./text.js";

const locale = () => (language() === "zh" ? "zh-CN" : "en-GB");

/**
 * A share as a percentage.
 * @param {number|null|undefined} value 0 to 1
 * @returns {string} empty where there is none
 */
export function percent(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "";
  const shown = value * 100;
  // Never "100 %" for what is not certain.
  if (shown > 99 && shown < 100) return `> 99 %`;
  if (shown > 0 && shown < 1) return `< 1 %`;
  return `${shown.toFixed(0)} %`;
}

/**
 * How long something has lasted, two units at most.
 * @param {number|null|undefined} seconds
 * @returns {string}
 */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "";
  const s = Math.max(0, Math.floor(seconds));
  const two = (n) => String(n).padStart(2, "0");
  if (s < 3600) return `${Math.floor(s / 60)}:${two(s % 60)}`;
  if (s < 86400) return t("time.hours", { h: Math.floor(s / 3600), m: two(Math.floor((s % 3600) / 60)) });
  return t("time.days", { d: Math.floor(s / 86400), h: Math.floor((s % 86400) / 3600) });
}

/**
 * A moment in the reader's own time zone, as ISO 8601 orders it: the same to every reader; of today the time alone.
 * @param {string|null|undefined} iso
 * @returns {string}
 */
export function moment(iso) {
  if (!iso) return "";
  const at = new Date(iso);
  if (Number.isNaN(at.getTime())) return String(iso);
  const two = (n) => String(n).padStart(2, "0");
  const time = `${two(at.getHours())}:${two(at.getMinutes())}`;
  if (at.toDateString() === new Date().toDateString()) return time;
  return `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ${time}`;
}

/**
 * A day of a header, `YYYYMMDD` or ISO, as ISO writes it: the same to every reader.
 * @param {string|null|undefined} value
 * @returns {string}
 */
export function day(value) {
  const text = String(value ?? "");
  const found = /^(\d{4})[-.]?(\d{2})[-.]?(\d{2})/.exec(text);
  return found ? `${found[1]}-${found[2]}-${found[3]}` : text;
}

/**
 * Years between a birth date and a day.
 * @param {string|null|undefined} birth
 * @param {string|null|undefined} at
 * @returns {string} empty where either is not known
 */
export function age(birth, at) {
  const from = /^(\d{4})-(\d{2})-(\d{2})$/.exec(day(birth));
  const to = /^(\d{4})-(\d{2})-(\d{2})$/.exec(day(at) || new Date().toISOString().slice(0, 10));
  if (!from || !to) return "";
  const [y, m, d] = [1, 2, 3].map((n) => Number(to[n]) - Number(from[n]));
  const years = y - (m < 0 || (m === 0 && d < 0) ? 1 : 0);
  return years < 0 || years > 130 ? "" : t("patient.years", { n: years });
}

/**
 * A person's name of a header (PS3.5 6.2.1: alphabetic=ideographic=phonetic, components by ^) as it is said.
 * @param {string|null|undefined} value
 * @returns {string}
 */
export function personName(value) {
  const groups = String(value ?? "").split("=");
  const [alphabetic, ideographic] = groups.map((group) => {
    const [family = "", given = "", middle = "", prefix = "", suffix = ""] = group.split("^").map((part) => part.trim());
    const first = [prefix, given, middle].filter(Boolean).join(" ");
    return [family, [first, suffix].filter(Boolean).join(", ")].filter(Boolean).join(", ");
  });
  const native = (ideographic ?? "").replace(", ", "");
  if (native && alphabetic) return language() === "zh" ? `${native} ${alphabetic}` : `${alphabetic} ${native}`;
  return native || alphabetic || t("patient.unnamed");
}

/**
 * A version as it is shown: of a checksum the first eight signs.
 * @param {string} value
 * @returns {string}
 */
export function version(value) {
  return /^[0-9a-f]{12,}$/.test(value) ? value.slice(0, 8) : value;
}

/**
 * Bytes in a unit that fits.
 * @param {number|null|undefined} bytes
 * @returns {string}
 */
export function size(bytes) {
  if (bytes === null || bytes === undefined || !Number.isFinite(bytes)) return "";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let n = 0;
  let value = bytes;
  while (value >= 1024 && n < units.length - 1) {
    value /= 1024;
    n += 1;
  }
  return `${value.toFixed(value >= 100 || n === 0 ? 0 : 1)} ${units[n]}`;
}

/**
 * A count with the language's separators.
 * @param {number|null|undefined} value
 * @returns {string}
 */
export function count(value) {
  return value === null || value === undefined ? "" : new Intl.NumberFormat(locale()).format(value);
}
