// The reader's word: accept, correct or reject, with who said what and when.

import { post } from "./api.js";
import { askPerson } from "./dialog.js";
import { byId, el } from "./dom.js";
import { moment } from "./format.js";
import { showProblem, tell } from "./page.js";
import { makeEditor } from "./review_editors.js";
import { t } from "./text.js";
import { verdictMark } from "./worklist_row.js";

const REASONS = ["false-positive", "missed", "wrong-place", "wrong-class", "image-quality", "outside-use"];

/** What was put right, in words. */
function correctionText(review) {
  const given = review.correction ?? {};
  const words = given.class ?? (given.classes ? given.classes.join(", ") || t("review.no-class") : null);
  return words === null || words === undefined ? null : el("strong", { class: "wraps" }, ` → ${words}`);
}

/** The verdict on the result that is shown. */
export class Review {
  /**
   * @param {object} given
   * @param {any} given.stage
   * @param {boolean} given.may whether this person may review
   * @param {() => any} given.result that is shown
   * @param {() => Promise<void>} given.answered called once the service has the verdict
   * @param {() => void} given.redrawn
   */
  constructor(given) {
    this.given = given;
    /** @type {any} */
    this.editor = null;
    this.sending = false;
  }

  /** Whether a correction is being made. */
  get busy() {
    return this.editor !== null;
  }

  /**
   * Draw the buttons and what was said before.
   * @param {HTMLElement} place
   */
  draw(place) {
    const result = this.given.result();
    place.hidden = !result;
    if (!result) return;
    const focused = place.contains(document.activeElement) ? document.activeElement?.id : "";
    const reviews = [...(result.reviews ?? [])].sort((a, b) => String(b.at).localeCompare(String(a.at)));
    const choose = (verdict, key, action) =>
      el(
        "button",
        {
          type: "button", id: `verdict-${verdict}`, disabled: this.sending || this.busy,
          "aria-pressed": String(reviews[0]?.verdict === verdict), "aria-keyshortcuts": key, on: { click: action },
        },
        verdictMark(verdict, "verdict"),
        el("kbd", {}, key),
      );
    place.replaceChildren(
      el(
        "ul",
        { class: "history", "aria-label": t("review.history") },
        ...(reviews.length
          ? reviews.map((one) =>
              el("li", { class: "wraps" }, verdictMark(one.verdict), ` ${one.user} · ${moment(one.at)}`, correctionText(one), one.reason && el("span", { class: "muted" }, ` · ${one.reason}`), this.showButton(one)),
            )
          : [el("li", { class: "muted" }, t("review.none"))]),
      ),
      this.given.may
        ? el(
            "div",
            { class: "choose" },
            choose("accept", "A", () => this.accept()),
            choose("correct", "C", () => this.correct()),
            choose("reject", "R", () => this.reject()),
          )
        : el("p", { class: "muted small" }, t("review.not-allowed")),
    );
    if (focused) document.getElementById(focused)?.focus();
  }

  /** A corrected mask is looked at on the image; pressed again, the model's own comes back. */
  showButton(review) {
    const { mask, boxes } = review.correction ?? {};
    if (!mask?.url && !boxes) return null;
    const shown = this.given.stage.shownReview === review.id;
    const show = async () => {
      try {
        await this.given.stage.showCorrection(shown ? null : review, this.given.result());
        this.given.redrawn();
      } catch (error) {
        showProblem(error);
      }
    };
    return el("button", { type: "button", class: "plain", id: `show-${review.id}`, "aria-pressed": String(shown), disabled: this.busy, on: { click: show } }, t("review.show"));
  }

  /** The result is right. */
  async accept() {
    if (!this.ready()) return;
    await this.send({ verdict: "accept", reason: "" });
  }

  /** The result is wrong and not worth correcting; the reason is asked for. */
  async reject() {
    if (!this.ready()) return;
    const reason = el("textarea", { name: "reason", required: true, maxlength: 2000, "aria-label": t("review.reason") });
    const chips = REASONS.map((name) =>
      el(
        "button",
        {
          type: "button",
          on: {
            click: () => {
              const text = t(`reason.${name}`);
              reason.value = [reason.value.trim(), text].filter(Boolean).join("; ");
              reason.focus();
            },
          },
        },
        t(`reason.${name}`),
      ),
    );
    const answer = await askPerson({
      title: t("review.reject-title"),
      content: [el("div", { class: "chips" }, ...chips), el("label", { class: "field" }, el("span", {}, t("review.reason")), reason)],
      yes: t("verdict.reject"),
      danger: true,
      read: () => reason.value.trim(),
    });
    if (answer) await this.send({ verdict: "reject", reason: answer });
  }

  /** Put the result right. */
  async correct() {
    if (!this.ready()) return;
    const result = this.given.result();
    this.sending = true;
    try {
      this.editor = await makeEditor(result, this.given.stage);
    } catch (error) {
      showProblem(error);
    } finally {
      this.sending = false;
    }
    if (!this.editor) return;
    const place = byId("editor");
    const reason = el("input", { type: "text", id: "correction-reason", maxlength: 2000, placeholder: t("review.reason-optional"), "aria-label": t("review.reason-optional") });
    const save = async () => {
      const correction = await this.editor.read();
      if (!correction) return;
      const done = await this.send({ verdict: "correct", reason: reason.value.trim(), correction });
      if (done) this.leave(true);
    };
    place.replaceChildren(
      el(
        "section",
        { class: "editing", "aria-label": t("review.correct-title") },
        el("h2", {}, t("review.correct-title")),
        this.editor.node,
        reason,
        el(
          "div",
          { class: "actions" },
          el("button", { type: "button", on: { click: () => this.leave() } }, t("dialog.cancel"), " ", el("kbd", {}, "Esc")),
          el("button", { type: "button", class: "primary", id: "save", on: { click: save } }, t("review.save")),
        ),
      ),
    );
    place.hidden = false;
    byId("result").hidden = true;
    this.given.redrawn();
    /** @type {HTMLElement|null} */ (place.querySelector("input:checked") ?? place.querySelector("input, button, select"))?.focus();
  }

  /** Leave the correction; what was changed is asked about first. */
  async leave(saved = false) {
    if (!this.editor) return;
    if (!saved && this.editor.changed()) {
      const sure = await askPerson({ title: t("review.leave-title"), content: [el("p", {}, t("review.leave-text"))], yes: t("review.leave"), danger: true });
      if (!sure || !this.editor) return;
    }
    this.editor.close(saved);
    this.editor = null;
    const place = byId("editor");
    place.replaceChildren();
    place.hidden = true;
    byId("result").hidden = false;
    await this.given.stage.editDone();
    this.given.redrawn();
    document.getElementById("verdict-correct")?.focus();
  }

  /** Take the last change of a correction back. */
  undo() {
    this.editor?.undo?.();
  }

  ready() {
    return this.given.may && this.given.result() && !this.busy && !this.sending;
  }

  async send(review) {
    const result = this.given.result();
    this.sending = true;
    try {
      await post(`/api/results/${Number(result.id)}/reviews`, review);
      tell(t(`review.done-${review.verdict}`), "good");
    } catch (error) {
      showProblem(error);
      return false;
    } finally {
      this.sending = false;
    }
    if (review.verdict !== "correct") await this.given.answered();
    else setTimeout(() => this.given.answered(), 0);
    return true;
  }
}
