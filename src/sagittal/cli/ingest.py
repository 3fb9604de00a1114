"""``sagittal ingest``: a manifest of the cases in a source."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from sagittal.cli.command import Desk, command, source_of
from sagittal.cli.flags import Output, Source, Target, flag
from sagittal.options import ReadOptions


@command(
    brief="List the cases of a source in a manifest.",
    reads=True,
    examples="""
    sagittal ingest studies/ --labels labels.csv --target diagnosis -o manifest/
    sagittal train manifest/ --budget 1h
    """,
)
def ingest(
    desk: Desk,
    source: Source = None,
    target: Target = None,
    output: Output = None,
    overwrite: Annotated[bool, flag("--overwrite", help="Replace a manifest that is there.")] = False,
    *,
    read: ReadOptions,
) -> None:
    """List the cases of a source in a manifest: a table that points at the files; no pixels are copied."""
    from sagittal import verbs
    from sagittal.cli.text import dataset_text
    from sagittal.labels import CLASS_KINDS
    from sagittal.report.facts import describe_dataset
    from sagittal.run_folder import safe_name

    source = source_of(source, desk)
    folder = output or Path("manifests") / safe_name(source)
    dataset = verbs.ingest(source, folder, target=target, options=read, overwrite=overwrite, reporter=desk.reporter)
    facts = describe_dataset(dataset)
    desk.answer({"manifest": folder, **facts}, str(folder))
    desk.reporter.say(dataset_text(facts))
    trainable = facts["kind"] in CLASS_KINDS
    desk.next(f"sagittal check {folder}", *([f"sagittal train {folder}"] if trainable else []))
