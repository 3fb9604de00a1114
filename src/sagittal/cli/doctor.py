"""``sagittal doctor``: what this machine has, for a bug report."""

from __future__ import annotations

import typer

from sagittal.cli.command import Desk, command
from sagittal.cli.exits import Exit


@command(
    brief="Describe this machine, for a bug report.",
    examples="""
    sagittal doctor
    sagittal doctor --json
    """,
)
def doctor(desk: Desk) -> None:
    """Print versions, processors, memory, decoders and optional packages, and test the installation; can be pasted."""
    from sagittal import verbs
    from sagittal.cli.text import facts_text

    facts = verbs.doctor()
    desk.answer(facts, facts_text(facts))
    if not all(value == "passed" for value in facts["self test"].values()):
        raise typer.Exit(Exit.ENVIRONMENT)
