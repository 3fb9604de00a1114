"""Store: prepared arrays on disk, made once, and again only where source or plan changed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sagittal.case import Case
from sagittal.dataset import Skipped
from sagittal.errors import DataError, ResourceError, SagittalError
from sagittal.prepare.arrays import Prepared, prepare_case, table_width
from sagittal.prepare.fingerprint import case_content
from sagittal.prepare.plan import Plan
from sagittal.progress import Quiet, Reporter
from sagittal.types import Array, Floats

#: More unreadable cases than this part, and the data set is not what its owner thinks.
MOST_SKIPPED = 0.5


@dataclass(frozen=True, eq=False)
class Store:
    """Prepared arrays of a data set, in the order of their case ids.

    Parameters
    ----------
    ids : tuple of str
    arrays : (N, C, *size) uint8, float16 or float32
        A memory map: only what a batch needs is read.
    tables : (N, T) float32
    skipped : tuple of Skipped
        Cases that could not be prepared.
    place : Path, optional
        Folder of the arrays, where another process can open them.
    """

    ids: tuple[str, ...]
    arrays: Array
    tables: Floats
    skipped: tuple[Skipped, ...] = ()
    place: Path | None = None

    def rows(self, ids: Sequence[str]) -> Array:
        """Row numbers of these cases; the ones that were skipped are left out."""
        where = {name: n for n, name in enumerate(self.ids)}
        return np.array([where[name] for name in ids if name in where], dtype=np.int64)


def build_store(
    cases: Sequence[Case], plan: Plan, folder: Path, *, workers: int = 2, reporter: Reporter | None = None
) -> Store:
    """Prepare cases into a folder, or take up what already lies there.

    The arrays lie in ``folder/KEY/``, where the key is made from the plan's input and prepare sections and the case
    list; within it each case carries its own key, so that only changed files are prepared again and an interrupted
    run goes on where it stopped.

    Raises
    ------
    DataError
        If more than half of the cases cannot be prepared.
    ResourceError
        If the disk cannot hold the arrays.
    """
    place = folder / _plan_key(cases, plan)
    marks = [hashlib.sha256(case_content(case).encode()).hexdigest()[:16] for case in cases]
    arrays, tables, done = _open(place, len(cases), plan)
    width = table_width(plan.input)
    skipped: dict[int, Skipped] = {}
    missing = [n for n, mark in enumerate(marks) if done[n] != mark.encode()]
    with (reporter or Quiet()).track("prepare", len(missing)) as advance:
        for n, result in _prepared(cases, missing, plan, workers):
            if isinstance(result, Prepared):
                arrays[n], tables[n, :width] = result.array, result.table
                done[n] = marks[n].encode()
            else:
                skipped[n] = Skipped(cases[n].id, str(result))
            advance(1, "")
    for part in (arrays, tables, done):
        part.flush()
    if len(skipped) > MOST_SKIPPED * len(cases):
        first = next(iter(skipped.values()))
        raise DataError(f"{len(skipped)} of {len(cases)} cases cannot be prepared; the first because: {first.reason}")
    good = [n for n in range(len(cases)) if n not in skipped]
    (place / "cases.json").write_text(
        json.dumps({"numbers": good, "ids": [cases[n].id for n in good]}), encoding="utf-8"
    )
    whole = len(good) == len(cases)
    return Store(
        ids=tuple(cases[n].id for n in good),
        arrays=arrays if whole else arrays[good],
        tables=(tables if whole else tables[good])[:, :width],
        skipped=tuple(skipped.values()),
        place=place,
    )


def open_store(place: Path, numbers: Sequence[int], ids: Sequence[str], plan: Plan) -> Store:
    """The store that another process built, with the cases of these row numbers."""
    arrays = np.lib.format.open_memmap(place / "arrays.npy", mode="r")
    tables = np.lib.format.open_memmap(place / "tables.npy", mode="r")
    whole = len(numbers) == len(arrays)
    return Store(
        ids=tuple(ids),
        arrays=arrays if whole else arrays[list(numbers)],
        tables=(tables if whole else tables[list(numbers)])[:, : table_width(plan.input)],
        place=place,
    )


def _prepared(
    cases: Sequence[Case], numbers: Sequence[int], plan: Plan, workers: int
) -> Iterator[tuple[int, Prepared | Exception]]:
    def one(n: int) -> tuple[int, Prepared | Exception]:
        try:
            return n, prepare_case(cases[n], plan)
        except (SagittalError, MemoryError, OSError) as error:
            return n, error

    if workers < 2 or len(numbers) < 4:
        yield from map(one, numbers)
        return
    with ThreadPoolExecutor(workers) as pool:
        step = 8 * workers  # bounds what waits in memory
        for start in range(0, len(numbers), step):
            yield from pool.map(one, numbers[start : start + step])


def _plan_key(cases: Sequence[Case], plan: Plan) -> str:
    about = [dataclasses.asdict(plan.input), dataclasses.asdict(plan.prepare), [case.id for case in cases]]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]


def _open(place: Path, cases: int, plan: Plan) -> tuple[np.memmap, np.memmap, np.memmap]:
    shapes = {
        "arrays": ((cases, plan.input.channels, *plan.prepare.size), np.dtype(plan.prepare.store)),
        "tables": ((cases, max(table_width(plan.input), 1)), np.dtype(np.float32)),
        "done": ((cases,), np.dtype("S16")),
    }
    try:
        place.mkdir(parents=True, exist_ok=True)
        _check_room(place, sum(int(np.prod(shape)) * kind.itemsize for shape, kind in shapes.values()))
        maps = [_map(place / f"{name}.npy", shape, kind) for name, (shape, kind) in shapes.items()]
    except OSError as error:
        if isinstance(error, ResourceError):
            raise
        raise ResourceError(
            f"the prepared arrays cannot be written to {place.parent}: {error.strerror}. Choose another folder with -o."
        ) from error
    return maps[0], maps[1], maps[2]


def _map(path: Path, shape: tuple[int, ...], kind: np.dtype) -> np.memmap:
    if path.exists():
        found = np.lib.format.open_memmap(path, mode="r+")
        if found.shape == shape and found.dtype == kind:
            return found
    return np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=shape)


def _check_room(place: Path, needed: int) -> None:
    if any(place.iterdir()):
        return
    status = os.statvfs(place) if hasattr(os, "statvfs") else None
    free = needed if status is None else status.f_bavail * status.f_frsize
    if free < needed * 1.05:
        raise ResourceError(
            f"the prepared arrays need {needed / 1e9:.1f} GB in {place.parent}, {free / 1e9:.1f} GB are free. Choose another "
            "disk with -o, or a smaller prepare.size."
        )
