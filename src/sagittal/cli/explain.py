"""``sagittal explain``: where a model looked, and whether that means anything."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sagittal.cli.command import Desk, command
from sagittal.cli.exits import Exit
from sagittal.cli.flags import Device, ModelPath, Studies, flag, names


@command(
    brief="Show where a model looked, and whether it matters.",
    examples="""
    sagittal explain runs/chest new/study-01 -o maps/
    sagittal explain runs/chest new/ -o maps/ --method gradcam,integrated-gradients,occlusion --class malignant
    """,
)
def explain(
    desk: Desk,
    model: ModelPath,
    studies: Studies,
    output: Annotated[Path, flag("--output", "-o", metavar="DIR", help="Where overlays and maps are written.")],
    method: Annotated[
        str, flag("--method", metavar="NAMES", help="gradcam, integrated-gradients, occlusion; with commas.")
    ] = "gradcam",
    class_: Annotated[
        str | None, flag("--class", metavar="NAME", help="Class to explain; the most probable one by itself.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Show which parts of a study a model's answer rests on, with a measure of how far to believe the map."""
    from sagittal import verbs
    from sagittal.cli.text import explanations_text

    rows = verbs.explain(
        model,
        studies,
        output,
        methods=names(method),
        class_name=class_,
        device=device,
        reporter=desk.reporter,
    )
    desk.answer(rows, explanations_text(rows))
    failures = [row for row in rows if "error" in row]
    if failures:
        desk.complain(f"{len(failures)} studies could not be explained:")
        for row in failures:
            desk.complain(f"  {row['error']}")
        raise typer.Exit(Exit.DATA)
