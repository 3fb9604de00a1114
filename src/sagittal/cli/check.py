"""``sagittal check``: what is wrong with a source, before time is spent on it."""

from __future__ import annotations

from pathlib import Path
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
    sagittal check studies/ --labels labels.csv --target diagnosis -o check.html
    sagittal check medmnist:breastmnist --json
    """,
)
def check(
    desk: Desk,
    source: Source = None,
    target: Target = None,
    pixels: Annotated[str, flag("--pixels", metavar="none|sample|all", help="How many images are read.")] = "all",
    output: Annotated[
        Path | None,
        flag("--output", "-o", metavar="FILE", help="Page with pictures of what was found (.html), or .json."),
    ] = None,
    overwrite: Annotated[bool, flag("--overwrite", help="Replace a page that is there.")] = False,
    allow_leakage: Annotated[
        bool, flag("--allow-leakage", help="Only warn of what stands on both sides of a split.")
    ] = False,
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
        output=output,
        overwrite=overwrite,
        allow_leakage=allow_leakage,
        options=read,
        reporter=desk.reporter,
    )
    desk.answer(findings.to_json(), findings_text(findings))
    if output is not None:
        desk.reporter.say(f"page  {output}")
    if not findings.may_train:
        raise typer.Exit(Exit.DATA)
