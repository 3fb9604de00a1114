"""Make the old model that tests/model/test_old_models.py must be able to load for ever.

Run once for each format version, and never again for the same one:

    python tests/model/make_old_model.py

It writes ``old/format-N.sagittal``, and ``old/format-N.json`` with input arrays and the numbers that they gave on the day.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from sagittal.labels import LabelScheme
from sagittal.model.archive import FORMAT
from sagittal.model.package import Model
from sagittal.model.parts import IntendedUse
from sagittal.networks.heads import build_network
from sagittal.prepare.arrays import table_width
from sagittal.prepare.plan import (
    ColumnPlan,
    CompanionPlan,
    DecidePlan,
    InputPlan,
    NetworkPlan,
    Plan,
    PreparePlan,
    TrainPlan,
)
from sagittal.tasks.registry import make_task

FOLDER = Path(__file__).parent / "old"


def old_plan() -> Plan:
    """A plan that uses what a plan can hold: two families, a table, flips, an operating point."""
    return Plan(
        scheme=LabelScheme("multiclass", ("none", "benign", "malignant"), target="diagnosis"),
        input=InputPlan(
            modality="XC",
            table=(
                ColumnPlan("age", "number", mean=60.0, std=10.0),
                ColumnPlan("sex", "category", categories=("f", "m")),
            ),
        ),
        prepare=PreparePlan(size=(14, 12), offset=(120.0,), scale=(60.0,), store="uint8"),
        network=NetworkPlan(name="resnet-small", width=8, depth=(1, 1)),
        train=TrainPlan(epochs=3.0),
        companions=(CompanionPlan(network=NetworkPlan(name="resnet-small", width=4, depth=(1,))),),
        decide=DecidePlan(calibration="isotonic", operating_point="youden", flips=(1,), gate="abstain"),
        seed=7,
        why={"prepare.size": "median of 60 images"},
    )


def make() -> tuple[Model, np.ndarray, np.ndarray]:
    """The model, and arrays and tables to try it on."""
    plan = old_plan()
    networks = []
    torch.manual_seed(0)
    for family in plan.families:
        network = build_network(
            family.network, channels=1, dimensions=2, head=make_task(plan).head, table=table_width(plan.input)
        )
        network.train()
        network(torch.randn(16, 1, 14, 12), torch.randn(16, table_width(plan.input)))
        networks.append(network.eval())
    rng = np.random.default_rng(0)
    arrays = rng.integers(0, 256, (120, 1, 14, 12)).astype(np.uint8)
    truth = np.eye(3)[np.arange(120) % 3]
    model = Model.assemble(
        "old",
        plan,
        networks,
        logits=2 * truth + rng.normal(0, 1, truth.shape),
        truth=truth,
        weights=(0.7, 0.3),
        families=(0, 1),
        references=[arrays, arrays],
        intended_use=IntendedUse.of(plan, size=((10.0, 30.0), (8.0, 20.0))),
        data={"cases": 120},
    )
    return model, arrays[:4], rng.normal(0, 1, (4, table_width(plan.input))).astype(np.float32)


if __name__ == "__main__":
    model, arrays, tables = make()
    FOLDER.mkdir(exist_ok=True)
    target = FOLDER / f"format-{FORMAT}.sagittal"
    if target.exists():
        raise SystemExit(f"{target.name} exists; a model of an old format is made once")
    saved = model.save(target)
    logits = model.logits(arrays, tables)
    calibrated = model.calibration.apply(logits)
    numbers = {
        "checksum": saved.checksum,
        "arrays": arrays.tolist(),
        "tables": tables.tolist(),
        "logits": logits.tolist(),
        "calibrated": calibrated.tolist(),
        "thresholds": list(model.operating_point.thresholds),
        "sets": model.conformal.contains(logits, model.plan.scheme).tolist(),
        "distances": model.gate.distances([model.embed(m, arrays) for m in range(2)]).tolist(),
    }
    (FOLDER / f"format-{FORMAT}.json").write_text(json.dumps(numbers) + "\n", encoding="utf-8")
