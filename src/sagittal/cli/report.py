"""``sagittal report``: the page, made again from the evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sagittal.cli.command import Desk, command


@command(
    brief="Write the report page again.",
    examples="""
    sagittal report runs/breastmnist
    sagittal report evidence/
    """,
)
def report(
    desk: Desk,
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="A run folder, or one that evaluate -o wrote.", show_default=False),
    ],
) -> None:
    """Write the report page and its figures again, from the evidence in a folder."""
    from sagittal import verbs

    path = verbs.report(folder)
    desk.answer({"report": path}, str(path))
