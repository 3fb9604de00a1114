"""Place store: prepared arrays of their own sizes with the truth on them, on disk, made once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sagittal.case import Case
from sagittal.dataset import Skipped
from sagittal.errors import DataError, ResourceError, SagittalError
from sagittal.prepare.arrays import table_width
from sagittal.prepare.fingerprint import case_content
from sagittal.prepare.lattice import Lattice
from sagittal.prepare.plan import Plan
from sagittal.prepare.store import MOST_SKIPPED
from sagittal.prepare.volumes import PreparedVolume, prepare_volume
from sagittal.progress import Quiet, Reporter
from sagittal.types import Array, Floats

#: Changes when what lies in the folder does.
_FORMAT = 1


class Truths(Protocol):
    """What the store asks of a task."""

    def target(self, case: Case, lattice: Lattice) -> Array:
        """The truth of a case on its prepared array, as it is stored."""
        ...

    def places(self, target: Array, size: tuple[int, ...]) -> tuple[Array, ...]:
        """For each class, places (m, d) in the array around which windows may lie."""
        ...


@dataclass(frozen=True, eq=False)
class PlaceStore:
    """Prepared cases of a data set, each of its own size.

    Parameters
    ----------
    ids : tuple of str
    images : tuple of (C, *own size) uint8, float16 or float32
        Memory maps: only what a window needs is read.
    targets : tuple of Array
        Label maps (T, *own size) uint8, memory maps, or objects (M, columns) float32.
    tables : (N, T) float32
    lattices : tuple of Lattice
    places : for each case a tuple with one (m, d) int32 for each class
        Voxels of the array around which windows may lie.
    skipped : tuple of Skipped
        Cases that could not be prepared.
    place : Path, optional
        Folder of the arrays, where another process can open them.
    """

    ids: tuple[str, ...]
    images: tuple[Array, ...]
    targets: tuple[Array, ...]
    tables: Floats
    lattices: tuple[Lattice, ...]
    places: tuple[tuple[Array, ...], ...]
    skipped: tuple[Skipped, ...] = ()
    place: Path | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, ids: Sequence[str]) -> Array:
        """Row numbers of these cases; the ones that were skipped are left out."""
        where = {name: n for n, name in enumerate(self.ids)}
        return np.array([where[name] for name in ids if name in where], dtype=np.int64)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays and truths."""
        return sum(array.nbytes for array in (*self.images, *self.targets))


def build_place_store(
    cases: Sequence[Case],
    plan: Plan,
    task: Truths,
    folder: Path,
    *,
    workers: int = 2,
    reporter: Reporter | None = None,
) -> PlaceStore:
    """Prepare cases and their truth into a folder, or take up what already lies there.

    The arrays lie in ``folder/KEY/``, where the key is made from what the plan says of input, preparation and truth, and
    from the case list; within it each case carries a mark of its files, those of its truth too, so that only what changed
    is prepared again and an interrupted run goes on where it stopped. File names are numbers: none tells who was examined.

    Parameters
    ----------
    cases : sequence of Case
    plan : Plan
    task : PlaceTask, or what gives `target` and `places`
    folder : Path
    workers : int
        Cases that are prepared at once, each in its thread.
    reporter : Reporter, optional

    Raises
    ------
    DataError
        If more than half of the cases cannot be prepared.
    ResourceError
        If the disk cannot hold the arrays.
    """
    place = folder / _plan_key(cases, plan)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(place, error) from error
    marks = [hashlib.sha256(case_content(case).encode()).hexdigest()[:16] for case in cases]
    missing = [n for n, mark in enumerate(marks) if _mark(place, n) != mark]
    skipped: dict[int, Skipped] = {}
    with (reporter or Quiet()).track("prepare", len(missing)) as advance:
        for n, made in _prepared(cases, missing, plan, task, workers):
            if isinstance(made, Exception):
                skipped[n] = Skipped(cases[n].id, _reason(made))
            else:
                _write(place, n, marks[n], *made)
            advance(1, "")
    if len(skipped) > MOST_SKIPPED * len(cases):
        first = next(iter(skipped.values()))
        raise DataError(f"{len(skipped)} of {len(cases)} cases cannot be prepared; the first because: {first.reason}")
    good = [n for n in range(len(cases)) if n not in skipped]
    ids = [cases[n].id for n in good]
    (place / "cases.json").write_text(json.dumps({"numbers": good, "ids": ids}), encoding="utf-8")
    store = open_place_store(place, good, ids, plan)
    return dataclasses.replace(store, skipped=tuple(skipped.values()))


