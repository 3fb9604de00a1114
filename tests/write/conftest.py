"""Studies as DICOM with masks and boxes found in them, and the validators of dicom3tools and dcmtk."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sagittal.case import Case
from sagittal.grid import Grid
from sagittal.labels import ClassScores, LabelScheme
from sagittal.prediction import Detections, Mask, Prediction
from sagittal.read.sources import series_source
from sagittal.truth import Boxes, Segmentation, Structure
from sagittal.write.equipment import ModelFacts

FRAME = "1.2.3.4.99"
#: What a scanner writes beside the geometry; no real patient has this name.
PATIENT = {
    "FrameOfReferenceUID": FRAME,
    "PatientName": "Phantom^Tilted",
    "PatientID": "PHANTOM-7",
    "PatientBirthDate": "19500102",
    "PatientSex": "O",
    "StudyDate": "20260101",
    "StudyTime": "101112",
    "StudyID": "1",
    "AccessionNumber": "A1",
    "ReferringPhysicianName": "",
    "SeriesNumber": 3,
    "SliceThickness": 2.5,
    "PositionReferenceIndicator": "",
}
_KNOWN = ("99SAGITTAL", "needed to build DICOMDIR")
MODEL = "abdomen (format 1, sha256 0123456789abcdef)"


@pytest.fixture
def study(write_series: Callable[..., list[Path]]) -> Callable[..., Case]:
    """A case of CT slices on the tilted plane, 2.5 mm apart: ``study(shape, **fields)``."""

    def make(shape: tuple[int, int, int] = (21, 17, 9), name: str = "study-7", **fields: Any) -> Case:
        columns, rows, slices = shape
        rng = np.random.default_rng(3)
        volume = rng.integers(900, 1300, (slices, rows, columns)).astype(np.int16)
        paths = write_series(name, volume, [2.5 * k for k in range(slices)], **{**PATIENT, **fields})
        return Case(name, "p", {"image": series_source(name, paths)})

    return make


def make_mask(
    case: str,
    grid: Grid,
    names: Sequence[str] = ("Liver", "kidney_left", "Liver Tumor", "spleen"),
    *,
    overlapping: bool = True,
    probability: bool = False,
) -> Prediction:
    """A mask with a ring, a block, an overlapping part of both (or none), and a structure that was not found."""
    i, j, _ = np.indices(grid.shape)
    middle = (np.array(grid.shape) - 1) / 2
    away = np.sqrt(((i - middle[0]) / (middle[0] * 0.8)) ** 2 + ((j - middle[1]) / (middle[1] * 0.8)) ** 2)
    layers = np.zeros((2 if overlapping else 1, *grid.shape), dtype=np.uint8)
    depth = slice(1, None) if grid.shape[2] > 2 else slice(None)
    ring = (away < 1) & (away > 0.45)
    layers[0][..., depth][ring[..., depth]] = 1
    layers[0][-3:, -2:, depth] = 2
    if overlapping:
        layers[1][2:8, 5:9, depth] = 3
    structures = (
        Structure(names[0], (1,)),
        Structure(names[1], (2,)),
        Structure(names[2], (3,), len(layers) - 1),
        Structure(names[3], ()),
    )
    segmentation = Segmentation(layers, grid, structures)
    share = {}
    if probability:
        soft = np.clip(255 * (1.3 - away), 0, 255).astype(np.uint8)
        share = {name: np.where(segmentation.mask(name), np.maximum(soft, 128), soft // 3) for name in names}
        share[names[3]] = np.zeros(grid.shape, dtype=np.uint8)
    scheme = LabelScheme("structures", tuple(names))
    return Prediction(
        case, scheme, Mask(segmentation, share, None, {names[0]: 0.91}), (names[0],), np.zeros(0), model=MODEL
    )


def make_boxes(case: str, grid: Grid) -> Prediction:
    """Three boxes of two classes, the last below the operating point; in a picture all on its plane."""
    flat = grid.shape[2] == 1
    corners = np.array(
        [
            [[2.5, 3.5, 1.5], [8.5, 9.5, 4.5]],
            [[10.25, 2.0, 5.5], [14.75, 6.0, 6.5]],
            [[1.0, 1.0, 0.5], [4.0, 4.0, 2.5]],
        ]
    )
    if flat:
        corners[:, :, 2] = (-0.5, 0.5)
    boxes = Boxes(corners, [0, 1, 0])
    scheme = LabelScheme("objects", ("lung nodule", "gizmo", "mass"))
    return Prediction(
        case,
        scheme,
        Detections(boxes, np.array([0.93, 0.61, 0.2]), grid, np.array([True, True, False])),
        ("lung nodule", "gizmo"),
        np.zeros(0),
        model="nodules (format 1, sha256 fedcba)",
    )


def make_classes(case: str, kind: str = "multiclass", **changes: Any) -> Prediction:
    """Probabilities of three classes; of several labels two hold."""
    values = {"multiclass": [0.05, 0.82, 0.13], "multilabel": [0.9, 0.12, 0.7]}[kind]
    decision = {"multiclass": ("nodule",), "multilabel": ("effusion", "mass")}[kind]
    given: dict[str, Any] = {
        "case": case,
        "scheme": LabelScheme(kind, ("effusion", "nodule", "mass"), "finding"),
        "finding": ClassScores(np.array(values)),
        "decision": decision,
        "logits": np.zeros(3),
        "conformal": ("nodule", "mass"),
        "model": "chest (format 1, sha256 0123456789abcdef)",
        "made_at": "2026-03-04T05:06:07+00:00",
    }
    return Prediction(**{**given, **changes})


def call_tool(name: str, *arguments: str) -> str:
    """What a program of dicom3tools or dcmtk says; the test is skipped where it is missing, and fails so in CI."""
    program = shutil.which(name)
    if program is None:
        package = "dicom3tools" if name == "dciodvfy" else "dcmtk"
        if os.environ.get("CI"):
            pytest.fail(f"{name} is missing: apt-get install {package}")
        pytest.skip(f"{name} is not installed (Debian package {package})")
    result = subprocess.run([program, *arguments], capture_output=True, text=True, errors="replace", check=False)
    return result.stdout + result.stderr


def find_errors(path: Path) -> list[str]:
    """Errors that dciodvfy finds, and warnings but those on our private scheme and on what a DICOMDIR would ask for."""
    said = call_tool("dciodvfy", str(path)).splitlines()
    return [line for line in said if line.startswith(("Error", "Warning")) and not any(w in line for w in _KNOWN)]


@pytest.fixture
def found_mask() -> Callable[..., Prediction]:
    """A prediction of a mask: ``found_mask(case, grid, names, overlapping=, probability=)``; see :func:`make_mask`."""
    return make_mask


@pytest.fixture
def found_boxes() -> Callable[..., Prediction]:
    """A prediction of boxes: ``found_boxes(case, grid)``; see :func:`make_boxes`."""
    return make_boxes


@pytest.fixture
def found_classes() -> Callable[..., Prediction]:
    """A prediction of classes: ``found_classes(case, kind, **changes)``; see :func:`make_classes`."""
    return make_classes


@pytest.fixture
def facts() -> ModelFacts:
    """What a model is and is for, in words."""
    return ModelFacts(
        name="chest",
        version="2.1",
        checksum="0123456789abcdef" * 4,
        question="Is there a nodule, a mass or an effusion?",
        intended_use={
            "modality": "CT",
            "body_part": "CHEST",
            "population": "adults from 18 years",
            "exclusions": "children, studies after surgery of the chest",
        },
        coverage=0.9,
        evidence=("AUC 0.94 (0.91 to 0.96) in 312 held-out cases of two hospitals",),
    )


@pytest.fixture
def run_tool() -> Callable[..., str]:
    """Run a DICOM tool: ``run_tool(name, *arguments)``; see :func:`call_tool`."""
    return call_tool


@pytest.fixture
def errors_of() -> Callable[[Path], list[str]]:
    """What dciodvfy finds wrong: ``errors_of(path)``."""
    return find_errors
