"""Flags that several commands share, named as users know them."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from sagittal.options import ReadOptions


def flag(*names: str, help: str, metavar: str | None = None, **rest: Any) -> Any:
    """An option that ``SAGITTAL_NAME`` sets too, by its long name."""
    long = next(name for name in names if name.startswith("--")).split("/")[0]
    variable = "SAGITTAL_" + long[2:].replace("-", "_").upper()
    return typer.Option(*names, help=help, metavar=metavar, envvar=variable, show_envvar=False, **rest)


Source = Annotated[
    str | None,
    typer.Argument(metavar="SOURCE", help="Folder, table, manifest, .zip, .npz or medmnist:NAME.", show_default=False),
]
ModelPath = Annotated[
    Path, typer.Argument(metavar="MODEL", help="Folder of a model, or a run folder.", show_default=False)
]
Studies = Annotated[
    list[str],
    typer.Argument(
        metavar="STUDY...", help="Files, folders, DICOM trees, 'globs*', or @FILE with one a line.", show_default=False
    ),
]

Target = Annotated[
    str | None, flag("--target", metavar="COLUMN", help="What to learn; may be left out where there is one label.")
]
#: Options of every command that reads a source, in the order of :class:`sagittal.options.ReadOptions`.
READING = tuple(
    inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, option])
    for name, option in {
        "labels": flag(
            "--labels",
            metavar="TABLE",
            help="CSV, TSV, Excel or Parquet table, or JSON of COCO, that holds the labels.",
        ),
        "layout": flag(
            "--layout",
            metavar="NAME",
            help="folders, table, files, dicom_tree, msd, nnunet, coco, voc, pairs, medmnist, manifest; recognised by itself.",
        ),
        "kind": flag(
            "--kind",
            metavar="KIND",
            help="binary, multiclass, multilabel, ordinal, structures or objects; found by itself.",
        ),
        "id_column": flag("--id-column", metavar="COLUMN", help="Column that names the case."),
        "path_column": flag(
            "--path-column", metavar="COLUMN", help="Column with the image's path; several with commas: t1,t2."
        ),
        "patient_column": flag(
            "--patient-column", metavar="COLUMN", help="Column that says which cases are one patient's."
        ),
        "mask_column": flag(
            "--mask-column",
            metavar="COLUMN",
            help="Column with the path of the image's mask, or the ending of mask files.",
        ),
        "unlisted": flag(
            "--unlisted",
            metavar="skip|empty",
            help="Images without a row in a table of boxes: left out, or without object.",
        ),
        "sheet": flag("--sheet", metavar="NAME", help="Sheet of an Excel table; the first by itself."),
        "images": flag(
            "--images",
            metavar="NAME=PATTERN",
            help="Series of a DICOM study, or files of a folder, that make one case: 'T1=*T1*,FLAIR=*FLAIR*'.",
        ),
        "tilt": flag("--tilt", metavar="refuse|shear", help="DICOM of a tilted gantry: refused, or sheared affines."),
        "split_column": flag("--split-column", metavar="COLUMN", help="Column with train, val or test."),
        "search": typer.Option(
            "--search",
            metavar="FOLDERS",
            envvar="SAGITTAL_DATA",
            show_envvar=False,
            help="Where sets of MedMNIST lie; also SAGITTAL_DATA.",
        ),
    }.items()
)

Budget = Annotated[str, flag("--budget", metavar="TIME", help="Wall time for everything: 90s, 10m, 2h, 1.5h, 3d.")]
Preset = Annotated[str, flag("--preset", metavar="fast|balanced|best", help="How much one network may cost.")]
Epochs = Annotated[float | None, flag("--epochs", metavar="N", help="Passes over the data; chosen by the plan.")]
Batch = Annotated[int | None, flag("--batch", metavar="N", help="Cases in one step; chosen by the plan.")]
Folds = Annotated[int | None, flag("--folds", metavar="N", help="Cross-validation folds; chosen by the plan.")]
Pretrained = Annotated[
    str | None,
    flag("--pretrained", metavar="FROM", help="none, package, folder:PATH or hub:NAME; chosen by the plan."),
]
Inputs = Annotated[
    str | None,
    flag("--inputs", metavar="COLUMNS", help="Clinical columns to use beside the image, with commas: age,sex."),
]
Device = Annotated[str, flag("--device", metavar="DEVICE", help="auto, cpu, cuda:1, or several: 0,1.")]
Workers = Annotated[int, flag("--workers", metavar="N", help="Processes beside the main one that prepare studies.")]
Seed = Annotated[int, flag("--seed", metavar="N", help="Same data, plan, seed and machine: same weights.")]
Output = Annotated[Path | None, flag("--output", "-o", metavar="PATH", help="Where the result is written.")]


def names(text: str | None) -> tuple[str, ...]:
    """Names that stand in one text with commas between them.

    >>> names("age, sex"), names(None)
    (('age', 'sex'), ())
    """
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def read_options(options: dict[str, Any]) -> ReadOptions:
    """Take the options of reading out of those of a command."""
    values = {parameter.name: options.pop(parameter.name) for parameter in READING}
    search = values["search"]
    if isinstance(search, str):
        values["search"] = tuple(folder for folder in search.split(os.pathsep) if folder)
    return ReadOptions(**{key: value for key, value in values.items() if value is not None})
