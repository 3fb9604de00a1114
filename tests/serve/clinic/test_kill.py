"""The service is killed while studies arrive: the short version of the benchmark."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import hospital
import kill
import tiny

pytestmark = pytest.mark.slow


@pytest.mark.usefixtures("need_orthanc")
def test_nothing_that_was_acknowledged_is_lost(models: SimpleNamespace, tmp_path: Path) -> None:
    found = kill.run(
        tmp_path, models.outliner, kills=3, instances=240, studies=6, seed=1, size=32, longest_s=5.0, silence_s=2.0
    )
    assert found.wrong == []
    assert found.kills == 3
    assert found.arriving >= 2
    assert found.results - found.replaced == 6


def test_half_of_a_study_is_not_answered_because_the_service_was_away(models: SimpleNamespace, tmp_path: Path) -> None:
    tables = {
        "model": [{"path": models.outliner, "results": ["json"]}],
        "completeness": {"silence": "3s"},
    }
    study = tiny.make_study(1)
    with hospital.Service(tmp_path / "service", tables) as service:
        service.admit()
        service.start()
        assert set(hospital.send_all(service.dicom_port, study[:6])) == {0}
        service.kill()
        time.sleep(3.5)  # longer than the silence
        service.start()
        time.sleep(1.0)  # the scanner tries again
        assert set(hospital.send_all(service.dicom_port, study[6:])) == {0}
        hospital.until(lambda: service.rows("select 1 from studies where status = 'answered'"), 60, "it is answered")
        assert service.rows("select revision, instance_count from series where modality = 'CT'") == [(1, len(study))]
        assert service.rows("select count(*) from results") == [(1,)]
        assert service.stop() == 0
