"""A model's first run, on nothing: what libraries make at their first use is made before the first study comes."""

from __future__ import annotations

import logging
import tempfile
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from sagittal.case import Case, ImageSource
from sagittal.errors import SagittalError
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.labels import LabelScheme
from sagittal.model.load import AnyModel
from sagittal.model.package import Model
from sagittal.prediction import Mask, Prediction
from sagittal.prepare.plan import Plan
from sagittal.read.sources import series_source
from sagittal.truth import Segmentation, Structure
from sagittal.write.equipment import ModelFacts, derive_uids
from sagittal.write.service_objects import KINDS, make_objects

_log = logging.getLogger(__name__)

#: Pictures of one trial run, how often it is repeated, and when one is long enough.
_TOGETHER, _RUNS, _LONG_S = 8, 6, 0.5


def warm_up(model: AnyModel) -> float:
    """Seconds that a run on an empty study of the model's own size took; what it says of it does not matter.

    Each kind of object is made once as well: the first result would wait some seconds for what writes it.
    """
    start = time.perf_counter()
    try:
        model.predict(empty_case(model.plan))
    except SagittalError as error:  # an empty study need not be one that the model knows
        _log.info("the first run ended early: %s", type(error).__name__)
    try:
        _write_once()
    except Exception as error:  # a package that is missing is told when its object is asked for
        _log.info("the first objects were not made: %s", type(error).__name__)
    return time.perf_counter() - start


def _write_once() -> None:
    """Each kind of object about an invented study of one voxel in a hundred, in a folder that is then removed."""
    with tempfile.TemporaryDirectory(prefix="sagittal-") as folder:
        case = Case("empty", "nobody", {"image": series_source("empty", [_empty_slice(Path(folder))])})
        grid = case.image().grid
        layers = np.zeros((1, *grid.shape), dtype=np.uint8)
        layers[0, 2:4, 2:4] = 1
        mask = Mask(Segmentation(layers, grid, (Structure("organ", (1,)),)))
        scheme = LabelScheme("structures", ("organ",))
        answer = Prediction("empty", scheme, mask, ("organ",), np.zeros(0), model="warm (format 1)")
        facts = ModelFacts.of(answer)
        make_objects(answer, case, tuple(KINDS), facts, Path(folder), derive_uid=derive_uids("warm"))


def _empty_slice(folder: Path) -> Path:
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = UID("1.2.840.10008.5.1.4.1.1.2")
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = UID("2.25.1")
    made.StudyInstanceUID, made.SeriesInstanceUID, made.FrameOfReferenceUID = "2.25.2", "2.25.3", "2.25.4"
    made.PatientID = made.PatientName = made.StudyDate = made.StudyTime = made.StudyID = made.AccessionNumber = ""
    made.Modality, made.InstanceNumber, made.SliceThickness = "CT", 1, 1
    made.ImageOrientationPatient, made.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 0]
    made.PixelSpacing, made.Rows, made.Columns, made.SamplesPerPixel = [1, 1], 10, 10, 1
    made.PhotometricInterpretation, made.BitsAllocated, made.BitsStored, made.HighBit = "MONOCHROME2", 16, 16, 15
    made.PixelRepresentation, made.PixelData = 0, bytes(200)
    path = folder / "empty.dcm"
    made.save_as(path, enforce_file_format=True)
    return path


def choose_threads(model: AnyModel, most: int) -> int:
    """With how many threads a model computes: of pictures, one where that is faster than all, as with small networks.

    Parameters
    ----------
    model : Model or PlaceModel
    most : int
        Those that it may have.

    Returns
    -------
    int
        They are set when this returns.
    """
    torch.set_num_threads(most)
    if most <= 1 or not isinstance(model, Model) or model.plan.input.dimensions != 2:
        return most
    shape = (_TOGETHER, model.plan.input.channels, *model.plan.prepare.size)
    arrays = np.zeros(shape, dtype=model.plan.prepare.store)
    best: dict[int, float] = {}
    for count in (most, 1):
        torch.set_num_threads(count)
        for _ in range(_RUNS):
            start = time.perf_counter()
            model.logits(arrays)
            best[count] = min(time.perf_counter() - start, best.get(count, float("inf")))
            if best[count] > _LONG_S:
                break
    chosen = min(best, key=lambda count: best[count])
    torch.set_num_threads(chosen)
    return chosen


def speed_up(model: AnyModel) -> list[str]:
    """Look for faster engines of a classifier's networks, where their packages are installed; the name of each network's.

    Networks that work in windows look for theirs with the studies that come.
    """
    return [choice.name for choice in model.predictor.speed_up()] if isinstance(model, Model) else []


def empty_case(plan: Plan) -> Case:
    """A study of a constant value, as large as the network's input."""
    names = plan.input.images
    channels = max(plan.input.channels // len(names), 1)
    source = partial(_empty, plan, channels)
    return Case("empty", "nobody", {name: ImageSource(source) for name in names})


def _empty(plan: Plan, channels: int) -> Image:
    size = tuple(int(n) for n in reversed(plan.prepare.size))  # the network's axes run slices, rows, columns
    spacing = tuple(float(v) for v in reversed(plan.prepare.spacing_mm or (1.0,) * len(size)))
    low = 0.0 if plan.prepare.clip is None else plan.prepare.clip[0]
    shape = (size[0], size[1], size[2] if len(size) == 3 else 1)
    affine = None
    if len(size) == 3:
        affine = np.diag([*spacing, 1.0])
    grid = Grid(shape, affine, None if affine is not None else (*spacing, float("nan")))
    data = np.full((channels, *shape), low, dtype=np.float32)
    return Image(data, grid, unit=plan.input.unit, modality=plan.input.modality, body_part=plan.input.body_part)


def model_facts(model: AnyModel, name: str = "") -> ModelFacts:
    """What results say of a model, under the name that the service gives it."""
    plan = model.plan
    conformal = getattr(model, "conformal", None)
    return ModelFacts(
        name=(name or model.name)[:64],
        version=model.label.partition(" (")[2].rstrip(")")[:64],
        checksum=model.checksum,
        question=model.intended_use.question,
        intended_use=asdict(model.intended_use),
        abstains=model.gate is not None and model.gate.abstains,
        coverage=plan.decide.confidence if conformal is not None else None,
    )


def facts_of(model: AnyModel) -> dict[str, Any]:
    """What the service keeps of a loaded model, as plain values."""
    return {
        "name": model.name,
        "checksum": model.checksum,
        "task": model.plan.task,
        "classes": list(model.plan.scheme.classes),
        "kind": model.plan.scheme.kind,
        "gate": model.gate is not None,
        "networks": len(model.members),
        "points": [p.name for p in model.points] if isinstance(model, Model) else [],
    }
