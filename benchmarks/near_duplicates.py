"""Near duplicates: how many re-encoded, resized and mirrored copies are found, at how many false pairs, in what time.

    python benchmarks/near_duplicates.py [--data FOLDER] [--images 10000] [--quick]

Each picture of a set gets four copies: **re-encoded** (JPEG of quality 50 to 95), **resized** (50 to 200 %, four filters),
**mirrored** (left-right, upside down, both, or turned by 90 degrees) and **all three** at once. All are searched together. Found is the
share of copies whose pair with their original is reported. A **false pair** joins pictures of two originals that were not
reported as equal to each other; it is given as a share of all reported pairs, and per picture. **Repeats** are pairs among
the originals themselves; of ours, all of BCCD and BreastMNIST were looked at, and show the same field or scan twice.

Thresholds were chosen on "chosen on" sets and not touched afterwards; what counts are the others. The peer, imagehash, gets
its usual distance of at most 10 bits of 64 and a strict one of 4, once as it is and once with all 8 turns of each picture.
Times begin with decoded pictures and hold descriptors and search; the peer's likewise.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image as Pictures

import machine
from sagittal.check.descriptor import describe
from sagittal.check.near import find_near
from sagittal.grid import Grid
from sagittal.image import Image

KINDS = ("re-encoded", "resized", "mirrored", "all three")
DATA = Path(os.environ.get("SAGITTAL_BENCH_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--images", type=int, default=10_000, help="pictures of the timed search")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything, to see that it works")
    parser.add_argument("--alone", action="store_true", help="without the peer")
    options = parser.parse_args()
    share = 10 if options.quick else 1
    peer = None if options.alone else load_peer()
    print(f"{machine.describe()}\n")
    print(
        "| set | pictures | "
        + " | ".join(f"found {kind}" for kind in KINDS)
        + " | false pairs | share | per picture | repeats |"
    )
    print("|---|---|" + "---|" * (len(KINDS) + 4))
    for name, part, pictures in sets(options.data):
        chosen = pictures[::share]
        copies = make_copies(chosen)
        found = ours(copies)
        report(f"{name} ({part})", copies, found)
        if peer is not None and part == "reported":
            for bits in (10, 4):
                for turned in (False, True):
                    label = f"imagehash pHash, {bits} bits{', 8 turns' if turned else ''}"
                    report(label, copies, hashed(copies, peer, bits, turned))
    timed(options.data, options.images // share, peer)


def sets(data: Path) -> Iterator[tuple[str, str, list[np.ndarray]]]:
    """Name, whether thresholds were chosen on it, and the pictures."""
    ham = sorted((data / "ham10000" / "images").iterdir())
    med = data / "medmnist"
    yield "HAM10000, first half", "chosen on", read(ham[: len(ham) // 2])
    yield "PneumoniaMNIST train, 28 px", "chosen on", list(np.load(med / "pneumoniamnist.npz")["train_images"][:2000])
    yield "HAM10000, second half", "reported", read(ham[len(ham) // 2 :])
    yield "BCCD", "reported", read(sorted((data / "bccd" / "JPEGImages").iterdir()))
    yield "CHASE", "reported", read(sorted((data / "chase").glob("*.jpg")))
    stored = np.load(med / "breastmnist.npz")
    yield "BreastMNIST val and test, 28 px", "reported", [*stored["val_images"], *stored["test_images"]]
    stored = np.load(med / "pneumoniamnist.npz")
    yield "PneumoniaMNIST val and test, 28 px", "reported", [*stored["val_images"], *stored["test_images"]]


def read(paths: list[Path]) -> list[np.ndarray]:
    return [np.asarray(Pictures.open(path)) for path in paths]


def make_copies(pictures: list[np.ndarray]) -> list[list[np.ndarray]]:
    """The originals, then each kind of copy, in one order."""
    rng = np.random.default_rng(7)
    kinds: list[list[np.ndarray]] = [list(pictures), [], [], [], []]
    for picture in pictures:
        kinds[1].append(encoded(picture, rng))
        kinds[2].append(resized(picture, rng))
        kinds[3].append(mirrored(picture, rng))
        kinds[4].append(encoded(resized(mirrored(picture, rng), rng), rng))
    return kinds


def encoded(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    file = io.BytesIO()
    Pictures.fromarray(picture).save(file, "JPEG", quality=int(rng.integers(50, 96)))
    return np.asarray(Pictures.open(file))


def resized(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    factor = rng.uniform(0.5, 2)
    filters = (
        Pictures.Resampling.BOX,
        Pictures.Resampling.BILINEAR,
        Pictures.Resampling.BICUBIC,
        Pictures.Resampling.LANCZOS,
    )
    image = Pictures.fromarray(picture)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return np.asarray(image.resize(size, filters[rng.integers(4)]))


def mirrored(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.ascontiguousarray(
        (picture[:, ::-1], picture[::-1], picture[::-1, ::-1], np.rot90(picture))[rng.integers(4)]
    )


def as_image(picture: np.ndarray) -> Image:
    data = (
        (picture[..., np.newaxis] if picture.ndim == 2 else picture)
        .astype(np.float32)
        .transpose(2, 1, 0)[..., np.newaxis]
    )
    return Image(data, Grid(data.shape[1:]), bits=8)


def ours(copies: list[list[np.ndarray]]) -> set[tuple[int, int]]:
    pictures = [picture for kind in copies for picture in kind]
    found = [describe(as_image(picture)) for picture in pictures]
    rows = [n for n, one in enumerate(found) if one is not None]
    near = find_near(np.stack([found[n] for n in rows]), [min(pictures[n].shape[:2]) for n in rows])
    return {(rows[pair.first], rows[pair.second]) for pair in near}


def report(name: str, copies: list[list[np.ndarray]], found: set[tuple[int, int]]) -> None:
    n = len(copies[0])
    shares = [sum((k, k + n * kind) in found for k in range(n)) / n for kind in range(1, len(copies))]
    repeats = {(a, b) for a, b in found if b < n}
    false = [(a, b) for a, b in found if a % n != b % n and (min(a % n, b % n), max(a % n, b % n)) not in repeats]
    print(
        f"| {name} | {n * len(copies):,} | "
        + " | ".join(f"{share:.1%}" for share in shares)
        + f" | {len(false):,} of {len(found):,} | {len(false) / max(1, len(found)):.3%} | {len(false) / (n * len(copies)):.4%} "
        f"| {len(repeats):,} |",
        flush=True,
    )


def load_peer() -> Callable[[Pictures.Image], object] | None:
    try:
        import imagehash
    except ImportError:
        print("The peer is not installed: pip install imagehash\n")
        return None
    return imagehash.phash


def hashed(
    copies: list[list[np.ndarray]], peer: Callable[[Pictures.Image], object], bits: int, turned: bool
) -> set[tuple[int, int]]:
    """Pairs of which any turn of the first has a hash near that of the second, by exhaustive comparison."""
    pictures = [picture for kind in copies for picture in kind]
    turns = [turned_by(quarter, flip) for flip in (False, True) for quarter in range(4)] if turned else [lambda p: p]
    codes = np.array([[code(peer, turn(picture)) for picture in pictures] for turn in turns], dtype=np.uint64)
    found: set[tuple[int, int]] = set()
    for row in codes:
        for start in range(0, len(pictures), 256):
            distances = np.bitwise_count(row[start : start + 256, None] ^ codes[0][None])
            first, second = np.nonzero(distances <= bits)
            found |= {(int(a + start), int(b)) for a, b in zip(first, second, strict=True) if a + start < b}
    return found


def turned_by(quarter: int, flip: bool) -> Callable[[np.ndarray], np.ndarray]:
    return lambda picture: np.ascontiguousarray(np.rot90(picture[:, ::-1] if flip else picture, quarter))


def code(peer: Callable[[Pictures.Image], object], picture: np.ndarray) -> int:
    return int("".join("1" if bit else "0" for bit in np.ravel(peer(Pictures.fromarray(picture)).hash)), 2)


def timed(data: Path, images: int, peer: Callable[[Pictures.Image], object] | None) -> None:
    """One search over so many pictures, HAM10000 with its copies."""
    originals = read(sorted((data / "ham10000" / "images").iterdir())[: images // 5])
    copies = make_copies(originals)
    number = sum(map(len, copies))
    start = time.perf_counter()
    found = ours(copies)
    seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"\n{number:,} pictures of about 224 px on {os.cpu_count()} cores: descriptors and search {seconds:.1f} s, {len(found):,} pairs, "
        f"peak memory of everything with the pictures {memory:.2f} GB"
    )
    if peer is not None:
        for turned in (False, True):
            start = time.perf_counter()
            hashed(copies, peer, 10, turned)
            print(
                f"imagehash pHash{', 8 turns' if turned else ''}: {time.perf_counter() - start:.1f} s, exhaustive comparison in numpy"
            )


if __name__ == "__main__":
    main()
