"""Facts about a data set, a model or a run, for people and machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagittal.dataset import Dataset
from sagittal.labels import PLACE_KINDS
from sagittal.run_folder import CONFIG, load_config
from sagittal.truth import Boxes, SegmentationSource

if TYPE_CHECKING:
    from sagittal.model.package import Model
    from sagittal.model.place_model import PlaceModel


def describe_dataset(dataset: Dataset) -> dict[str, Any]:
    """Counts of a data set; nothing is read. Classes are counted in cases, objects in boxes."""
    return {
        "source": dataset.name,
        "layout": dataset.layout,
        "cases": len(dataset),
        "patients": len(dataset.patients),
        "labelled": len(dataset.labelled()),
        "images": list(dict.fromkeys(name for case in dataset for name in case.images)),
        "kind": dataset.scheme.kind if dataset.scheme else None,
        "target": dataset.scheme.target if dataset.scheme else None,
        "classes": _count_classes(dataset),
        "splits": {name: len(dataset.split(name)) for name in dataset.splits},
        "columns": list(dataset.columns),
        "notes": list(dataset.notes),
        "skipped": [asdict(one) for one in dataset.skipped],
    }


def _count_classes(dataset: Dataset) -> dict[str, int]:
    """Cases in which a class holds or a structure was looked for; boxes of a class of objects."""
    names = dataset.scheme.classes if dataset.scheme is not None else ()
    counts = dict.fromkeys(names, 0)
    for case in dataset:
        if case.scores is not None:
            for n, name in enumerate(names):
                counts[name] += int(case.scores.values[n] == 1)
        elif isinstance(case.truth, Boxes):
            for n in case.truth.classes.tolist():
                counts[names[n]] += 1
        elif isinstance(case.truth, SegmentationSource):
            for name in case.truth.structures:
                counts[name] = counts.get(name, 0) + 1
    return counts


def describe_model(model: Model | PlaceModel) -> dict[str, Any]:
    """What a model was made for."""
    made, scheme = model.plan, model.plan.scheme
    return {
        "name": model.name,
        "kind": scheme.kind,
        "classes": list(scheme.classes),
        "modality": made.input.modality,
        "body part": made.input.body_part,
        "dimensions": made.input.dimensions,
        "window" if scheme.kind in PLACE_KINDS else "size": "x".join(map(str, made.prepare.size)),
        "spacing mm": "x".join(f"{s:g}" for s in made.prepare.spacing_mm or ()) or "as it comes",
        "network": made.network.name,
        "members": len(model.members),
        "clinical columns": [column.name for column in made.input.table],
        **(_decides(model) if scheme.kind not in PLACE_KINDS else {"settled": dict(settled_rows(model))}),
        "gate": "yes" if model.gate else "none",
        "made": model.created,
        "checksum": model.checksum,
        "versions": dict(model.versions),
        "training data": {key: value for key, value in model.data.items() if not isinstance(value, (list, dict))},
        "intended use": {key: value for key, value in asdict(model.intended_use).items() if value},
    }


def _decides(model: Any) -> dict[str, Any]:
    """How probabilities become decisions."""
    return {
        "calibration": f"{model.calibration.method} on {model.calibration.cases} validation cases",
        "operating point": model.operating_point.name,
        "other points": [point.name for point in model.points if point.name != model.operating_point.name],
        "conformal sets": f"at {model.conformal.confidence:g}" if model.conformal else "none",
    }


def settled_rows(model: Model | PlaceModel | None) -> list[tuple[str, str]]:
    """What validation cases settled for a model that says where, as names and sentences; nothing for other models."""
    settled: Mapping[str, Any] = getattr(model, "settled", None) or {}
    plan = getattr(model, "plan", None)
    names = plan.scheme.classes if plan is not None else ()
    if "suppress_iou" in settled:
        return _settled_boxes(settled, names)
    if settled.keys() & {"clean", "expected_dice"}:
        return _settled_masks(settled, names)
    return [(str(key).replace("_", " "), str(value)) for key, value in settled.items()]


def _settled_masks(settled: Mapping[str, Any], names: Sequence[str]) -> list[tuple[str, str]]:
    rows = []
    for name in names:
        rule, gain = settled.get("clean", {}).get(name), settled.get("clean_gain", {}).get(name, {})
        if not rule:
            rows.append((f"{name}: post-processing", "none; no step raised the Dice by more than noise"))
            continue
        steps = []
        if rule.get("largest"):
            steps.append("only the largest piece is kept")
        if rule.get("least_ml"):
            steps.append(f"pieces below {rule['least_ml']:.3g} ml are removed")
        if rule.get("least_voxels"):
            steps.append(f"pieces below {rule['least_voxels']:.0f} voxels are removed")
        if rule.get("fill"):
            steps.append("holes are filled")
        told = f"; mean Dice {gain['dice_before']:.3f} \u2192 {gain['dice_after']:.3f}" if "dice_before" in gain else ""
        if "lower" in gain:
            told += f", by {gain['mean']:+.4f}, at least {gain['lower']:+.4f} with 95 % confidence"
        if "better" in gain:
            told += f"; better in {gain['better']}, worse in {gain['worse']} patients"
        rows.append((f"{name}: post-processing", ", ".join(steps) + told))
    for name in names:
        fitted = settled.get("expected_dice", {}).get(name)
        if fitted:
            told = f"on {fitted['cases']} cases, of patients left out of the fit: mean error {fitted['error']:.3f} "
            told += f"(stating the mean: {fitted['error_of_mean']:.3f}), rank correlation {fitted['correlation']:.2f}"
            rows.append((f"{name}: expected Dice", told))
        else:
            rows.append((f"{name}: expected Dice", "not stated; too few validation cases to fit it"))
    return rows


def _settled_boxes(settled: Mapping[str, Any], names: Sequence[str]) -> list[tuple[str, str]]:
    found = settled.get("validation", {})
    rows = [
        ("duplicates", f"of boxes that overlap by an IoU above {settled['suppress_iou']:g} the surest is kept"),
        ("operating point", str(settled.get("point", "f1"))),
        ("settled on", f"{found.get('images', 0):,} validation images"),
    ]
    for name in names:
        told, threshold = found.get("classes", {}).get(name, {}), settled.get("threshold", {}).get(name)
        if threshold is None or not told.get("objects"):
            rows.append((name, "no true object among the validation images; scores are as the network gives them"))
            continue
        parts = [f"{told['objects']:,} objects"]
        for key, title in (("sensitivity", "sensitivity"), ("precision", "precision")):
            if told.get(key) is not None:
                parts.append(f"{title} {told[key]:.2f}")
        if told.get("false_positives_an_image") is not None:
            parts.append(f"{told['false_positives_an_image']:.2f} false positives an image")
        rows.append((name, f"a box counts from a score of {threshold:.3f}; there: {', '.join(parts)}"))
    return rows


def describe_run(folder: Path) -> dict[str, Any]:
    """What a run was asked; nothing where the folder is none of a run."""
    values = load_config(folder) if (folder / CONFIG).is_file() else {}
    return {key: values[key] for key in ("source", "target", "budget", "seed") if key in values}
