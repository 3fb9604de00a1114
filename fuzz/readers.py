"""Coverage-guided fuzzing of one reader: ``python fuzz/readers.py FORMAT --runs 20000``.

Seeds are mutated by libFuzzer (through atheris) and by mutations that know the format: lengths and values of DICOM
elements, numbers in text headers, the inside of gzip and zlib streams, PNG chunks with their checksums made right again.
Each mutant is read as a user's file would be. A ``SagittalError`` is the right answer to a damaged file; any other
exception, a crash, a file that takes longer than ``--timeout`` or memory beyond ``--memory`` ends the run and keeps the file.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import sys
import time
import traceback
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=["sagittal.read", "sagittal.formats", "sagittal.guard", "sagittal.archive", "pydicom", "nibabel"],
    enable_loader_override=False,
):
    from sagittal.errors import SagittalError
    from targets import read_mutant

from mutations import mutate
from seeds import FORMATS, write_seeds, write_series


class Tally:
    """What happened so far, kept on disk because libFuzzer ends the process itself."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path, self.started, self.written = path, time.monotonic(), 0.0
        self.values = {"format": kind, "runs": 0, "read": 0, "refused": 0, "slowest_s": 0.0, "decoder_failures": 0}
        self.reasons: dict[str, int] = {}

    def count(self, error: SagittalError | None, seconds: float) -> None:
        values = self.values
        values["runs"] += 1
        values["read" if error is None else "refused"] += 1
        values["slowest_s"] = max(values["slowest_s"], round(seconds, 3))
        if error is not None:
            reason = re.sub(r"[0-9][0-9,.]*", "#", str(error))[:60]
            values["decoder_failures"] += "decoder" in str(error)
            if reason in self.reasons or len(self.reasons) < 500:
                self.reasons[reason] = self.reasons.get(reason, 0) + 1
        if time.monotonic() - self.written > 2 or values["runs"] % 100 == 0:
            self.write()

    def write(self, failure: str = "") -> None:
        self.written = time.monotonic()
        peak = peak_kib("self") + sum(peak_kib(child) for child in children())
        self.values["peak_mib"] = max(self.values.get("peak_mib", 0), peak // 1024)
        self.values["seconds"] = round(self.written - self.started, 1)
        self.values["reasons"] = len(self.reasons)
        if failure:
            self.values["failure"] = failure
        self.path.write_text(json.dumps(self.values, indent=1) + "\n", encoding="utf-8")


def peak_kib(process: str) -> int:
    """Highest resident memory of a process so far."""
    try:
        found = re.search(
            r"VmHWM:\s+(\d+)", Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace")
        )
    except OSError:
        return 0
    return int(found[1]) if found else 0


def children() -> list[str]:
    """The decoders that this process keeps."""
    found: list[str] = []
    for task in Path("/proc/self/task").iterdir():
        try:
            found += (task / "children").read_text(encoding="ascii").split()
        except OSError:
            continue
    return found


def main() -> None:
    """Parse, make the seeds, fuzz."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("format", choices=FORMATS)
    parser.add_argument("--runs", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--timeout", type=int, default=20, help="seconds that one file may take")
    parser.add_argument("--memory", type=int, default=3072, help="MiB that reading may take")
    parser.add_argument(
        "--output", type=Path, default=Path("fuzzed"), help="folder of tallies and of files that failed"
    )
    given = parser.parse_args()
    output = given.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    memory = Path("/dev/shm")
    work = (
        memory if memory.is_dir() else output
    ) / f"fuzz-{given.format}"  # libFuzzer ends the process: reused, not removed
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    seeds = write_seeds(given.format, work / "seeds")
    series = write_series(work / "series")
    suffix = {"nrrd": ".nrrd", "mha": ".mha", "zip": ".zip"}.get(given.format, "")
    mutant = work / f"mutant{suffix}"
    tally = Tally(output / f"{given.format}.json", given.format)

    def read_one(data: bytes) -> None:
        mutant.write_bytes(data)
        began, refusal = time.monotonic(), None
        try:
            read_mutant(given.format, mutant, series)
        except SagittalError as error:
            refusal = error
            if str(mutant) in str(error) or "seed" in str(error):
                raise AssertionError(f"a message names the file or the patient: {error}") from error
        except BaseException as error:
            tally.write(f"{type(error).__name__}: {''.join(traceback.format_exception(error)[-2:])}")
            (output / f"{given.format}-failed.bin").write_bytes(data)
            raise
        tally.count(refusal, time.monotonic() - began)

    largest = max(path.stat().st_size for path in seeds)
    arguments = [
        sys.argv[0],
        f"-runs={given.runs + len(seeds) + 2}",
        f"-max_len={largest + 4096}",
        f"-timeout={given.timeout}",
        f"-rss_limit_mb={given.memory}",
        f"-seed={given.seed}",
        f"-artifact_prefix={output}/{given.format}-",
        "-print_final_stats=1",
        "-verbosity=0",
        str(work / "seeds"),
    ]

    def custom(data: bytes, limit: int, seed: int) -> bytes:
        return mutate(bytes(data), limit, given.format, random.Random(seed), atheris.Mutate)

    atheris.Setup(arguments, read_one, custom_mutator=custom)
    try:
        atheris.Fuzz()
    finally:
        tally.write()


if __name__ == "__main__":
    main()
