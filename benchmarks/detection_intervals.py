"""How often the intervals of AP and FROC hold the true value: sets drawn from a large one of which the value is known.

    python benchmarks/detection_intervals.py --images 200 --draws 200

AP of few objects is too high in expectation, the more so the fewer objects a class has; its interval is made for that, as far
as resampling shows it. FROC has no such bias.
"""

from __future__ import annotations

import argparse

import numpy as np

from detection_metrics import corners, make
from machine import describe
from sagittal.metrics.boxes import DetectionSet, gather
from sagittal.metrics.detection import ap_estimates, average_precision, class_mean, match
from sagittal.metrics.froc import cpm, froc_estimates, hits_by_iou
from sagittal.truth import Boxes

IOU = (0.3, 0.5)
NAMES = ("ap30", "ap50", "cpm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--draws", type=int, default=200, help="sets drawn for each number of classes")
    parser.add_argument("--resamples", type=int, default=500)
    parser.add_argument("--classes", type=int, nargs="+", default=[1, 3, 20])
    arguments = parser.parse_args()
    print(f"{describe()}; {arguments.draws} sets of {arguments.images} images, about 7 objects each; intervals of 95 %")
    for classes in arguments.classes:
        data = make(12000, classes, 20)
        pred = [(Boxes(corners(p), g), s) for _, _, p, g, s in data]
        truth = [Boxes(corners(t), c) for t, c, *_ in data]

        def draw(at: np.ndarray, n: int = classes, pred: list = pred, truth: list = truth) -> DetectionSet:
            return gather([pred[i] for i in at], [truth[i] for i in at], classes=n)

        whole = draw(np.arange(len(data)))
        true = [*class_mean(average_precision(match(whole, iou=IOU))), cpm(hits_by_iou(whole))]
        rng = np.random.default_rng(0)
        held, bias = np.zeros(3), np.zeros(3)
        for _ in range(arguments.draws):
            boxes = draw(rng.integers(0, len(data), arguments.images))
            found = ap_estimates(match(boxes, iou=IOU), range(arguments.images), resamples=arguments.resamples)
            found |= froc_estimates(hits_by_iou(boxes), range(arguments.images), resamples=arguments.resamples)
            for k, name in enumerate(NAMES):
                held[k] += found[name].low <= true[k] <= found[name].high
                bias[k] += found[name].value - true[k]
        for k, name in enumerate(NAMES):
            print(
                f"{classes:3d} classes  {name:5s} true {true[k]:.3f}, mean error {bias[k] / arguments.draws:+.3f}, "
                f"interval holds it in {held[k] / arguments.draws:.1%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
