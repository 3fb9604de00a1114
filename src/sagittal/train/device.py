"""Devices: what there is to compute with, and the fastest way to use it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch

from sagittal.errors import ConfigError, ResourceError

Precision = Literal["fp32", "bf16", "fp16"]


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
        raise ConfigError(f"'{name}' is not a device. Say auto, cpu, cuda, cuda:1 or mps.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ResourceError(
            f"the device {name} is not there: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices. "
            "Use --device auto."
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ResourceError("the device mps is not there. Use --device auto.")
    return device


def precisions(device: torch.device) -> tuple[Precision, ...]:
    """The number formats that may be faster than fp32 on a device, fp32 first."""
    if device.type == "cuda":
        return ("fp32", "bf16") if torch.cuda.is_bf16_supported() else ("fp32", "fp16")
    if device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return ("fp32", "bf16")
    return ("fp32",)


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """A context in which matrix products run in the given format."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)


def memory_format(dimensions: int, channels_last: bool) -> torch.memory_format:
    """The order of a batch's values in memory."""
    if not channels_last:
        return torch.contiguous_format
    return torch.channels_last if dimensions == 2 else torch.channels_last_3d


def synchronise(device: torch.device) -> None:
    """Wait until a device has done what it was given, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
