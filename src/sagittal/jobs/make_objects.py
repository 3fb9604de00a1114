"""The files of a result: standard objects for others, a mask or map for the page; in the process of the model.

All are written into a folder there, so that masks never travel. What cannot be made is noted with its reason and stops no
other.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sagittal.case import Case
from sagittal.errors import ResourceError, SagittalError
from sagittal.explain.maps import Map, explain_case
from sagittal.image import Image
from sagittal.labels import ClassScores
from sagittal.model.load import AnyModel
from sagittal.model.package import Model
from sagittal.prediction import Failure, Mask, Prediction
from sagittal.write.equipment import Stamp
from sagittal.write.masks import label_map, mask_of
from sagittal.write.measurements import Measured, image_on, measure_mask
from sagittal.write.nifti import write_nifti
from sagittal.write.raster import write_png
from sagittal.write.service_objects import ObjectFile, ObjectOptions, possible_kinds
from sagittal.write.service_objects import make_objects as make_standard
from sagittal.write.statement import Statement, make_statement

_log = logging.getLogger(__name__)

#: What a map and its measure take, in predictions: two curves of eleven steps for twenty maps, in batches.
_PREDICTIONS = 2 * 11 * 20 / 4


@dataclass(frozen=True)
class Order:
    """What is asked for.

    Parameters
    ----------
    case : Case
        With the files of its series.
    held : Case, optional
        The same with its images in memory; ``None`` where they could not be read.
    kinds : tuple of str
        Keys of :data:`sagittal.write.service_objects.KINDS`.
    folder : Path
        Where files are written.
    stamp : Stamp
        UIDs, time and model.
    explain_s : float
        Seconds that a map of where a classifier looked may take; 0 for none.
    language : str
    """

    case: Case
    held: Case | None
    kinds: tuple[str, ...]
    folder: Path
    stamp: Stamp
    explain_s: float = 0.0
    language: str = "en"


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
    measured : sequence of Measured
        Of a mask.
    files : list of MadeFile
    notes : list of str
        What could not be made, and why.
    """

    statement: Statement
    measured: Sequence[Measured] = ()
    files: list[MadeFile] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


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
    ConfigError
        If a kind is not known.
    """
    maker = _Maker(model, answer, order)
    with ThreadPoolExecutor(1, thread_name_prefix="sagittal-page") as aside:  # compressing needs no interpreter
        page = aside.submit(maker.attempt, "the mask for the page", maker.page_mask)
        maker.explain()
        maker.standard()
        maker.attempt("the map for the page", maker.page_map)
        page.result()
    return maker.made


class _Maker:
    """What several files need is made once."""

    def __init__(self, model: AnyModel, answer: Prediction | Failure, order: Order) -> None:
        self.model, self.answer, self.order = model, answer, order
        self.finding = answer.finding if isinstance(answer, Prediction) else None
        self.image: Image | None = None
        self.heat: Map | None = None
        measured: Sequence[Measured] = ()
        if order.held is not None and isinstance(answer, Prediction):
            placed = not isinstance(answer.finding, ClassScores)
            self.image = image_on(order.held, answer) if placed else order.held.image(model.plan.input.images[0])
            measured = measure_mask(answer, image=self.image) if isinstance(answer.finding, Mask) else ()
        self.made = Made(make_statement(answer, order.stamp.model, measured=measured), measured)

    def explain(self) -> None:
        """Where a classifier looked, if that can be said within the time, and is better than chance."""
        model, held, most = self.model, self.order.held, self.order.explain_s
        if not isinstance(model, Model) or not isinstance(self.finding, ClassScores) or held is None or not most:
            return
        start = time.perf_counter()
        model.predict(held)
        expected = (time.perf_counter() - start) * _PREDICTIONS
        if expected > most:
            self.made.notes.append(f"no map of where the model looked: about {expected:.0f} s, allowed are {most:g} s")
            return

        def draw() -> None:
            found = explain_case(model, held)[0]
            worth = found.faithfulness
            if worth is not None and worth.better_than_random and float(found.heat.max()) > 0:
                self.heat = found
            else:
                self.made.notes.append("no map of where the model looked: it would mark places no better than chance")

        self.attempt("the map of where the model looked", draw)

    def standard(self) -> None:
        """The objects that the configuration asks for; if they fail together, each is tried alone."""
        kinds = possible_kinds(self.answer, self.order.kinds, self.order.stamp.model)
        try:
            self._keep(self._standard(kinds))
            return
        except ResourceError:
            raise
        except Exception as error:  # what is wrong with one of them is noted below, by its name
            _log.warning("objects could not be made together (%s): each is tried alone", type(error).__name__)
            self.made.files[:] = [one for one in self.made.files if one.kind not in kinds]
        for kind in kinds:
            self.attempt(f"the object '{kind}'", lambda kind=kind: self._keep(self._standard([kind])))  # type: ignore[misc]

    def _standard(self, kinds: Sequence[str]) -> list[ObjectFile]:
        stamp = self.order.stamp
        return make_standard(
            self.answer,
            self.order.case,
            kinds,
            stamp.model,
            self.order.folder,
            derive_uid=stamp.uid,
            heat=self.heat,
            image=self.image,
            measured=self.made.measured if isinstance(self.finding, Mask) else None,
            options=ObjectOptions(language=self.order.language, made_at=stamp.made_at),
        )

    def _keep(self, made: Sequence[ObjectFile]) -> None:
        self.made.files += [MadeFile(one.kind, one.path, one.media_type) for one in made]

    def page_mask(self) -> None:
        """The label map that the page lays over the images: NIfTI, or a picture where there is no place in the patient."""
        if not isinstance(self.finding, Mask) or not isinstance(self.answer, Prediction):
            return
        values = label_map(mask_of(self.answer, "a mask"))
        if self.finding.grid.has_position:
            path = self.order.folder / "mask.nii.gz"
            write_nifti(values, self.finding.grid, path)
            self.made.files.append(MadeFile("mask", path, "application/gzip"))
        elif values.shape[2] == 1:
            self._picture("mask", values[:, :, 0])

    def page_map(self) -> None:
        """The map that the page lays over the images, 0 to 255."""
        if self.heat is None:
            return
        heat = np.clip(np.rint(255 * self.heat.heat / max(float(self.heat.heat.max()), 1e-12)), 0, 255).astype(np.uint8)
        if self.heat.grid.has_position:
            path = self.order.folder / "map.nii.gz"
            write_nifti(heat, self.heat.grid, path)
            self.made.files.append(MadeFile("map", path, "application/gzip"))
        elif heat.shape[2] == 1:
            self._picture("map", heat[:, :, 0])

    def _picture(self, kind: str, values: Any) -> None:
        """Values (I, J) as a grey picture of rows and columns."""
        from PIL import Image as Pictures

        stream = io.BytesIO()
        Pictures.fromarray(np.ascontiguousarray(values.T.astype(np.uint8))).save(stream, "PNG")
        path = self.order.folder / f"{kind}.png"
        write_png(stream.getvalue(), path)
        self.made.files.append(MadeFile(kind, path, "image/png"))

    def attempt(self, what: str, make: Callable[[], None]) -> None:
        """Make one file; what cannot be made is noted."""
        try:
            make()
        except ResourceError:
            raise
        except SagittalError as error:
            words = str(error).removeprefix(f"case {self.order.case.id}: ")
            self.made.notes.append(f"{what} could not be made: {words}")
        except Exception as error:  # its words may hold what stands in a header
            self.made.notes.append(f"{what} could not be made: an unexpected {type(error).__name__}")
