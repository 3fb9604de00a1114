"""COCO's twelve numbers of a made set: Sagittal and pycocotools in one run, equal values; and a bootstrap over patients.

    python benchmarks/detection_metrics.py --images 5000 --classes 80

The set is like COCO's validation split: 7 objects an image, up to 100 predictions an image. Timed from boxes in memory in the
form that each wants to the numbers; making pycocotools' index and its table of results is timed apart, and so is gathering
ours. A value that differs ends the script with an error. The aim is a ratio of at least 1.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import time
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from machine import describe
from sagittal.metrics.boxes import gather
from sagittal.metrics.detection import IOU, ap_estimates, coco_summary, match
from sagittal.metrics.froc import froc_estimates, hits_by_iou
from sagittal.truth import Boxes

NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")  # fmt: skip

Image = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def make(images: int, classes: int, dets: int) -> list[Image]:
    """For each image, truth (x, y, w, h), its classes, predictions, their classes and scores."""
    rng = np.random.default_rng(0)
    out = []
    for _ in range(images):
        n = int(rng.poisson(7))
        truth = np.column_stack([rng.uniform(0, 500, (n, 2)), np.exp(rng.normal(4, 0.9, (n, 2)))])
        label = rng.integers(0, classes, n)
        near = np.repeat(np.arange(n), rng.poisson(2, n))[:dets]
        pred = truth[near] * np.exp(rng.normal(0, 0.12, (len(near), 4)))
        stray = int(rng.integers(0, dets - len(near) + 1))
        pred = np.concatenate(
            [pred, np.column_stack([rng.uniform(0, 500, (stray, 2)), np.exp(rng.normal(4, 0.9, (stray, 2)))])]
        )
        guess = np.concatenate([label[near], rng.integers(0, classes, stray)])
        score = np.concatenate([rng.beta(4, 2, len(near)), rng.beta(1, 6, stray)])
        out.append((truth, label, pred, guess, score))
    return out


def corners(xywh: np.ndarray) -> np.ndarray:
    low = np.column_stack([xywh[:, :2] - 0.5, np.full(len(xywh), -0.5)])
    return np.stack([low, low + np.column_stack([xywh[:, 2:], np.ones(len(xywh))])], axis=1)


def theirs(data: list[Image], classes: int) -> tuple[float, float, np.ndarray]:
    """Seconds to load, seconds to evaluate, the numbers."""
    objects: list[dict[str, Any]] = []
    rows = []
    for image, (truth, label, pred, guess, score) in enumerate(data, start=1):
        for box, c in zip(truth.tolist(), label.tolist(), strict=True):
            objects.append({"id": len(objects) + 1, "image_id": image, "category_id": c + 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0})  # fmt: skip
        rows.append(np.column_stack([np.full(len(pred), image), pred, score, guess + 1]))
    with contextlib.redirect_stdout(io.StringIO()):
        start = time.perf_counter()
        known = COCO()
        known.dataset = {
            "images": [{"id": n + 1} for n in range(len(data))],
            "categories": [{"id": n + 1} for n in range(classes)],
            "annotations": objects,
        }
        known.createIndex()
        results = known.loadRes(np.concatenate(rows))
        loaded = time.perf_counter()
        evaluation = COCOeval(known, results, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return loaded - start, time.perf_counter() - loaded, np.where(evaluation.stats == -1, np.nan, evaluation.stats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--dets", type=int, default=100, help="predictions an image, at most")
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap; 0 leaves it out")
    arguments = parser.parse_args()
    data = make(arguments.images, arguments.classes, arguments.dets)
    dets, objects = sum(len(d[2]) for d in data), sum(len(d[0]) for d in data)
    print(describe())
    print(f"{arguments.images} images, {arguments.classes} classes, {objects} objects, {dets} predictions")
    pred = [(Boxes(corners(p), g), s) for _, _, p, g, s in data]
    truth = [Boxes(corners(t), c) for t, c, *_ in data]
    start = time.perf_counter()
    boxes = gather(pred, truth, classes=arguments.classes)
    gathered = time.perf_counter()
    ours = coco_summary(boxes)
    our_s, gather_s = time.perf_counter() - gathered, gathered - start
    load_s, their_s, expected = theirs(data, arguments.classes)
    print(f"pycocotools: {load_s:6.2f} s to load, {their_s:7.2f} s to evaluate")
    print(f"sagittal:    {gather_s:6.2f} s to gather, {our_s:5.2f} s to evaluate")
    print(f"ratio:       {their_s / our_s:.1f} (evaluation), {(load_s + their_s) / (gather_s + our_s):.1f} (both)")
    got = np.array([ours[name] for name in NAMES])
    print("values:      " + ", ".join(f"{name} {value:.4f}" for name, value in ours.items()))
    print(f"             largest difference {np.nanmax(np.abs(got - expected)):.1e}")
    if not np.allclose(got, expected, rtol=0, atol=1e-9, equal_nan=True):
        sys.exit("values differ")
    if arguments.resamples:
        patients = [n // 2 for n in range(arguments.images)]
        start = time.perf_counter()
        matches = match(boxes, iou=(IOU[0], IOU[1], 0.5, 0.75))
        found = ap_estimates(matches, patients, resamples=arguments.resamples)
        print(
            f"intervals:   {time.perf_counter() - start:.1f} s for {arguments.resamples} resamples of AP at .1 .3 .5 .75"
        )
        start = time.perf_counter()
        found["cpm"] = froc_estimates(hits_by_iou(boxes), patients, resamples=arguments.resamples)["cpm"]
        print(f"             {time.perf_counter() - start:.1f} s for {arguments.resamples} resamples of FROC and CPM")
        for name, estimate in found.items():
            print(f"             {name} {estimate}")


if __name__ == "__main__":
    main()
