"""How long a plain loop needs for the score that Sagittal reaches: ResNet-18, Adam, the recipe of MedMNIST v2.

    python benchmarks/reference_loop.py --set pneumoniamnist --run runs/medmnist/pneumoniamnist-0 --limit 1200

The reference is what a researcher writes first: torchvision's ResNet-18 shape adapted to 28 px (3 x 3 stem, as in the
published MedMNIST code), Adam at 1e-3, batch 128, cross-entropy, the rate divided by ten at half and three quarters of 100
epochs, the checkpoint with the best validation AUC kept. Both are compared on the *validation* split by the AUC that each
has reached by then; the test split is not looked at. Sagittal's own time to that score is read from its run's log.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from pathlib import Path

import numpy as np
import torch
from monai.networks.nets import ResNet
from sklearn.metrics import roc_auc_score

from machine import describe

DATA = Path(os.environ.get("SAGITTAL_BENCH_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def reference(name: str, target: float, limit_s: float) -> tuple[float, float, int]:
    """Train until validation reaches `target`: (seconds, best AUC, epochs)."""
    torch.manual_seed(0)
    arrays = np.load(DATA / "medmnist" / f"{name}.npz", allow_pickle=False)
    flat = arrays["train_images"].ndim == 3

    def tensors(split: str) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.from_numpy(arrays[f"{split}_images"]).float() / 255
        return (images[:, None] - 0.5) / 0.5, torch.from_numpy(arrays[f"{split}_labels"][:, 0]).long()

    image, label = tensors("train")
    val_image, val_label = tensors("val")
    network = ResNet(
        "basic", [2, 2, 2, 2], [64, 128, 256, 512], spatial_dims=2 if flat else 3, n_input_channels=1,
        num_classes=2, conv1_t_size=3, conv1_t_stride=1, no_max_pool=True,
    )  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[50, 75], gamma=0.1)
    start, best = time.perf_counter(), 0.0
    for epoch in range(100):
        network.train()
        order = torch.randperm(len(image))
        for rows in order.split(128):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(image[rows]), label[rows]).backward()
            optimizer.step()
            if time.perf_counter() - start > limit_s:
                return time.perf_counter() - start, best, epoch
        scheduler.step()
        network.eval()
        with torch.no_grad():
            scores = torch.cat([network(part).softmax(1)[:, 1] for part in val_image.split(256)])
        best = max(best, float(roc_auc_score(val_label, scores)))
        if best >= target:
            return time.perf_counter() - start, best, epoch + 1
    return time.perf_counter() - start, best, 100


def ours(run: Path, target: float) -> tuple[float, float]:
    """Seconds of training until one member's own validation cases gave that AUC, and the best AUC of any member."""
    seconds, best, finished, member = 0.0, 0.0, 0.0, None
    with (run / "results.csv").open() as file:
        for row in csv.DictReader(file):
            if row["member"] != member:
                finished, member = seconds, row["member"]
            seconds = finished + float(row["seconds"])
            best = max(best, float(row["val_auc"]))
            if best >= target:
                return seconds, best
    return float("inf"), best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", default="breastmnist")
    parser.add_argument("--run", type=Path, required=True, help="a finished run of sagittal on the same set")
    parser.add_argument("--target", type=float, required=True, help="validation AUC that both must reach")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds after which the reference is stopped")
    arguments = parser.parse_args()
    print(f"{describe()}, {torch.get_num_threads()} threads; {arguments.set}, validation AUC {arguments.target}")
    our_s, our_best = ours(arguments.run, arguments.target)
    print(f"sagittal:  {our_s:8.0f} s of training (best {our_best:.3f})")
    their_s, their_best, epochs = reference(arguments.set, arguments.target, arguments.limit)
    reached = their_best >= arguments.target
    print(f"reference: {their_s:8.0f} s, {epochs} epochs (best {their_best:.3f}){'' if reached else ': not reached'}")
    print(f"ratio: {'' if reached else 'more than '}{their_s / our_s:.1f}")


if __name__ == "__main__":
    main()
