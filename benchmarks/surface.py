"""HD95 and surface Dice of two masks: Sagittal, MONAI and surface-distance in one run, equal values.

    python benchmarks/surface.py --size 256 --repeats 3

Pairs of masks as they come: a bumpy organ and one that is a voxel or two off; a thin tube; many small lesions; an answer far
from the truth; noise. Each measure is that of its definition: elements by area against surface-distance (and MONAI's
surface Dice of subvoxels), voxels against MONAI. The ratio is their time over ours for both numbers; a value that differs
ends the script with an error. The aim is a ratio of at least 4 for the organ at 256.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable

import monai.metrics
import numpy as np
import surface_distance
import torch
from scipy import ndimage

from machine import describe
from sagittal.metrics.surface import surface_distances

SPACING = (0.7, 0.7, 2.5)
TOLERANCE = 1.03

Pair = tuple[np.ndarray, np.ndarray]


def coordinates(n: int) -> list[np.ndarray]:
    return np.meshgrid(*[np.linspace(-1, 1, n, dtype=np.float32)] * 3, indexing="ij")


def organ(n: int, shift: float = 0.0, swell: float = 1.0) -> np.ndarray:
    x, y, z = coordinates(n)
    x = x - shift
    radius, turn = np.sqrt(x**2 + y**2 + z**2), np.arctan2(y, x)
    tilt = np.arctan2(np.hypot(x, y), z)
    return radius < 0.66 * swell * (1 + 0.08 * np.sin(5 * turn) * np.sin(3 * tilt) + 0.03 * np.sin(11 * tilt))


def tube(n: int, width: float) -> np.ndarray:
    x, y, z = coordinates(n)
    return np.hypot(x - 0.4 * np.sin(4 * z), y - 0.4 * np.cos(5 * z)) < width


def lesions(n: int, seed: int, count: int = 300) -> np.ndarray:
    seeds = np.ones((n, n, n), dtype=bool)
    seeds[tuple(np.random.default_rng(seed).integers(n, size=(3, count)))] = False
    return np.asarray(ndimage.distance_transform_edt(seeds) < 3)


def pairs(n: int) -> dict[str, Pair]:
    rng = np.random.default_rng(0)
    blob = organ(n)
    far = np.zeros_like(blob)
    far[: n // 16, : n // 16, : n // 16] = True
    return {
        "organ, a voxel off": (organ(n, 0.02, 1.005), blob),
        "organ, equal": (blob, blob),
        "tube": (tube(n, 0.05), tube(n, 0.06)),
        "300 lesions": (lesions(n, 1), lesions(n, 2)),
        "far off": (far, blob),
        "noise": (rng.random((n, n, n)) < 0.5, rng.random((n, n, n)) < 0.5),
    }


def ours(pred: np.ndarray, truth: np.ndarray, elements: str) -> tuple[float, float]:
    distances = surface_distances(pred, truth, SPACING, elements=elements)  # type: ignore[arg-type]
    return distances.hd(95), distances.surface_dice(TOLERANCE)


def theirs_by_area(pred: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    distances = surface_distance.compute_surface_distances(truth, pred, SPACING)
    return (
        float(surface_distance.compute_robust_hausdorff(distances, 95)),
        float(surface_distance.compute_surface_dice_at_tolerance(distances, TOLERANCE)),
    )


def theirs_by_voxel(pred: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    masks = [torch.from_numpy(mask)[None, None] for mask in (pred, truth)]
    options = {"include_background": True, "spacing": SPACING}
    hd95 = monai.metrics.compute_hausdorff_distance(*masks, percentile=95, **options)
    dice = monai.metrics.compute_surface_dice(*masks, [TOLERANCE], **options)
    return float(hd95), float(dice)


def timed(measure: Callable[[], tuple[float, float]], repeats: int) -> tuple[float, tuple[float, float]]:
    """Best of some runs in seconds, and the answer."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        answer = measure()
        best = min(best, time.perf_counter() - start)
    return best, answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3, help="the best counts; noise is run once")
    parser.add_argument("--only", default="", help="only pairs whose name holds this")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{describe()}, {len(os.sched_getaffinity(0))} usable; {arguments.size} cubed, spacing {SPACING} mm")
    print(f"HD95 and surface Dice at {TOLERANCE} mm; seconds for both")
    print(
        f"{'pair':20s} {'definition':10s} {'peer':16s} {'peer s':>8s} {'ours s':>8s} {'ratio':>7s}   HD95, surface Dice"
    )
    wrong = 0
    for name, (pred, truth) in pairs(arguments.size).items():
        if arguments.only not in name:
            continue
        repeats = 1 if name == "noise" else arguments.repeats
        for elements, peer, measure in (
            ("area", "surface-distance", theirs_by_area),
            ("voxel", "MONAI", theirs_by_voxel),
        ):
            our_s, answer = timed(lambda e=elements, p=pred, t=truth: ours(p, t, e), repeats)  # type: ignore[misc]
            try:
                their_s, expected = timed(lambda m=measure, p=pred, t=truth: m(p, t), repeats)  # type: ignore[misc]
            except (RuntimeError, MemoryError, AttributeError) as error:
                print(
                    f"{name:20s} {elements:10s} {peer:16s} {'-':>8s} {our_s:8.3f} {'-':>7s}   fails: {str(error)[:60]}"
                )
                continue
            same = np.allclose(answer, expected, rtol=1e-5)
            wrong += not same
            said = f"{answer[0]:.3f}, {answer[1]:.4f}" + ("" if same else f"  DIFFERS: {expected}")
            print(
                f"{name:20s} {elements:10s} {peer:16s} {their_s:8.3f} {our_s:8.3f} {their_s / our_s:7.1f}   {said}",
                flush=True,
            )
    if wrong:
        sys.exit(f"{wrong} values differ")


if __name__ == "__main__":
    main()
