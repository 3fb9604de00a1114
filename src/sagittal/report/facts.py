"""Facts about a data set, a model or a run, for people and machines."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagittal.dataset import Dataset
from sagittal.run_folder import CONFIG, load_config
from sagittal.truth import Boxes, SegmentationSource

if TYPE_CHECKING:
    from sagittal.model.package import Model


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


def describe_model(model: Model) -> dict[str, Any]:
    """What a model was made for."""
    made, scheme = model.plan, model.plan.scheme
    return {
        "name": model.name,
        "kind": scheme.kind,
        "classes": list(scheme.classes),
        "modality": made.input.modality,
        "body part": made.input.body_part,
        "dimensions": made.input.dimensions,
        "size": "x".join(map(str, made.prepare.size)),
        "spacing mm": "x".join(f"{s:g}" for s in made.prepare.spacing_mm or ()) or "as it comes",
        "network": made.network.name,
        "members": len(model.members),
        "clinical columns": [column.name for column in made.input.table],
        "calibration": f"{model.calibration.method} on {model.calibration.cases} validation cases",
        "operating point": model.operating_point.name,
        "other points": [point.name for point in model.points if point.name != model.operating_point.name],
        "conformal sets": f"at {model.conformal.confidence:g}" if model.conformal else "none",
        "gate": "yes" if model.gate else "none",
        "made": model.created,
        "checksum": model.checksum,
        "versions": dict(model.versions),
        "training data": {key: value for key, value in model.data.items() if not isinstance(value, (list, dict))},
        "intended use": {key: value for key, value in asdict(model.intended_use).items() if value},
    }


def describe_run(folder: Path) -> dict[str, Any]:
    """What a run was asked; nothing where the folder is none of a run."""
    values = load_config(folder) if (folder / CONFIG).is_file() else {}
    return {key: values[key] for key in ("source", "target", "budget", "seed") if key in values}
