"""Time inference by windows over a volume beside MONAI's sliding window, with the same network and weights, in one run.

    python benchmarks/windows.py                                     # 100 x 256 x 256, windows of 96^3, every engine
    python benchmarks/windows.py --shape 40 96 96 --patch 32 --train 20 --repeats 1

A residual U-Net is trained for a minute on phantoms (two kinds of ellipsoids in noise, labelled synthetic), so that answers
mean something. MONAI: ``sliding_window_inference`` in float32, overlap 0.5, Gaussian, the faster of one and two windows at
once. Sagittal: the predictor with its planned overlap of 0.25 and its own windows, each engine that is installed; nothing in
the volume is air. Both times include the label map; converting a network for an engine is done once for all studies and told
beside. Pure compute: the network in the same engine on the volume cut into blocks that do not overlap. Each is run once
unmeasured; seconds are medians of wall time. With ``--whole`` both answers are compared with that of the network on the whole
volume at once, which has no seams (9 GB of memory).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy import ndimage

from machine import describe
from sagittal.grid import Grid
from sagittal.labels import LabelScheme
from sagittal.model.engines import Engines, Parts, TorchEngine
from sagittal.model.place_predictor import PlacePredictor
from sagittal.networks.heads import build_network
from sagittal.prepare.lattice import Lattice
from sagittal.prepare.plan import DecidePlan, InputPlan, NetworkPlan, Plan, PreparePlan
from sagittal.prepare.volumes import PreparedVolume
from sagittal.tasks.registry import make_place_task

STRUCTURES = LabelScheme("structures", ("bright", "textured"))


def phantom(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Values (1, *shape) float32 and labels: bright ellipsoids, and such that only their texture sets apart."""
    labels = np.zeros(shape, np.uint8)
    axes = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij", sparse=True)
    for number in range(max(4, int(np.prod(shape) / 60_000))):
        centre, radii = rng.uniform(0, shape), rng.uniform(5, 14, 3)
        inside = sum(((a - c) / r) ** 2 for a, c, r in zip(axes, centre, radii, strict=True)) < 1
        labels[inside] = number % 2 + 1
    noise = rng.normal(size=shape).astype(np.float32)
    coarse = 2.5 * ndimage.gaussian_filter(noise, 1.2)
    values = np.where(labels == 2, coarse, noise) * 0.6 + (labels == 1) * 0.9
    return values[None].astype(np.float32), labels


