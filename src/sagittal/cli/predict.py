"""``sagittal predict``: what a model says about new studies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sagittal.cli.command import Desk, command
from sagittal.cli.exits import Exit
from sagittal.cli.flags import Device, ModelPath, Output, Studies, flag, names
from sagittal.options import PredictOptions


@command(
    brief="Answer new studies.",
    examples="""
    sagittal predict runs/chest new/study-01
    sagittal predict runs/chest new/ -o answers.csv
    sagittal predict runs/liver new/ct-01 -o results/ --format seg,sr,png
    sagittal predict runs/tumour patients/ -o results/ --images T1=t1n,FLAIR=t2f
    sagittal predict model/ 'inbox/*.dcm' --json
    sagittal predict model/ @list.txt -o answers.parquet
    """,
)
def predict(
    desk: Desk,
    model: ModelPath,
    studies: Studies,
    output: Output = None,
    formats: Annotated[
        str | None,
        flag(
            "--format",
            metavar="NAMES",
            help="What is written into a folder: nifti, mask, seg, seg-fractional, rtstruct, sr, png, coco, csv, json.",
        ),
    ] = None,
    terminology: Annotated[
        Path | None, flag("--terminology", metavar="FILE", help="JSON with the coded names of structures.")
    ] = None,
    images: Annotated[
        str | None,
        flag(
            "--images", metavar="NAME=PATTERN", help="Files or series of each image of the model: 'T1=t1n,FLAIR=t2f'."
        ),
    ] = None,
    tilt: Annotated[
        str | None,
        flag("--tilt", metavar="refuse|shear", help="DICOM of a tilted gantry: refused, or sheared affines."),
    ] = None,
    batch: Annotated[
        int | None, flag("--batch", metavar="N", help="Studies or windows at a time; what memory likes.")
    ] = None,
    device: Device = "auto",
    engine: Annotated[
        str,
        flag("--engine", metavar="NAME", help="auto, torch, openvino, onnxruntime, torch-bf16 or openvino-bf16."),
    ] = "auto",
    overwrite: Annotated[bool, flag("--overwrite", help="Replace results that are there.")] = False,
) -> None:
    """Answer new studies: classes with probabilities, masks or boxes, and whether the model knows their like.

    One bad study never stops the rest; the command then ends in 3 with a list of the bad ones.
    """
    from sagittal import verbs
    from sagittal.cli.text import predictions_text

    rows = verbs.predict_rows(
        model,
        studies,
        output=output,
        batch=batch,
        device=device,
        overwrite=overwrite,
        options=PredictOptions(
            formats=names(formats), terminology=terminology, images=images, tilt=tilt, engine=engine
        ),
        reporter=desk.reporter,
    )
    if output is None or desk.json:
        desk.answer(rows, predictions_text(rows))
    else:
        print(output)
    failed = [row for row in rows if row["status"] == "failed"]
    if failed:
        desk.complain(f"{len(failed)} of {len(rows)} studies could not be answered:")
        for row in failed:
            desk.complain(f"  {row['error']}")
        raise typer.Exit(Exit.DATA)
