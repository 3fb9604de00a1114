"""The model card: a page of Markdown that goes with a model wherever it goes."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sagittal.evaluate.evidence import Evidence
from sagittal.prepare.plan import Plan
from sagittal.report import words

if TYPE_CHECKING:
    from sagittal.model.looks import Look
    from sagittal.model.package import Model

NOT_STATED = "not stated"

#: Measures that a card shows of the whole, where there are any.
SHOWN = (
    "auc",
    "average_precision",
    "accuracy",
    "balanced_accuracy",
    "sensitivity",
    "specificity",
    "ppv",
    "npv",
    "mcc",
    "quadratic_kappa",
    "brier",
    "ece",
)


def model_card(
    model: Model | None = None,
    plan: Plan | None = None,
    evidence: Evidence | None = None,
    *,
    looks: Sequence[Look] = (),
) -> str:
    """The card as Markdown, after Mitchell et al., Model Cards for Model Reporting, FAT* 2019.

    What nobody stated reads "not stated"; nothing is made up. Text from data cannot become markup.
    """
    plan = plan or (model.plan if model is not None else None)
    name = model.name if model is not None else (evidence.settings.model if evidence is not None else "")
    parts = [
        f"# {_text(name or 'Model')}",
        "**Not a medical device.** For research; a decision about a patient is made by a clinician.",
        *_use(model),
        *_how(model, plan),
        *_data(model, plan),
        *_worth(evidence),
        *_limits(evidence),
        *_looks(looks),
        *_origin(model),
    ]
    return "\n\n".join(parts) + "\n"


def _text(value: Any) -> str:
    """Plain text for Markdown: no markup, no table cell or line can be broken by it."""
    if value in (None, "", (), {}):
        return NOT_STATED
    plain = html.escape(" ".join(str(value).split()), quote=False)
    for sign in "\\`*_[]|#":
        plain = plain.replace(sign, "\\" + sign)
    return plain


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _use(model: Model | None) -> list[str]:
    use = model.intended_use if model is not None else None
    names = (
        "question",
        "population",
        "indication",
        "user",
        "exclusions",
        "modality",
        "body_part",
        "unit",
        "dimensions",
    )
    rows = [(n.replace("_", " "), _text(getattr(use, n, None))) for n in names]
    for n, title in (("size", "size, voxels"), ("spacing_mm", "spacing, mm")):
        rows.append((title, words.ranges(getattr(use, n, ())) or NOT_STATED))
    return ["## Intended use", _table(("", ""), rows)]


def _how(model: Model | None, plan: Plan | None) -> list[str]:
    if plan is None:
        return ["## How it works", f"Network, preprocessing and training: {NOT_STATED}."]
    p, n, t, d = plan.prepare, plan.network, plan.train, plan.decide
    spacing = (
        f"resampled to {' × '.join(f'{mm:g}' for mm in p.spacing_mm)} mm" if p.spacing_mm else "stretched or padded"
    )
    rows = [
        ("classes", _text(", ".join(plan.scheme.classes)) + f" ({plan.scheme.kind})"),
        ("input", f"{' × '.join(map(str, p.size))}, {plan.input.channels} channels, {spacing}"),
        ("clinical columns", _text(", ".join(c.name for c in plan.input.table))),
        (
            "network",
            f"{_text(n.name)}, {'pretrained: ' + _text(n.pretrained) if n.pretrained else 'random initial weights'}",
        ),
        ("members averaged", str(len(model.members)) if model is not None else NOT_STATED),
        (
            "training",
            f"{t.optimizer}, learning rate {t.learning_rate:g}, batch {t.batch}, {t.epochs:g} epochs, seed {plan.seed}",
        ),
        ("class weights", t.class_weights),
        ("calibration", f"{d.calibration}, on validation cases"),
        ("operating point", f"{_text(d.operating_point)}, chosen on validation cases"),
    ]
    return ["## How it works", _table(("", ""), rows)]


def _data(model: Model | None, plan: Plan | None) -> list[str]:
    data: Mapping[str, Any] = model.data if model is not None else {}
    classes = data.get("classes")
    counted = ", ".join(f"{k} {v}" for k, v in classes.items()) if isinstance(classes, Mapping) else None
    rows = [
        ("name", _text(data.get("name"))),
        ("cases", _text(data.get("cases"))),
        ("patients", _text(data.get("patients"))),
        ("classes", _text(counted)),
        ("of unknown truth", _text(data.get("unknown"))),
        ("taught by", _text(data.get("training_cases"))),
        ("chosen and calibrated on", _text(data.get("validation_cases"))),
        ("held out as test", _text(data.get("held_out_test_cases"))),
        (
            "splits",
            {"given": "those of the source", "made": "made, grouped by patient"}[plan.split.source]
            if plan
            else NOT_STATED,
        ),
        *(
            [("**leakage between splits, allowed on request**", _text(_counted(data["allowed_leakage"])))]
            if data.get("allowed_leakage")
            else []
        ),
        ("who labelled the cases, and how", _text(data.get("reference_standard"))),
    ]
    return ["## Training data", _table(("", ""), rows)]


def _counted(found: Mapping[str, int]) -> str:
    return ", ".join(f"{code} ({n} cases)" for code, n in found.items())


def _worth(evidence: Evidence | None) -> list[str]:
    if evidence is None:
        return ["## What it is worth", "Not evaluated yet: `sagittal evaluate MODEL SOURCE -o DIR`."]
    s = evidence.settings
    rows = []
    for name in SHOWN:
        e, base = evidence.overall.get(name), evidence.overall.get(f"baseline.{name}")
        if e is not None and math.isfinite(e.value):
            limits = words.interval(e) or "–"
            rows.append(
                (
                    words.title_of(name),
                    words.number(e.value),
                    limits,
                    words.number(base.value) if base else "–",
                    f"{e.n:,}",
                )
            )
    where = f"On {_text(s.data)}, split {_text(s.split)}: {evidence.counts['with_truth']:,} cases of {evidence.counts['patients']:,} patients."
    head = ("measure", "value", f"{100 * s.confidence:g} % interval", "baseline", "n")
    told = " ".join(_text(t) for t in words.headline(evidence))
    return ["## What it is worth", where, told, _table(head, rows)]


def _limits(evidence: Evidence | None) -> list[str]:
    if evidence is None:
        return []
    told = words.cautions(evidence)
    body = (
        "\n".join(f"- {_text(t)}" for t in told)
        if told
        else "None was noticed in the figures; that is not proof of none."
    )
    if not evidence.settings.by:
        body += "\n- Subgroups (age, sex, site, scanner): not evaluated."
    return ["## Known limits", body]


def _looks(looks: Sequence[Look]) -> list[str]:
    if not looks:
        return ["## Looks at test data", "None recorded with this card."]
    rows = [(str(k.number), _text(k.at), _text(k.dataset), _text(k.split), f"{k.cases:,}") for k in looks]
    return ["## Looks at test data", _table(("look", "when", "data", "split", "cases"), rows)]


def _origin(model: Model | None) -> list[str]:
    if model is None:
        return []
    versions = ", ".join(f"{k} {v}" for k, v in model.versions.items())
    rows = [
        ("made", _text(model.created)),
        ("with", _text(versions)),
        ("SHA-256", f"`{model.checksum}`" if model.checksum else NOT_STATED),
    ]
    return ["## Origin", _table(("", ""), rows)]
