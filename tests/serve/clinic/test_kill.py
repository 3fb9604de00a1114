"""The service is killed while studies arrive: the short version of the benchmark."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

import kill


@pytest.mark.usefixtures("need_orthanc")
def test_nothing_that_was_acknowledged_is_lost(models: SimpleNamespace, tmp_path: Path) -> None:
    found = kill.run(
        tmp_path, models.outliner, kills=3, instances=240, studies=6, seed=1, size=32, longest_s=5.0, silence_s=2.0
    )
    assert found.wrong == []
    assert found.kills == 3
    assert found.arriving >= 2
    assert found.results - found.replaced == 6
