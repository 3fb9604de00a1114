"""The files of a result: standard objects for others, a mask or map for the page, the answer as JSON.

All are written into a folder by the process of the model, so that masks never travel. Made again of the same model and
images they are the same objects, by UIDs derived from both. What cannot be made is noted with its reason and stops no other.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sagittal.case import Case
from sagittal.errors import ConfigError, ResourceError, SagittalError, nearest
from sagittal.explain.maps import Map, explain_case
from sagittal.image import Image
from sagittal.jobs.plain_answer import plain_answer
from sagittal.labels import ClassScores
from sagittal.model.archive import disk_errors
from sagittal.model.load import AnyModel
from sagittal.model.package import Model
from sagittal.prediction import Failure, Mask, Prediction
from sagittal.write.dicom_result import save_dicom
from sagittal.write.dicom_sc import make_dicom_sc
from sagittal.write.dicom_seg import make_dicom_seg
from sagittal.write.dicom_sr import make_dicom_sr, source_of
from sagittal.write.equipment import Stamp
from sagittal.write.fhir import MadeObject, Release, fhir_bytes, make_fhir
from sagittal.write.hl7 import make_hl7
from sagittal.write.key_objects import make_key_objects
from sagittal.write.masks import label_map, mask_of
from sagittal.write.measurements import Measured, image_on, measure_mask
from sagittal.write.nifti import write_nifti
from sagittal.write.raster import write_png
from sagittal.write.sources import Source
from sagittal.write.statement import Statement, make_statement

DICOM = "application/dicom"
#: Objects that a model's configuration may ask for -> ending of the file, media type, in words.
KINDS: dict[str, tuple[str, str, str]] = {
    "seg": (".dcm", DICOM, "DICOM segmentation"),
    "sr": (".dcm", DICOM, "DICOM structured report (TID 1500)"),
    "sc": (".dcm", DICOM, "DICOM secondary capture: one readable page"),
    "ko": (".dcm", DICOM, "DICOM key object selection of the decisive slices"),
    "fhir": (".json", "application/fhir+json", "FHIR R4 report with its observations"),
    "fhir-r5": (".json", "application/fhir+json", "FHIR R5 report with its observations"),
    "hl7": (".hl7", "x-application/hl7-v2+er7", "HL7 v2 ORU message"),
    "json": (".json", "application/json", "the answer as JSON"),
}
#: The forwards that a map and its measure take, in units of one; two curves of eleven steps for twenty maps, in batches.
_FORWARDS = 2 * 11 * 20 / 4


@dataclass(frozen=True)
class Order:
    """What is asked for.

    Parameters
    ----------
    case_id : str
    case : Case, optional
        With the files of its series; ``None`` where they could not be told apart.
    held : Case, optional
        The same with its images in memory; ``None`` where they could not be read.
    files : sequence of Path
        Of the series.
    kinds : tuple of str
        Keys of :data:`KINDS`.
    folder : Path
        Where files are written.
    stamp : Stamp
        UIDs, time and model.
    explain_s : float
        Seconds that a map may take; 0 for none.
    """

    case_id: str
    case: Case | None
    held: Case | None
    files: Sequence[Path]
    kinds: tuple[str, ...]
    folder: Path
    stamp: Stamp
    explain_s: float = 0.0


@dataclass(frozen=True)
class MadeFile:
    """A file of a result: what it is, where it lies."""

    kind: str
    path: Path
    media_type: str


@dataclass
class Made:
    """What was made.

    Attributes
    ----------
    statement : Statement
        The answer in words, the same in all of them.
    measured : list of Measured
        Of a mask.
    files : list of MadeFile
    notes : list of str
        What could not be made, and why.
    """

    statement: Statement
    measured: list[Measured] = field(default_factory=list)
    files: list[MadeFile] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_kinds(kinds: Sequence[str]) -> tuple[str, ...]:
    """The kinds of objects, each once.

    Raises
    ------
    ConfigError
        If one is not known.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"unknown kind of result '{kind}'. {nearest(kind, KINDS)}")
    return tuple(dict.fromkeys(kinds))


