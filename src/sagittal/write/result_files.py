"""Predictions to files in the formats that were asked for; one case that cannot be written never stops the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sagittal.case import Case
from sagittal.errors import ConfigError, MissingPackageError, ResourceError, SagittalError, ScopeError, nearest
from sagittal.image import Image
from sagittal.labels import ClassScores
from sagittal.prediction import Detections, Failure, Mask, Prediction
from sagittal.write.boxes import write_boxes_csv, write_boxes_json, write_coco
from sagittal.write.dicom_result import save_dicom
from sagittal.write.dicom_seg import make_dicom_seg
from sagittal.write.dicom_sr import make_dicom_sr
from sagittal.write.masks import write_json, write_mask_nifti, write_mask_png
from sagittal.write.measurements import Measured, image_on, measure_mask, measured_row, write_measurements
from sagittal.write.names import case_stem
from sagittal.write.overlay import draw_boxes, draw_mask
from sagittal.write.raster import write_png
from sagittal.write.rtstruct import make_rtstruct
from sagittal.write.sources import Source, open_source
from sagittal.write.terminology import Terminology

#: Format -> what kind of finding it holds, the end of the file's name, and in words what is written.
FORMATS: dict[str, tuple[str, str, str]] = {
    "nifti": ("mask", "labels.json", "CASE.labels.nii.gz and CASE.labels.json: the label map and its names"),
    "mask": ("mask", "mask.json", "CASE.mask.png and CASE.mask.json: the label map of a picture"),
    "seg": ("mask", "seg.dcm", "CASE.seg.dcm: DICOM segmentation, binary"),
    "seg-fractional": ("mask", "seg-fractional.dcm", "CASE.seg-fractional.dcm: DICOM segmentation of probabilities"),
    "rtstruct": ("mask", "rtstruct.dcm", "CASE.rtstruct.dcm: DICOM RT structure set"),
    "sr": ("any", "sr.dcm", "CASE.sr.dcm: DICOM structured report of measurements (TID 1500)"),
    "png": ("any", "overlay.png", "CASE.overlay.png: the result drawn on the study"),
    "coco": ("boxes", "", "detections.coco.json and detections.images.json: all boxes as COCO results"),
    "csv": ("any", "", "measurements.csv of masks, detections.csv of boxes"),
    "json": ("any", "result.json", "CASE.result.json: measurements or boxes of the case"),
}
_KINDS = {"structures": "mask", "objects": "boxes"}
_WORDS = {"mask": "a mask", "boxes": "boxes", "any": "a mask or boxes", "": "classes for the whole case"}
#: Files that hold all cases.
_TOGETHER = {"csv": ("measurements.csv", "detections.csv"), "coco": ("detections.coco.json", "detections.images.json")}
#: What is written where nothing is said.
DEFAULTS = {"mask": ("nifti", "csv", "png"), "boxes": ("csv", "coco", "png")}


@dataclass(frozen=True)
class Written:
    """What was written, and what could not be.

    Parameters
    ----------
    paths : tuple of Path
    failures : tuple of Failure
        One for each case and format that failed; its message names the case and the format.
    """

    paths: tuple[Path, ...] = ()
    failures: tuple[Failure, ...] = ()


def check_formats(formats: Sequence[str], kind: str | None = None) -> tuple[str, ...]:
    """The formats, each once, in the order they were given.

    Parameters
    ----------
    formats : sequence of str
        Keys of :data:`FORMATS`.
    kind : {"structures", "objects"}, optional
        What the model answers.

    Raises
    ------
    ConfigError
        If one is not known, or holds no finding of that kind.

    Examples
    --------
    >>> check_formats(["seg", "sr", "seg"], "structures")
    ('seg', 'sr')
    """
    for name in formats:
        if name not in FORMATS:
            raise ConfigError(f"unknown format '{name}'. {nearest(name, FORMATS)}")
        held, wanted = FORMATS[name][0], _KINDS.get(kind or "", "")
        if (kind is not None and held not in {"any", wanted}) or (kind is not None and not wanted):
            fitting = [key for key, (what, *_) in FORMATS.items() if wanted and what in {"any", wanted}]
            raise ConfigError(
                f"the format '{name}' holds {_WORDS[held]}, and this model finds {_WORDS[wanted]}. "
                + (f"Formats that fit: {', '.join(fitting)}." if fitting else "Write a table: -o predictions.csv")
            )
    return tuple(dict.fromkeys(formats))


def write_results(
    predictions: Iterable[Prediction | Failure],
    cases: Iterable[Case],
    folder: Path,
    formats: Sequence[str] = (),
    *,
    overwrite: bool = False,
    terminology: Terminology | None = None,
) -> Written:
    """Write what a model found, a set of files a case, named after the case's id.

    Parameters
    ----------
    predictions : iterable of Prediction or Failure
        May be a generator: each mask is written and let go before the next is made.
    cases : iterable of Case
        Those that were predicted; found by their ids.
    folder : Path
        Made if missing.
    formats : sequence of str
        Keys of :data:`FORMATS`; where left out those of :data:`DEFAULTS`.
    overwrite : bool
        Whether files that are there may be replaced.
    terminology : Terminology, optional
        Coded names that come before Sagittal's own.

    Returns
    -------
    Written
        A prediction that is a Failure is passed over: it was reported already.

    Raises
    ------
    ConfigError
        If a format is not known.
    ResourceError
        If the folder cannot be written to.
    MissingPackageError
        If highdicom is not installed and DICOM is asked for.
    """
    formats = check_formats(formats)
    known = {case.id: case for case in cases}
    if not overwrite:
        check_free(known, folder, formats)
    job = _Job(folder, formats, overwrite, terminology or Terminology())
    for prediction in predictions:
        if isinstance(prediction, Prediction):
            job.write(prediction, known.get(prediction.case))
    job.finish()
    return Written(tuple(job.paths), tuple(job.failures))


def check_free(cases: Iterable[str], folder: Path, formats: Sequence[str] = ()) -> None:
    """Refuse to write into a folder that holds such results of one of these cases, before anything is predicted.

    Parameters
    ----------
    cases : iterable of str
        Their ids.
    folder : Path
    formats : sequence of str
        Keys of :data:`FORMATS`; where left out those of :data:`DEFAULTS`.

    Raises
    ------
    ConfigError
        It names the first file.
    """
    if not folder.is_dir():
        return
    wanted = formats or sorted({name for names in DEFAULTS.values() for name in names})
    names = {name for one in wanted for name in _TOGETHER.get(one, ())}
    names |= {f"{case_stem(case)}.{FORMATS[one][1]}" for case in cases for one in wanted if FORMATS[one][1]}
    taken = sorted(names & {path.name for path in folder.iterdir()})
    if taken:
        raise ConfigError(
            f"{folder.name}/{taken[0]} exists already and is kept{f' ({len(taken)} files in all)' if len(taken) > 1 else ''}. "
            "To replace it: --overwrite; else another -o."
        )


@dataclass
class _Job:
    """What is known while cases are written one after the other."""

    folder: Path
    formats: tuple[str, ...]
    overwrite: bool
    terminology: Terminology
    paths: list[Path] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)
    boxes: list[Prediction] = field(default_factory=list)

    def write(self, prediction: Prediction, case: Case | None) -> None:
        """All files of one case."""
        if isinstance(prediction.finding, ClassScores):
            self._fail(
                prediction.case, "", "found classes for the whole case; write them as a table: -o predictions.csv"
            )
            return
        kind = "mask" if isinstance(prediction.finding, Mask) else "boxes"
        one = _Case(prediction, case, self.terminology)
        for name in self.formats or DEFAULTS[kind]:
            if FORMATS[name][0] not in {kind, "any"}:
                self._fail(prediction.case, name, f"holds no {kind}")
                continue
            self._try(prediction.case, name, partial(self._one, one, name))

    def finish(self) -> None:
        """The files that hold all cases."""
        if self.measured:
            self._all("csv", "measurements.csv", lambda path: [write_measurements(self.measured, path)])
        if self.boxes:
            wanted = self.formats or DEFAULTS["boxes"]
            if "csv" in wanted:
                self._all("csv", "detections.csv", lambda path: [write_boxes_csv(self.boxes, path)])
            if "coco" in wanted:
                self._all("coco", "detections.coco.json", lambda path: write_coco(self.boxes, path.parent))

    def _all(self, name: str, file: str, write: Callable[[Path], list[Path]]) -> None:
        def make() -> list[Path]:
            return write(self._free(file))

        self._try("all", name, make)

    def _try(self, case: str, name: str, write: Callable[[], list[Path]]) -> None:
        try:
            self.paths += write()
        except (ResourceError, MissingPackageError):
            raise
        except SagittalError as error:
            self._fail(case, name, str(error), type(error).__name__)
        except Exception as error:  # its words may name a patient
            self._fail(case, name, f"an unexpected {type(error).__name__} stopped it", type(error).__name__)

    def _fail(self, case: str, name: str, words: str, kind: str = "ScopeError") -> None:
        words = words.removeprefix(f"case {case}: ")
        self.failures.append(Failure(case, f"case {case}: {f'{name}: ' if name else ''}{words}", kind))

    def _free(self, file: str) -> Path:
        path = self.folder / file
        if path.exists() and not self.overwrite:
            raise ConfigError(f"{path.name} exists already and is kept. To replace it: --overwrite; else another -o.")
        return path

    def _one(self, one: _Case, name: str) -> list[Path]:
        """One format of one case."""
        stem = case_stem(one.prediction.case)
        if name == "csv":
            if isinstance(one.prediction.finding, Mask):
                self.measured += one.measured()
            else:
                self.boxes.append(one.prediction)
            return []
        if name == "coco":
            if "csv" not in (self.formats or DEFAULTS["boxes"]):
                self.boxes.append(one.prediction)
            return []
        path = self._free(f"{stem}.{FORMATS[name][1]}")
        if name == "nifti":
            return write_mask_nifti(one.prediction, self.folder, f"{stem}.labels", terminology=self.terminology)
        if name == "mask":
            return write_mask_png(one.prediction, self.folder, stem, terminology=self.terminology)
        if name == "png":
            write_png(one.drawn(), path)
        elif name == "json":
            self._json(one, path)
        else:
            save_dicom(one.dicom(name, "seg" in self.formats), path)
        return [path]

    @staticmethod
    def _json(one: _Case, path: Path) -> None:
        if isinstance(one.prediction.finding, Detections):
            write_boxes_json(one.prediction, path)
            return
        rows = [{k: v for k, v in measured_row(row).items() if k != "case"} for row in one.measured()]
        write_json({"case": one.prediction.case, "model": one.prediction.model, "structures": rows}, path)


class _Case:
    """One case: what several formats need is made once."""

    def __init__(self, prediction: Prediction, case: Case | None, terminology: Terminology) -> None:
        self.prediction = prediction
        self.case = case
        self.terminology = terminology
        self._made: dict[str, Any] = {}

    def _once(self, key: str, make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def image(self) -> Image | None:
        """The study's image on the grid of the result."""
        found: Image | None = self._once("image", lambda: image_on(self.case, self.prediction))
        return found

    def measured(self) -> list[Measured]:
        """Of a mask."""
        found: list[Measured] = self._once("measured", lambda: measure_mask(self.prediction, image=self.image()))
        return found

    def source(self) -> Source:
        """The DICOM series."""
        if self.case is None:
            raise ScopeError(f"case {self.prediction.case}: its study is not at hand, so nothing can refer to it")
        case, grid = self.case, self.prediction.finding.grid  # type: ignore[union-attr]
        found: Source = self._once("source", lambda: open_source(case, grid, "a DICOM result"))
        return found

    def segmentation(self) -> Any:
        """The binary segmentation, written or to be referred to."""
        return self._once("seg", lambda: make_dicom_seg(self.prediction, self.source(), terminology=self.terminology))

    def dicom(self, name: str, with_seg: bool) -> Any:
        """A DICOM object in the format of that name."""
        if name == "seg":
            return self.segmentation()
        if name == "seg-fractional":
            return make_dicom_seg(self.prediction, self.source(), kind="FRACTIONAL", terminology=self.terminology)
        if name == "rtstruct":
            return make_rtstruct(self.prediction, self.source(), terminology=self.terminology)
        mask = isinstance(self.prediction.finding, Mask)
        return make_dicom_sr(
            self.prediction,
            self.source(),
            segmentation=self.segmentation() if mask and with_seg else None,
            measured=self.measured() if mask else (),
            terminology=self.terminology,
        )

    def drawn(self) -> bytes:
        """The overlay."""
        image = self.image()
        if image is None:
            raise ScopeError(
                f"case {self.prediction.case}: no image of it lies on the grid of the result to be drawn on"
            )
        if isinstance(self.prediction.finding, Mask):
            return draw_mask(self.prediction, image, terminology=self.terminology)
        return draw_boxes(self.prediction, image, terminology=self.terminology)
