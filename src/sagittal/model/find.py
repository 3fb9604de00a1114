"""Where a model lies: a package itself, or the folder of a run that holds one."""

from __future__ import annotations

from pathlib import Path

from sagittal.errors import ConfigError
from sagittal.model.archive import SUFFIX
from sagittal.run_folder import CONFIG


def is_model(path: Path) -> bool:
    """Whether a path is a model, or the folder of a run that has one."""
    if path.is_dir():
        return (path / "model").exists() or (path / "model.json").is_file()
    return path.is_file() and path.suffix == SUFFIX


def find_model(path: Path) -> Path:
    """The package at a path; of the folder of a run, the model in it.

    Raises
    ------
    ConfigError
        If there is none; the message says how to get one.
    """
    if not path.exists():
        raise ConfigError(f"there is no model at {path}. Train one: sagittal train SOURCE -o {path}")
    if (path / "model").exists():
        return path / "model"
    if (path / CONFIG).is_file() and not is_model(path):
        raise ConfigError(f"the run {path} has no model yet. Go on with it: sagittal train -o {path} --resume")
    return path
