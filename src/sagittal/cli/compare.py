"""``sagittal compare``: which of two models is better, and whether the difference is more than chance."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sagittal.cli.command import Desk, command

Evidence = Annotated[
    Path, typer.Argument(metavar="EVIDENCE", help="Folder that evaluate -o wrote.", show_default=False)
]


@command(
    brief="Compare two models on the same cases.",
    examples="""
    sagittal evaluate runs/small held-out/ -o small/
    sagittal evaluate runs/large held-out/ -o large/
    sagittal compare small/ large/
    """,
)
def compare(
    desk: Desk,
    first: Evidence,
    second: Evidence,
) -> None:
    """Compare the evidence of two models on the same cases, with intervals of the differences."""
    from sagittal import verbs

    comparison = verbs.compare(first, second)
    desk.answer(comparison.to_json(), comparison.text())
