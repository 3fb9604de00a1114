"""Fuzz every reader and print the summary: ``python fuzz/run.py``; 20,000 DICOM files, 20,000 objects for the archive and 5,000 of each other format."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from seeds import FORMATS

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Run one process a format; 1 if any of them failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="times as many files")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("fuzzed"))
    given = parser.parse_args()
    output = given.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    print("| format | files | read | refused | kinds of refusal | slowest s | peak MiB | files/s | result |")
    print("|---|---|---|---|---|---|---|---|---|")
    failed = False
    for kind in FORMATS:
        runs = round((20000 if kind in {"dicom", "received"} else 5000) * given.scale)
        (output / f"{kind}.json").unlink(missing_ok=True)
        command = [sys.executable, str(HERE / "readers.py"), kind, "--runs", str(runs), "--seed", str(given.seed)]
        with (output / f"{kind}.log").open("w") as log:
            done = subprocess.run([*command, "--output", str(output)], cwd=HERE, stdout=log, stderr=log, check=False)
        tally = json.loads((output / f"{kind}.json").read_text()) if (output / f"{kind}.json").exists() else {}
        fine = done.returncode == 0 and "failure" not in tally and tally.get("runs", 0) >= runs
        failed |= not fine
        print(
            f"| {kind} | {tally.get('runs', 0):,} | {tally.get('read', 0):,} | {tally.get('refused', 0):,} | "
            f"{tally.get('reasons', 0)} | {tally.get('slowest_s', 0):.2f} | {tally.get('peak_mib', 0):,} | "
            f"{tally.get('runs', 0) / max(tally.get('seconds', 0), 0.1):.0f} | "
            f"{'no crash' if fine else f'FAILED (exit {done.returncode}), see {kind}.log'} |",
            flush=True,
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
