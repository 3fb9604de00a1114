"""All objects of one result at once, as files: what the service stores, serves and delivers.

Made again of the same prediction, images, model and time they are the same bytes under the same UIDs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from sagittal.case import Case
from sagittal.errors import ConfigError, SagittalError, ScopeError, nearest
from sagittal.image import Image
from sagittal.prediction import Failure, Mask, Prediction
from sagittal.write.dicom_result import save_dicom
from sagittal.write.dicom_sc import make_dicom_sc, readable
from sagittal.write.dicom_seg import make_dicom_seg
from sagittal.write.dicom_sr import make_dicom_sr, source_of
from sagittal.write.equipment import ModelFacts, Stamp, made_at
from sagittal.write.fhir import Kind as FhirKind
from sagittal.write.fhir import MadeObject, fhir_bytes, make_fhir
from sagittal.write.hl7 import make_hl7
from sagittal.write.json_result import make_json
from sagittal.write.key_objects import HeatMap, make_key_objects
from sagittal.write.masks import write_bytes
from sagittal.write.measurements import Measured, image_on, measure_mask
from sagittal.write.object_file import DICOM, HL7, KINDS, ObjectFile
from sagittal.write.rtstruct import make_rtstruct
from sagittal.write.sources import Source
from sagittal.write.statement import Statement, make_statement, state_of
from sagittal.write.terminology import Terminology

__all__ = ["KINDS", "ObjectFile", "ObjectOptions", "before_of", "make_objects", "possible_kinds"]


@dataclass(frozen=True)
class ObjectOptions:
    """How objects are made.

    Parameters
    ----------
    language : {"en", "zh"}
        Of sentences; the page falls back to English where no font has Chinese signs.
    made_at : datetime, optional
        Time of the result; that of the prediction where left out. Must be given of a refusal that is to be made again
        alike.
    hl7_charset : {"utf-8", "gb18030", "ascii"}
    fhir_bundle : {"transaction", "collection"}
    terminology : Terminology
    """

    language: str = "en"
    made_at: datetime | None = None
    hl7_charset: str = "utf-8"
    fhir_bundle: FhirKind = "transaction"
    terminology: Terminology = field(default_factory=Terminology)


def possible_kinds(answer: Prediction | Failure, kinds: Sequence[str], facts: ModelFacts | None = None) -> list[str]:
    """Those of some kinds that an answer can have, in the order of :data:`KINDS`: a mask's alone can be a SEG.

    Raises
    ------
    ConfigError
        If a kind is not known.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"unknown kind of result '{kind}'. {nearest(kind, KINDS)}")
    state = state_of(answer, facts)
    mask = isinstance(answer, Prediction) and isinstance(answer.finding, Mask) and state == "answered"
    return [kind for kind in KINDS if kind in kinds and (mask or kind not in {"seg", "rtstruct"})]


def make_objects(
    prediction: Prediction | Failure,
    case: Case,
    kinds: Sequence[str],
    model_facts: ModelFacts,
    folder: Path,
    *,
    derive_uid: Callable[[str], str],
    heat: HeatMap | None = None,
    image: Image | None = None,
    measured: Sequence[Measured] | None = None,
    options: ObjectOptions | None = None,
) -> list[ObjectFile]:
    """Make the objects of a result, each in a file of its own in a folder.

    An abstention or a refusal has every object but SEG and RTSTRUCT, and each says so. A study that is no DICOM has those
    that need neither images to refer to nor a patient: json, fhir and fhir5; what was left out is seen by what comes back.

    Parameters
    ----------
    prediction : Prediction or Failure
        A failure is a refusal.
    case : Case
        The study that was read.
    kinds : sequence of str
        Keys of :data:`KINDS`; what the answer cannot have is left out (:func:`possible_kinds`).
    model_facts : ModelFacts
    folder : Path
        Made if missing. File names are the same for each result: a folder holds one.
    derive_uid : callable (str) -> str
        The UID of a part by its name: :func:`sagittal.write.equipment.derive_uids` of model and inputs.
    heat : HeatMap, optional
        What an answer of classes rests on, for the picture and the key image.
    image : Image, optional
        On the grid of the answer, where it is in memory; else it is read from the case where a kind needs it.
    measured : sequence of Measured, optional
        Of a mask, where it was measured before; else it is measured where a kind needs it.
    options : ObjectOptions, optional

    Raises
    ------
    ConfigError
        If a kind is not known.
    SagittalError
        If an object cannot be made; nothing is kept then but what was written before it.
    """
    options = options or ObjectOptions()
    stamp = Stamp(derive_uid, options.made_at or made_at(prediction), model_facts)
    job = _Job(prediction, case, model_facts, folder, stamp, heat, image, measured, options)
    wanted = possible_kinds(prediction, kinds, model_facts)
    if not job.dicom:
        wanted = [kind for kind in wanted if KINDS[kind][0] not in {DICOM, HL7}]
    made: list[ObjectFile] = []
    for kind in wanted:
        made.append(job.make(kind, made))
    return made


