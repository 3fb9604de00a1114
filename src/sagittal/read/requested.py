"""What a user names on a command line or in a list -> cases, and what is not there as failures of their own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sagittal.case import Case
from sagittal.errors import ReadError
from sagittal.prediction import Failure
from sagittal.read.files import expand
from sagittal.read.studies import find_studies


def find_requested(studies: str | Path | Iterable[str | Path]) -> tuple[list[Case], list[Failure]]:
    """Cases in files, folders, globs and ``@lists``; what is not there becomes a failure of its own.

    Raises
    ------
    ReadError
        If nothing at all is found.
    """
    wanted = [studies] if isinstance(studies, (str, Path)) else list(studies)
    paths: list[Path] = []
    failures: list[Failure] = []
    for text in _listed(wanted):
        try:
            paths += expand([text])
        except ReadError:
            failures.append(Failure(text, f"{text}: there is no such file, folder or match", ReadError.__name__))
    cases = list(find_studies(paths)) if paths else []
    if not cases and not failures:
        raise ReadError(f"no study was found in {', '.join(map(str, wanted)) or 'an empty list'}")
    return cases, failures


def _listed(wanted: Iterable[str | Path]) -> list[str]:
    """Arguments with each ``@file`` replaced by its lines."""
    texts = []
    for item in map(str, wanted):
        if not item.startswith("@"):
            texts.append(item)
            continue
        try:
            lines = Path(item[1:]).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ReadError(f"the list {item[1:]} cannot be read: {error}") from error
        texts += [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return texts
