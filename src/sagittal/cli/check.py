"""``sagittal check``: what is wrong with a source, before time is spent on it."""

from __future__ import annotations

from typing import Annotated, Literal, cast

import typer

from sagittal.cli.command import Desk, command, source_of
from sagittal.cli.exits import Exit
from sagittal.cli.flags import Source, Target, flag
from sagittal.options import ReadOptions


@command(
    brief="Find what is wrong with the data.",
    reads=True,
    examples="""
    sagittal check studies/ --labels labels.csv --target diagnosis
    sagittal check medmnist:breastmnist --json
    """,
)
def check(
    desk: Desk,
    source: Source = None,
    target: Target = None,
    pixels: Annotated[str, flag("--pixels", metavar="none|sample|all", help="How many images are read.")] = "all",
    *,
    read: ReadOptions,
) -> None:
    """Report what is wrong with the data of a source; ends in 3 where something must be mended before training."""
    from sagittal import verbs
    from sagittal.cli.text import findings_text

    findings = verbs.check(
        source_of(source, desk),
        target=target,
        pixels=cast("Literal['none', 'sample', 'all']", pixels),
        options=read,
        reporter=desk.reporter,
    )
    desk.answer(findings.to_json(), findings_text(findings))
    if not findings.may_train:
        raise typer.Exit(Exit.DATA)
