"""Lung nodules in phantom CT: 3-D detection with a known truth, from DICOM series and a list of centres in mm.

    python benchmarks/nodules.py --minutes 20 --threads 2
    python benchmarks/nodules.py --minutes 20 --threads 2 --seeds 0 1 2 --json figures.json

The phantoms are those of ``sagittal.nodules``: nodules of 4 to 20 mm, none in three of ten scans. Training is ``sagittal train
FOLDER --labels nodules.csv --task detect --budget ...`` on one set, and another set, of other patients, is looked at once. A
nodule is found if the centre of a box lies within its radius, as LUNA16 counts. Phantoms are no patients: the figure says
that the way from series to marks works, not how well a model finds nodules.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from machine import describe
from sagittal.nodules import make_nodule_ct
from trained import busy, network_of, shown, train_and_test

#: Sensitivity at one false positive a scan that this has to reach in 20 minutes on two cores.
FLOOR = 0.90


def write_folder(target: Path, scans: Sequence[int]) -> None:
    """One folder with the scans of both sets and a table of all nodules that names the split of each scan."""
    lines: list[str] = []
    for seed, (split, count) in enumerate(zip(("train", "test"), scans, strict=True), start=1):
        own = make_nodule_ct(target / split, scans=count, seed=seed)
        header, *rows = own.read_text().splitlines()
        lines += [f"{row},{split}" for row in rows]
        own.unlink()
    (target / "nodules.csv").write_text("\n".join([f"{header},split", *lines]) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--scans", nargs=2, type=int, default=[60, 40], metavar=("TRAIN", "TEST"))
    parser.add_argument("--output", type=Path, default=Path("runs/nodules"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    folder = arguments.output / "data"
    table = folder / "nodules.csv"
    if not table.exists():
        write_folder(folder, arguments.scans)
    print(f"{describe()}; {busy()}; budget {arguments.minutes:g} min, {arguments.threads} threads\n")
    print(
        "| seed | sensitivity at 1 FP a scan (95 %) | CPM | AP10 | small / medium / large | scan AUC | wall s | network |"
    )
    print("|---|---|---|---|---|---|---|---|")
    figures = []
    for seed in arguments.seeds:
        run = train_and_test(
            [folder, "--labels", table],
            arguments.output / f"run-{seed}",
            minutes=arguments.minutes,
            threads=arguments.threads,
            seed=seed,
            score="val_ap10",
            task="detect",
        )
        overall = run.overall
        sizes = [overall.get(f"sensitivity_{size}", {}).get("value") for size in ("small", "medium", "large")]
        print(
            f"| {seed} | **{shown(overall['sensitivity_at_1'])}** | {shown(overall['cpm'])} "
            f"| {overall['ap10']['value']:.3f} | {' / '.join('-' if v is None else f'{v:.2f}' for v in sizes)} "
            f"| {overall['auc']['value']:.3f} | {run.seconds:.0f} | {network_of(run.plan)} |"
        )
        figures.append({"seed": seed, "sensitivity_at_1": overall["sensitivity_at_1"], "cpm": overall["cpm"]})
    print(f"\nTo reach: {FLOOR:g} at one false positive a scan.")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
