"""What training asks of a data set before it starts: a truth to learn from, and no leakage unless it is allowed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from sagittal.check.check_dataset import check_dataset
from sagittal.dataset import Dataset
from sagittal.errors import DataError
from sagittal.labels import TASK_KINDS
from sagittal.progress import Reporter
from sagittal.run_folder import writable


def stop_on_leakage(dataset: Dataset, folder: Path, *, allow: bool, reporter: Reporter) -> dict[str, int]:
    """The part of check that reads no pixels, kept in ``check.json``; leakage stops training unless it is allowed.

    Parameters
    ----------
    dataset : Dataset
    folder : Path
        Of the run.
    allow : bool
    reporter : Reporter

    Returns
    -------
    dict of str to int
        What was allowed: code of the finding, number of cases.

    Raises
    ------
    DataError
        If something stands on both sides of a split and that is not allowed.
    """
    findings = check_dataset(dataset, pixels="none")
    if allow:
        findings = findings.allow_leakage()
    with writable(folder):
        text = json.dumps(findings.to_json(), indent=1, ensure_ascii=False)
        (folder / "check.json").write_text(text + "\n", encoding="utf-8")
    leaks = findings.leakage()
    errors = [found.message for found in leaks if found.severity == "error"]
    if errors:
        raise DataError(f"{' '.join(errors)} To train all the same: --allow-leakage; the model's card will say so.")
    for found in leaks:
        reporter.say(f"warning: {found.message}")
    return {found.code: len(found.cases) for found in leaks}


def task_of(dataset: Dataset) -> str:
    """The task that a data set's truth is for: ``classify`` where it holds no truth that has a place."""
    kind = dataset.scheme.kind if dataset.scheme is not None else "binary"
    return next(task for task, kinds in TASK_KINDS.items() if kind in kinds)


def demand_truth(dataset: Dataset, task: str) -> Dataset:
    """The data set, if its truth can teach or judge a task.

    Objects are found in outlined structures too: each connected part of a mask is one.

    Raises
    ------
    DataError
        If its truth is of another kind; the message says what would help.
    """
    scheme = dataset.scheme
    if scheme is None or scheme.kind in TASK_KINDS[task]:
        return dataset
    if task == "detect" and scheme.kind == "structures":
        return replace(dataset, scheme=replace(scheme, kind="objects"))
    found = f"{dataset.name}: its truth is of kind '{scheme.kind}' ({', '.join(scheme.classes[:8])})"
    if task != "classify":
        wanted = "masks" if task == "segment" else "boxes or masks"
        raise DataError(
            f"{found}, but --task {task} learns from {wanted}. Give a source that holds them (see the page on reading), or "
            f"use --task {task_of(dataset)}."
        )
    columns = ", ".join(dataset.columns[:20])
    raise DataError(
        f"{found}, but classification needs classes of the case as a whole. "
        + (
            f"Name the column that holds them with --target, one of: {columns}."
            if columns
            else f"Give a table that holds them: --labels TABLE --target COLUMN, or use --task {task_of(dataset)}."
        )
    )
