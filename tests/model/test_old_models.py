"""Models of every format that was ever written load, and say what they said then."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sagittal.model.archive import FORMAT
from sagittal.model.package import Model

OLD = Path(__file__).parent / "old"


def test_there_is_an_old_model_of_every_format():
    assert sorted(p.name for p in OLD.glob("*.sagittal")) == [f"format-{n}.sagittal" for n in range(1, FORMAT + 1)]
    assert all(p.stat().st_size < 100_000 for p in OLD.iterdir())


@pytest.mark.parametrize("version", range(1, FORMAT + 1))
def test_an_old_model_gives_the_numbers_of_its_day(version):
    model = Model.load(OLD / f"format-{version}.sagittal")
    then = json.loads((OLD / f"format-{version}.json").read_text(encoding="utf-8"))
    assert model.checksum == then["checksum"]
    arrays, tables = np.array(then["arrays"], np.uint8), np.array(then["tables"], np.float32)
    logits = model.logits(arrays, tables)
    np.testing.assert_allclose(logits, then["logits"], atol=1e-5)  # other machines sum in another order
    np.testing.assert_allclose(model.calibration.apply(np.array(then["logits"])), then["calibrated"], atol=1e-9)
    np.testing.assert_allclose(model.operating_point.thresholds, then["thresholds"], atol=1e-12)
    assert model.conformal.contains(np.array(then["logits"]), model.plan.scheme).tolist() == then["sets"]
    distances = model.gate.distances([model.embed(m, arrays) for m in range(len(model.members))])
    np.testing.assert_allclose(distances, then["distances"], rtol=1e-4)
    assert model.gate.abstains
    assert model.plan.why == {"prepare.size": "median of 60 images"}
    assert model.intended_use.size == ((10.0, 30.0), (8.0, 20.0))
