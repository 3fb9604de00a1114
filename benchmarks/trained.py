"""What benchmarks of training share: the commands that a user types, timed, and what they left behind."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sagittal.metrics.cases import summarise
from sagittal.metrics.intervals import Estimate

DATA = Path(os.environ.get("SAGITTAL_BENCH_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
SAGITTAL = Path(sys.executable).with_name("sagittal")


@dataclass(frozen=True, eq=False)
class Trained:
    """A model that ``sagittal train`` made, judged once by ``sagittal evaluate --split test``.

    Parameters
    ----------
    seconds, processor_s : float
        Wall and processor time of training; of a busy machine the second says what the first does not.
    evaluate_s : float
        Wall time of evaluating the held-out cases.
    overall, classes : mapping
        Estimates of the evidence, as JSON.
    rows : DataFrame
        A row a held-out case.
    curve : list of (float, float)
        Seconds since training began, and the validation score that the run's log shows there.
    """

    seconds: float
    processor_s: float
    evaluate_s: float
    overall: Mapping[str, Any]
    classes: Mapping[str, Any]
    rows: pd.DataFrame
    plan: Mapping[str, Any]
    curve: list[tuple[float, float]]

    def values(self, structure: str, measure: str = "dice") -> pd.Series:
        """A measure of a structure by case."""
        return self.rows.set_index("case")[f"{measure}_{structure}"].astype(float)


def train_and_test(
    source: Sequence[str | Path],
    folder: Path,
    *,
    minutes: float,
    threads: int,
    seed: int,
    score: str = "val_dice",
    task: str = "segment",
) -> Trained:
    """Train and evaluate by the commands that a user types; a run that is there already is not repeated.

    Parameters
    ----------
    source : sequence
        Source and its flags, for both commands.
    folder : Path
        Of the run.
    score : str
        Name in the run's log of the validation score that the curve shows.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    facts = folder.with_name(f"{folder.name}.json")
    if not facts.exists():
        budget = ["--task", task, "--budget", f"{round(60 * minutes)}s", "--seed", str(seed)]
        began, start, before = time.time(), time.monotonic(), _processor_s()
        command([SAGITTAL, "train", *source, *budget, "-o", folder, "--overwrite", "--quiet"], environment)
        found = {"began": began, "seconds": time.monotonic() - start, "processor_s": _processor_s() - before}
        facts.write_text(json.dumps(found))
    found = json.loads(facts.read_text())
    if "evaluate_s" not in found:
        start = time.monotonic()
        test = ["--split", "test", "-o", folder / "test", "--overwrite", "--quiet"]
        command([SAGITTAL, "evaluate", folder, *source, *test], environment)
        facts.write_text(json.dumps(found := {**found, "evaluate_s": time.monotonic() - start}))
    evidence = json.loads((folder / "test" / "evidence.json").read_text())
    return Trained(
        found["seconds"],
        found["processor_s"],
        found["evaluate_s"],
        evidence["overall"],
        evidence["classes"],
        pd.read_parquet(folder / "test" / "cases.parquet"),
        json.loads((folder / "plan.json").read_text()),
        curve_of(folder / "events.jsonl", found["began"], score),
    )


def command(arguments: Sequence[str | Path], environment: Mapping[str, str]) -> None:
    """Run a command; end with what it said if it fails."""
    done = subprocess.run([str(a) for a in arguments], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(str(a) for a in arguments)}\nended in {done.returncode}:\n{done.stderr[-3000:]}")


def curve_of(events: Path, began: float, score: str) -> list[tuple[float, float]]:
    """Seconds since `began` and the validation score of each line of a run's log that has one."""
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    return [(line["at"] - began, line[score]) for line in lines if line.get(score) is not None]


def first_at(curve: Sequence[tuple[float, float]], score: float) -> float | None:
    """Seconds at which a curve first reaches a score."""
    return next((at for at, value in curve if value >= score), None)


def mean_with_interval(values: Sequence[float] | np.ndarray, patients: Sequence[Any]) -> Estimate:
    """Mean over cases, its interval from resampling patients."""
    return summarise({"value": np.asarray(values, dtype=np.float64)}, patients)["value"].mean


def shown(estimate: Mapping[str, Any]) -> str:
    """An estimate of ``evidence.json`` as tables show it."""
    return str(Estimate.from_json(estimate))


def network_of(plan: Mapping[str, Any]) -> str:
    """The network and the window of a plan in a few words."""
    network, prepare, train = (plan.get(key) or {} for key in ("network", "prepare", "train"))
    size = "x".join(map(str, prepare.get("size", ())))
    return f"{network.get('name')} width {network.get('width')}, window {size}, batch {train.get('batch')}"


def busy() -> str:
    """The load of the machine, for the record."""
    return f"load average {os.getloadavg()[0]:.1f}"


def _processor_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
