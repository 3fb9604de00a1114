"""The model card: a page of Markdown that goes with a model wherever it goes."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sagittal.evaluate.evidence import Evidence
from sagittal.labels import PLACE_KINDS
from sagittal.prepare.plan import Plan
from sagittal.report import measure_names, words
from sagittal.report.facts import settled_rows
from sagittal.report.kinds import telling_of

if TYPE_CHECKING:
    from sagittal.model.looks import Look
    from sagittal.model.package import Model
    from sagittal.model.place_model import PlaceModel

NOT_STATED = "not stated"


def model_card(
    model: Model | PlaceModel | None = None,
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


def _use(model: Model | PlaceModel | None) -> list[str]:
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
        rows.append((title, measure_names.ranges(getattr(use, n, ())) or NOT_STATED))
    return ["## Intended use", _table(("", ""), rows)]


def _how(model: Model | PlaceModel | None, plan: Plan | None) -> list[str]:
    if plan is None:
        return ["## How it works", f"Network, preprocessing and training: {NOT_STATED}."]
    p, n, t = plan.prepare, plan.network, plan.train
    other = "stretched or padded" if p.whole else "at its own size" if p.zoom is None else "resampled"
    spacing = f"resampled to {' × '.join(f'{mm:g}' for mm in p.spacing_mm)} mm" if p.spacing_mm else other
    rows = [
        ("classes", _text(", ".join(plan.scheme.classes)) + f" ({plan.scheme.kind})"),
        (
            "input",
            f"{'' if p.whole else 'windows of '}{' × '.join(map(str, p.size))}, {plan.input.channels} channels, {spacing}",
        ),
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
        *_decides(model, plan),
    ]
    return ["## How it works", _table(("", ""), rows)]


def _decides(model: Model | PlaceModel | None, plan: Plan) -> list[tuple[str, str]]:
    """How the network's answers are used."""
    t, d = plan.train, plan.decide
    if plan.scheme.kind not in PLACE_KINDS:
        return [
            ("class weights", t.class_weights),
            ("calibration", f"{d.calibration}, on validation cases"),
            ("operating point", f"{_text(d.operating_point)}, chosen on validation cases"),
        ]
    rows = [
        ("windows around a structure or object", f"{100 * t.foreground:g} %"),
        ("neighbouring windows overlap by", f"{100 * d.overlap:g} %"),
        ("mirrored views averaged", _text(", ".join(f"axis {axis}" for axis in d.flips)) if d.flips else "none"),
    ]
    return [*rows, *((_text(name), _text(told)) for name, told in settled_rows(model))]


def _data(model: Model | PlaceModel | None, plan: Plan | None) -> list[str]:
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
    kind = s.scheme.kind if s.scheme is not None else ""
    rows = []
    for name in telling_of(evidence).shown:
        e, base = evidence.overall.get(name), evidence.overall.get(f"baseline.{name}")
        if e is not None and not math.isnan(e.value):
            limits = measure_names.interval(e) or "–"
            rows.append(
                (
                    measure_names.title_of(name, kind),
                    measure_names.number(e.value),
                    limits,
                    measure_names.number(base.value) if base else "–",
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


def _origin(model: Model | PlaceModel | None) -> list[str]:
    if model is None:
        return []
    versions = ", ".join(f"{k} {v}" for k, v in model.versions.items())
    rows = [
        ("made", _text(model.created)),
        ("with", _text(versions)),
        ("SHA-256", f"`{model.checksum}`" if model.checksum else NOT_STATED),
    ]
    return ["## Origin", _table(("", ""), rows)]
