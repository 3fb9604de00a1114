"""The verbs of the journey: what the commands do, as functions that raise exceptions and never exit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sagittal.errors import ConfigError, nearest
from sagittal.labels import TASK_KINDS
from sagittal.options import EvaluateOptions, PredictOptions, ReadOptions, TrainOptions, format_seconds, parse_budget
from sagittal.progress import Quiet, Reporter
from sagittal.run_folder import (
    CONFIG,
    claim_folder,
    keep_log,
    load_config,
    run_folder,
    save_config,
    save_environment,
    writable,
)

if TYPE_CHECKING:
    from sagittal.check.findings import Findings
    from sagittal.dataset import Dataset
    from sagittal.evaluate.compare import Comparison
    from sagittal.evaluate.evidence import Evidence
    from sagittal.model.load import AnyModel
    from sagittal.model.looks import Look
    from sagittal.prediction import Failure, Prediction
    from sagittal.prepare.plan import Plan
    from sagittal.train.run import Run

METHODS = ("gradcam", "integrated-gradients", "occlusion")


def ingest(
    source: str | Path,
    output: str | Path | None = None,
    *,
    target: str | None = None,
    options: ReadOptions | None = None,
    name: str | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> Dataset:
    """The cases of a source, and a manifest of them where `output` names a folder.

    A manifest is a table of the cases and a schema; it points at the files, and copies no pixels. It is a source itself.

    Parameters
    ----------
    source : path or ``medmnist:NAME``
    output : path, optional
        Folder of the manifest.
    target : str, optional
        Column to learn.
    options : ReadOptions, optional
    name : str, optional
        What reports call the data set; the source's own name where not given.
    overwrite : bool
        Whether a manifest that is there may be replaced.
    reporter : Reporter, optional

    Raises
    ------
    ReadError, DataError, ConfigError
        As reading says; if `output` is taken.
    """
    dataset = _open(source, target, options or ReadOptions(), reporter or Quiet())
    if name is not None:
        dataset = replace(dataset, name=name)
    if output is None:
        return dataset
    from sagittal.read.manifest import read_manifest, write_manifest

    folder = Path(output)
    claim_folder(folder, what="a manifest", overwrite=overwrite)
    with writable(folder):
        write_manifest(dataset, folder)
    return read_manifest(folder)


def check(
    source: str | Path,
    *,
    target: str | None = None,
    pixels: Literal["none", "sample", "all"] = "all",
    output: str | Path | None = None,
    overwrite: bool = False,
    allow_leakage: bool = False,
    options: ReadOptions | None = None,
    reporter: Reporter | None = None,
) -> Findings:
    """What is wrong with the data of a source, before time is spent on it.

    Parameters
    ----------
    source : path or ``medmnist:NAME``
    target : str, optional
    pixels : {"none", "sample", "all"}
        How many images are read to find unreadable ones and copies.
    output : path, optional
        Page to write, with pictures of what was found: ``report.html``; or ``findings.json``.
    overwrite : bool
        Whether a file that is there may be replaced.
    allow_leakage : bool
        Whether what stands on both sides of a split is a warning instead of an error.
    options : ReadOptions, optional
    reporter : Reporter, optional

    Raises
    ------
    ReadError, DataError, ConfigError
        If the source cannot be opened at all; if `output` is taken.
    """
    from sagittal.check.check_dataset import look_through
    from sagittal.report.check_page import claim_page, write_check

    listener = reporter or Quiet()
    page = None if output is None else claim_page(Path(output), overwrite=overwrite)
    dataset = _open(source, target, options or ReadOptions(), listener)
    pictures = page is not None and page.suffix != ".json"
    checked = look_through(dataset, pixels=pixels, pictures=pictures, reporter=listener)
    if allow_leakage:
        checked = replace(checked, findings=checked.findings.allow_leakage())
    if page is not None:
        with writable(page.parent):
            write_check(checked, page)
    return checked.findings


def plan(
    source: str | Path,
    *,
    target: str | None = None,
    task: str = "auto",
    budget: str | float = "10m",
    seed: int = 0,
    options: TrainOptions | None = None,
) -> Plan:
    """The plan that training would follow, with the reason of each choice and what it is expected to cost.

    Real steps are timed on this machine. Nothing is written.

    Raises
    ------
    BudgetError
        If the budget does not hold the least; the message says what would.
    ReadError, DataError, ConfigError
        As reading and planning say.
    """
    from sagittal.train.start import measure_and_plan

    options = options or TrainOptions()
    started, seconds = time.monotonic(), parse_budget(budget)
    dataset, task = _open_for(task, source, target, options.read, options.reporter)
    return measure_and_plan(dataset, task, seconds, seed, options, started)[1]


def train(
    source: str | Path | None,
    *,
    target: str | None = None,
    task: str = "auto",
    budget: str | float = "10m",
    output: str | Path | None = None,
    seed: int = 0,
    resume: bool = False,
    options: TrainOptions | None = None,
) -> Run:
    """A model learnt from a source within a time budget, in a folder that holds all there is to know of it.

    Parameters
    ----------
    source : path or ``medmnist:NAME``
        ``None`` only with `resume`.
    target : str, optional
        Column to learn; may be left out where the source has one label.
    task : {"classify"}
    budget : str or float
        Wall time for everything, reading and final evaluation included: ``"10m"``, or seconds.
    output : path, optional
        Folder of the run; ``runs/NAME`` where not given.
    seed : int
        The same data, plan, seed and machine give the same weights.
    resume : bool
        Go on from the last checkpoint in the folder, with the source and the plan of its start.
    options : TrainOptions, optional

    Raises
    ------
    ConfigError
        If the folder is taken; the message tells the ways out.
    BudgetError, ReadError, DataError, ResourceError
        As planning, reading and training say.
    """
    options = options or TrainOptions()
    started = time.monotonic()
    if resume:
        if output is None and source is None:
            raise ConfigError("--resume needs the folder of the run: sagittal train -o RUN --resume")
        folder = Path(output) if output is not None else run_folder(options.name or str(source))
        values = load_config(folder)
        if (folder / "report.html").is_file():
            raise ConfigError(f"the run {folder} is finished; there is nothing to resume. Start another with -o OTHER.")
        from sagittal.train.start import options_from

        options = options_from(values, options)
        source, target, task = values["source"], values.get("target"), values["task"]
        budget, seed = values["budget"], values["seed"]
    else:
        if source is None:
            raise ConfigError("no source given. Name a folder, a table or medmnist:NAME: sagittal train SOURCE")
        parse_budget(budget)
        _check_task(task)
        folder = Path(output) if output is not None else run_folder(options.name or str(source))
        claim_folder(folder, what="a run", overwrite=options.overwrite, resumable=True)
        from sagittal.train.start import config_of

        save_config(folder, config_of(source, target, task, budget, folder, seed, options))
        save_environment(folder)
    try:
        with keep_log(folder) as logged:
            options = replace(options, reporter=logged(options.reporter))
            dataset, task = _open_for(task, source, target, options.read, options.reporter)
            return _train(dataset, task, parse_budget(budget), folder, seed, options, started)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"Go on with: sagittal train -o {folder} --resume") from stop


def _train(
    dataset: Dataset,
    task: str,
    budget_s: float,
    folder: Path,
    seed: int,
    options: TrainOptions,
    started: float,
) -> Run:
    """Plan, train, and judge the run by the cases that its networks did not learn from."""
    from sagittal.check.before_training import stop_on_leakage
    from sagittal.prepare.plan import Plan
    from sagittal.report.conclude import conclude
    from sagittal.train.run import clear_work
    from sagittal.train.start import measure, measure_and_plan, train_by

    allowed = stop_on_leakage(dataset, folder, allow=options.allow_leakage, reporter=options.reporter)
    goes_on = (folder / "plan.json").is_file()
    if goes_on:
        made, fingerprint = Plan.load(folder / "plan.json"), measure(dataset, seed, options)
    else:
        fingerprint, made = measure_and_plan(dataset, task, budget_s, seed, options, started)
        with writable(folder):
            made.save(folder / "plan.json")
            fingerprint.save(folder / "fingerprint.json")
    run = train_by(
        dataset,
        made,
        folder,
        fingerprint=fingerprint,
        spent_s=time.monotonic() - started,
        resume=goes_on,
        device=options.device,
        workers=options.workers,
        tensorboard=options.tensorboard,
        allowed=allowed,
        reporter=options.reporter,
    )
    ends = started + 0.97 * made.budget_s if made.budget_s and not goes_on else time.monotonic() + 60
    conclude(run, dataset, reporter=options.reporter, until=ends)
    clear_work(folder)
    # From now on the plan holds the steps that were taken: with it the same weights come out.
    save_config(folder, {**load_config(folder), "plan": "plan.json"})
    spent = time.monotonic() - started
    if made.budget_s and not goes_on:
        options.reporter.say(
            f"took {format_seconds(spent)} of {format_seconds(made.budget_s)} ({spent / made.budget_s:.0%} of the budget)"
        )
    return run


def evaluate(
    model: str | Path | AnyModel,
    source: str | Path,
    *,
    split: str | None = None,
    by: Sequence[str] = (),
    output: str | Path | None = None,
    overwrite: bool = False,
    options: EvaluateOptions | None = None,
) -> Evidence:
    """What a model is worth on cases that it has not seen: each measure with its interval, a row a case.

    Parameters
    ----------
    model : path or Model
        A model, or the folder of a run.
    source : path or ``medmnist:NAME``
    split : {"train", "val", "test", "all"}, optional
        The test split where there is one, else all cases. Of a source without splits, those that the run made count.
    by : sequence of str
        Columns by whose values the measures are broken down.
    output : path, optional
        Folder for ``evidence.json``, ``cases.parquet``, ``report.html`` and figures.
    overwrite : bool
    options : EvaluateOptions, optional

    Raises
    ------
    PackageError
        If the model is damaged, unsafe or too new.
    ReadError, DataError, ScopeError, ConfigError
        As reading and evaluating say.
    """
    from sagittal.evaluate.cases import held_out
    from sagittal.evaluate.evidence import evaluate_model
    from sagittal.report.conclude import write_page

    options = options or EvaluateOptions()
    package, loaded = _load(model, options.device)
    folder = None if output is None else Path(output)
    if folder is not None:
        claim_folder(folder, what="evidence", overwrite=overwrite)
    run = _run_of(package)
    target = options.target or (load_config(run).get("target") if run else None)
    dataset, _ = _open_for(loaded.plan.task, source, target, options.read, options.reporter)
    dataset, name = held_out(dataset, split, splits_file=run / "splits.json" if run else None)
    evidence = evaluate_model(
        loaded,
        dataset,
        by=tuple(by),
        resamples=options.resamples,
        seed=options.seed,
        confidence=options.confidence,
        prevalence=options.prevalence,
        reporter=options.reporter,
        split=name,
    )
    if folder is not None:
        with writable(folder):
            evidence.save(folder)
    looks: Sequence[Look] = ()
    if name == "test" and package is not None:
        from sagittal.model.looks import read_looks, record_look

        looks = read_looks(package)
        scores = {
            key: value["value"] for key, value in evidence.to_json()["overall"].items() if value["value"] is not None
        }
        look = record_look(package, dataset=dataset.name, split=name, cases=len(dataset), scores=scores)
        options.reporter.say(f"look {look.number} of this model at a test set, kept in its record")
    if folder is not None:
        ends = time.monotonic() + (60 if options.figures else 0)
        with writable(folder):
            write_page(evidence, folder, loaded, dataset, each=3, reporter=options.reporter, until=ends, looks=looks)
    return evidence


def predict(
    model: str | Path | AnyModel,
    studies: str | Path | Iterable[str | Path],
    *,
    output: str | Path | None = None,
    batch: int | None = None,
    device: str = "auto",
    overwrite: bool = False,
    options: PredictOptions | None = None,
    reporter: Reporter | None = None,
) -> list[Prediction | Failure]:
    """What a model says about new studies, in their order; a study that fails gives a Failure, and the rest go on.

    Parameters
    ----------
    model : path or Model
        A model, or the folder of a run.
    studies : path or several
        Files, folders, DICOM trees, globs, and ``@list.txt`` with one of those a line.
    output : path, optional
        Table to write: .csv, .tsv, .parquet, .json or .jsonl. Of a model whose answer has a place also a folder, for masks
        or boxes in the formats of the options.
    batch : int, optional
        Studies at a time, or windows where the answer has a place; as many as memory likes where not given.
    device : str
    overwrite : bool
        Whether results that are there may be replaced.
    options : PredictOptions, optional
    reporter : Reporter, optional

    Raises
    ------
    PackageError
        If the model is damaged, unsafe or too new.
    ReadError
        If there is no study at all.
    ConfigError
        If a format is not known, does not fit the model, or the output is there already.
    """
    answers: list[Prediction | Failure] = []
    _predict(model, studies, output, batch, device, overwrite, options, reporter, keep=answers.append)
    return answers


def predict_rows(
    model: str | Path | AnyModel,
    studies: str | Path | Iterable[str | Path],
    *,
    output: str | Path | None = None,
    batch: int | None = None,
    device: str = "auto",
    overwrite: bool = False,
    options: PredictOptions | None = None,
    reporter: Reporter | None = None,
) -> list[dict[str, Any]]:
    """As :func:`predict`, with one row a study in place of the prediction: masks of many studies do not fit into memory."""
    from sagittal.write.table import prediction_row

    rows: list[dict[str, Any]] = []

    def keep(answer: Prediction | Failure) -> None:
        rows.append(prediction_row(answer))

    _predict(model, studies, output, batch, device, overwrite, options, reporter, keep=keep)
    return rows


def _predict(
    model: str | Path | AnyModel,
    studies: str | Path | Iterable[str | Path],
    output: str | Path | None,
    batch: int | None,
    device: str,
    overwrite: bool,
    options: PredictOptions | None,
    reporter: Reporter | None,
    *,
    keep: Callable[[Prediction | Failure], None],
) -> None:
    """Load the model and answer, once it is known that the output could be written."""
    from sagittal.write.answers import answer_requests, check_output

    check_output(output)
    answer_requests(
        _load(model, device)[1],
        studies,
        output,
        keep=keep,
        batch=batch,
        overwrite=overwrite,
        options=options or PredictOptions(),
        reporter=reporter or Quiet(),
    )


def explain(
    model: str | Path | AnyModel,
    studies: str | Path | Iterable[str | Path],
    output: str | Path,
    *,
    methods: Sequence[str] = ("gradcam",),
    class_name: str | None = None,
    device: str = "auto",
    reporter: Reporter | None = None,
) -> list[dict[str, Any]]:
    """Where a model looked, as overlay pictures and NIfTI maps, each with its faithfulness beside a random map's.

    Parameters
    ----------
    model, studies, device, reporter
        As in :func:`predict`.
    output : path
        Folder, made if missing.
    methods : sequence of {"gradcam", "integrated-gradients", "occlusion"}
    class_name : str, optional
        Class to explain; the most probable one of each study where not given.

    Returns
    -------
    list of dict
        One for each study and method: what was written and the scores; or ``error``.
    """
    from sagittal.model.package import Model
    from sagittal.read.requested import find_requested
    from sagittal.write.maps import explain_cases

    for name in methods:
        if name not in METHODS:
            raise ConfigError(f"unknown method '{name}'. {nearest(name, METHODS)}")
    _, loaded = _load(model, device)
    if not isinstance(loaded, Model):
        raise ConfigError(
            f"maps of where a network looked are for classes; this model answers '{loaded.plan.task}', and its answer is the "
            "place itself. The doubt of a mask is drawn by: sagittal predict MODEL STUDY -o FOLDER --format png"
        )
    if class_name is not None and class_name not in loaded.plan.scheme.classes:
        raise ConfigError(f"the model has no class '{class_name}'. {nearest(class_name, loaded.plan.scheme.classes)}")
    cases, failures = find_requested(studies, images=loaded.plan.input.images)
    folder = Path(output)
    with writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        rows = explain_cases(
            loaded, cases, folder, methods=methods, class_name=class_name, reporter=reporter or Quiet()
        )
    return [*rows, *({"case": failure.case, "error": failure.error} for failure in failures)]


def compare(a: str | Path | Evidence, b: str | Path | Evidence) -> Comparison:
    """Whether the second model is better than the first on the same cases, with intervals of the differences.

    Raises
    ------
    DataError
        If the two were not measured on the same cases.
    """
    from sagittal.evaluate.compare import compare_evidence
    from sagittal.evaluate.evidence import Evidence

    first, second = (value if isinstance(value, Evidence) else Evidence.load(Path(value)) for value in (a, b))
    return compare_evidence(first, second)


def report(folder: str | Path) -> Path:
    """The report page of a run or an evaluation, made again from its evidence.

    Raises
    ------
    ConfigError
        If the folder holds no evidence.
    """
    from sagittal.evaluate.evidence import Evidence
    from sagittal.report.page import write_report

    folder = Path(folder)
    if not (folder / "evidence.json").is_file():
        raise ConfigError(
            f"{folder} holds no evidence (evidence.json). Make some: sagittal evaluate MODEL SOURCE -o {folder}"
        )
    loaded = _load(folder, "cpu")[1] if (folder / "model").exists() else None
    with writable(folder):
        write_report(Evidence.load(folder), folder, model=loaded, plan=loaded.plan if loaded else None)
    return folder / "report.html"


def info(thing: str | Path, *, target: str | None = None, options: ReadOptions | None = None) -> dict[str, Any]:
    """Facts about a model, a run or a source."""
    from sagittal.model.find import is_model

    path = Path(thing)
    if (path / CONFIG).is_file() and (path / "plan.json").is_file() and not (path / "model").exists():
        from sagittal.report.facts import describe_run

        return {"run": str(path), "state": "not finished: go on with sagittal train --resume", **describe_run(path)}
    if is_model(path):
        from sagittal.model.looks import read_looks
        from sagittal.report.facts import describe_model, describe_run

        package, loaded = _load(path, "cpu")
        looks = () if package is None else read_looks(package)
        shown = [f"{look.at} {look.dataset} {look.split} ({look.cases} cases)" for look in looks]
        facts = {**describe_model(loaded), "looks at test data": shown}
        return {"run" if package != path else "model": str(path), **describe_run(path), **facts}
    from sagittal.report.facts import describe_dataset

    return describe_dataset(_open(thing, target, options or ReadOptions(), Quiet()))


def doctor() -> dict[str, Any]:
    """What this machine and this installation have, and whether a self test passes."""
    from sagittal.formats.codecs import COMPRESSED, IN_CORE, RLE
    from sagittal.machine import examine

    core = {uid: "pydicom" if uid == RLE else "pillow" for uid in IN_CORE}
    return examine({uid: core.get(uid, "imagecodecs") for uid in sorted(COMPRESSED)})


fit = train
test = evaluate


# What the verbs share ------------------------------------------------------------------------------------------------


def _open(source: str | Path, target: str | None, read: ReadOptions, reporter: Reporter) -> Dataset:
    from sagittal.read.open_dataset import open_dataset

    dataset = open_dataset(str(source), target=target, **read.keywords())
    if dataset.skipped:
        first = dataset.skipped[0]
        count = len(dataset.skipped)
        left = "1 study is left out; it is" if count == 1 else f"{count} studies are left out; the first,"
        reporter.say(f"{left} case {first.case}: {first.reason}")
    return dataset


def _open_for(
    task: str, source: str | Path, target: str | None, read: ReadOptions, reporter: Reporter
) -> tuple[Dataset, str]:
    """A data set whose truth fits a task, and that task; ``auto`` takes the one that the truth is for."""
    from sagittal.check.before_training import demand_truth, task_of

    _check_task(task)
    dataset = _open(source, target, read, reporter)
    if task == "auto":
        task = task_of(dataset)
    return demand_truth(dataset, task), task


def _check_task(task: str) -> None:
    if task not in (names := ("auto", *TASK_KINDS)):
        raise ConfigError(f"task: '{task}' is not a choice. {nearest(task, names)}")


def _load(model: str | Path | AnyModel, device: str) -> tuple[Path | None, AnyModel]:
    """A model, and the path of its package where it came from one."""
    from sagittal.model.find import find_model
    from sagittal.model.load import load_model

    if not isinstance(model, (str, Path)):
        return None, model
    package = find_model(Path(model))
    return package, load_model(package, device=device)


def _run_of(package: Path | None) -> Path | None:
    """The folder of the run that a package lies in."""
    return package.parent if package is not None and (package.parent / CONFIG).is_file() else None
