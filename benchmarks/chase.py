"""CHASE_DB1: vessels in 20 fundus photographs of ten persons, two persons held out.

    python benchmarks/chase.py --minutes 30 --threads 2
    python benchmarks/chase.py --minutes 30 --threads 2 --folds 5        # every person held out once

Left and right eye of one person stay together: eight persons are learnt from (16 photographs), two are held out (4), always
the same. Truth is the first observer; how far the second observer agrees with the first is printed beside it, on the same
photographs. Four photographs say little: ``--folds 5`` trains five times, each time with two other persons held out.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from machine import describe
from sagittal.metrics.overlap import cldice, dice
from trained import DATA, busy, mean_with_interval, network_of, train_and_test

PERSONS = 10
HELD_OUT = 2
#: Of the order of persons; changing it makes another benchmark.
SPLIT_SEED = 0
#: Dice to reach with 30 minutes and two cores, and about the best published.
FLOOR, FIELD = 0.79, 0.81
STRUCTURE = "vessel"


def photographs(folder: Path) -> dict[str, str]:
    """Name of each photograph and its person."""
    names = sorted(path.stem for path in folder.glob("Image_*.jpg"))
    return {name: re.sub(r"\D", "", name) for name in names}


def held_out_persons(persons: list[str], fold: int) -> list[str]:
    """The two persons that a fold holds out."""
    order = np.random.default_rng(SPLIT_SEED).permutation(sorted(set(persons)))
    return sorted(order[HELD_OUT * fold : HELD_OUT * (fold + 1)].tolist())


def write_table(folder: Path, target: Path, fold: int) -> list[str]:
    """A table of photographs, masks, persons and parts; the names held out."""
    people = photographs(folder)
    out = held_out_persons(list(people.values()), fold)
    with target.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "image", "mask", "patient", "split"])
        for name, person in people.items():
            part = "test" if person in out else "train"
            files = [str((folder / f"{name}{ending}").resolve()) for ending in (".jpg", "_1stHO.png")]
            writer.writerow([name, *files, person, part])
    return [name for name, person in people.items() if person in out]


def observers(folder: Path, names: list[str]) -> dict[str, dict[str, float]]:
    """Dice and clDice of the second observer against the first."""
    found = {}
    for name in names:
        first, second = (
            np.asarray(Image.open(folder / f"{name}_{which}HO.png").convert("L")) > 127 for which in ("1st", "2nd")
        )
        found[name] = {"dice": dice(second, first), "cldice": cldice(second, first)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of training; the split is fixed")
    parser.add_argument("--folds", type=int, default=1, choices=range(1, PERSONS // HELD_OUT + 1))
    parser.add_argument("--humans", action="store_true", help="only the observers, nothing is trained")
    parser.add_argument("--output", type=Path, default=Path("runs/chase"))
    parser.add_argument("--json", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    folder = DATA / "chase"
    people = photographs(folder)
    human = observers(folder, list(people))
    print(f"{describe()}; {arguments.minutes:g} min, {arguments.threads} thread(s), seed {arguments.seed}, {busy()}")
    figures: dict[str, Any] = {"minutes": arguments.minutes, "threads": arguments.threads, "human": human, "folds": []}
    print(
        "| held out | Sagittal Dice (each) | clDice | second observer Dice (each) | clDice | s | processor s | network |"
    )
    print("|---|---|---|---|---|---|---|---|")
    ours: dict[str, dict[str, float]] = {}
    for fold in range(arguments.folds):
        table = arguments.output / f"chase-{fold}.csv"
        names = write_table(folder, table, fold)
        theirs = [np.mean([human[name][key] for name in names]) for key in ("dice", "cldice")]
        each = " ".join(f"{human[name]['dice']:.3f}" for name in names)
        seen = ", ".join(name.removeprefix("Image_") for name in names)
        row = ["-", "-", f"{theirs[0]:.3f} ({each})", f"{theirs[1]:.3f}", "-", "-", "-"]
        if not arguments.humans:
            run = arguments.output / f"fold{fold}-{arguments.minutes:g}m-{arguments.seed}"
            source = [table, "--path-column", "image", "--mask-column", "mask", "--patient-column", "patient"]
            source += ["--id-column", "case", "--target", STRUCTURE]
            found = train_and_test(
                source, run, minutes=arguments.minutes, threads=arguments.threads, seed=arguments.seed
            )
            mine = {
                key: found.values(STRUCTURE, key).rename(lambda case: Path(case).name).loc[names]
                for key in ("dice", "cldice")
            }
            ours |= {name: {key: float(mine[key][name]) for key in mine} for name in names}
            each = " ".join(f"{value:.3f}" for value in mine["dice"])
            row[:2] = [f"**{mine['dice'].mean():.3f}** ({each})", f"{mine['cldice'].mean():.3f}"]
            row[4:] = [f"{found.seconds:.0f}", f"{found.processor_s:.0f}", network_of(found.plan)]
            figures["folds"].append({"held_out": names, "seconds": found.seconds, "processor_s": found.processor_s})
        print("| " + " | ".join([seen, *row]) + " |", flush=True)
    print(f"\nasked: Dice {FLOOR} in 30 min on 2 cores; field about {FIELD}")
    for title, values in (("second observer, all photographs", human), ("Sagittal, held out", ours)):
        if values:
            told = mean_with_interval([v["dice"] for v in values.values()], [people[name] for name in values])
            print(f"{title}: Dice {told} of {len(values)}, intervals over persons")
    figures["ours"] = ours
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