@dataclass
class _Job:
    """What several objects of one result need is made once."""

    answer: Prediction | Failure
    case: Case
    facts: ModelFacts
    folder: Path
    stamp: Stamp
    heat: HeatMap | None
    given: Image | None
    given_measured: Sequence[Measured] | None
    options: ObjectOptions

    @cached_property
    def source(self) -> Source | None:
        try:
            return source_of(self.answer, self.case, "a result")
        except ScopeError:
            return None
        except SagittalError:
            if isinstance(self.answer, Failure):
                return None  # what was refused as unreadable can be told all the same
            raise

    @property
    def dicom(self) -> bool:
        return self.source is not None

    @cached_property
    def image(self) -> Image | None:
        if self.given is not None:
            return self.given
        return image_on(self.case, self.answer) if isinstance(self.answer, Prediction) else None

    @cached_property
    def measured(self) -> Sequence[Measured]:
        if self.given_measured is not None:
            return self.given_measured
        if not isinstance(self.answer, Prediction) or not isinstance(self.answer.finding, Mask):
            return []
        return measure_mask(self.answer, image=self.image)

    @cached_property
    def statement(self) -> Statement:
        return make_statement(self.answer, self.facts, measured=self.measured, language=self.options.language)

    @cached_property
    def segmentation(self) -> Any:
        return make_dicom_seg(
            self._prediction(), self._series(), terminology=self.options.terminology, stamp=self.stamp.within("seg")
        )

    def _prediction(self) -> Prediction:
        if isinstance(self.answer, Failure):
            raise ScopeError(f"case {self.answer.case}: a refusal has no mask")
        return self.answer

    def _series(self) -> Source:
        if self.source is None:
            raise ScopeError(f"case {self.answer.case}: the study is no DICOM, so nothing can refer to it")
        return self.source

    def make(self, kind: str, before: Sequence[ObjectFile]) -> ObjectFile:
        """One object, written."""
        media_type, name = KINDS[kind]
        path = self.folder / name
        if media_type == DICOM:
            made = self._dicom(kind, before)
            save_dicom(made, path)
            uids = (str(made.SOPInstanceUID), str(made.SOPClassUID), str(made.SeriesInstanceUID))
        else:
            write_bytes(self._document(kind, before), path)
            uids = ("", "", "")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return ObjectFile(kind, path, media_type, *uids, digest, path.stat().st_size)

    def _dicom(self, kind: str, before: Sequence[ObjectFile]) -> Any:
        source, stamp, terminology = self._series(), self.stamp.within(kind), self.options.terminology
        if kind == "seg":
            return self.segmentation
        if kind == "rtstruct":
            return make_rtstruct(self._prediction(), source, terminology=terminology, stamp=stamp)
        if kind == "ko":
            return make_key_objects(self.answer, source, heat=self.heat, stamp=stamp, statement=self.statement)
        if kind == "sc":
            return make_dicom_sc(
                self.answer,
                source,
                case=self.case,
                image=self.image,
                heat=self.heat,
                stamp=stamp,
                statement=self._page_statement(),
                terminology=terminology,
            )
        with_seg = any(one.kind == "seg" for one in before)
        return make_dicom_sr(
            self.answer,
            source,
            segmentation=self.segmentation if with_seg else None,
            measured=self.measured,
            terminology=terminology,
            stamp=stamp,
            statement=self.statement,
        )

    def _page_statement(self) -> Statement:
        """In a language that this machine can draw."""
        language = readable(self.options.language)
        if language == self.options.language:
            return self.statement
        return make_statement(self.answer, self.facts, measured=self.measured, language=language)

    def _document(self, kind: str, before: Sequence[ObjectFile]) -> bytes:
        stamp, terminology = self.stamp.within(kind), self.options.terminology
        if kind == "hl7":
            return make_hl7(
                self.answer, self._series(), stamp=stamp, statement=self.statement, charset=self.options.hl7_charset,
                terminology=terminology,
            )  # fmt: skip
        if kind == "json":
            values = make_json(self.answer, self.source, self.statement, self.stamp, self.measured, before_of(before))
            return (json.dumps(values, ensure_ascii=False, allow_nan=False, indent=1) + "\n").encode()
        bundle = make_fhir(
            self.answer,
            self.source,
            release="R5" if kind == "fhir5" else "R4",
            kind=self.options.fhir_bundle,
            stamp=self.stamp.within("fhir"),
            statement=self.statement,
            made=before_of(before),
            terminology=terminology,
        )
        return fhir_bytes(bundle)


def before_of(made: Sequence[ObjectFile]) -> list[MadeObject]:
    """The DICOM objects among those made, as other objects name them."""
    modality = {"seg": "SEG", "rtstruct": "RTSTRUCT", "sr": "SR", "sc": "OT", "ko": "KO"}
    return [
        MadeObject(modality[one.kind], one.sop_class_uid, one.sop_instance_uid, one.series_instance_uid)
        for one in made
        if one.sop_instance_uid
    ]
