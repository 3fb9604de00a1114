"""Windows per second of the training data path: Sagittal and the same MONAI dictionary transforms, in one process.

    python benchmarks/training_path.py --windows 40

Each draws windows around foreground or background, turns, scales and mirrors them, adds noise, and changes brightness and
contrast; each does so with the same probabilities and strengths, to the image (linear) and its labels (nearest). Both start
from arrays in memory. Threads: one. What comes out is compared in kind: shapes, label values, part of the windows with
foreground, mean and deviation of the image. The time is that of the processor, so that other work on the machine counts
little. The aim is a ratio of at least 10 for large volumes.

Two differences remain, in what is drawn and not in what is done: MONAI turns about all three axes of a volume at once where
Sagittal turns a window in one random plane, and MONAI's random crop looks for the foreground in every call where Sagittal
keeps places of it with the store.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from machine import describe
from sagittal.case import Case, ImageSource
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.labels import LabelScheme
from sagittal.prepare.place_store import build_place_store
from sagittal.prepare.plan import AugmentPlan, InputPlan, Plan, PreparePlan, TrainPlan
from sagittal.tasks.segment import Segment
from sagittal.train.windows import WindowBatches
from sagittal.truth import Segmentation, SegmentationSource, Structure

SCHEME = LabelScheme("structures", ("organ", "lesion"))
ROTATE_DEG, SCALE, NOISE, CONTRAST, BRIGHTNESS = 15.0, 0.2, 0.1, 0.25, 0.1
#: Name -> size of the volume and of the window, both in network order.
SETS = {
    "CT 100 x 256 x 256, window 96": ((100, 256, 256), (96, 96, 96)),
    "CT 100 x 256 x 256, window 64 x 128 x 128": ((100, 256, 256), (64, 128, 128)),
    "hippocampus 36 x 50 x 35, window 32 x 48 x 32": ((36, 50, 35), (32, 48, 32)),
}

Windows = Iterator[tuple[torch.Tensor, torch.Tensor]]


def volumes(size: tuple[int, ...], count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Noise with an ellipsoid organ that holds a small lesion."""
    made = []
    grid = np.meshgrid(*[np.linspace(-1, 1, n, dtype=np.float32) for n in size], indexing="ij")
    for seed in range(count):
        rng = np.random.default_rng(seed)
        middle = rng.uniform(-0.2, 0.2, 3)
        radius = sum((g - m) ** 2 for g, m in zip(grid, middle, strict=True))
        label = (radius < 0.2).astype(np.uint8) + (radius < 0.015)
        image = rng.normal(0, 0.3, size).astype(np.float32) + label
        made.append((image, label.astype(np.uint8)))
    return made


def ours(data: list[tuple[np.ndarray, np.ndarray]], window: tuple[int, ...], folder: Path) -> Windows:
    """Windows as a training step of Sagittal draws them."""
    plan = Plan(
        SCHEME,
        task="segment",
        input=InputPlan(dimensions=3),
        prepare=PreparePlan(size=window, whole=False),
        augment=AugmentPlan(
            (0, 1, 2), rotate_deg=ROTATE_DEG, scale=SCALE, noise=NOISE, contrast=CONTRAST, brightness=BRIGHTNESS
        ),
        train=TrainPlan(batch=2, foreground=0.5),
    )
    task = Segment(SCHEME)
    store = build_place_store([to_case(n, *pair) for n, pair in enumerate(data)], plan, task, folder)
    batches = WindowBatches(store, plan, task, torch.device("cpu"))
    for step in range(10**6):
        batch = batches.training(np.arange(len(data)), 0, 0, step)
        yield from zip(batch.image, batch.target[:, None], strict=True)


def to_case(number: int, image: np.ndarray, label: np.ndarray) -> Case:
    grid = Grid(image.shape[::-1], np.eye(4))
    structures = (Structure("organ", (1,)), Structure("lesion", (2,)))
    return Case(
        f"c{number}",
        f"p{number}",
        {"image": ImageSource(lambda: Image(image.T[None], grid))},
        truth=SegmentationSource(lambda: Segmentation(label.T[None], grid, structures)),
    )


