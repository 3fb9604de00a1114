"""The folder of a run: who may write into it, the options that repeat it, and its log."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sagittal.errors import ConfigError, ResourceError
from sagittal.progress import Advance, Reporter

#: What a run folder holds from its first second on.
CONFIG = "config.json"
_MARKS = (CONFIG, "plan.json", "events.jsonl", "evidence.json", "dataset.json")

_log = logging.getLogger("sagittal.run")


def safe_name(text: str) -> str:
    """A name for a folder, made from a source.

    >>> safe_name("medmnist:breastmnist"), safe_name("/data/chest CT/"), safe_name("täbelle.csv")
    ('breastmnist', 'chest-CT', 'täbelle')
    """
    text = text.rstrip("/\\").rpartition(":")[2] if re.match(r"^[a-z]\w+:", text) else text.rstrip("/\\")
    path = Path(text)
    stem = path.stem if path.suffix and not path.is_dir() else path.name
    return re.sub(r"[^\w.-]+", "-", stem or Path.cwd().name).strip("-.")[:80] or "run"


def run_folder(name: str) -> Path:
    """Where a run of this name lies when nobody says otherwise.

    >>> run_folder("medmnist:breastmnist").as_posix()
    'runs/breastmnist'
    """
    return Path("runs") / safe_name(name)


def claim_folder(folder: Path, *, what: str, overwrite: bool = False, resumable: bool = False) -> None:
    """Make a new folder for results, or refuse one that is taken.

    Raises
    ------
    ConfigError
        If something lies there already and may not be replaced; the message tells the ways out.
    ResourceError
        If the folder cannot be made or written.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; {what} needs a folder. Name another with -o.")
    with writable(folder):
        if folder.is_dir() and any(folder.iterdir()):
            if not overwrite:
                ways = ["replace it: --overwrite", "write elsewhere: -o OTHER"]
                if resumable:
                    ways.insert(0, "go on with it: --resume")
                raise ConfigError(f"{folder} exists already and is kept. To {'; to '.join(ways)}.")
            if not any((folder / name).exists() for name in _MARKS):
                raise ConfigError(
                    f"{folder} holds files that Sagittal did not write; --overwrite does not remove them. "
                    "Write elsewhere: -o OTHER."
                )
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.write_bytes(b"x")
        probe.unlink()


@contextmanager
def writable(place: Path) -> Iterator[None]:
    """Say what is wrong with a place where writing fails.

    Raises
    ------
    ResourceError
        In place of the system's error.
    """
    try:
        yield
    except (OSError, UnicodeEncodeError) as error:
        if isinstance(error, ResourceError):
            raise
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else "its name has no form in this locale"
        raise ResourceError(
            f"{place}: cannot be written: {reason}. Free or mend it, or write elsewhere with -o."
        ) from error


def save_config(folder: Path, values: Mapping[str, Any]) -> None:
    """Write the options of a run; given back with ``--config`` they repeat it."""
    text = json.dumps({key: value for key, value in values.items() if value is not None}, indent=1, ensure_ascii=False)
    with writable(folder):
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def load_config(folder: Path) -> dict[str, Any]:
    """The options of a run.

    Raises
    ------
    ConfigError
        If the folder is not that of a run.
    """
    try:
        values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder}: is not the folder of a run that can go on ({CONFIG} is missing or damaged). Start it without "
            "--resume."
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(f"{folder / CONFIG}: expected options and their values")
    return values


def save_environment(folder: Path) -> None:
    """Write the Python and every installed distribution with its version, one a line, as pip takes them."""
    from importlib.metadata import distributions

    found = {(d.metadata["Name"] or "").lower(): d.version for d in distributions()}
    lines = [f"{name}=={version}" for name, version in sorted(found.items()) if name]
    with writable(folder):
        head = f"# Python {sys.version.split()[0]} on {sys.platform}\n"
        (folder / "environment.lock").write_text(head + "\n".join(lines) + "\n", encoding="utf-8")


class Logged:
    """A reporter that passes on what it hears and keeps what was said in the log.

    Stretches of work leave their beginning and their end in the log, not each step.
    """

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def say(self, message: str) -> None:
        """Tell one line, and keep it."""
        _log.info(message)
        self._reporter.say(message)

    @contextmanager
    def track(self, what: str, total: float | None = None) -> Iterator[Advance]:
        """Follow one stretch of work."""
        started, note = time.monotonic(), ""
        with self._reporter.track(what, total) as advance:

            def both(steps: float = 1.0, text: str = "") -> None:
                nonlocal note
                note = text or note
                advance(steps, text)

            yield both
        _log.info("%s: %.1f s%s", what, time.monotonic() - started, f"  {note}" if note else "")


@contextmanager
def keep_log(folder: Path) -> Iterator[Callable[[Reporter], Logged]]:
    """Keep what Sagittal logs in ``log.txt`` of a folder, as long as this lasts."""
    with writable(folder):
        handler = logging.FileHandler(folder / "log.txt", encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S"))
    handler.handleError = lambda record: None  # type: ignore[method-assign]  # a full disk ends the run elsewhere
    logger = logging.getLogger("sagittal")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(min(before or logging.INFO, logging.INFO))
    _log.info("process %d begins", os.getpid())
    try:
        yield Logged
    except BaseException as error:
        _log.error("ends with %s", type(error).__name__)
        raise
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        handler.close()
