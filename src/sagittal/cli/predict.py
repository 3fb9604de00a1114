"""``sagittal predict``: what a model says about new studies."""

from __future__ import annotations

from typing import Annotated

import typer

from sagittal.cli.command import Desk, command
from sagittal.cli.exits import Exit
from sagittal.cli.flags import Device, ModelPath, Output, Studies, flag


@command(
    brief="Answer new studies.",
    examples="""
    sagittal predict runs/chest new/study-01
    sagittal predict runs/chest new/ -o answers.csv
    sagittal predict model/ 'inbox/*.dcm' --json
    sagittal predict model/ @list.txt -o answers.parquet
    """,
)
def predict(
    desk: Desk,
    model: ModelPath,
    studies: Studies,
    output: Output = None,
    batch: Annotated[int, flag("--batch", metavar="N", help="Studies at a time.")] = 32,
    device: Device = "auto",
    overwrite: Annotated[bool, flag("--overwrite", help="Replace a table that is there.")] = False,
) -> None:
    """Answer new studies: probabilities, a decision, what cannot be excluded, and whether the model knows their like.

    One bad study never stops the rest; the command then ends in 3 with a list of the bad ones.
    """
    from sagittal import verbs
    from sagittal.cli.text import predictions_text
    from sagittal.prediction import Failure
    from sagittal.write.table import prediction_row

    answers = verbs.predict(
        model, studies, output=output, batch=batch, device=device, overwrite=overwrite, reporter=desk.reporter
    )
    if output is None or desk.json:
        desk.answer([prediction_row(answer) for answer in answers], predictions_text(answers))
    else:
        print(output)
    failures = [answer for answer in answers if isinstance(answer, Failure)]
    if failures:
        desk.complain(f"{len(failures)} of {len(answers)} studies could not be answered:")
        for failure in failures:
            desk.complain(f"  {failure.error}")
        raise typer.Exit(Exit.DATA)
