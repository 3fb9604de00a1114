"""Options of the verbs, and how time budgets are written."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from sagittal.errors import ConfigError, nearest
from sagittal.progress import Quiet, Reporter

Preset = Literal["fast", "balanced", "best"]
PRESETS: tuple[Preset, ...] = ("fast", "balanced", "best")

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_BUDGET = re.compile(r"(?:\d+(?:\.\d+)?[smhd])+", re.ASCII)


@dataclass(frozen=True)
class ReadOptions:
    """How a source is read, where it is not recognised by itself; ``None`` leaves it to the reader.

    Parameters
    ----------
    layout : str, optional
        ``folders``, ``table``, ``files``, ``medmnist``, ``dicom_tree``, ``dicom_truth``, ``msd``, ``nnunet``, ``coco``,
        ``voc``, ``pairs``, ``case_folders`` or ``manifest``.
    labels : path, optional
        Table with the labels of the images in the source, or the annotations of COCO.
    id_column, path_column, patient_column, split_column, mask_column : str, optional
        Columns of that table; several columns of images or masks with commas between them. Without a table,
        `mask_column` names the endings of the files that are masks.
    sheet : str, optional
        Sheet of an Excel table; the first where not given.
    images : str, optional
        Series of a DICOM study that make one case, by patterns of the SeriesDescription: ``"T1=*T1*,FLAIR=*FLAIR*"``; or
        files of a folder a case, by their endings: ``"T1=t1n,FLAIR=t2f"``.
    tilt : str, optional
        ``shear`` gives DICOM series of a tilted gantry the sheared affine that is exact; ``refuse`` where left out.
    kind : str, optional
        ``binary``, ``multiclass``, ``multilabel``, ``ordinal``, ``structures`` or ``objects``.
    unlisted : str, optional
        What becomes of images that no row of a table of boxes names: ``skip`` where left out, or ``empty`` if they were
        looked at and hold no object.
    search : tuple of str
        Folders in which sets of MedMNIST are looked for first.
    """

    layout: str | None = None
    labels: str | None = None
    id_column: str | None = None
    path_column: str | None = None
    patient_column: str | None = None
    split_column: str | None = None
    mask_column: str | None = None
    sheet: str | None = None
    images: str | None = None
    tilt: str | None = None
    kind: str | None = None
    unlisted: str | None = None
    search: tuple[str, ...] = ()

    def keywords(self) -> dict[str, Any]:
        """The arguments of ``open_dataset`` that were given."""
        return {key: value for key, value in asdict(self).items() if value not in (None, ())}


@dataclass(frozen=True)
class TrainOptions:
    """What training may be told beside its eight arguments.

    Parameters
    ----------
    read : ReadOptions
    name : str, optional
        Name of the run and of its model; the data set's name where not given.
    preset : {"fast", "balanced", "best"}
        How much the planner may spend on a member of the ensemble.
    epochs : float, optional
        Passes over the training cases; the planner's choice where not given.
    batch, folds : int, optional
        Likewise.
    pretrained : str, optional
        ``auto``, ``none``, ``package``, ``folder:PATH`` or ``hub:NAME``.
    inputs : tuple of str
        Clinical columns that the model uses beside the image.
    device : str
        ``auto``, ``cpu``, ``cuda:1`` or ``0,1``.
    workers : int
        Processes beside the main one that prepare studies.
    overwrite : bool
        Whether a run folder of the same name may be replaced.
    tensorboard : bool
        Whether a TensorBoard log is written into the run folder.
    allow_leakage : bool
        Whether training goes on where a held-out split shares patients or files with another; the run and the model's
        card say so.
    plan : path, optional
        A plan made before and perhaps edited by hand, instead of a new one.
    changes : mapping of str to str
        Fields of the plan to replace: ``{"network.width": "48"}``.
    reporter : Reporter
    """

    read: ReadOptions = ReadOptions()
    name: str | None = None
    preset: Preset = "balanced"
    epochs: float | None = None
    batch: int | None = None
    folds: int | None = None
    pretrained: str | None = None
    inputs: tuple[str, ...] = ()
    device: str = "auto"
    workers: int = 0
    overwrite: bool = False
    tensorboard: bool = False
    allow_leakage: bool = False
    plan: Path | None = None
    changes: Mapping[str, str] = field(default_factory=dict)
    reporter: Reporter = field(default_factory=Quiet)

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ConfigError(f"preset: '{self.preset}' is not a choice. {nearest(self.preset, PRESETS)}")
        for name, least in (("epochs", 0), ("batch", 1), ("folds", 1), ("workers", 0)):
            value = getattr(self, name)
            if value is not None and (value < least or (name == "epochs" and value <= 0)):
                raise ConfigError(
                    f"{name}: expected {'more than 0' if name == 'epochs' else f'at least {least}'}, found {value}"
                )

    def overrides(self) -> dict[str, str]:
        """Every change of the planner's plan that these options ask for, the named ones and the free ones."""
        named = {"train.epochs": self.epochs, "train.batch": self.batch}
        return {**{key: str(value) for key, value in named.items() if value is not None}, **self.changes}