def monai(data: list[tuple[np.ndarray, np.ndarray]], window: tuple[int, ...]) -> Windows:
    from monai import transforms as t

    both, turn = ["image", "label"], np.deg2rad(ROTATE_DEG)
    steps = t.Compose(
        [
            t.RandCropByPosNegLabeld(both, label_key="label", spatial_size=window, pos=1, neg=1, num_samples=1),
            t.RandAffined(
                both,
                prob=1.0,
                rotate_range=[turn] * 3,
                scale_range=[SCALE] * 3,
                mode=("bilinear", "nearest"),
                padding_mode="border",
            ),
            *[t.RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in range(3)],
            t.RandGaussianNoised("image", prob=0.5, std=NOISE),
            t.RandScaleIntensityd("image", factors=CONTRAST, prob=0.5),
            t.RandShiftIntensityd("image", offsets=BRIGHTNESS, prob=0.5),
        ]
    )
    steps.set_random_state(0)
    held = [{"image": torch.from_numpy(i)[None], "label": torch.from_numpy(m)[None]} for i, m in data]
    for step in range(10**6):
        made = steps(held[step % len(held)])[0]
        yield made["image"].as_tensor(), made["label"].as_tensor()


def measure(windows: Windows, count: int) -> tuple[float, dict[str, float], tuple[int, ...]]:
    """Seconds of one window, and what the windows are like."""
    next(windows)
    next(windows)
    facts: list[tuple[float, ...]] = []
    shape: tuple[int, ...] = ()
    spent = 0.0
    for _ in range(count):
        start = time.process_time()
        image, label = next(windows)
        spent += time.process_time() - start
        known = label != 255
        inside = image[(label > 0) & known]
        there = float(bool(((label > 0) & known).any()))
        facts.append((float(image.mean()), float(image.std()), there, float(inside.mean()) if there else np.nan))
        if set(torch.unique(label[known]).tolist()) - {0, 1, 2}:
            sys.exit("labels hold values that no structure has")
        shape = tuple(image.shape)
    mean, std, foreground, inside_mean = np.nanmean(facts, axis=0)
    return spent / count, {"mean": mean, "std": std, "foreground": foreground, "inside": inside_mean}, shape


def compare(one: dict[str, float], other: dict[str, float]) -> None:
    """End with an error where the windows of the two differ in kind."""
    for name, allowed in {"mean": 0.12, "std": 0.12, "foreground": 0.3, "inside": 0.15}.items():
        if abs(one[name] - other[name]) > allowed:
            sys.exit(f"the windows differ in kind: {name} is {one[name]:.3f} and {other[name]:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--volumes", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(describe())
    print(f"{'':46s}{'Sagittal':>12s}{'MONAI':>12s}{'ratio':>8s}")
    for name, (size, window) in SETS.items():
        data = volumes(size, arguments.volumes)
        with TemporaryDirectory() as folder:
            makers: list[Callable[[], Windows]] = [
                lambda data=data, window=window, folder=folder: ours(data, window, Path(folder)),
                lambda data=data, window=window: monai(data, window),
            ]
            seconds = [[], []]
            for _ in range(arguments.repeats):  # by turns, so that a busy moment hits both
                facts = []
                for k, make in enumerate(makers):
                    spent, found, shape = measure(make(), arguments.windows)
                    if shape != (1, *window):
                        sys.exit(f"a window has the shape {shape}, not {(1, *window)}")
                    seconds[k].append(spent)
                    facts.append(found)
                compare(*facts)
        fast, slow = (float(np.median(s)) for s in seconds)
        print(f"{name:46s}{1 / fast:10.1f}/s{1 / slow:10.1f}/s{slow / fast:8.1f}")


if __name__ == "__main__":
    main()
