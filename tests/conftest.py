"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def bench_data() -> Path:
    """The folder of real benchmark data; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("SAGITTAL_BENCH_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        if os.environ.get("CI") and "SAGITTAL_BENCH_DATA" in os.environ:
            pytest.fail("SAGITTAL_BENCH_DATA names a folder that does not exist")
        pytest.skip("benchmark data not found: set SAGITTAL_BENCH_DATA to its folder")
    return folder
