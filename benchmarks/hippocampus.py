"""Hippocampus of the Medical Segmentation Decathlon: 160 training cases, 40 held out, beside nnU-Net in the same time.

    python benchmarks/hippocampus.py --minutes 30 --threads 2
    python benchmarks/hippocampus.py --minutes 30 --threads 2 --peer /tmp/peer --json figures.json
    python benchmarks/hippocampus.py --minutes 30 --threads 2 --ladder 4 8 15 --peer /tmp/peer

Ours is ``sagittal train FOLDER --task segment --budget ...`` and one look at the held-out cases. With ``--peer``, the
environment of nnunet.py, nnU-Net v2 trains on the same cases for the same wall time, planning and preprocessing included on
both sides, one after the other; its masks of the held-out cases are judged by the same Dice. The difference is that of the
same cases, case by case.

The ratio of times to nnU-Net's final score is told in two ways. From the log of our run: the first moment at which the
validation score passes nnU-Net's held-out score; other cases and a score over all voxels, so a rough figure. And with
``--ladder``: runs of shorter budgets, each with its own look at the held-out cases, which is what a user would do.

What is published with the data does not say which two crops are the left and right side of one person, so cases are taken as
independent; both sides of some persons may be on different sides of the split, for both programs alike.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from machine import describe
from nnunet import Peer
from sagittal.formats.open_image import read_image
from sagittal.metrics.overlap import dice
from trained import DATA, Trained, busy, first_at, mean_with_interval, network_of, shown, train_and_test

STRUCTURES = ("Anterior", "Posterior")
#: What this has to reach with 30 minutes and two cores, and nnU-Net's figures on the hidden test set, trained on a GPU.
FLOOR = (0.87, 0.86)
FIELD = (0.901, 0.888)
HELD_OUT = 40
#: Of the split; changing it makes another benchmark.
SPLIT_SEED = 0


def make_split(names: list[str]) -> set[str]:
    """The names that are held out, always the same."""
    rng = np.random.default_rng(SPLIT_SEED)
    return set(rng.choice(sorted(names), HELD_OUT, replace=False).tolist())


def write_folder(source: Path, target: Path) -> tuple[dict[str, tuple[Path, Path]], set[str]]:
    """A decathlon folder whose ``imagesTs`` and ``labelsTs`` are the held-out cases; the cases and their names."""
    names = [path.name.removesuffix(".nii.gz") for path in sorted((source / "imagesTr").glob("hippocampus_*.nii.gz"))]
    held_out = make_split(names)
    cases = {n: (source / "imagesTr" / f"{n}.nii.gz", source / "labelsTr" / f"{n}.nii.gz") for n in names}
    shutil.rmtree(target, ignore_errors=True)
    entries: dict[str, list[dict[str, str]]] = {"training": [], "test": []}
    for name, files in cases.items():
        part, key = ("Ts", "test") if name in held_out else ("Tr", "training")
        for kind, file in zip(("images", "labels"), files, strict=True):
            place = target / f"{kind}{part}" / file.name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
        entries[key].append({k: f"./{k}s{part}/{name}.nii.gz" for k in ("image", "label")})
    description = json.loads((source / "dataset.json").read_text())
    counts = {"numTraining": len(entries["training"]), "numTest": len(entries["test"])}
    (target / "dataset.json").write_text(json.dumps({**description, **entries, **counts}))
    return cases, held_out


def judge(answers: Path, cases: dict[str, tuple[Path, Path]], names: list[str]) -> dict[str, list[float]]:
    """Dice of the label maps in a folder, by structure and case."""
    found: dict[str, list[float]] = {structure: [] for structure in STRUCTURES}
    for name in names:
        pred, truth = (read_image(path).data[0] for path in (answers / f"{name}.nii.gz", cases[name][1]))
        for value, structure in enumerate(STRUCTURES, 1):
            found[structure].append(dice(pred == value, truth == value))
    return found


def run_peer(
    arguments: argparse.Namespace, cases: dict[str, tuple[Path, Path]], held_out: set[str], batch: int | None
) -> dict[str, Any]:
    """nnU-Net for the same time on the same cases; its Dice with and without flips."""
    folder = arguments.output / f"nnunet-{arguments.minutes:g}m-{arguments.seed}-batch{batch or 'own'}"
    result = folder / "result.json"
    if result.exists():
        found: dict[str, Any] = json.loads(result.read_text())
        return found
    peer = Peer(arguments.peer.resolve(), folder.resolve(), arguments.threads, arguments.seed)
    peer.write_dataset(cases, STRUCTURES, held_out)
    before = busy()
    found = {"load": before, **peer.train(60 * arguments.minutes, batch=batch)}
    for key, flips in (("plain", False), ("flips", True)):
        answers = peer.folder / f"answers-{key}"
        found[f"{key}_s"] = peer.predict(answers, flips=flips)
        found[key] = judge(answers, cases, sorted(held_out))
    result.write_text(json.dumps(found))
    return found


def better_of(found: dict[str, Any]) -> str:
    """Whether nnU-Net is better with flips or without; the better one is what we compare with."""
    return max(("flips", "plain"), key=lambda key: float(np.mean([found[key][name] for name in STRUCTURES])))


def tell_ours(ours: Trained, minutes: float, names: list[str]) -> None:
    """Our figures."""
    for structure, floor, field in zip(STRUCTURES, FLOOR, FIELD, strict=True):
        told = shown(ours.classes[structure]["dice"])
        print(
            f"Sagittal   {structure:10s} Dice {told}   (asked {floor:.2f} in 30 min on 2 cores; field {field:.3f} on a GPU)"
        )
    if sorted(ours.rows["case"]) != names:
        print(f"NOT all held-out cases were judged: {len(ours.rows)} of {len(names)}")
    share = ours.seconds / (60 * minutes)
    print(f"Sagittal   {ours.seconds:.0f} s = {share:.0%} of the budget, {ours.processor_s:.0f} processor s; ", end="")
    print(f"evaluating {ours.evaluate_s:.0f} s; {network_of(ours.plan)}")


def tell_peer(found: dict[str, Any], ours: Trained | None, minutes: float, names: list[str]) -> dict[str, Any]:
    """Its figures, the difference and the times."""
    title = f"nnU-Net, batch {found['batch']}"
    for key in ("plain", "flips"):
        each = [f"{name} {mean_with_interval(found[key][name], names)}" for name in STRUCTURES]
        print(f"{title}, {key:5s}  {'; '.join(each)}   predicting {found[f'{key}_s']:.0f} s")
    share = found["seconds"] / (60 * minutes)
    print(
        f"{title}: {found['seconds']:.0f} s = {share:.0%} of the time, {found['prepare_s']:.0f} s of them planning; "
        f"{found['iterations']} iterations of {found['s_per_iteration']:.2f} s wall, {found['processor_s']:.0f} processor s "
        f"({found['load']} before it)"
    )
    if ours is None:
        return {}
    told: dict[str, Any] = {}
    which = better_of(found)
    theirs = np.mean([found[which][name] for name in STRUCTURES], axis=0)
    mine = np.mean([ours.values(name).loc[names].to_numpy() for name in STRUCTURES], axis=0)
    difference = mean_with_interval(mine - theirs, names)
    told["difference"] = difference.to_json()
    print(f"mean Dice: Sagittal {mine.mean():.3f}, {title}, {which} {theirs.mean():.3f}, difference {difference}")
    reached = first_at(ours.curve, float(theirs.mean()))
    if reached is None:
        print("our validation score never reaches nnU-Net's held-out score")
    else:
        told["reached_s"], told["times_faster"] = reached, found["seconds"] / reached
        print(
            f"our validation score reaches nnU-Net's after {reached:.0f} s: {told['times_faster']:.1f} times faster (rough)"
        )
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--threads", type=int, default=2, help="of each program")
    parser.add_argument("--seed", type=int, default=0, help="of training; the split is fixed")
    parser.add_argument("--peer", type=Path, help="virtual environment with nnunetv2")
    parser.add_argument(
        "--peer-batch",
        type=int,
        nargs="+",
        default=[0],
        help="windows of a step of nnU-Net, 0 as it plans; one run each",
    )
    parser.add_argument("--only-peer", action="store_true", help="leave Sagittal out")
    parser.add_argument("--ladder", type=float, nargs="*", default=[], help="shorter budgets of ours as well, minutes")
    parser.add_argument("--output", type=Path, default=Path("runs/hippocampus"))
    parser.add_argument("--json", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    source = arguments.output / "data"
    cases, held_out = write_folder(DATA / "hippocampus", source)
    names = sorted(held_out)
    print(f"{describe()}; {arguments.minutes:g} min, {arguments.threads} thread(s), seed {arguments.seed}, {busy()}")
    print(f"{len(cases) - len(held_out)} training cases, {len(held_out)} held out", flush=True)

    figures: dict[str, Any] = {"minutes": arguments.minutes, "threads": arguments.threads, "seed": arguments.seed}
    options = {"threads": arguments.threads, "seed": arguments.seed}
    ours = None
    if not arguments.only_peer:
        for minutes in (*arguments.ladder, arguments.minutes):
            folder = arguments.output / f"ours-{minutes:g}m-{arguments.seed}"
            ours = train_and_test([source], folder, minutes=minutes, **options)
            figures[f"ours {minutes:g}m"] = {
                "seconds": ours.seconds,
                "processor_s": ours.processor_s,
                "dice": {name: ours.classes[name]["dice"] for name in STRUCTURES},
            }
            print(f"\nbudget {minutes:g} min")
            tell_ours(ours, minutes, names)
    if arguments.peer is not None:
        for batch in arguments.peer_batch:
            print(flush=True)
            found = run_peer(arguments, cases, held_out, batch or None)
            told = tell_peer(found, ours, arguments.minutes, names)
            figures[f"nnU-Net batch {found['batch']}"] = {**found, **told}
            mean = float(np.mean([found[better_of(found)][name] for name in STRUCTURES]))
            for minutes in arguments.ladder:
                mine = np.mean([figures[f"ours {minutes:g}m"]["dice"][name]["value"] for name in STRUCTURES])
                if mine >= mean:
                    ratio = found["seconds"] / figures[f"ours {minutes:g}m"]["seconds"]
                    print(
                        f"a budget of {minutes:g} min passes it on the held-out cases ({mine:.3f}): {ratio:.1f} times faster"
                    )
                    break
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
