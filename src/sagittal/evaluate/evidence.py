"""Evidence: what a model is worth on cases whose truth is known; one row a case, every summary computed from the rows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sagittal.case import Case
from sagittal.dataset import Dataset, Skipped
from sagittal.errors import ConfigError, DataError, ReadError, ResourceError, SagittalError, nearest
from sagittal.evaluate.align import align, known_part
from sagittal.evaluate.subgroups import Grouping, group_by, table_column
from sagittal.labels import PLACE_KINDS, LabelScheme
from sagittal.metrics.intervals import Estimate
from sagittal.prediction import Failure, Prediction
from sagittal.progress import Quiet, Reporter
from sagittal.tasks.task import Question, Summary

if TYPE_CHECKING:
    import pandas as pd

EVIDENCE_FORMAT = 2

#: Prefix of the clinical columns in the rows, so that a column named "truth" cannot replace the truth.
TABLE = "table_"


class Predicts(Protocol):
    """What evaluation needs of a model."""

    @property
    def name(self) -> str:
        """Short and safe to show."""
        ...

    @property
    def task(self) -> Question:
        """The question it answers."""
        ...

    def predict_many(
        self, cases: Sequence[Case], *, reporter: Reporter | None = None
    ) -> Iterator[Prediction | Failure]:
        """A prediction or a failure for each case."""
        ...


@dataclass(frozen=True)
class Settings:
    """What was measured, on what and how; everything that another person needs to repeat it.

    Parameters
    ----------
    model : str
        Name, format and checksum.
    data, split : str
        Name of the data set and of its part; ``all`` where the source has no splits.
    task : str
        Name in ``tasks.registry.TASKS`` or ``PLACE_TASKS``.
    scheme : LabelScheme, optional
    dimensions : int
        Of the studies, 2 or 3: objects of pictures and of volumes are found by different rules.
    tolerance_mm : float
        Of the surface Dice.
    unlabelled : tuple of str
        Classes of the model that these data do not know: nothing is measured of them.
    operating_point : str
        How probabilities became decisions.
    prevalence : float, optional
        Of the positive class where the model will be used, for predictive values.
    resamples, seed, confidence
        Of the bootstrap over patients.
    by : tuple of str
        Clinical columns of the subgroups.
    made_at : str
        UTC, ISO 8601.
    version : str
        Of Sagittal.
    """

    model: str = ""
    data: str = ""
    split: str = "all"
    task: str = "classify"
    scheme: LabelScheme | None = None
    dimensions: int = 2
    tolerance_mm: float = 2.0
    unlabelled: tuple[str, ...] = ()
    operating_point: str = "most-probable"
    prevalence: float | None = None
    resamples: int = 1000
    seed: int = 0
    confidence: float = 0.95
    by: tuple[str, ...] = ()
    made_at: str = ""
    version: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise ConfigError(f"confidence must lie between 0 and 1, such as 0.95, not {self.confidence}")
        if self.resamples < 0:
            raise ConfigError(f"resamples must be 0 or more, not {self.resamples}")
        if self.prevalence is not None:
            if not 0 < self.prevalence < 1:
                raise ConfigError(f"prevalence must lie between 0 and 1, such as 0.02, not {self.prevalence}")
            if self.scheme is not None and self.scheme.kind != "binary":
                raise ConfigError(
                    f"a prevalence is that of the positive class of two; '{self.scheme.target}' is {self.scheme.kind}. "
                    "Leave it out."
                )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        lists = {"by": list(self.by), "unlabelled": list(self.unlabelled)}
        return {**values, **lists, "scheme": self.scheme.to_json() if self.scheme else None}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Settings:
        """The settings that :meth:`to_json` wrote."""
        known = {f.name for f in fields(cls)}
        for key in values:
            if key not in known:
                raise ConfigError(f"evidence.json: unknown setting '{key}'. {nearest(key, known)}")
        scheme = LabelScheme.from_json(values["scheme"]) if values.get("scheme") else None
        lists = {name: tuple(values.get(name, ())) for name in ("by", "unlabelled")}
        return cls(**{**values, **lists, "scheme": scheme})


@dataclass(frozen=True, eq=False)
class Evidence:
    """One row a case, and what follows from the rows.

    Parameters
    ----------
    rows : DataFrame
        As the task's ``score`` makes them; patients by a number of this evidence, never by their own.
    task : Question
    settings : Settings
    failures : tuple of Failure
        Cases that could not be predicted.
    skipped : tuple of Skipped
        Studies that the source could not give.
    """

    rows: pd.DataFrame
    task: Question
    settings: Settings = field(default_factory=Settings)
    failures: tuple[Failure, ...] = ()
    skipped: tuple[Skipped, ...] = ()

    @classmethod
    def from_rows(
        cls,
        rows: pd.DataFrame | Sequence[Mapping[str, Any]],
        task: Question,
        settings: Settings | None = None,
        *,
        failures: Sequence[Failure] = (),
        skipped: Sequence[Skipped] = (),
    ) -> Evidence:
        """Evidence of rows that were scored elsewhere, such as those of cross-validation.

        Raises
        ------
        DataError
            If a case has two rows, or the rows name no cases.
        """
        import pandas as pd

        table = pd.DataFrame(rows).reset_index(drop=True)
        if len(table) and "case" not in table:
            raise DataError("evidence rows have no column 'case'; they come from the task's score()")
        if len(table) and table["case"].duplicated().any():
            twice = table["case"][table["case"].duplicated()].iloc[0]
            raise DataError(f"evidence has two rows for case {twice}; one row a case is expected")
        if len(table):
            patient = table["patient"] if "patient" in table else table["case"]
            table["patient"] = [f"P{code + 1:05d}" for code in pd.factorize(patient.astype(object))[0]]
        return cls(table, task, settings or Settings(), tuple(failures), tuple(skipped))

    @cached_property
    def _summary(self) -> Summary:
        return self._summarise(self.rows)

    def _summarise(self, rows: pd.DataFrame) -> Summary:
        s = self.settings
        return self.task.summarise(
            rows, resamples=s.resamples, seed=s.seed, confidence=s.confidence, prevalence=s.prevalence
        )

    @property
    def overall(self) -> Mapping[str, Estimate]:
        """Each measure of all cases."""
        return self._summary.overall

    @property
    def classes(self) -> Mapping[str, Mapping[str, Estimate]]:
        """Each measure of each class against the others."""
        return self._summary.classes

    @cached_property
    def groupings(self) -> dict[str, Grouping]:
        """How each subgroup column divides the rows."""
        return {name: group_by(self.rows[TABLE + name], column=name) for name in self.settings.by}

    @cached_property
    def subgroups(self) -> Mapping[str, Mapping[str, Mapping[str, Estimate]]]:
        """Each measure of each group of each column."""
        return {
            column: {name: self._summarise(self.rows[here]).overall for name, here in grouping.members.items()}
            for column, grouping in self.groupings.items()
        }

    @property
    def counts(self) -> dict[str, int]:
        """Cases: with a row, with a known truth, abstained, failed, skipped, and patients."""
        rows = self.rows
        known = int(rows["truth"].notna().sum()) if "truth" in rows else len(rows)
        return {
            "cases": len(rows),
            "patients": int(rows["patient"].nunique()) if "patient" in rows else len(rows),
            "with_truth": known,
            "without_truth": len(rows) - known,
            "abstained": int((~rows["accepted"].astype(bool)).sum()) if "accepted" in rows else 0,
            "undecided": int(rows["decision"].isna().sum()) if "decision" in rows else 0,
            "failed": len(self.failures),
            "skipped": len(self.skipped),
        }

    @property
    def undefined(self) -> tuple[str, ...]:
        """Measures that these cases cannot give, such as an AUC where a class is absent."""
        names = [name for name, e in self.overall.items() if not math.isfinite(e.value)]
        for label, values in self.classes.items():
            names += [f"{label}: {name}" for name, e in values.items() if not math.isfinite(e.value)]
        return tuple(name for name in names if "baseline." not in name)

    def to_json(self) -> dict[str, Any]:
        """Everything but the rows, as plain values."""
        return {
            "format": EVIDENCE_FORMAT,
            "settings": self.settings.to_json(),
            "counts": self.counts,
            "overall": _plain(self.overall),
            "classes": {name: _plain(values) for name, values in self.classes.items()},
            "subgroups": {
                column: {name: _plain(values) for name, values in groups.items()}
                for column, groups in self.subgroups.items()
            },
            "groupings": {column: grouping.to_json() for column, grouping in self.groupings.items()},
            "undefined": list(self.undefined),
            "failures": [asdict(f) for f in self.failures],
            "skipped": [asdict(s) for s in self.skipped],
        }

    def save(self, folder: str | Path) -> Path:
        """Write ``evidence.json`` and ``cases.parquet``; the folder is made where it is missing.

        Raises
        ------
        ResourceError
            If the folder cannot be written.
        """
        folder = Path(folder)
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self.rows.to_parquet(folder / "cases.parquet", index=False)
            (folder / "evidence.json").write_text(text, encoding="utf-8")
        return folder

    @classmethod
    def load(cls, folder: str | Path, task: Question | None = None) -> Evidence:
        """Evidence that was saved; its summaries are computed again from the rows.

        Parameters
        ----------
        folder : path
        task : Question, optional
            For a task that is not in the registry.

        Raises
        ------
        ReadError
            If a file is missing or damaged.
        ConfigError
            If it is of a newer format, or its task is not known.
        """
        import pandas as pd

        folder = Path(folder)
        try:
            values = json.loads((folder / "evidence.json").read_text(encoding="utf-8"))
            rows = pd.read_parquet(folder / "cases.parquet")
        except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
            raise ReadError(
                f"{folder.name}: holds no evidence that can be read ({error}). Expected are evidence.json and "
                "cases.parquet, as 'sagittal evaluate ... -o' writes them."
            ) from error
        if not isinstance(values, dict) or not isinstance(values.get("settings"), dict):
            raise ReadError(f"{folder.name}: evidence.json holds no 'settings'; it is not evidence of Sagittal")
        if not isinstance(values.get("format"), int) or values["format"] > EVIDENCE_FORMAT:
            raise ConfigError(
                f"{folder.name}: the evidence has format {values.get('format')}, this version reads up to "
                f"{EVIDENCE_FORMAT}. Install a newer Sagittal."
            )
        try:
            settings = Settings.from_json(values["settings"])
            failures = tuple(Failure(**f) for f in values.get("failures", ()))
            skipped = tuple(Skipped(**s) for s in values.get("skipped", ()))
        except (TypeError, KeyError, AttributeError) as error:
            raise ReadError(f"{folder.name}: evidence.json holds values of the wrong kind: {error}") from error
        return cls(rows, task or _task(settings), settings, failures, skipped)


def _task(settings: Settings) -> Question:
    from sagittal.prepare.plan import DecidePlan, InputPlan, Plan
    from sagittal.tasks import registry

    if settings.scheme is None:
        raise ConfigError(
            "evidence.json names no label scheme; give the task that made it: Evidence.load(folder, task)"
        )
    plan = Plan(
        settings.scheme,
        task=settings.task,
        input=InputPlan(dimensions=settings.dimensions),
        decide=DecidePlan(tolerance_mm=settings.tolerance_mm),
    )
    return registry.make_place_task(plan) if settings.scheme.kind in PLACE_KINDS else registry.make_task(plan)


def _plain(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: estimate.to_json() for name, estimate in estimates.items()}


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say what to do where a disk is full or read-only."""
    try:
        yield
    except OSError as error:
        raise ResourceError(
            f"{folder}: cannot be written ({error.strerror or error}). Free space or choose another folder with -o."
        ) from error


