"""The PACS away, the database locked, a model that hangs, the clock set back, the disk full: short versions of the benchmark."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import trouble

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ward(
    need_orthanc: None, models: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[trouble.Ward]:
    """The service with a model, its PACS, and a small disk of its own where this user may mount one."""
    folder: Path = tmp_path_factory.mktemp("trouble")
    with trouble.ward(folder, models.outliner, disk=os.geteuid() == 0) as made:
        yield made
        trouble.check_whole(made)
        assert made.wrong == []


def test_pacs_is_away_for_a_while(ward: trouble.Ward) -> None:
    trouble.pacs_away(ward, 1.0)
    assert ward.wrong == []


def test_database_is_locked_by_another_process(ward: trouble.Ward) -> None:
    trouble.database_locked(ward, 5.5)
    assert ward.wrong == []


def test_process_of_the_model_hangs(ward: trouble.Ward) -> None:
    trouble.worker_hangs(ward)
    assert ward.wrong == []


def test_clock_is_set_back(ward: trouble.Ward) -> None:
    trouble.clock_back(ward)
    assert ward.wrong == []


def test_disk_is_full(ward: trouble.Ward) -> None:
    if ward.disk is None:
        pytest.skip("only root mounts a small disk")
    trouble.disk_full(ward)
    assert ward.wrong == []
