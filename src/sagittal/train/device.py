"""How a device computes: number formats, order in memory, waiting."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]


def precisions(device: torch.device, dimensions: int) -> tuple[Precision, ...]:
    """The number formats that may be faster than fp32 on a device, fp32 first.

    Volumes on a CPU stay in fp32: with torch 2.13 the bf16 gradient of a 3-D convolution's weights is now and then not
    finite where the feature map is small (batch 13 or 16 of 16 x 28 x 28, 64 channels), and what is sometimes infinite
    may at other times be merely wrong.
    """
    if device.type == "cuda":
        return ("fp32", "bf16") if torch.cuda.is_bf16_supported() else ("fp32", "fp16")
    if device.type == "cpu" and dimensions == 2 and torch.ops.mkldnn._is_mkldnn_bf16_supported():
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
