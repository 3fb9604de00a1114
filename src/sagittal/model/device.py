"""Devices: what there is to compute with."""

from __future__ import annotations

import torch

from sagittal.errors import ConfigError, ResourceError, nearest


def pick_device(name: str = "auto") -> torch.device:
    """The device of a name: ``auto`` takes the first GPU, else the CPU.

    Raises
    ------
    ConfigError
        If the name is not understood.
    ResourceError
        If the device is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda:0")
        return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")
    try:
        device = torch.device("cuda:0" if name == "cuda" else f"cuda:{name}" if name.isdigit() else name)
    except RuntimeError as error:
        raise ConfigError(
            f"'{name}' is not a device. {nearest(name, ['auto', 'cpu', 'cuda', 'cuda:1', 'mps'])}"
        ) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ResourceError(
            f"the device {name} is not there: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices. "
            "Use --device auto."
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ResourceError("the device mps is not there. Use --device auto.")
    return device
