"""``sagittal train``: from a source to a model, within a budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from sagittal.cli.command import Desk, command, split_items
from sagittal.cli.flags import (
    Batch,
    Budget,
    Device,
    Epochs,
    Folds,
    Inputs,
    Output,
    Preset,
    Pretrained,
    Seed,
    Target,
    Workers,
    flag,
    names,
)
from sagittal.options import ReadOptions, TrainOptions

if TYPE_CHECKING:
    from sagittal.options import Preset as PresetName


@command(
    brief="Learn a model within a time budget.",
    reads=True,
    alias="fit",
    examples="""
    sagittal train medmnist:breastmnist --budget 10m
    sagittal train studies/ --labels labels.csv --target diagnosis --budget 2h -o runs/chest
    sagittal train Task04_Hippocampus/ --task segment --budget 30m
    sagittal train VOC2012/ --task detect --budget 30m
    sagittal train studies/ --target grade --kind ordinal --preset best network.width=48
    sagittal train -o runs/chest --resume
    sagittal train --config runs/chest/config.json -o runs/chest-again
    """,
)
def train(
    desk: Desk,
    items: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE [KEY=VALUE]...", help="Source, and fields of the plan to set.", show_default=False
        ),
    ] = None,
    target: Target = None,
    task: Annotated[
        str, flag("--task", metavar="TASK", help="classify, segment, detect or auto: the one that the truth is for.")
    ] = "auto",
    budget: Budget = "10m",
    output: Output = None,
    name: Annotated[str | None, flag("--name", metavar="NAME", help="Of the run and its model.")] = None,
    plan: Annotated[Path | None, flag("--plan", metavar="FILE", help="A plan made before by sagittal plan.")] = None,
    preset: Preset = "balanced",
    epochs: Epochs = None,
    batch: Batch = None,
    folds: Folds = None,
    pretrained: Pretrained = None,
    inputs: Inputs = None,
    device: Device = "auto",
    workers: Workers = 0,
    seed: Seed = 0,
    resume: Annotated[bool, flag("--resume", help="Go on from the last checkpoint of the run folder.")] = False,
    overwrite: Annotated[bool, flag("--overwrite", help="Replace a run folder of the same name.")] = False,
    tensorboard: Annotated[bool, flag("--tensorboard", help="Write a TensorBoard log into the run folder.")] = False,
    allow_leakage: Annotated[
        bool, flag("--allow-leakage", help="Train although a held-out split shares patients or files with another.")
    ] = False,
    *,
    read: ReadOptions,
) -> None:
    """Learn to classify, segment or detect from studies and their truth within a time budget; the run folder holds all there is to know."""
    from sagittal import verbs
    from sagittal.cli.text import evidence_text

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
            preset=cast("PresetName", preset),
            epochs=epochs,
            batch=batch,
            folds=folds,
            pretrained=pretrained,
            inputs=names(inputs),
            device=device,
            workers=workers,
            overwrite=overwrite,
            tensorboard=tensorboard,
            allow_leakage=allow_leakage,
            plan=plan,
            changes=changes,
            reporter=desk.reporter,
        ),
    )
    evidence = json.loads((run.folder / "evidence.json").read_text(encoding="utf-8"))
    scores = {"overall": evidence["overall"], "split": evidence["settings"]["split"]}
    facts = {"run": run.folder, "model": run.folder / "model", "report": run.folder / "report.html", **scores}
    desk.answer(facts, f"{evidence_text(evidence)}\n\nreport  {facts['report']}\nmodel   {facts['model']}")
    desk.next(f"sagittal evaluate {run.folder} SOURCE --split test", f"sagittal predict {run.folder} STUDY...")
