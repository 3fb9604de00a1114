"""A few hundred mutants of each format, the same each time; ``make fuzz`` runs tens of thousands, guided by coverage."""

from __future__ import annotations

import random
import resource
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sagittal.errors import SagittalError
from sagittal.formats.open_image import read_image
from sagittal.read.files import group

FOLDER = Path(__file__).resolve().parents[2] / "fuzz"
sys.path.insert(0, str(FOLDER))
from mutations import mutate  # noqa: E402
from seeds import FORMATS, MAKERS  # noqa: E402

sys.path.remove(str(FOLDER))

SUFFIX = {"nrrd": ".nrrd", "mha": ".mha"}
MUTANTS = 200


@pytest.mark.parametrize("kind", FORMATS)
def test_every_seed_is_read(kind: str, tmp_path: Path) -> None:
    """Mutation of files that are not read themselves would test nothing."""
    pytest.importorskip("imagecodecs")
    for number, (suffix, content) in enumerate(MAKERS[kind]()):
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(content)
        assert read_image(path).data.size > 0


@pytest.mark.parametrize("kind", FORMATS)
def test_mutants_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("imagecodecs")
    rng = random.Random(7)
    seeds = [content for _, content in MAKERS[kind]()]
    path = tmp_path / f"secret-name{SUFFIX.get(kind, '')}"
    before, slowest, messages = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0.0, []
    for number in range(MUTANTS):
        path.write_bytes(mutate(rng.choice(seeds), 200_000, kind, rng))
        began = time.monotonic()
        try:
            for found in group([path]):
                image = read_image(found.files[0])
                assert image.data.dtype == np.float32, number
                assert image.data.shape[1:] == image.grid.shape, number
        except SagittalError as error:
            messages.append(str(error))
        slowest = max(slowest, time.monotonic() - began)
    assert len(messages) > MUTANTS // 10
    assert not any("secret-name" in message for message in messages)
    assert slowest < 60  # a hang, not a timing
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20 * 2  # KiB: 2 GiB
