"""Checkpoint: what an interrupted run needs to go on; tensors as safetensors, the rest as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from sagittal.errors import PackageError, ResourceError


def save_checkpoint(folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Replace the folder's checkpoint as one act: a kill at any moment leaves the old or the new one.

    Raises
    ------
    ResourceError
        If the disk refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"tensors-{int(state['serial'])}.safetensors"
        save_file({key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}, folder / name)
        _sync(folder / name)
        draft = folder / "state.json.part"
        draft.write_text(json.dumps({**state, "tensors": name}), encoding="utf-8")
        _sync(draft)
        draft.replace(folder / "state.json")  # from here on the new one counts
        for old in folder.glob("tensors-*.safetensors"):
            if old.name != name:
                old.unlink()
    except (OSError, SafetensorError) as error:
        raise ResourceError(
            f"the checkpoint cannot be written to {folder}: {error}. Free some space and go on with --resume."
        ) from error


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The folder's checkpoint, or ``None`` where there is none.

    Raises
    ------
    PackageError
        If it is there but damaged.
    """
    path = folder / "state.json"
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        tensors = load_file(folder / Path(state["tensors"]).name)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise PackageError(f"{path}: the checkpoint is damaged ({error}). Start again with --overwrite.") from error
    return tensors, state


def optimizer_tensors(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state as named tensors and plain numbers."""
    values = optimizer.state_dict()["state"]
    tensors = {
        f"{n}.{key}": value for n, entry in values.items() for key, value in entry.items() if torch.is_tensor(value)
    }
    numbers = {
        str(n): {key: value for key, value in entry.items() if not torch.is_tensor(value)}
        for n, entry in values.items()
    }
    return tensors, numbers


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
    """Give an optimiser back what :func:`optimizer_tensors` took."""
    state: dict[int, dict[str, Any]] = {int(n): dict(entry) for n, entry in numbers.items()}
    for name, value in tensors.items():
        n, key = name.split(".", 1)
        state.setdefault(int(n), {})[key] = value
    full = optimizer.state_dict()
    optimizer.load_state_dict({"state": state, "param_groups": full["param_groups"]})


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
