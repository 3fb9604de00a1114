"""Blood cells (BCCD): boxes of red cells, white cells and platelets, on the official train and val lists.

    python benchmarks/bccd.py --minutes 30 --threads 2
    python benchmarks/bccd.py --minutes 30 --threads 2 --seeds 0 1 2 --json figures.json

Training is ``sagittal train FOLDER --task detect --budget ...`` and sees the train list alone; the official val list is
held out under the name of a test list and looked at once, by ``sagittal evaluate --split test``. The average precision of
the evidence is computed again by pycocotools where that is installed. Two of the true boxes enclose nothing (one has no
area, one lies outside); they are left out of both, and counted here.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from machine import describe
from trained import DATA, busy, network_of, shown, train_and_test

#: Mean AP50 that this has to reach in 30 minutes on two cores, and what is published with COCO-pretrained GPU models.
FLOOR = 0.92
FIELD = (0.90, 0.95)
#: A plain centre-heat-map network from scratch at 320 x 240 in 15 minutes.
PLAIN = {"RBC": 0.85, "WBC": 0.99, "Platelets": 0.89}


def write_folder(source: Path, target: Path) -> None:
    """The VOC folder, its val list under the name of a test list."""
    shutil.rmtree(target, ignore_errors=True)
    for name in ("Annotations", "JPEGImages"):
        shutil.copytree(source / name, target / name)
    lists = target / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    shutil.copyfile(source / "ImageSets" / "Main" / "train.txt", lists / "train.txt")
    shutil.copyfile(source / "ImageSets" / "Main" / "val.txt", lists / "test.txt")


def by_pycocotools(rows: pd.DataFrame, classes: list[str]) -> float | None:
    """Mean AP at an IoU of one half from the boxes of the rows; ``None`` where pycocotools is not installed."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        return None
    images, truth, found = [], [], []
    for number, (true, pred) in enumerate(zip(rows["boxes_truth"], rows["boxes_found"], strict=True), start=1):
        images.append({"id": number})
        for one in json.loads(true):
            x, y, w, h = _xywh(one)
            entry = {"image_id": number, "category_id": classes.index(one["class"]) + 1, "bbox": [x, y, w, h]}
            truth.append({**entry, "id": len(truth) + 1, "area": w * h, "iscrowd": int(one["crowd"])})
        for one in json.loads(pred):
            entry = {"image_id": number, "category_id": classes.index(one["class"]) + 1, "bbox": list(_xywh(one))}
            found.append({**entry, "score": one["score"]})
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = {
            "images": images,
            "annotations": truth,
            "categories": [{"id": n + 1, "name": name} for n, name in enumerate(classes)],
        }
        known.createIndex()
        judged = COCOeval(known, known.loadRes(found), "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return float(judged.stats[1])


def _xywh(box: dict[str, Any]) -> tuple[float, float, float, float]:
    (left, top, _), (right, bottom, _) = box["low"], box["high"]
    return left, top, right - left, bottom - top


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--output", type=Path, default=Path("runs/bccd"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    folder = arguments.output / "data"
    if not folder.is_dir():
        write_folder(DATA / "bccd", folder)
    print(f"{describe()}; {busy()}; budget {arguments.minutes:g} min, {arguments.threads} threads\n")
    print(
        "| seed | mean AP50 (95 %) | each | AP75 | AP | pycocotools AP50 | sensitivity / precision | wall s | network |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    figures = []
    for seed in arguments.seeds:
        run = train_and_test(
            [folder],
            arguments.output / f"run-{seed}",
            minutes=arguments.minutes,
            threads=arguments.threads,
            seed=seed,
            score="val_ap50",
            task="detect",
        )
        classes = list(run.classes)
        again = by_pycocotools(run.rows, classes)
        each = {name: run.classes[name]["ap50"]["value"] for name in classes}
        overall = run.overall
        print(
            f"| {seed} | **{shown(overall['ap50'])}** | {', '.join(f'{n} {v:.3f}' for n, v in each.items())} "
            f"| {overall['ap75']['value']:.3f} | {overall['ap']['value']:.3f} "
            f"| {'not installed' if again is None else f'{again:.4f}'} "
            f"| {overall['sensitivity']['value']:.3f} / {overall['precision']['value']:.3f} "
            f"| {run.seconds:.0f} | {network_of(run.plan)} |"
        )
        left_out = int(run.rows["left_out"].sum())
        figures.append({"seed": seed, "ap50": overall["ap50"], "each": each, "left_out": left_out, "again": again})
    print(
        f"\nTo reach: {FLOOR:g}. The field: {FIELD[0]:g} to {FIELD[1]:g}. A plain heat map in 15 min: "
        f"{', '.join(f'{n} {v:g}' for n, v in PLAIN.items())}. True boxes that enclose nothing: {figures[0]['left_out']}."
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
