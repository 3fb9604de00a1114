"""``sagittal plan``: what training would do, before anything is spent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from sagittal.cli.command import Desk, command, split_items
from sagittal.cli.flags import (
    Batch,
    Budget,
    Epochs,
    Folds,
    Inputs,
    Output,
    Preset,
    Pretrained,
    Seed,
    Target,
    flag,
    names,
)
from sagittal.errors import ConfigError
from sagittal.options import ReadOptions, TrainOptions

if TYPE_CHECKING:
    from sagittal.options import Preset as PresetName


@command(
    brief="Show what training would do, and why.",
    reads=True,
    examples="""
    sagittal plan studies/ --labels labels.csv --target diagnosis --budget 1h -o plan.json
    sagittal train studies/ --labels labels.csv --target diagnosis --plan plan.json
    """,
)
def plan(
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
    preset: Preset = "balanced",
    epochs: Epochs = None,
    batch: Batch = None,
    folds: Folds = None,
    pretrained: Pretrained = None,
    inputs: Inputs = None,
    seed: Seed = 0,
    *,
    read: ReadOptions,
) -> None:
    """Measure a source and print the plan of training with its reasons; edit it and give it to train --plan."""
    from sagittal import verbs
    from sagittal.cli.text import plan_text

    source, changes = split_items(list(items or ()), desk.file)
    if source is None:
        raise ConfigError("no source given. Name a folder, a table or medmnist:NAME: sagittal plan SOURCE")
    made = verbs.plan(
        source,
        target=target,
        task=task,
        budget=budget,
        seed=seed,
        options=TrainOptions(
            read=read,
            preset=cast("PresetName", preset),
            epochs=epochs,
            batch=batch,
            folds=folds,
            pretrained=pretrained,
            inputs=names(inputs),
            changes=changes,
            reporter=desk.reporter,
        ),
    )
    if output is not None:
        path = output / "plan.json" if output.is_dir() else output
        path.parent.mkdir(parents=True, exist_ok=True)
        made.save(path)
        desk.next(f"sagittal train {source} --plan {path}")
    desk.answer(made.to_json(), plan_text(made))