def open_place_store(place: Path, numbers: Sequence[int], ids: Sequence[str], plan: Plan) -> PlaceStore:
    """The store that lies in a folder, with the cases of these numbers.

    Parameters
    ----------
    place : Path
        As in :attr:`PlaceStore.place`; its ``cases.json`` holds `numbers` and `ids`.
    numbers : sequence of int
    ids : sequence of str
    plan : Plan
        That it was built with.
    """
    facts = [json.loads(_file(place, n, "json").read_text(encoding="utf-8")) for n in numbers]
    tables: Floats = np.array([f["table"] for f in facts], dtype=np.float32).reshape(
        len(facts), table_width(plan.input)
    )
    return PlaceStore(
        ids=tuple(ids),
        images=tuple(np.load(_file(place, n, "npy"), mmap_mode="r", allow_pickle=False) for n in numbers),
        targets=tuple(_open_target(_file(place, n, "truth.npy")) for n in numbers),
        tables=tables,
        lattices=tuple(Lattice.from_json(f["lattice"]) for f in facts),
        places=tuple(
            _split_places(_file(place, n, "places.npy"), f["classes"]) for n, f in zip(numbers, facts, strict=True)
        ),
        place=place,
    )


_Made = tuple[PreparedVolume, Array, tuple[Array, ...]]


def _prepared(
    cases: Sequence[Case], numbers: Sequence[int], plan: Plan, task: Truths, workers: int
) -> Iterator[tuple[int, _Made | Exception]]:
    def one(n: int) -> tuple[int, _Made | Exception]:
        try:
            volume = prepare_volume(cases[n], plan)
            target = task.target(cases[n], volume.lattice)
            return n, (volume, target, task.places(target, volume.lattice.size))
        except (SagittalError, MemoryError, OSError) as error:
            return n, error

    if workers < 2 or len(numbers) < 4:
        yield from map(one, numbers)
        return
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(numbers), 2 * workers):  # bounds what waits in memory
            yield from pool.map(one, numbers[start : start + 2 * workers])


def _reason(error: Exception) -> str:
    """Why a case was left out; Python says nothing of its own about memory."""
    if isinstance(error, MemoryError):
        return "the study does not fit in memory. Use a machine with more, a coarser prepare.spacing_mm, or fewer --workers."
    return str(error)


def _write(
    place: Path, number: int, mark: str, volume: PreparedVolume, target: Array, places: tuple[Array, ...]
) -> None:
    """The arrays of a case, and last the text that says they are complete."""
    needed = volume.array.nbytes + target.nbytes
    try:
        free = shutil.disk_usage(place).free
        if free < 1.05 * needed + 2**20:
            raise ResourceError(
                f"the prepared arrays do not fit in {place.parent}: case {number + 1} needs {needed / 1e9:.2f} GB, "
                f"{free / 1e9:.2f} GB are free. Choose another disk with -o, or a coarser prepare.spacing_mm."
            )
        _file(place, number, "json").unlink(missing_ok=True)
        np.save(_file(place, number, "npy"), volume.array, allow_pickle=False)
        np.save(_file(place, number, "truth.npy"), target, allow_pickle=False)
        rows = [np.concatenate([np.full((len(p), 1), c), p], axis=1) for c, p in enumerate(places)]
        joined = np.concatenate(rows) if rows else np.zeros((0, 1 + volume.lattice.dimensions))
        np.save(_file(place, number, "places.npy"), joined.astype(np.int32), allow_pickle=False)
        about = {
            "mark": mark,
            "lattice": volume.lattice.to_json(),
            "table": volume.table.tolist(),
            "classes": len(places),
        }
        _file(place, number, "json").write_text(json.dumps(about), encoding="utf-8")
    except OSError as error:
        raise _unwritable(place, error) from error


def _unwritable(place: Path, error: OSError) -> ResourceError:
    if isinstance(error, ResourceError):
        return error
    return ResourceError(
        f"the prepared arrays cannot be written to {place.parent}: {error.strerror}. Choose another folder with -o."
    )


def _file(place: Path, number: int, ending: str) -> Path:
    return place / f"{number:06d}.{ending}"


def _mark(place: Path, number: int) -> str:
    """Of the files that the arrays of a case were made from; empty where they are not complete."""
    try:
        about: dict[str, Any] = json.loads(_file(place, number, "json").read_text(encoding="utf-8"))
        return str(about["mark"])
    except (OSError, ValueError, KeyError):
        return ""


def _open_target(path: Path) -> Array:
    """Maps stay on disk; lists of objects are small, and may be empty, which no memory map can be."""
    target: Array = np.load(path, mmap_mode="r", allow_pickle=False) if path.stat().st_size > 2**16 else np.load(path)
    return target


def _split_places(path: Path, classes: int) -> tuple[Array, ...]:
    rows = np.load(path, allow_pickle=False)
    return tuple(rows[rows[:, 0] == c, 1:] for c in range(classes))


def _plan_key(cases: Sequence[Case], plan: Plan) -> str:
    prepare = dataclasses.asdict(plan.prepare)
    for name in ("size", "offset", "scale"):  # the window, and what is done to a batch: not part of what is stored
        prepare.pop(name)
    about = [
        _FORMAT,
        dataclasses.asdict(plan.input),
        prepare,
        plan.scheme.to_json(),
        plan.task,
        plan.outputs,
        [case.id for case in cases],
    ]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