@dataclass(frozen=True)
class PredictOptions:
    """What prediction may be told beside its arguments.

    Parameters
    ----------
    formats : tuple of str
        What is written into the output folder where the answer has a place: ``nifti``, ``mask``, ``seg``,
        ``seg-fractional``, ``rtstruct``, ``sr``, ``png``, ``coco``, ``csv``, ``json``; label maps, overlays and tables
        where left out.
    terminology : path, optional
        JSON file with the coded names of structures and objects.
    images : str, optional
        Which files or series are which image of a model with several: ``"T1=t1n,FLAIR=t2f"``.
    tilt : str, optional
        ``shear`` gives DICOM series of a tilted gantry the sheared affine that is exact; ``refuse`` where left out.
    engine : str
        What runs the networks of an answer with a place on a CPU: ``auto``, ``torch``, ``openvino``, ``onnxruntime``, or
        with fewer digits ``torch-bf16``, ``openvino-bf16``.
    """

    formats: tuple[str, ...] = ()
    terminology: Path | None = None
    images: str | None = None
    tilt: str | None = None
    engine: str = "auto"


@dataclass(frozen=True)
class EvaluateOptions:
    """What evaluation may be told beside its arguments.

    Parameters
    ----------
    read : ReadOptions
    target : str, optional
        Column of the truth; the one that the model was trained on where not given.
    device : str
    resamples : int
        Bootstrap resamples of patients behind the intervals that have no closed form.
    seed : int
        Of the bootstrap.
    confidence : float
        Level of the intervals.
    prevalence : float, optional
        Frequency of the positive class for which PPV and NPV are also given.
    figures : bool
        Whether pictures of cases with explanations are added to the report.
    reporter : Reporter
    """

    read: ReadOptions = ReadOptions()
    target: str | None = None
    device: str = "auto"
    resamples: int = 1000
    seed: int = 0
    confidence: float = 0.95
    prevalence: float | None = None
    figures: bool = True
    reporter: Reporter = field(default_factory=Quiet)

    def __post_init__(self) -> None:
        if self.prevalence is not None and not 0 < self.prevalence < 1:
            raise ConfigError(f"prevalence: expected a fraction between 0 and 1 such as 0.1, found {self.prevalence}")
        if not 0 < self.confidence < 1:
            raise ConfigError(f"confidence: expected a level between 0 and 1 such as 0.95, found {self.confidence}")


def parse_budget(budget: str | float) -> float:
    """Seconds of a time budget as people write it.

    Parameters
    ----------
    budget : str or float
        ``"90s"``, ``"10m"``, ``"1.5h"``, ``"2h30m"``, ``"3d"``; a plain number is seconds.

    Returns
    -------
    float, s

    Raises
    ------
    ConfigError
        If it is not such a text, or not more than nothing.

    Examples
    --------
    >>> parse_budget("1.5h"), parse_budget("2h30m"), parse_budget(90)
    (5400.0, 9000.0, 90.0)
    """
    text = str(budget).strip().lower().replace(" ", "")
    try:
        seconds = float(text)
    except ValueError:
        if not _BUDGET.fullmatch(text):
            raise ConfigError(
                f"budget: '{budget}' is not a time. Write 90s, 10m, 2h, 1.5h, 2h30m or 3d; a plain number is seconds."
            ) from None
        parts = re.findall(r"([\d.]+)([smhd])", text)
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if not (math.isfinite(seconds) and seconds > 0):
        raise ConfigError(f"budget: expected more than no time, such as 10m, found '{budget}'")
    return seconds


def format_seconds(seconds: float) -> str:
    """A duration for people.

    >>> format_seconds(42.4), format_seconds(584), format_seconds(9000), format_seconds(200000)
    ('42 s', '9 min 44 s', '2 h 30 min', '2 d 7 h')
    """
    whole = round(seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    if whole < 60:
        return f"{whole} s"
    for big, small, name, rest in ((60, 1, "min", "s"), (3600, 60, "h", "min"), (86400, 3600, "d", "h")):
        if whole < big * (60 if name == "min" else 24 if name == "h" else 10**9):
            first, second = whole // big, whole % big // small
            return f"{first} {name}" + (f" {second} {rest}" if second else "")
    raise AssertionError(seconds)
