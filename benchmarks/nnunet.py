"""nnU-Net v2 as a peer, in an environment of its own: train for a time, predict, and peak memory of predicting.

    python3.11 -m venv /tmp/peer
    /tmp/peer/bin/pip install torch==2.13.0+cpu
    /tmp/peer/bin/pip install --no-deps nnunetv2 dynamic-network-architectures acvl-utils batchgenerators batchgeneratorsv2
    /tmp/peer/bin/pip install einops blosc2 graphviz imagecodecs matplotlib nibabel pandas requests scikit-image scikit-learn \
        scipy seaborn SimpleITK tifffile tqdm yacs connected-components-3d future pillow threadpoolctl psutil
    python benchmarks/nnunet.py --environment /tmp/peer --predict-memory --limit-gb 16

(``--no-deps``, because its other networks ask for timm, that for torchvision, and that for CUDA; the U-Net needs none.)

The peer is nnU-Net as a user gets it: its own planner, network, sampling, augmentation, optimiser and windows. Two things
are changed, both in its favour: the learning rate falls to zero in the time there is (peers/nnunet_timed.py), and all
training cases are used to train. Planning and preprocessing count as training time, as they do for Sagittal.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import describe
from memory import Peak, run_watched

HERE = Path(__file__).resolve().parent
#: nnU-Net names data sets by a number.
NUMBER = 901
_CONFIGURATION = "3d_fullres"
_TRAINER = "nnUNetTrainerTimed"
#: nnU-Net's commands take every core for torch; this says how many there are.
_COMMAND = "import multiprocessing as m; m.cpu_count = lambda: {threads}; from {module} import {entry}; {entry}()"


@dataclass(frozen=True)
class Peer:
    """An installed nnU-Net and the folder that it works in.

    Parameters
    ----------
    environment : Path
        Virtual environment with nnunetv2.
    folder : Path
        Raw, preprocessed and trained data go here.
    threads : int
        Threads of torch. With one, augmentation runs in the same process, else in one process beside it.
    """

    environment: Path
    folder: Path
    threads: int = 1
    seed: int = 0
    dataset: str = f"Dataset{NUMBER}_Peer"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.environment / "bin" / "python"

    @property
    def raw(self) -> Path:
        """The folder of its data set."""
        return self.folder / "raw" / self.dataset

    def plan(self) -> Path:
        """Its plan, once it is made."""
        return self.folder / "preprocessed" / self.dataset / "nnUNetPlans.json"

    def variables(self, **more: str) -> dict[str, str]:
        """Environment variables of its commands."""
        threads = str(self.threads)
        return {
            **os.environ,
            "nnUNet_raw": str(self.folder / "raw"),
            "nnUNet_preprocessed": str(self.folder / "preprocessed"),
            "nnUNet_results": str(self.folder / "results"),
            "nnUNet_n_proc_DA": "1",
            "nnUNet_def_n_proc": threads,
            "nnUNet_compile": "f",
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "PEER_THREADS": threads,
            "PEER_SEED": str(self.seed),
            **more,
        }

    def install_trainer(self) -> None:
        """Put the trainer that ends in time where nnU-Net looks for trainers."""
        (package,) = self.environment.glob("lib/python3*/site-packages/nnunetv2/training/nnUNetTrainer")
        shutil.copyfile(HERE / "peers" / "nnunet_timed.py", package / "nnUNetTrainerTimed.py")

    def write_dataset(self, cases: Mapping[str, tuple[Path, Path]], labels: Sequence[str], held_out: set[str]) -> None:
        """Copy images and label maps into the folders that it wants; `cases` maps a name to image and label map."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for name, (image, label) in cases.items():
            part = "Ts" if name in held_out else "Tr"
            for kind, source, target in (("images", image, f"{name}_0000.nii.gz"), ("labels", label, f"{name}.nii.gz")):
                place = self.raw / f"{kind}{part}" / target
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, place)
        description = {
            "channel_names": {"0": "MRI"},
            "labels": {"background": 0, **{label: n for n, label in enumerate(labels, 1)}},
            "numTraining": len(cases) - len(held_out),
            "file_ending": ".nii.gz",
        }
        (self.raw / "dataset.json").write_text(json.dumps(description))

    def train(self, seconds: float, *, batch: int | None = None) -> dict[str, Any]:
        """Plan, preprocess and train within `seconds` altogether; what was done.

        `batch` stands in for the number of windows that its planner chose for a step.
        """
        self.install_trainer()
        start = time.time()
        arguments = ["-d", str(NUMBER), "-c", _CONFIGURATION, "-np", str(self.threads), "-npfp", str(self.threads)]
        self._run(
            "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints", "plan_and_preprocess_entry", arguments
        )
        plan = json.loads(self.plan().read_text())
        if batch is not None:
            plan["configurations"][_CONFIGURATION]["batch_size"] = batch
            self.plan().write_text(json.dumps(plan))
        prepared = time.time() - start
        arguments = [str(NUMBER), _CONFIGURATION, "all", "-tr", _TRAINER, "-device", "cpu"]
        self._run(
            "nnunetv2.run.run_training",
            "run_training_entry",
            arguments,
            PEER_END=str(start + seconds),
            nnUNet_n_proc_DA="0" if self.threads == 1 else "1",
        )
        facts = json.loads((self._trained() / "fold_all" / "timed.json").read_text())
        used = plan["configurations"][_CONFIGURATION]
        return {
            "seconds": time.time() - start,
            "prepare_s": prepared,
            "iterations": facts["iterations"],
            "processor_s": facts["processor_s"],
            "s_per_iteration": facts["seconds"] / facts["iterations"],
            "batch": used["batch_size"],
            "patch": used["patch_size"],
        }

    def predict(self, output: Path, *, flips: bool, images: Path | None = None) -> float:
        """Predict the held-out images into a folder; seconds for all."""
        start = time.time()
        arguments = ["-i", str(images or self.raw / "imagesTs"), "-o", str(output), "-m", str(self._trained())]
        arguments += ["-f", "all", "-device", "cpu", "-npp", "1", "-nps", "1"]
        self._run(
            "nnunetv2.inference.predict_from_raw_data",
            "predict_entry_point_modelfolder",
            arguments + ([] if flips else ["--disable_tta"]),
        )
        return time.time() - start

    def watch_predict(self, model: Path, images: Path, output: Path, *, limit_gb: float, limit_s: float) -> Peak:
        """Predict without flips and watch the memory of all its processes."""
        arguments = ["-i", str(images), "-o", str(output), "-m", str(model), "-f", "all", "-device", "cpu"]
        command = self._command(
            "nnunetv2.inference.predict_from_raw_data",
            "predict_entry_point_modelfolder",
            [*arguments, "-npp", "1", "-nps", "1", "--disable_tta"],
        )
        return run_watched(command, self.variables(), limit_gb=limit_gb, limit_s=limit_s, log=output / "nnunet.log")

    def _trained(self) -> Path:
        return self.folder / "results" / self.dataset / f"{_TRAINER}__nnUNetPlans__{_CONFIGURATION}"

    def _command(self, module: str, entry: str, arguments: Sequence[str]) -> list[str]:
        code = _COMMAND.format(threads=self.threads, module=module, entry=entry)
        return [str(self.python), "-c", code, *arguments]

    def _run(self, module: str, entry: str, arguments: Sequence[str], **variables: str) -> None:
        with (self.folder / "commands.log").open("a") as log:
            done = subprocess.run(
                self._command(module, entry, arguments),
                env=self.variables(**variables),
                stdout=log,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if done.returncode:
            sys.exit(f"nnU-Net's {entry} ended in {done.returncode}; see {log.name}")


def predict_memory(arguments: argparse.Namespace) -> None:
    """Peak memory and time of nnU-Net's command for one large volume, with weights that were not trained."""
    peer = Peer(arguments.environment.resolve(), arguments.output.resolve(), arguments.threads)
    images, output, model = (peer.folder / name for name in ("memory_images", "memory_answers", "memory_model"))
    for folder in (images, output, model):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    wanted = {
        "shape": arguments.shape,
        "spacing": arguments.spacing,
        "target_spacing": arguments.target_spacing,
        "classes": arguments.classes,
        "patch": arguments.patch,
        "features": arguments.features,
    }
    random = [str(peer.python), str(HERE / "peers" / "nnunet_random.py"), json.dumps(wanted), str(images), str(model)]
    subprocess.run(random, check=True, env=peer.variables())
    peak = peer.watch_predict(model, images, output, limit_gb=arguments.limit_gb, limit_s=arguments.limit_s)
    print(f"{describe()}, {arguments.threads} thread(s)")
    told = "x".join(map(str, arguments.shape))
    ended = peak.ended or ("finished" if any(output.glob("*.nii*")) else f"failed, see {output / 'nnunet.log'}")
    print(
        f"nnU-Net predict, {told}, {arguments.classes} classes, no flips: peak {peak.gb:.2f} GB, {peak.seconds:.0f} s, {ended}"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps({**wanted, "peak_gb": peak.gb, "seconds": peak.seconds, "ended": ended}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=Path, default=Path("/tmp/peer"), help="virtual environment with nnunetv2")
    parser.add_argument("--output", type=Path, default=Path("runs/nnunet"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--predict-memory", action="store_true")
    parser.add_argument("--shape", type=int, nargs=3, default=[512, 512, 600], help="columns, rows, slices")
    parser.add_argument("--spacing", type=float, nargs=3, default=[0.7, 0.7, 1.0], help="mm")
    parser.add_argument("--target-spacing", type=float, nargs=3, default=[1.5, 1.5, 1.5], help="mm, of the network")
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--patch", type=int, nargs=3, default=[128, 128, 128])
    parser.add_argument("--features", type=int, nargs="+", default=[16, 32, 64, 128, 256], help="width of each level")
    parser.add_argument("--limit-gb", type=float, default=12, help="broken off above this")
    parser.add_argument("--limit-s", type=float, default=1800, help="broken off after this")
    parser.add_argument("--json", type=Path, help="figures as JSON")
    arguments = parser.parse_args()
    if not (arguments.environment / "bin" / "python").exists():
        print(f"{arguments.environment}: no environment with nnU-Net; --help says how to make one")
        return
    if arguments.predict_memory:
        predict_memory(arguments)
    else:
        print("say what to measure: --predict-memory; training is compared by hippocampus.py --peer")


if __name__ == "__main__":
    main()
