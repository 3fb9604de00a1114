"""The report: one self-contained page that a doctor, a statistician and a regulator can read and print."""

from __future__ import annotations

import base64
import math
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from sagittal.errors import ReadError
from sagittal.evaluate.evidence import Evidence, writing
from sagittal.labels import PLACE_KINDS
from sagittal.metrics.intervals import Estimate
from sagittal.prepare.plan import Plan
from sagittal.report import measure_names, words
from sagittal.report.facts import settled_rows
from sagittal.report.figures import evidence_figures, subgroup_figure, training_figure
from sagittal.report.kinds import telling_of
from sagittal.report.pictures import CasePicture
from sagittal.report.style import save_figures, to_png
from sagittal.tasks.segment_measures import COUNTS

if TYPE_CHECKING:
    from sagittal.model.looks import Look
    from sagittal.model.package import Model
    from sagittal.model.place_model import PlaceModel

#: Failures and skipped studies that the page lists; the rest are counted.
MOST_LISTED = 50

#: Figures that need the whole width.
WIDE = ("results.png", "dice.png", "volumes.png")

#: What each figure shows, under it.
CAPTIONS = {
    "confusion_matrix.png": "Counts, and the share of each true class (row).",
    "roc_curve.png": "Sensitivity against false alarms over all thresholds; the dot is the operating point in use.",
    "pr_curve.png": "How many positive answers are right at each sensitivity, at the frequency in these cases.",
    "calibration.png": "Points on the dashed line are probabilities that mean what they say. Bars are Wilson intervals.",
    "decision_curve.png": "Above both thin lines, acting by the model does more good than acting on every case or on none.",
    "results.png": "Loss and validation scores while training.",
    "dice.png": "A point a case. The box holds the middle half of the cases; crosses are cases where one of truth and answer is empty.",
    "distances.png": "How many cases have their HD95 below a distance; a line that ends below the top leaves cases without any. Up to six structures, those that the most cases have.",
    "dice_by_size.png": "Small structures have a lower Dice for the same error of the outline.",
    "volumes.png": "Bland-Altman: the error against the size; solid the bias, dashed the limits that would hold 95 % of normally "
    "distributed errors.",
    "froc_curve.png": "Objects found against false positives an image over all scores; the band is the interval of all classes "
    "together, from resampling patients.",
    "sizes.png": "Objects found and missed at the operating point; classes of size with about as many objects each.",
}
#: Of masks and boxes, where a figure of the same name shows something else.
PLACE_CAPTIONS = {
    "structures": {
        "calibration.png": "Points on the dashed line are cases whose Dice is what the model expected without seeing the truth.",
    },
    "objects": {
        "pr_curve.png": "How many boxes are right at each share of objects found; the dot is the operating point in use.",
        "calibration.png": "Points on the dashed line are scores that mean what they say. Bars are Wilson intervals.",
        "confusion_matrix.png": "Boxes that count against the object that they cover best, whatever its class; counts, shaded by "
        "the share of each true class.",
    },
}


def write_report(
    evidence: Evidence,
    folder: str | Path,
    *,
    model: Model | PlaceModel | None = None,
    plan: Plan | None = None,
    pictures: Sequence[CasePicture] | None = None,
    looks: Sequence[Look] = (),
    synthetic: bool | None = None,
) -> Path:
    """Write ``report.html`` and the figures of the evidence as PNG; ``results.png`` too where there is a ``results.csv``.

    Parameters
    ----------
    evidence : Evidence
    folder : path
        Made where it is missing.
    model : Model, optional
        For intended use, operating points, training data and versions; what is not known reads "not stated".
    plan : Plan, optional
        The model's own where not given.
    pictures : sequence of CasePicture, optional
    looks : sequence of Look, optional
        Earlier looks at test data.
    synthetic : bool, optional
        Whether the images are phantoms; where not given, whether the data's name says so.

    Returns
    -------
    Path
        Of the page.

    Raises
    ------
    ResourceError
        If the folder cannot be written.
    """
    folder = Path(folder)
    with writing(folder):
        pngs = save_figures(evidence_figures(evidence), folder)
        if (folder / "results.csv").is_file():
            pngs["results.png"] = write_training_figure(folder)
        page = folder / "report.html"
        page.write_text(
            render(evidence, pngs, model=model, plan=plan, pictures=pictures, looks=looks, synthetic=synthetic),
            encoding="utf-8",
        )
    return page


def write_training_figure(folder: Path) -> bytes:
    """``results.png`` beside a run's ``results.csv``.

    Raises
    ------
    ReadError
        If the table is empty or damaged.
    """
    import pandas as pd

    try:
        results = pd.read_csv(folder / "results.csv")
    except ValueError as error:
        raise ReadError(
            f"results.csv: is not a table of training scores ({error}); remove it or train again"
        ) from error
    if "step" not in results:
        raise ReadError("results.csv: has no column 'step'; it is not the table that training writes")
    return save_figures({"results.png": training_figure(results)}, folder)["results.png"]


