"""Peak memory of predicting a large study with many structures, from file to mask, in a process of its own.

    python benchmarks/predict_memory.py                                  # 512 x 512 x 600, 20 structures, two plans
    python benchmarks/predict_memory.py --shape 160 160 90 --structures 5

A CT of noise is written as NIfTI (0.75 x 0.75 x 1 mm, int16). A package with a residual U-Net of random weights is loaded in
a child process and predicts it from the file: once planned at 1.5 mm, once at the study's own spacing. The peak is the
child's ``ru_maxrss``, imports and torch included; beside it that of a child which only imports.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

from machine import describe


def write_study(path: Path, shape: tuple[int, int, int]) -> None:
    """Noise around a body, slice by slice, so that this process stays small."""
    import nibabel

    rng = np.random.default_rng(0)
    i, j = np.meshgrid(np.linspace(-1, 1, shape[0]), np.linspace(-1, 1, shape[1]), indexing="ij")
    body = (i**2 + j**2 < 0.8)[..., None]
    values = np.lib.format.open_memmap(path.with_suffix(".npy"), "w+", np.int16, shape)
    for k in range(0, shape[2], 10):
        part = values[:, :, k : k + 10]
        part[...] = np.where(body, rng.normal(40, 60, part.shape), -1000)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-0.75, -0.75, 1.0, 1.0])), path)
    path.with_suffix(".npy").unlink()


def predict(path: Path, structures: int, spacing: float, patch: int, threads: int, engine: str) -> dict[str, float]:
    """Predict the study here; what it took."""
    import torch

    from sagittal.case import Case, ImageSource
    from sagittal.formats.nifti import read_nifti
    from sagittal.labels import LabelScheme
    from sagittal.model.place_predictor import PlacePredictor
    from sagittal.networks.heads import build_network
    from sagittal.prepare.plan import DecidePlan, InputPlan, NetworkPlan, Plan, PreparePlan
    from sagittal.tasks.registry import make_place_task

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    plan = Plan(
        LabelScheme("structures", tuple(f"organ {n}" for n in range(structures))),
        task="segment",
        input=InputPlan(dimensions=3),
        prepare=PreparePlan(
            size=(patch,) * 3,
            spacing_mm=(spacing,) * 3 if spacing else None,
            whole=False,
            clip=(-900.0, 300.0),
            offset=(0.0,),
            scale=(200.0,),
            store="float16",
        ),
        network=NetworkPlan(
            name="unet", width=32, depth=(1, 1, 1, 1), strides=((2,) * 3,) * 4, kernels=((3,) * 3,) * 4
        ),
        decide=DecidePlan(overlap=0.25, clean=False),
    )
    task = make_place_task(plan)
    network = build_network(plan.network, channels=1, dimensions=3, head=task.head).eval()
    # Random weights alone would answer noise; so most is background, with structures in pockets.
    network.register_forward_hook(lambda module, inputs, logits: _mostly_background(logits))
    device = torch.device("cpu")
    predictor = PlacePredictor(plan, task, (network,), (1.0,), {}, None, "benchmark", device, engine)
    start = time.perf_counter()
    answer = predictor.predict(Case("large", "p", {"image": ImageSource(lambda: read_nifti(path))}))
    return {"seconds": time.perf_counter() - start, "structures": len(answer.decision)}


def _mostly_background(logits: Tensor) -> Tensor:
    import torch

    return torch.cat([logits[:, :1] + 0.3, logits[:, 1:]], dim=1)


def child(arguments: list[str]) -> dict[str, float]:
    """Run this script in a process of its own."""
    command = [sys.executable, __file__, "--child", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": done.returncode, "message": done.stderr.strip().splitlines()[-1:]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Write, predict in children, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 600))
    parser.add_argument("--structures", type=int, default=20)
    parser.add_argument("--patch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--spacing", type=float, nargs="*", default=[1.5, 0.0], help="mm; 0 for the study's own")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        found: dict[str, float] = {}
        if options.spacing:
            found = predict(
                options.child, options.structures, options.spacing[0], options.patch, options.threads, options.engine
            )
        else:
            import torch  # noqa: F401

            import sagittal.model.place_predictor  # noqa: F401
        found["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps(found))
        return
    print(describe())
    print(f"{' x '.join(map(str, options.shape))}, {options.structures} structures, windows of {options.patch}^3")
    whole = 4 * (options.structures + 1) * math.prod(options.shape) / 2**30
    print(f"logits of every class on the study's grid would take {whole:.1f} GB")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "study.nii"
        # In a process of its own: a child's peak is never told as less than that of the parent it came from.
        writer = multiprocessing.get_context("spawn").Process(target=write_study, args=(path, tuple(options.shape)))
        writer.start()
        writer.join()
        shared = [
            "--structures",
            str(options.structures),
            "--patch",
            str(options.patch),
            "--threads",
            str(options.threads),
        ]
        print("imports alone:", child([str(path), *shared, "--spacing"]))
        for spacing in options.spacing:
            words = f"{spacing:g} mm" if spacing else "its own spacing"
            arguments = [str(path), *shared, "--engine", options.engine, "--spacing", str(spacing)]
            print(f"planned at {words}:", child(arguments))


if __name__ == "__main__":
    main()
