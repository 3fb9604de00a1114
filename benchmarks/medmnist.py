"""Train on MedMNIST within a budget and look once at each official test split.

    python benchmarks/medmnist.py --budget 10m --seeds 0 1 2 --output runs/medmnist

Every run is the command that a user types, in a process of its own: ``sagittal train medmnist:NAME --budget ...`` and
then ``sagittal evaluate ... --split test``. The table compares with the floor that the project set itself and with the
best published figure at this resolution (MedMNIST v2: ResNet-18/50, auto-sklearn, AutoKeras, Google AutoML Vision).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from machine import describe

DATA = Path(os.environ.get("SAGITTAL_BENCH_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
SAGITTAL = Path(sys.executable).with_name("sagittal")
#: (AUC, ACC) to reach, and the best published.
FIGURES = {
    "pneumoniamnist": ((0.975, 0.91), (0.991, 0.946)),
    "breastmnist": ((0.90, 0.86), (0.919, 0.863)),
    "vesselmnist3d": ((0.91, 0.915), (0.930, 0.928)),
    "adrenalmnist3d": ((0.86, 0.81), (0.839, 0.802)),
}


def run_one(name: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate one set with one seed; what was found is kept, so that a broken-off benchmark goes on."""
    folder = arguments.output / f"{name}-{seed}"
    result = folder / "result.json"
    if result.exists():
        return json.loads(result.read_text())
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "SAGITTAL_DATA": str(DATA / "medmnist")}
    train = [SAGITTAL, "train", f"medmnist:{name}", "--budget", arguments.budget, "--seed", str(seed)]
    start = time.monotonic()
    subprocess.run([*train, "-o", folder, "--overwrite", "--quiet"], check=True, env=environment, capture_output=True)
    seconds = time.monotonic() - start
    evaluate = [
        SAGITTAL,
        "evaluate",
        folder,
        f"medmnist:{name}",
        "--split",
        "test",
        "-o",
        folder / "test",
        "--overwrite",
    ]
    subprocess.run([*evaluate, "--quiet"], check=True, env=environment, capture_output=True)
    found = {"name": name, "seed": seed, "seconds": seconds}
    for key, place in (("val", folder), ("test", folder / "test")):
        overall = json.loads((place / "evidence.json").read_text())["overall"]
        found[key] = {measure: overall[measure]["value"] for measure in ("auc", "accuracy", "balanced_accuracy", "ece")}
    result.write_text(json.dumps(found, indent=1))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", nargs="+", default=list(FIGURES), choices=list(FIGURES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--budget", default="10m")
    parser.add_argument("--threads", type=int, default=2, help="threads of each run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--output", type=Path, default=Path("runs/medmnist"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    jobs = [(name, seed) for seed in arguments.seeds for name in arguments.sets]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = list(pool.map(lambda job: run_one(*job, arguments), jobs))
    print(f"{describe()}; budget {arguments.budget}, {arguments.threads} thread(s) a run, {arguments.jobs} at a time\n")
    print("| set | seeds | test AUC (each) | test ACC (each) | floor | best published | val AUC / ACC | wall s |")
    print("|---|---|---|---|---|---|---|---|")
    for name in arguments.sets:
        rows = [row for row in results if row["name"] == name]
        (floor_auc, floor_acc), (best_auc, best_acc) = FIGURES[name]

        def mean(part: str, key: str, rows: list[dict[str, Any]] = rows) -> float:
            return statistics.mean(row[part][key] for row in rows)

        each = {key: " ".join(f"{row['test'][key]:.3f}" for row in rows) for key in ("auc", "accuracy")}
        print(
            f"| {name} | {len(rows)} | **{mean('test', 'auc'):.3f}** ({each['auc']}) "
            f"| **{mean('test', 'accuracy'):.3f}** ({each['accuracy']}) | {floor_auc:.3f} / {floor_acc:.3f} "
            f"| {best_auc:.3f} / {best_acc:.3f} | {mean('val', 'auc'):.3f} / {mean('val', 'accuracy'):.3f} "
            f"| {max(row['seconds'] for row in rows):.0f} |"
        )


if __name__ == "__main__":
    main()
