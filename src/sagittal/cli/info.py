"""``sagittal info``: what a model, a run or a source is."""

from __future__ import annotations

from typing import Annotated

import typer

from sagittal.cli.command import Desk, command
from sagittal.cli.flags import Target
from sagittal.options import ReadOptions


@command(
    brief="Describe a model, a run or a source.",
    reads=True,
    examples="""
    sagittal info runs/breastmnist
    sagittal info model/
    sagittal info studies/ --labels labels.csv
    """,
)
def info(
    desk: Desk,
    thing: Annotated[
        str, typer.Argument(metavar="MODEL|RUN|SOURCE", help="A model, a run folder or a source.", show_default=False)
    ],
    target: Target = None,
    *,
    read: ReadOptions,
) -> None:
    """Say what a model was made for and how good it is, how far a run came, or what a source holds."""
    from sagittal import verbs
    from sagittal.cli.text import facts_text

    facts = verbs.info(thing, target=target, options=read)
    desk.answer(facts, facts_text(facts))