def make_objects(model: AnyModel, answer: Prediction | Failure, order: Order) -> Made:
    """Write the files of a result.

    Parameters
    ----------
    model : Model or PlaceModel
    answer : Prediction or Failure
        A failure is a refusal, which every object says.
    order : Order

    Raises
    ------
    ResourceError
        If the disk is full: nothing of the result is kept then.
    """
    maker = _Maker(model, answer, order)
    maker.measure()
    made = maker.made
    maker.explain()
    for kind in sorted(check_kinds(order.kinds), key=list(KINDS).index):  # what refers to others comes after them
        maker.attempt(KINDS[kind][2], partial(maker.make, kind))
    maker.attempt("the mask for the page", maker.page_mask)
    maker.attempt("the map for the page", maker.page_map)
    return made


class _Maker:
    """What several objects need is made once."""

    def __init__(self, model: AnyModel, answer: Prediction | Failure, order: Order) -> None:
        self.model, self.answer, self.order = model, answer, order
        self.finding = answer.finding if isinstance(answer, Prediction) else None
        self.made = Made(make_statement(answer, order.stamp.model))
        self.image: Image | None = None
        self.heat: Map | None = None
        self._source: Source | None = None
        self._seg: Any = None
        self.objects: list[MadeObject] = []

    def measure(self) -> None:
        """Measurements of a mask, and the answer in words that goes by them."""
        if self.order.held is not None and isinstance(self.answer, Prediction):
            if self.finding is not None and not isinstance(self.finding, ClassScores):
                self.image = image_on(self.order.held, self.answer)
            else:
                self.image = self.order.held.image(self.model.plan.input.images[0])
        if isinstance(self.finding, Mask) and isinstance(self.answer, Prediction):
            self.made.measured = measure_mask(self.answer, image=self.image)
            self.made.statement = make_statement(self.answer, self.order.stamp.model, measured=self.made.measured)

    def explain(self) -> None:
        """Where a classifier looked, if that can be said within the time, and is better than chance."""
        order = self.order
        if not isinstance(self.model, Model) or not isinstance(self.finding, ClassScores) or order.held is None:
            return
        if not order.explain_s:
            return
        start = time.perf_counter()
        held = order.held
        self.model.predict(held)
        expected = (time.perf_counter() - start) * _FORWARDS
        if expected > order.explain_s:
            self.made.notes.append(
                f"no map of where the model looked: it would take about {expected:.0f} s, allowed are {order.explain_s:g} s"
            )
            return

        def draw() -> None:
            found = explain_case(self.model, held)[0]  # type: ignore[arg-type]
            worth = found.faithfulness
            if worth is None or not worth.better_than_random or not float(found.heat.max()) > 0:
                self.made.notes.append("no map of where the model looked: it would mark places no better than chance")
                return
            self.heat = found

        self.attempt("the map of where the model looked", draw)

    def source(self) -> Source:
        """The DICOM series that the objects refer to."""
        if self._source is None:
            if self.order.case is None:
                raise ConfigError("the series' files could not be told apart")
            self._source = source_of(self.answer, self.order.case, "a result")
        return self._source

    def segmentation(self) -> Any:
        """The segmentation, written or to be referred to."""
        if self._seg is None:
            self._seg = make_dicom_seg(self.answer, self.source(), stamp=self.order.stamp.within("seg"))  # type: ignore[arg-type]
        return self._seg

    def make(self, kind: str) -> None:
        """One object that the configuration asks for, those that it refers to before it."""
        ending, media_type, _ = KINDS[kind]
        if media_type == DICOM:
            self._dicom(kind)
            return
        stamp, statement, path = (
            self.order.stamp.within(kind),
            self.made.statement,
            self.order.folder / f"{kind}{ending}",
        )
        if kind == "json":
            answer = plain_answer(self.answer, statement, self.made.measured, self.order.stamp.model)
            data = json.dumps(answer, ensure_ascii=False, allow_nan=False, indent=1).encode()
        elif kind == "hl7":
            data = make_hl7(self.answer, self.source(), stamp=stamp, statement=statement)
        else:
            release: Release = "R5" if kind == "fhir-r5" else "R4"
            bundle = make_fhir(
                self.answer, self.source(), release=release, stamp=stamp, statement=statement, made=tuple(self.objects)
            )
            data = fhir_bytes(bundle)
        with disk_errors(path.name, need=len(data)):
            path.write_bytes(data)
        self.keep(kind, path, media_type)

    def _dicom(self, kind: str) -> None:
        stamp, statement = self.order.stamp.within(kind), self.made.statement
        if kind == "seg":
            if not isinstance(self.finding, Mask):
                return  # boxes and classes stand in the report, a refusal has no voxels
            made = self.segmentation()
        elif kind == "sr":
            with_seg = isinstance(self.finding, Mask) and "seg" in self.order.kinds
            made = make_dicom_sr(
                self.answer,
                self.source(),
                segmentation=self.segmentation() if with_seg else None,
                measured=self.made.measured,
                stamp=stamp,
                statement=statement,
            )
        elif kind == "sc":
            made = make_dicom_sc(
                self.answer, self.source(), image=self.image, heat=self.heat, stamp=stamp, statement=statement
            )
        else:
            made = make_key_objects(self.answer, self.source(), heat=self.heat, stamp=stamp, statement=statement)
        path = self.order.folder / f"{kind}.dcm"
        save_dicom(made, path)
        self.objects.append(
            MadeObject(str(made.Modality), str(made.SOPClassUID), str(made.SOPInstanceUID), str(made.SeriesInstanceUID))
        )
        self.keep(kind, path, DICOM)

    def page_mask(self) -> None:
        """The label map that the page lays over the images: NIfTI, or a picture where there is no place in the patient."""
        if not isinstance(self.finding, Mask) or not isinstance(self.answer, Prediction):
            return
        values = label_map(mask_of(self.answer, "a mask"))
        if self.finding.grid.has_position:
            path = self.order.folder / "mask.nii.gz"
            write_nifti(values, self.finding.grid, path)
            self.keep("mask", path, "application/gzip")
        elif values.shape[2] == 1:
            self.keep("mask", self._picture("mask.png", values[:, :, 0]), "image/png")

    def page_map(self) -> None:
        """The map that the page lays over the images."""
        if self.heat is None:
            return
        heat = self.heat.heat / max(float(self.heat.heat.max()), 1e-12)
        if self.heat.grid.has_position:
            path = self.order.folder / "map.nii.gz"
            write_nifti(np.clip(np.rint(255 * heat), 0, 255).astype(np.uint8), self.heat.grid, path)
            self.keep("map", path, "application/gzip")
        elif heat.shape[2] == 1:
            values = np.clip(np.rint(255 * heat[:, :, 0]), 0, 255)
            self.keep("map", self._picture("map.png", values), "image/png")

    def _picture(self, name: str, values: Any) -> Path:
        """Values (I, J) as a grey picture of rows and columns."""
        from PIL import Image as Pictures

        stream = io.BytesIO()
        Pictures.fromarray(np.ascontiguousarray(values.T.astype(np.uint8))).save(stream, "PNG")
        path = self.order.folder / name
        write_png(stream.getvalue(), path)
        return path

    def keep(self, kind: str, path: Path, media_type: str) -> None:
        """Count a file among what was made."""
        self.made.files.append(MadeFile(kind, path, media_type))

    def attempt(self, what: str, make: Callable[[], None]) -> None:
        """Make one file; what cannot be made is noted."""
        try:
            make()
        except ResourceError:
            raise
        except SagittalError as error:
            words = str(error).removeprefix(f"case {self.order.case_id}: ")
            self.made.notes.append(f"{what} could not be made: {words}")
        except Exception as error:  # its words may hold what stands in a header
            self.made.notes.append(f"{what} could not be made: an unexpected {type(error).__name__}")
