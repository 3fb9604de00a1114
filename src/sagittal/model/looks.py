"""Looks: each time a model met a test set, in a chain of hashes beside the model.

A test set that was looked at ten times is a validation set. The record cannot prove that nobody looked unrecorded, but an
entry cannot be altered or taken out later without the chain showing it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sagittal.errors import PackageError
from sagittal.model.archive import LOOKS, MAX_TEXT, SUFFIX, disk_errors, parse_json, read_files, read_regular


@dataclass(frozen=True)
class Look:
    """One look at one test set.

    Parameters
    ----------
    number : int
        From 1 on.
    at : str
        UTC, ISO 8601.
    model : str
        Checksum of the model that looked.
    dataset, split : str
    cases : int
    scores : mapping of str to float
        What was seen, such as ``{"auc": 0.91}``.
    note : str
    previous : str
        SHA-256 of the line before; of the first, the checksum of the model.
    """

    number: int
    at: str
    model: str
    dataset: str
    split: str
    cases: int
    scores: Mapping[str, float]
    note: str
    previous: str


def looks_path(model: Path) -> Path:
    """Where the looks of a model are kept: inside its folder, or beside its file."""
    return model.with_name(f"{model.stem}.{LOOKS}") if model.suffix == SUFFIX else model / LOOKS


def record_look(
    model: Path, *, dataset: str, split: str, cases: int, scores: Mapping[str, float] | None = None, note: str = ""
) -> Look:
    """Add one look to the record and wait until the disk has it.

    Raises
    ------
    PackageError
        If the model or the record is damaged.
    ResourceError
        If the record cannot be written.
    """
    checksum = read_files(model)[1]
    path = looks_path(model)
    with disk_errors(path.name), path.open("ab") as stream:
        _lock(stream.fileno())
        lines, looks = _read(path)
        look = Look(
            number=len(looks) + 1,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            model=checksum,
            dataset=dataset,
            split=split,
            cases=cases,
            scores=dict(scores or {}),
            note=note,
            previous=_hash(lines[-1]) if lines else checksum,
        )
        stream.write(json.dumps(asdict(look), ensure_ascii=False, allow_nan=False).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())
    return look


def read_looks(model: Path) -> tuple[Look, ...]:
    """The recorded looks, oldest first; none where nobody looked.

    Raises
    ------
    PackageError
        If the chain is broken: a line was changed, taken out or put in.
    """
    return _read(looks_path(model))[1]


def _read(path: Path) -> tuple[list[bytes], tuple[Look, ...]]:
    if not path.exists() and not path.is_symlink():
        return [], ()
    data = read_regular(path, MAX_TEXT)
    if data and not data.endswith(b"\n"):
        raise PackageError(f"{path.name}: the last look is cut off; the record was damaged")
    lines = data.splitlines()
    looks: list[Look] = []
    for number, line in enumerate(lines, start=1):
        values = parse_json(line, f"{path.name}, line {number}")
        look = _look(values, f"{path.name}, line {number}")
        expected = _hash(lines[number - 2]) if number > 1 else look.model
        if look.number != number or look.previous != expected:
            raise PackageError(
                f"{path.name}: line {number} does not follow from the line before: the record of looks at test data was "
                "changed. It can no longer be relied on."
            )
        looks.append(look)
    return lines, tuple(looks)


def _look(values: dict[str, Any], where: str) -> Look:
    try:
        look = Look(**values)
    except TypeError as error:
        raise PackageError(f"{where}: is not a look: {error}") from error
    if not isinstance(look.model, str) or not re.fullmatch(r"[0-9a-f]{64}", look.model):
        raise PackageError(f"{where}: names no model")
    return look


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _lock(handle: int) -> None:
    """Let one process at a time add a look, where the system can; the lock goes with the file's closing."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    fcntl.flock(handle, fcntl.LOCK_EX)
