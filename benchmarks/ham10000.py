"""HAM10000, 2,000 dermoscopy images of seven classes: with and without a pretrained encoder, on an own grouped split.

    python benchmarks/ham10000.py --budget 20m --output runs/ham10000

The split is Sagittal's own, by lesion and stratified, the same for both runs (same seed): a fifth of the lesions is held
out and looked at once by each model.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from machine import describe

DATA = Path(os.environ.get("SAGITTAL_BENCH_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
SAGITTAL = Path(sys.executable).with_name("sagittal")
MEASURES = ("auc", "balanced_accuracy", "accuracy", "ece", "baseline.accuracy")


def run_one(pretrained: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train with or without ImageNet weights and evaluate on the held-out fifth."""
    folder = arguments.output / pretrained
    source = [DATA / "ham10000", "--target", "dx", "--patient-column", "lesion_id"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    start = time.monotonic()
    if not (folder / "report.html").exists():
        train = [SAGITTAL, "train", *source, "--budget", arguments.budget, "--pretrained", pretrained, "-o", folder]
        subprocess.run([*train, "--overwrite", "--quiet"], check=True, env=environment, capture_output=True)
    seconds = time.monotonic() - start
    evaluate = [SAGITTAL, "evaluate", folder, *source, "--split", "test", "--by", "sex", "-o", folder / "test"]
    subprocess.run([*evaluate, "--overwrite", "--quiet"], check=True, env=environment, capture_output=True)
    found: dict[str, Any] = json.loads((folder / "test" / "evidence.json").read_text())["overall"]
    plan = json.loads((folder / "plan.json").read_text())
    return {"pretrained": pretrained, "seconds": seconds, "overall": found, "plan": plan}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", default="20m")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--output", type=Path, default=Path("runs/ham10000"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = list(pool.map(lambda name: run_one(name, arguments), ["package", "none"]))
    print(f"{describe()}; budget {arguments.budget}, {arguments.threads} thread(s) a run, {arguments.jobs} at a time\n")
    print("| encoder | network | size | members | " + " | ".join(MEASURES) + " | wall s |")
    print("|" + "---|" * (len(MEASURES) + 5))
    for result in results:
        plan, overall = result["plan"], result["overall"]
        shown = [
            "{value:.3f} ({low:.3f} to {high:.3f})".format(**overall[m])
            if overall.get(m, {}).get("low") is not None
            else "-"
            for m in MEASURES
        ]
        cells = [
            "ImageNet" if result["pretrained"] == "package" else "random",
            plan["network"]["name"],
            "x".join(map(str, plan["prepare"]["size"])),
            str(len(plan["train"]["steps"])),
            *shown,
            f"{result['seconds']:.0f}",
        ]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
