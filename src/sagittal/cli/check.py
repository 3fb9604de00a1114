"""``sagittal check``: what is wrong with a source, before time is spent on it."""

from __future__ import annotations

import typer

from sagittal.cli.command import Desk, command, source_of
from sagittal.cli.exits import Exit
from sagittal.cli.flags import Source, Target
from sagittal.options import ReadOptions


@command(
    reads=True,
    examples="""
    sagittal check studies/ --labels labels.csv --target diagnosis
    sagittal check medmnist:breastmnist --json
    """,
)
def check(desk: Desk, source: Source = None, target: Target = None, *, read: ReadOptions) -> None:
    """Read every study once and report what is wrong with the data; ends in 3 where something must be mended."""
    from sagittal import verbs

    findings = verbs.check(source_of(source, desk), target=target, options=read, reporter=desk.reporter)
    desk.answer(findings.to_json(), findings.text())
    if findings.errors:
        raise typer.Exit(Exit.DATA)
