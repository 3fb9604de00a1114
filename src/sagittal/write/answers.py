"""What a model says about the studies that a user names, kept one by one, and the files that were asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sagittal.errors import ConfigError
from sagittal.labels import PLACE_KINDS
from sagittal.model.load import AnyModel
from sagittal.model.place_model import PlaceModel
from sagittal.options import PredictOptions
from sagittal.prediction import Failure, Prediction
from sagittal.progress import Reporter
from sagittal.read.requested import find_requested
from sagittal.run_folder import writable
from sagittal.write.result_files import check_formats, check_free, write_results
from sagittal.write.table import TABLES, check_table, prediction_row, write_rows
from sagittal.write.terminology import read_terminology


def check_output(output: str | Path | None) -> None:
    """Stop before anything is loaded if the ending of the output is that of no table.

    Raises
    ------
    ConfigError
    """
    path = None if output is None else Path(output)
    if path is not None and path.suffix[1:].isalpha() and not path.is_dir():
        check_table(path)


def answer_requests(
    model: AnyModel,
    studies: str | Path | Iterable[str | Path],
    output: str | Path | None,
    *,
    keep: Callable[[Prediction | Failure], None],
    batch: int | None,
    overwrite: bool,
    options: PredictOptions,
    reporter: Reporter,
) -> None:
    """Answer each study, hand the answer to `keep` and write what was asked for, one study after the other.

    Parameters
    ----------
    model : Model or PlaceModel
    studies : path or several
        As :func:`sagittal.read.requested.find_requested` takes them.
    output : path, optional
        A table, or a folder for masks and boxes.
    keep : function
        Called with each answer before its files are written; masks are let go afterwards.
    batch : int, optional
    overwrite : bool
    options : PredictOptions
    reporter : Reporter

    Raises
    ------
    ReadError
        If there is no study at all.
    ConfigError
        If a format or an engine does not fit the model, or the output is there already. Before any study is read.
    """
    destination = _Destination.of(output, options.formats, model.plan.scheme.kind)
    model = _with_engine(model, options.engine)
    terminology = None if options.terminology is None else read_terminology(options.terminology)
    destination.check_table(overwrite)
    cases, failures = find_requested(
        studies, images=model.plan.input.images, patterns=options.images, tilt=options.tilt
    )
    given: dict[str, Any] = {"batch": batch, "reporter": reporter}
    if "seg-fractional" in destination.formats:
        given["probability"] = True
    if destination.folder is not None:
        if not overwrite:
            check_free([case.id for case in cases], destination.folder, destination.formats)
        with writable(destination.folder):
            written = write_results(
                _seen(model.predict_many(cases, **given), keep),
                cases,
                destination.folder,
                destination.formats,
                overwrite=overwrite,
                terminology=terminology,
            )
        for failure in (*written.failures, *failures):
            keep(failure)
        return
    rows: list[dict[str, Any]] = []

    def keep_row(answer: Prediction | Failure) -> None:
        if destination.table is not None:
            rows.append(prediction_row(answer))
        keep(answer)

    deque(_seen(model.predict_many(cases, **given), keep_row), maxlen=0)
    for failure in failures:
        keep_row(failure)
    if destination.table is not None:
        write_rows(rows, destination.table)


@dataclass(frozen=True)
class _Destination:
    """Where answers go: a table, a folder with formats, or nowhere."""

    table: Path | None
    folder: Path | None
    formats: tuple[str, ...]

    @classmethod
    def of(cls, output: str | Path | None, formats: Iterable[str], kind: str) -> _Destination:
        check_output(output)
        path = None if output is None else Path(output)
        chosen = check_formats(tuple(formats), kind)
        into_folder = path is not None and kind in PLACE_KINDS and path.suffix.lower() not in TABLES
        if chosen and not into_folder:
            raise ConfigError(f"--format {','.join(chosen)} writes files: name a folder for them with -o FOLDER.")
        return cls(table=None if into_folder else path, folder=path if into_folder else None, formats=chosen)

    def check_table(self, overwrite: bool) -> None:
        """Stop before any study is read if the table cannot be written."""
        if self.table is None:
            return
        check_table(self.table)
        if self.table.exists() and not overwrite:
            raise ConfigError(f"{self.table} exists already and is kept. To replace it: --overwrite; else another -o.")


def _with_engine(model: AnyModel, engine: str) -> AnyModel:
    if isinstance(model, PlaceModel):
        return replace(model, engine=engine)
    if engine != "auto":
        raise ConfigError(f"engine '{engine}': a model of classes is run by torch. Leave --engine out.")
    return model


def _seen(
    answers: Iterable[Prediction | Failure], keep: Callable[[Prediction | Failure], None]
) -> Iterator[Prediction | Failure]:
    for answer in answers:
        keep(answer)
        yield answer
