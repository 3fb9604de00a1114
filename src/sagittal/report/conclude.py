"""The end of a run: evidence, figures, page and card, from the cases that its networks did not learn from."""

from __future__ import annotations

from sagittal.dataset import Dataset
from sagittal.evaluate.cases import evidence_of
from sagittal.evaluate.evidence import Evidence
from sagittal.progress import Reporter
from sagittal.report.page import write_report
from sagittal.run_folder import writable
from sagittal.train.run import Run


def conclude(run: Run, dataset: Dataset, *, reporter: Reporter) -> Evidence:
    """Judge a finished run by its validation cases and write what a reader needs into its folder.

    Raises
    ------
    ResourceError
        If the folder cannot be written.
    """
    reporter.say(f"judging the run by {len(run.validation)} cases that its networks did not learn from")
    evidence = evidence_of(run.validation, run.model, data=dataset.name, split="validation", seed=run.plan.seed)
    with writable(run.folder):
        evidence.save(run.folder)
        write_report(evidence, run.folder, model=run.model, plan=run.plan)
        (run.folder / "README.md").write_text(run.model.card, encoding="utf-8")
    return evidence
