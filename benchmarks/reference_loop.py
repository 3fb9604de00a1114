"""How long a plain loop needs for the score that Sagittal reaches: ResNet-18, Adam, the recipe of MedMNIST v2.

    python benchmarks/reference_loop.py --set vesselmnist3d --budget 2m --limit 600

The reference is what a researcher writes first: a ResNet-18 with a 3 x 3 stem, Adam at 1e-3, batch 128, cross-entropy,
the rate divided by ten at half and three quarters of 100 epochs, the checkpoint with the best validation AUC kept. Both
learn from the official training split and are judged on the official *validation* split; the test split is not looked at.
Sagittal's time is that of the whole command, from reading to the report; the reference's is its training alone, until its
best validation AUC equals Sagittal's. It stops at the limit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from monai.networks.nets import ResNet
from sklearn.metrics import roc_auc_score

from machine import describe

SAGITTAL = Path(sys.executable).with_name("sagittal")
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


def ours(name: str, budget: str, folder: Path) -> tuple[float, float]:
    """Seconds of the whole command, and the AUC on the official validation split."""
    environment = {**os.environ, "SAGITTAL_DATA": str(DATA / "medmnist")}
    command = [SAGITTAL, "train", f"medmnist:{name}", "--budget", budget, "--folds", "1", "-o", folder, "--overwrite"]
    start = time.perf_counter()
    subprocess.run([*command, "--quiet"], check=True, env=environment, capture_output=True)
    seconds = time.perf_counter() - start
    return seconds, float(json.loads((folder / "evidence.json").read_text())["overall"]["auc"]["value"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", default="vesselmnist3d")
    parser.add_argument("--budget", default="2m")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds after which the reference is stopped")
    parser.add_argument("--output", type=Path, default=Path("runs/reference"))
    arguments = parser.parse_args()
    print(f"{describe()}, {torch.get_num_threads()} threads; {arguments.set}, official validation split")
    our_s, our_auc = ours(arguments.set, arguments.budget, arguments.output)
    print(f"sagittal:  {our_s:6.0f} s, AUC {our_auc:.3f} (the whole command)")
    their_s, their_auc, epochs = reference(arguments.set, our_auc, arguments.limit)
    reached = their_auc >= our_auc
    print(f"reference: {their_s:6.0f} s, AUC {their_auc:.3f} after {epochs} epochs{'' if reached else ': not reached'}")
    print(f"ratio:     {'' if reached else 'more than '}{their_s / our_s:.1f}")


if __name__ == "__main__":
    main()