def evaluate_model(
    model: Predicts,
    dataset: Dataset,
    *,
    by: Sequence[str] = (),
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    prevalence: float | None = None,
    reporter: Reporter | None = None,
    split: str | None = None,
) -> Evidence:
    """Predict every case of a data set and measure the answers against the truth.

    A case that cannot be read or predicted is listed in ``failures``; the others go on.

    Parameters
    ----------
    model : Model
        Anything with ``name``, ``task`` and ``predict_many``.
    dataset : Dataset
        Cases with truth, of the model's classes in any order.
    by : sequence of str
        Clinical columns to break the measures down by.
    prevalence : float, optional
        Of the positive class where the model will be used; adds PPV and NPV at it.
    split : str, optional
        Name of the part that this is, where the cases themselves do not say.

    Raises
    ------
    DataError
        If no case has a truth, the data has a class that the model does not know, or a column is not there.
    ConfigError
        If a number is out of its range.
    """
    reporter = reporter or Quiet()
    scheme = getattr(model.task, "scheme", None)
    unlabelled: tuple[str, ...] = ()
    if scheme is not None:
        own = dataset.scheme.classes if dataset.scheme is not None else ()
        dataset = align(dataset, scheme)
        unlabelled = tuple(name for name in scheme.classes if scheme.kind in PLACE_KINDS and name not in own)
    columns = sorted({*dataset.columns, *(name for case in dataset for name in case.table)})
    for name in by:
        if name not in columns:
            raise DataError(f"{dataset.name}: has no clinical column '{name}'. {nearest(name, columns)}")
    if not any(case.truth is not None and case.truth.known for case in dataset):
        raise DataError(f"{dataset.name}: no case has a truth to measure against. {_what_truth(scheme)}")
    splits = sorted({case.split or "all" for case in dataset})
    settings = settings_of(
        model,
        data=dataset.name,
        split=split or ("+".join(splits)),
        unlabelled=unlabelled,
        prevalence=prevalence,
        resamples=resamples,
        seed=seed,
        confidence=confidence,
        by=tuple(dict.fromkeys(by)),
    )
    rows, failures = _predicted(model, dataset, unlabelled, reporter)
    cases = {case.id: case for case in dataset}
    for name in settings.by:
        for row, value in zip(rows, table_column([cases[row["case"]].table.get(name) for row in rows]), strict=True):
            row[TABLE + name] = value
    if not rows:
        raise DataError(
            f"{dataset.name}: none of its {len(dataset)} cases could be predicted; the first, case "
            f"{failures[0].case}: {failures[0].error}"
        )
    return Evidence.from_rows(rows, model.task, settings, failures=failures, skipped=dataset.skipped)