def render(
    evidence: Evidence,
    figures: Mapping[str, bytes],
    *,
    model: Model | PlaceModel | None = None,
    plan: Plan | None = None,
    pictures: Sequence[CasePicture] | None = None,
    looks: Sequence[Look] = (),
    synthetic: bool | None = None,
) -> str:
    """The page as HTML. Every text is escaped, and nothing is loaded from outside."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sagittal", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(
        {
            "number": measure_names.number,
            "interval": measure_names.interval,
            "percent": measure_names.percent,
            "data_uri": _data_uri,
        }
    )
    plan = plan or (model.plan if model is not None else None)
    if synthetic is None:
        known = f"{evidence.settings.data} {_data(model).get('name', '')}".lower()
        synthetic = "phantom" in known or "synthetic" in known
    return environment.get_template("report.html.j2").render(
        settings=evidence.settings,
        counts=evidence.counts,
        headline=words.headline(evidence),
        cautions=words.cautions(evidence, synthetic=synthetic),
        synthetic=synthetic,
        measures=[line for line in measure_names.lines(evidence.overall, _kind(evidence)) if not line.count],
        telling=telling_of(evidence),
        classes=_class_table(evidence),
        counts_table=_counts_table(evidence),
        gap_measures=" or ".join(measure_names.title_of(m, _kind(evidence)) for m in telling_of(evidence).main),
        place=_kind(evidence) in PLACE_KINDS,
        subgroups=_subgroup_tables(evidence),
        intended=_intended(model),
        data=_data_rows(evidence, model, plan),
        points=_points(model),
        figures=[(name, _caption(evidence, name), png) for name, png in figures.items()],
        wide=WIDE,
        settled=settled_rows(model),
        pictures=_by_group(evidence, pictures or ()),
        failures=evidence.failures[:MOST_LISTED],
        skipped=evidence.skipped[:MOST_LISTED],
        refused=_refused(evidence),
        most=MOST_LISTED,
        references=telling_of(evidence).references,
        environment=_environment(evidence, model, plan),
        looks=looks,
    )


def _kind(evidence: Evidence) -> str:
    return evidence.settings.scheme.kind if evidence.settings.scheme is not None else ""


def _caption(evidence: Evidence, name: str) -> str:
    return PLACE_CAPTIONS.get(_kind(evidence), {}).get(name) or CAPTIONS.get(name, "")


def _data_uri(png: bytes) -> str:
    kind = "jpeg" if png.startswith(b"\xff\xd8") else "png"
    return f"data:image/{kind};base64," + base64.b64encode(png).decode("ascii")


def _data(model: Model | PlaceModel | None) -> Mapping[str, Any]:
    return model.data if model is not None else {}


def _intended(model: Model | PlaceModel | None) -> list[tuple[str, str]]:
    names = ("question", "population", "indication", "user", "exclusions", "modality", "body_part", "dimensions")
    use = model.intended_use if model is not None else None
    rows = [(name.replace("_", " "), _stated(getattr(use, name, None))) for name in names]
    for name in ("size", "spacing_mm"):
        rows.append((name.replace("_", " "), measure_names.ranges(getattr(use, name, ())) or "not stated"))
    return rows


def _stated(value: Any) -> str:
    return "not stated" if value in (None, "", ()) else str(value)


def _class_table(evidence: Evidence) -> tuple[list[str], list[tuple[str, list[Estimate | None]]]]:
    there = {name for values in evidence.classes.values() for name, e in values.items() if not math.isnan(e.value)}
    every = telling_of(evidence).class_measures
    # Of classes all columns, so that an undefined one is seen; of places those that say something.
    measures = [m for m in every if m in there] if _kind(evidence) in PLACE_KINDS else list(every)
    rows = [(name, [values.get(m) for m in measures]) for name, values in evidence.classes.items()]
    return [measure_names.title_of(m, _kind(evidence)) for m in measures], rows


def _counts_table(evidence: Evidence) -> tuple[list[str], list[tuple[str, list[int]]]] | None:
    """Cases of each structure that are unknown, empty, missed or invented; ``None`` where the question has no masks."""
    if _kind(evidence) != "structures":
        return None
    names = [name for name in COUNTS if any(name in values for values in evidence.classes.values())]
    rows = [
        (structure, [int(values[name].value) if name in values else 0 for name in names])
        for structure, values in evidence.classes.items()
    ]
    return [measure_names.title_of(name) for name in names], rows


def _subgroup_tables(evidence: Evidence) -> list[dict[str, Any]]:
    order = telling_of(evidence).group_measures
    shown = [m for m in order if math.isfinite(evidence.overall.get(m, Estimate(math.nan)).value)]
    gaps = {(column, name) for column, name, _, _ in words.gaps(evidence)}
    tables = []
    for column, groups in evidence.subgroups.items():
        grouping = evidence.groupings[column]
        rows = [
            {
                "name": name,
                "n": int(grouping.members[name].sum()),
                "small": name in grouping.small,
                "gap": (column, name) in gaps,
                "values": [measures.get(m, Estimate(math.nan)) for m in shown],
            }
            for name, measures in groups.items()
        ]
        picture = to_png(subgroup_figure(evidence, column, shown[0])) if shown else b""
        edges = ", ".join(f"{e:.4g}" for e in grouping.edges)
        tables.append(
            {
                "column": column,
                "measures": [measure_names.title_of(m, _kind(evidence)) for m in shown],
                "rows": rows,
                "edges": edges,
                "pooled": ", ".join(grouping.pooled),
                "png": picture,
            }
        )
    return tables


def _data_rows(evidence: Evidence, model: Model | PlaceModel | None, plan: Plan | None) -> list[tuple[str, str]]:
    s, counts, data = evidence.settings, evidence.counts, _data(model)
    classes = ", ".join(f"{name} {n:,}" for name, n in _class_counts(evidence).items())
    rows = [
        ("evaluated on", f"{s.data or 'not stated'}, split: {s.split}"),
        (
            "cases",
            f"{counts['cases']:,} of {counts['patients']:,} patients; {counts['with_truth']:,} with a known truth",
        ),
        (_COUNTED.get(_kind(evidence), "classes"), classes or "not stated"),
        (
            "not in the figures",
            f"{counts['failed']:,} failed, {counts['skipped']:,} skipped, {counts['without_truth']:,} without truth",
        ),
        ("trained on", _stated(data.get("name"))),
        ("training cases", _stated(data.get("training_cases"))),
        ("validation cases", _stated(data.get("validation_cases"))),
        ("patients of the training source", _stated(data.get("patients"))),
    ]
    if plan is not None:
        made = (
            "as the source gives them"
            if plan.split.source == "given"
            else "made at random, grouped by patient, stratified by class"
        )
        rows.append(("splits", f"{made}; {plan.split.folds} {'fold' if plan.split.folds == 1 else 'folds'}"))
    else:
        rows.append(("splits", "not stated"))
    return rows


#: What the numbers behind the classes count.
_COUNTED = {"structures": "cases with each structure", "objects": "objects"}


def _class_counts(evidence: Evidence) -> dict[str, int]:
    """Cases of each class, cases that have a structure, objects of a class."""
    out = {}
    for name, values in evidence.classes.items():
        if _kind(evidence) == "structures":
            column = evidence.rows.get(f"voxels_truth_{name}")
            out[name] = 0 if column is None else int((column > 0).sum())
        elif _kind(evidence) == "objects":
            out[name] = values["cpm"].n if "cpm" in values else 0
        elif "prevalence" in values and values["prevalence"].n:
            out[name] = round(values["prevalence"].value * values["prevalence"].n)
    return out


def _points(model: Any) -> list[dict[str, Any]]:
    """The operating points of a model of classes; others have none."""
    if model is None or not hasattr(model, "points"):
        return []
    classes = model.plan.scheme.classes
    return [
        {
            "name": point.name,
            "used": point.name == model.operating_point.name,
            "rows": [
                (
                    name,
                    point.thresholds[c],
                    point.sensitivity[c] if point.sensitivity else None,
                    point.specificity[c] if point.specificity else None,
                )
                for c, name in enumerate(classes)
                if model.plan.scheme.kind != "binary" or c == 1
            ],
        }
        for point in model.points
    ]


def _refused(evidence: Evidence) -> list[tuple[str, str]]:
    rows = evidence.rows
    if "accepted" not in rows:
        return []
    out = rows[~rows["accepted"].astype(bool)]
    reasons = out["reason"] if "reason" in out else [""] * len(out)
    return [(str(case), str(reason)) for case, reason in zip(out["case"], reasons, strict=True)][:MOST_LISTED]


def _by_group(evidence: Evidence, pictures: Sequence[CasePicture]) -> list[tuple[str, str, list[CasePicture]]]:
    told = telling_of(evidence)
    titles = {
        "best": f"Best: {told.best}",
        "typical": f"Typical: around the median {told.rank}",
        "worst": f"Worst: {told.worst}",
    }
    groups = dict.fromkeys([*titles, *(p.group for p in pictures)])
    return [
        (group, titles.get(group, group), [p for p in pictures if p.group == group])
        for group in groups
        if any(p.group == group for p in pictures)
    ]


def _environment(evidence: Evidence, model: Model | PlaceModel | None, plan: Plan | None) -> list[tuple[str, str]]:
    s = evidence.settings
    rows = [
        ("model", _stated(s.model)),
        ("model made", _stated(getattr(model, "created", None))),
        ("network", f"{len(model.members)} \u00d7 {model.plan.network.name}" if model is not None else "not stated"),
        ("training seed", str(plan.seed) if plan is not None else "not stated"),
        ("evaluated", _stated(s.made_at)),
        ("bootstrap", f"{s.resamples:,} resamples, seed {s.seed}, confidence {100 * s.confidence:g} %"),
        ("Sagittal", _stated(s.version)),
        ("Python", platform.python_version()),
    ]
    rows += [(name, metadata.version(name)) for name in ("numpy", "scipy", "pandas", "torch")]
    versions = getattr(model, "versions", None) or {}
    if versions:
        rows.append(("model made with", ", ".join(f"{k} {v}" for k, v in versions.items())))
    return rows


__all__ = ["CasePicture", "render", "write_report", "write_training_figure"]
