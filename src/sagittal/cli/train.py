"""``sagittal train``: from a source to a model, within a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sagittal.cli.command import Desk, command, split_items
from sagittal.cli.flags import (
    Batch,
    Budget,
    Device,
    Epochs,
    Folds,
    Output,
    Preset,
    Pretrained,
    Seed,
    Target,
    Workers,
    flag,
)
from sagittal.options import ReadOptions, TrainOptions


@command(
    reads=True,
    alias="fit",
    examples="""
    sagittal train medmnist:breastmnist --budget 10m
    sagittal train studies/ --labels labels.csv --target diagnosis --budget 2h -o runs/chest
    sagittal train studies/ --target grade --kind ordinal --preset best network.width=48
    sagittal train -o runs/chest --resume
    sagittal train --config runs/chest/config.json -o runs/chest-again
    """,
)
def train(
    desk: Desk,
    items: Annotated[
        list[str] | None,
        typer.Argument(metavar="SOURCE [KEY=VALUE]...", help="Source, and fields of the plan to set.", show_default=False),
    ] = None,
    target: Target = None,
    task: Annotated[str, flag("--task", metavar="TASK", help="classify.")] = "classify",
    budget: Budget = "10m",
    output: Output = None,
    name: Annotated[str | None, flag("--name", metavar="NAME", help="Of the run and its model.")] = None,
    plan: Annotated[Path | None, flag("--plan", metavar="FILE", help="A plan made before by sagittal plan.")] = None,
    preset: Preset = "balanced",
    epochs: Epochs = None,
    batch: Batch = None,
    folds: Folds = None,
    pretrained: Pretrained = None,
    device: Device = "auto",
    workers: Workers = 0,
    seed: Seed = 0,
    resume: Annotated[bool, flag("--resume", help="Go on from the last checkpoint of the run folder.")] = False,
    overwrite: Annotated[bool, flag("--overwrite", help="Replace a run folder of the same name.")] = False,
    tensorboard: Annotated[bool, flag("--tensorboard", help="Write a TensorBoard log into the run folder.")] = False,
    *,
    read: ReadOptions,
) -> None:
    """Learn a classifier from studies and labels within a time budget; the run folder holds all there is to know."""
    from sagittal import verbs

    source, changes = split_items(list(items or ()), desk.file)
    run = verbs.train(
        source,
        target=target,
        task=task,
        budget=budget,
        output=output,
        seed=seed,
        resume=resume,
        options=TrainOptions(
            read=read,
            name=name,
            preset=preset,  # type: ignore[arg-type]  (checked there)
            epochs=epochs,
            batch=batch,
            folds=folds,
            pretrained=pretrained,
            device=device,
            workers=workers,
            overwrite=overwrite,
            tensorboard=tensorboard,
            plan=plan,
            changes=changes,
            reporter=desk.reporter,
        ),
    )
    desk.answer(verbs.describe_run(run), verbs.run_text(run))
    desk.next(f"sagittal evaluate {run.folder} SOURCE --split test", f"sagittal predict {run.folder} STUDY...")
