"""Torch file: plain tensors out of a ``.pth`` file of PyTorch before 1.6, without unpickling it.

Such a file is a row of pickles, then the raw numbers. :mod:`pickletools` takes a pickle apart without running it; the few
operations that a table of plain tensors needs are followed here on a stack of plain values. Everything else is refused.
"""

from __future__ import annotations

import io
import pickletools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sagittal.errors import PackageError

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_NUMBERS = {"torch FloatStorage": "<f4", "torch LongStorage": "<i8"}
_CALLS = frozenset({"collections OrderedDict", "torch._utils _rebuild_tensor_v2"})
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = frozenset({"BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE"})
_MARK = object()


def read_tensors(data: bytes) -> dict[str, Tensor]:
    """The named tensors of a file that ``torch.save(state_dict)`` wrote before PyTorch 1.6.

    Parameters
    ----------
    data : bytes
        The whole file.

    Raises
    ------
    PackageError
        If it is no such file, is cut off, or holds anything but tensors of float32 and int64.
    """
    file = io.BytesIO(data)
    try:
        if _follow(file) != _MAGIC or _follow(file) != _PROTOCOL:
            raise PackageError("the weights are no PyTorch file of the old form")
        _follow(file)  # the machine that wrote it: little-endian, as every machine that PyTorch runs on
        table, keys = _follow(file), _follow(file)
        storages = dict(_storages(data, file.tell(), keys, {s[2]: s for s, *_ in table.values()}))
        return {name: _tensor(storages[storage[2]], *place) for name, (storage, *place) in table.items()}
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        if isinstance(error, PackageError):
            raise
        raise PackageError(f"the weights are damaged: {error}") from error


def _storages(data: bytes, at: int, keys: list[str], known: dict[str, Any]) -> list[tuple[str, Any]]:
    """The arrays of numbers behind the pickles, in the order of their keys, each after its length."""
    found = []
    for key in keys:
        numbers, count = np.dtype(_NUMBERS[known[key][1]]), int(known[key][4])
        if int.from_bytes(data[at : at + 8], "little") != count:
            raise PackageError("the weights are damaged: a table of numbers has another length than it says")
        found.append((key, np.frombuffer(data, numbers, count, at + 8)))
        at += 8 + count * numbers.itemsize
    return found


def _tensor(numbers: Any, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """A tensor of its own, which reaches no number outside its table."""
    reach = sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if min(offset, *shape, *stride, 0) < 0 or 0 in shape or offset + reach >= len(numbers):
        raise PackageError("the weights are damaged: a tensor reaches beyond its numbers")
    return torch.as_strided(torch.from_numpy(numbers.copy()), shape, stride, offset).contiguous()


def _follow(file: io.BytesIO) -> Any:
    """The value that one pickle describes, built from plain values only."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for operation, argument, _ in pickletools.genops(file):
        name = operation.name
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "GLOBAL" and (argument in _CALLS or argument in _NUMBERS):
            stack.append(argument)
        elif name in ("MARK", "EMPTY_TUPLE", "EMPTY_DICT", "EMPTY_LIST"):
            stack.append({"MARK": _MARK, "EMPTY_TUPLE": (), "EMPTY_DICT": {}, "EMPTY_LIST": []}[name])
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[int(argument or 0)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument or 0)])
        elif name == "TUPLE":
            stack.append(tuple(_since_mark(stack)))
        elif name in ("TUPLE1", "TUPLE2"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "SETITEMS":
            items = _since_mark(stack)
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            stack[-1][key] = value
        elif name in ("APPEND", "APPENDS"):
            items = _since_mark(stack) if name == "APPENDS" else [stack.pop()]
            stack[-1].extend(items)
        elif name == "REDUCE":
            arguments, call = stack.pop(), stack.pop()
            if call not in _CALLS:
                raise PackageError(f"the weights ask for a call of '{call}'; expected tensors only")
            # A tensor stays the tuple of its parts; an ordered dictionary is a plain one.
            stack.append({} if call == "collections OrderedDict" else arguments)
        elif name == "BUILD":
            stack.pop()  # version numbers of modules, kept beside the table
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "BINPERSID"):  # a storage stays the tuple that names it
            raise PackageError(f"the weights hold '{name} {argument or ''}'; expected tensors only")
    raise PackageError("the weights are cut off")


def _since_mark(stack: list[Any]) -> list[Any]:
    at = max(n for n, value in enumerate(stack) if value is _MARK)
    items = stack[at + 1 :]
    del stack[at:]
    return items
