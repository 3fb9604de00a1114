"""Maps to files: for each study and method an overlay picture and the map's values on the study's grid."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sagittal.case import Case
from sagittal.errors import ConfigError, ResourceError, SagittalError
from sagittal.explain.maps import Map, explain_case
from sagittal.explain.overlay import draw_overlay
from sagittal.model.archive import disk_errors
from sagittal.model.package import Model
from sagittal.model.predictor import hold
from sagittal.progress import Quiet, Reporter
from sagittal.write.names import case_stem
from sagittal.write.nifti import write_nifti
from sagittal.write.raster import write_png


def explain_cases(
    model: Model,
    cases: Iterable[Case],
    folder: Path,
    *,
    methods: Sequence[str] | None = None,
    class_name: str | None = None,
    reporter: Reporter | None = None,
) -> list[dict[str, Any]]:
    """Explain studies and write ``CASE.METHOD.png`` and ``CASE.METHOD.nii.gz`` for each.

    The values of a study without a position in the patient become ``CASE.METHOD.npz`` (array ``map``, (I, J, K)):
    NIfTI would have to invent one.

    Returns
    -------
    list of dict
        A row a map: ``case``, ``method``, ``class``, ``probability``; ``deletion``, ``insertion`` and the same of random
        maps; ``p_value``, ``better_than_random`` (yes or no); ``seconds``, ``picture``, ``values`` (file names). For a
        case that cannot be explained ``case`` and ``error``; the rest go on.

    Raises
    ------
    ConfigError
        If a method or class is not known.
    ResourceError
        If the folder cannot be written to.
    """
    cases = list(cases)
    rows: list[dict[str, Any]] = []
    with (reporter or Quiet()).track("explain", float(len(cases))) as advance:
        for case in cases:
            try:
                held = hold(case, model.plan)  # read once for the maps and the picture
                maps = explain_case(model, held, methods, class_name)
                image = held.image(model.plan.input.images[0])
                rows += [{**row_of(found), **_write(found, draw_overlay(image, found), folder)} for found in maps]
            except (ConfigError, ResourceError):
                raise
            except SagittalError as error:
                rows.append({"case": case.id, "error": str(error)})
            except Exception as error:  # its words may name a patient
                kind = type(error).__name__
                rows.append({"case": case.id, "error": f"case {case.id}: an unexpected {kind} stopped its explanation"})
            advance(1.0, "")
    return rows


def row_of(found: Map) -> dict[str, Any]:
    """What a map found, as plain values."""
    row: dict[str, Any] = {
        "case": found.case,
        "method": found.method,
        "class": found.target,
        "probability": found.probability,
    }
    worth = found.faithfulness
    if worth is not None:
        row |= {
            "deletion": worth.deletion,
            "random_deletion": worth.random_deletion,
            "insertion": worth.insertion,
            "random_insertion": worth.random_insertion,
            "p_value": worth.p_value,
            "better_than_random": "yes" if worth.better_than_random else "no",
        }
    return {**row, "seconds": found.seconds}


def file_stem(case: str, method: str) -> str:
    """A file name without its ending, safe on every system; different cases have different ones.

    >>> file_stem("study-1", "gradcam")
    'study-1.gradcam'
    >>> file_stem("../etc/passwd", "gradcam")
    'etc-passwd-7fef78f5.gradcam'
    """
    return f"{case_stem(case)}.{method}"


def _write(found: Map, png: bytes, folder: Path) -> dict[str, str]:
    stem = file_stem(found.case, found.method)
    write_png(png, folder / f"{stem}.png")
    if found.grid.has_position:
        values = f"{stem}.nii.gz"
        write_nifti(found.heat, found.grid, folder / values)
    else:
        values = f"{stem}.npz"
        with disk_errors(values, need=found.heat.nbytes):
            np.savez_compressed(folder / values, map=found.heat)
    return {"picture": f"{stem}.png", "values": values}
