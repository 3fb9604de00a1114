// Fetching from a PACS that the service knows: a study by its accession number, or a patient's earlier studies.

import { get, post } from "./api.js";
import { askPerson } from "./dialog.js";
import { el } from "./dom.js";
import { showProblem, tell } from "./page.js";
import { t } from "./text.js";

/**
 * The PACS that studies can be fetched from.
 * @returns {Promise<string[]>} none where there is none, or it cannot be told
 */
export async function knownPacs() {
  try {
    return (await get("/api/pacs")).pacs;
  } catch {
    return [];
  }
}

/**
 * Ask for an accession number, and have the study fetched.
 * @param {string[]} pacs
 */
export async function fetchStudy(pacs) {
  const wanted = await askPerson({
    title: t("fetch.study"),
    content: [
      el("p", { class: "muted" }, t("fetch.study-text")),
      choice(pacs),
      el(
        "label",
        { class: "field" },
        el("span", {}, t("worklist.accession")),
        el("input", { name: "accession", required: true, maxlength: 64, autocomplete: "off", spellcheck: "false", autofocus: true, pattern: "[^*?\\\\]+" }),
      ),
    ],
    yes: t("fetch.fetch"),
    read: (form) => ({ pacs: form.elements.namedItem("pacs").value, accession: form.elements.namedItem("accession").value.trim() }),
  });
  if (wanted) await send("/api/fetch", wanted);
}

/**
 * Ask how many of a patient's earlier studies are wanted, and have them fetched.
 * @param {number} study
 * @param {string[]} pacs
 */
export async function fetchEarlier(study, pacs) {
  const wanted = await askPerson({
    title: t("fetch.earlier"),
    content: [
      el("p", { class: "muted" }, t("fetch.earlier-text")),
      choice(pacs),
      el(
        "label",
        { class: "field" },
        el("span", {}, t("fetch.most")),
        el("input", { name: "most", type: "number", min: 1, max: 8, value: 1, required: true }),
      ),
    ],
    yes: t("fetch.fetch"),
    read: (form) => ({ pacs: form.elements.namedItem("pacs").value, most: Number(form.elements.namedItem("most").value) }),
  });
  if (wanted) await send(`/api/studies/${Number(study)}/earlier`, wanted);
}

function choice(pacs) {
  return el(
    "label",
    { class: "field" },
    el("span", {}, t("fetch.pacs")),
    el("select", { name: "pacs" }, ...pacs.map((name) => el("option", { value: name }, name))),
  );
}

async function send(path, wanted) {
  try {
    const { job } = await post(path, wanted);
    tell(t(job === null ? "fetch.known" : "fetch.queued"), "good");
  } catch (error) {
    showProblem(error);
  }
}
