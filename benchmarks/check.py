"""``sagittal check`` of 10,000 pictures of 224 px: wall time and peak memory of all its processes, beside a plain loop.

    python benchmarks/check.py [--images 10000] [--data FOLDER] [--keep FOLDER]

The pictures are HAM10000's, each changed a little (turned, cropped, brightened), written as JPEG; without the data they are
synthetic. Several come from one original, so some pairs are near copies of each other, where the turns happen to agree. The plain loop opens each file with Pillow and hashes its pixels with hashlib, in one process: it finds exact
copies and unreadable files, and nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image as Pictures

import machine

DATA = Path(os.environ.get("SAGITTAL_BENCH_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
SAGITTAL = Path(sys.executable).with_name("sagittal")
CLASSES = ("a", "b")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--keep", type=Path, help="folder for pictures and page; a temporary one where not given")
    options = parser.parse_args()
    print(f"{machine.describe()}\n")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        what = write_pictures(folder / "pictures", options.images, options.data)
        print(f"{options.images:,} JPEG of 224 px, {what}")
        wall, peak, codes = run_check(folder)
        page = (folder / "check.html").stat().st_size
        print(
            f"sagittal check -o check.html: {wall:.1f} s, peak memory {peak / 2**30:.2f} GB over all processes, page {page / 1e6:.2f} MB"
        )
        print(f"  found: {', '.join(codes) or 'nothing'}")
        start = time.perf_counter()
        seen = {
            hashlib.sha256(np.asarray(Pictures.open(path)).tobytes()).digest() for path in files_of(folder / "pictures")
        }
        plain = time.perf_counter() - start
        print(f"Pillow and hashlib, one process: {plain:.1f} s ({len(seen):,} different pictures)")
        print(f"ratio {wall / plain:.2f}")


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.jpg"))


def write_pictures(folder: Path, images: int, data: Path) -> str:
    """Fill a folder a class; what the pictures are."""
    for name in CLASSES:
        (folder / name).mkdir(parents=True, exist_ok=True)
    paths = sorted((data / "ham10000" / "images").iterdir()) if (data / "ham10000").is_dir() else []
    rng = np.random.default_rng(3)
    for n in range(images):
        pixels = changed(np.asarray(Pictures.open(paths[n % len(paths)])), rng) if paths else synthetic(rng)
        Pictures.fromarray(pixels).save(folder / CLASSES[n % 2] / f"{n:05d}.jpg", quality=90)
    return "HAM10000 turned, cropped and brightened" if paths else "synthetic"


def changed(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    image = Pictures.fromarray(pixels).rotate(rng.uniform(0, 360), Pictures.Resampling.BILINEAR)
    edge = rng.uniform(0.18, 0.3) * image.width  # inside what the turn left black
    image = image.crop((edge, edge, image.width - edge, image.height - edge)).resize(
        (224, 224), Pictures.Resampling.BICUBIC
    )
    return np.clip(np.asarray(image) * rng.uniform(0.8, 1.2), 0, 255).astype(np.uint8)


def synthetic(rng: np.random.Generator) -> np.ndarray:
    small = Pictures.fromarray(rng.integers(0, 255, (14, 14, 3), dtype=np.uint8))
    return np.asarray(small.resize((224, 224), Pictures.Resampling.BICUBIC))


def run_check(folder: Path) -> tuple[float, float, list[str]]:
    """Seconds, highest sum of memory of the command and its processes, and the codes of its findings."""
    command = [SAGITTAL, "check", folder / "pictures", "-o", folder / "check.html", "--overwrite", "--json", "--quiet"]
    start = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)
    peak = [0.0]
    watcher = threading.Thread(target=watch, args=(process, peak))
    watcher.start()
    out, _ = process.communicate()
    wall = time.perf_counter() - start
    watcher.join()
    return (
        wall,
        peak[0],
        [f"{found['code']} ({len(found.get('pairs', found['cases'])):,})" for found in json.loads(out)],
    )


def watch(process: subprocess.Popen[str], peak: list[float]) -> None:
    """Sum of the proportional memory of a process and all below it, ten times a second (Linux)."""
    while process.poll() is None:
        peak[0] = max(peak[0], sum(memory_of(pid) for pid in below(process.pid)))
        time.sleep(0.1)


def below(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += [int(child) for child in task.read_text().split()]
            except OSError:
                continue
    return found


def memory_of(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(1024.0 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    main()