def train(plan: Plan, seconds: float) -> torch.nn.Module:
    """The plan's network, trained on fresh phantoms for so long."""
    torch.manual_seed(0)
    rng, task = np.random.default_rng(0), make_place_task(plan)
    network = build_network(plan.network, channels=1, dimensions=3, head=task.head).train()
    optimiser = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=0.01)
    began, steps = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < seconds:
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * max(1 - spent / seconds, 0.02)
        pairs = [phantom((32, 32, 32), rng) for _ in range(2)]
        image = torch.from_numpy(np.stack([values for values, _ in pairs]))
        target = torch.from_numpy(np.stack([labels for _, labels in pairs]))
        loss = task.loss(network(image), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        steps += 1
    print(f"trained for {seconds:g} s, {steps} steps, loss {float(loss.detach()):.3f}")
    return network.eval()


def seconds_of(work: Callable[[], object], repeats: int) -> tuple[float, object]:
    """Median wall time after one unmeasured run, and what came out."""
    found = work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        found = work()
        times.append(time.perf_counter() - start)
    return statistics.median(times), found


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Mean over the structures."""
    values = []
    for label in range(1, len(STRUCTURES.classes) + 1):
        a, b = one == label, other == label
        values.append(2 * np.count_nonzero(a & b) / max(np.count_nonzero(a) + np.count_nonzero(b), 1))
    return float(np.mean(values))


def blocks(volume: torch.Tensor, most: int) -> list[torch.Tensor]:
    """The volume (1, 1, *size) cut into blocks of one size along rows and columns, without overlap."""
    parts = max(1, round((volume.numel() / most) ** 0.5))
    rows = volume.tensor_split(parts, dim=3)
    return [block.contiguous() for row in rows for block in row.tensor_split(parts, dim=4)]


def main() -> None:
    """Train, time and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(100, 256, 256))
    parser.add_argument("--patch", type=int, default=96)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--stem", type=int, default=1, help="by how much the first layer strides; 2 as planned on CPUs")
    parser.add_argument("--train", type=float, default=90, help="seconds")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--whole", action="store_true", help="compare both with the network on the volume at once, too")
    parser.add_argument("--engines", nargs="*", default=["torch", "openvino", "onnxruntime"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    from monai.inferers import sliding_window_inference

    print(describe(), f"{options.threads} threads")
    stem = (options.stem,) * 3
    plan = Plan(
        STRUCTURES,
        task="segment",
        input=InputPlan(dimensions=3),
        prepare=PreparePlan(size=(options.patch,) * 3, whole=False),
        network=NetworkPlan(
            name="unet",
            width=options.width,
            depth=(1, 1, 1, 1),
            strides=(stem, (2,) * 3, (2,) * 3, (2,) * 3),
            kernels=((3,) * 3,) * 4,
        ),
        decide=DecidePlan(overlap=0.25, clean=False),
    )
    network = train(plan, options.train)
    shape = tuple(options.shape)
    values, labels = phantom(shape, np.random.default_rng(1))
    grid = Grid(shape[::-1], np.diag([0.8, 0.8, 1.5, 1]))
    volume = PreparedVolume(values, np.zeros(0, np.float32), Lattice.of(grid, 3))
    image = torch.from_numpy(values[None])
    predictors = {}
    for name in options.engines:
        try:
            predictors[name] = PlacePredictor(
                plan, make_place_task(plan), (network,), (1.0,), {}, None, "benchmark", torch.device("cpu"), name
            )
        except ImportError as error:
            print(f"{name}: {error}")

    def monai(batch: int) -> np.ndarray:
        with torch.inference_mode():
            logits = sliding_window_inference(image, (options.patch,) * 3, batch, network, overlap=0.5, mode="gaussian")
            return logits.argmax(dim=1)[0].numpy()

    timed = {batch: seconds_of(lambda batch=batch: monai(batch), options.repeats) for batch in (1, 2)}
    batch = min(timed, key=lambda batch: timed[batch][0])
    theirs, answer = timed[batch]
    print(f"MONAI, {batch} windows at once: {theirs:.2f} s, Dice to the truth {dice(answer, labels):.4f}")
    whole = None
    if options.whole:
        with torch.inference_mode():
            whole = network(image).argmax(dim=1)[0].numpy()
        print(
            f"the volume at once: Dice to the truth {dice(whole, labels):.4f}, to MONAI's answer {dice(whole, answer):.4f}"
        )
    cut = blocks(image, options.patch**3 * 2)
    for name, predictor in predictors.items():
        start = time.perf_counter()
        predictor.find(volume)
        first = time.perf_counter() - start
        ours, mask = seconds_of(lambda p=predictor: p.find(volume), options.repeats)
        engine = Engines(network, torch.device("cpu"), name) if name != "torch" else None
        plain = TorchEngine(Parts(network, embed=False), torch.device("cpu"))
        run = plain.run if engine is None else engine.run
        pure = seconds_of(lambda run=run: [run(block) for block in cut], options.repeats)[0]
        found = mask.segmentation.layers[0].transpose(2, 1, 0)
        print(
            f"Sagittal, {name}: {ours:.2f} s (first run {first:.1f} s), {theirs / ours:.1f} times as fast; "
            f"Dice to MONAI's answer {dice(found, answer):.4f}, to the truth {dice(found, labels):.4f}"
            + ("" if whole is None else f", to that of the volume at once {dice(found, whole):.4f}")
            + f"; pure compute {pure:.2f} s, {ours / pure:.2f} of it; used: {[c.name for c in predictor.engines[0].values()] or ['torch']}"
        )
    layout = next(iter(predictors.values()))._lay_out(shape, 1.5)
    print(f"{layout.count} windows of {layout.window}, {layout.work:.2f} times the voxels")


if __name__ == "__main__":
    main()
