"""A few hundred mutants of each format, the same each time; ``make fuzz`` runs tens of thousands, guided by coverage."""

from __future__ import annotations

import random
import resource
import sys
import time
from pathlib import Path

import pytest

from sagittal.errors import SagittalError

FOLDER = Path(__file__).resolve().parents[2] / "fuzz"
sys.path.insert(0, str(FOLDER))
from mutations import mutate  # noqa: E402
from seeds import FORMATS, MAKERS, write_series  # noqa: E402
from targets import read_mutant  # noqa: E402

sys.path.remove(str(FOLDER))

SUFFIX = {"nrrd": ".nrrd", "mha": ".mha", "zip": ".zip"}
MUTANTS = 200


@pytest.mark.parametrize("kind", FORMATS)
def test_every_seed_is_read(kind: str, tmp_path: Path) -> None:
    """Mutation of files that are not read themselves would test nothing."""
    pytest.importorskip("imagecodecs")
    series = write_series(tmp_path / "series")
    for number, (suffix, content) in enumerate(MAKERS[kind]()):
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(content)
        read_mutant(kind, path, series)


@pytest.mark.parametrize("kind", FORMATS)
def test_mutants_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("imagecodecs")
    rng = random.Random(7)
    series = write_series(tmp_path / "series")
    seeds = [content for _, content in MAKERS[kind]()]
    path = tmp_path / f"secret-name{SUFFIX.get(kind, '')}"
    before, slowest, messages = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0.0, []
    for _ in range(MUTANTS):
        path.write_bytes(mutate(rng.choice(seeds), 200_000, kind, rng))
        began = time.monotonic()
        try:
            read_mutant(kind, path, series)
        except SagittalError as error:
            messages.append(str(error))
        slowest = max(slowest, time.monotonic() - began)
    assert len(messages) > MUTANTS // 10
    assert not any("secret-name" in message for message in messages)
    assert slowest < 60  # a hang, not a timing
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20 * 2  # KiB: 2 GiB