def settings_of(model: Predicts, **others: Any) -> Settings:
    """Settings with all that a model says of itself; the others as they are given."""
    from sagittal import __version__

    task, point = model.task, getattr(model, "operating_point", None)
    plan = getattr(model, "plan", None)
    scheme = getattr(task, "scheme", None)
    named = getattr(point, "name", point)
    if named is None and scheme is not None and scheme.kind == "objects":
        named = getattr(model, "settled", {}).get("point") or "f1"
    return Settings(
        model=str(getattr(model, "label", model.name)),
        task=_registered(task),
        scheme=scheme,
        dimensions=int(getattr(task, "dimensions", 2 if plan is None else plan.input.dimensions)),
        tolerance_mm=float(getattr(task, "tolerance_mm", 2.0)),
        operating_point=str(named or "most-probable"),
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        version=__version__,
        **others,
    )


#: Names of tasks by the kind of their classes; those of classification share one.
_TASK_OF = {"structures": "segment", "objects": "detect"}


def _registered(task: Question) -> str:
    from sagittal.tasks.classify import Classify

    if isinstance(task, Classify):
        return "classify"
    scheme = getattr(task, "scheme", None)
    name = _TASK_OF.get(scheme.kind) if scheme is not None else None
    return name or type(task).__name__


def _what_truth(scheme: LabelScheme | None) -> str:
    kind = scheme.kind if scheme is not None else ""
    wanted = {"structures": "Give masks beside the images.", "objects": "Give boxes or masks beside the images."}
    return wanted.get(kind, "Name the label column with --target.")


def _predicted(
    model: Predicts, dataset: Dataset, unlabelled: tuple[str, ...], reporter: Reporter
) -> tuple[list[dict[str, Any]], list[Failure]]:
    """Rows and failures in the order of the data set; an answer is dropped as soon as it is scored."""
    cases = {case.id: case for case in dataset}
    rows: dict[str, dict[str, Any]] = {}
    failures: dict[str, Failure] = {}
    for answer in model.predict_many(dataset.cases, reporter=reporter):
        if isinstance(answer, Failure):
            failures[answer.case] = answer
            continue
        try:
            rows[answer.case] = model.task.score(known_part(answer, unlabelled), cases[answer.case])
        except SagittalError as error:  # a truth that cannot be read or does not lie on its study
            failures[answer.case] = Failure(answer.case, str(error), type(error).__name__)
    for name in cases:
        if name not in rows and name not in failures:
            failures[name] = Failure(name, "the model gave no answer", "DataError")
    if failures:
        reporter.say(f"{len(failures)} of {len(cases)} cases could not be measured; they are listed in the evidence")
    return [rows[name] for name in cases if name in rows], list(failures.values())


__all__ = ["Evidence", "Predicts", "Settings", "align", "evaluate_model", "settings_of", "writing"]
