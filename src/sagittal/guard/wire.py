"""Values as bytes between this process and a limited one: JSON and raw arrays, nothing that could run.

What comes back from a process that has parsed hostile bytes is data from outside as well, so nothing is unpickled: a
message is a header in JSON, in which bytes and arrays are named by number, and then those bytes.

>>> parts = encode({"shape": (2, 3), "values": np.arange(3, dtype=np.uint8)})
>>> decode(parts.header, b"".join(parts.blobs))
{'shape': (2, 3), 'values': array([0, 1, 2], dtype=uint8)}
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from sagittal.types import Array

#: Kinds of numpy types that travel: bool, signed, unsigned, float, complex. Never objects.
_KINDS = "biufc"


@dataclass(frozen=True, eq=False)
class Parts:
    """A value, taken apart: its header in JSON, and the bytes that the header names by number."""

    header: bytes
    blobs: list[memoryview | bytes]

    @property
    def size(self) -> int:
        """Bytes of all blobs together."""
        return sum(len(blob) for blob in self.blobs)


def encode(value: Any) -> Parts:
    """Take a value apart for a message.

    Parameters
    ----------
    value
        ``None``, bool, int, float, str, bytes, Path, numpy scalar or array (no objects), and lists, tuples and
        dictionaries of them.

    Raises
    ------
    TypeError
        If there is anything else in it.
    """
    blobs: list[memoryview | bytes] = []
    tree = _taken_apart(value, blobs)
    return Parts(json.dumps([tree, [len(blob) for blob in blobs]], separators=(",", ":")).encode("ascii"), blobs)


def _taken_apart(value: Any, blobs: list[memoryview | bytes]) -> Any:
    if value is None or (isinstance(value, (bool, int, float)) and not isinstance(value, np.generic)):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, list):
        return [_taken_apart(item, blobs) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [_taken_apart(item, blobs) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[_taken_apart(key, blobs), _taken_apart(item, blobs)] for key, item in value.items()]}
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, (bytes, bytearray, memoryview)):
        blobs.append(memoryview(value).cast("B"))
        return {"bytes": len(blobs) - 1}
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in _KINDS:
        whole = np.ascontiguousarray(value)  # a scalar becomes (1,); its true shape is told beside it
        blobs.append(whole.reshape(-1).view(np.uint8).data if whole.size else b"")
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        return {kind: len(blobs) - 1, "dtype": value.dtype.str, "shape": list(value.shape)}
    raise TypeError(
        f"{type(value).__name__} does not travel between processes: send plain values and arrays of numbers"
    )


def decode(header: bytes, blobs: bytes | bytearray | memoryview) -> Any:
    """Put a value together again. Arrays are views of `blobs`, of the same type and shape as they had.

    Raises
    ------
    ValueError
        If the message is damaged.
    """
    try:
        tree, lengths = json.loads(header)
        view = memoryview(blobs)
        if any(type(length) is not int or length < 0 for length in lengths) or sum(lengths) > len(view):
            raise ValueError("lengths")
        pieces, start = [], 0
        for length in lengths:
            pieces.append(view[start : start + length])
            start += length
        return _put_together(tree, pieces)
    except (KeyError, TypeError, ValueError, IndexError, RecursionError) as error:
        raise ValueError("a message of another process is damaged") from error


def _put_together(tree: Any, pieces: list[memoryview]) -> Any:
    if isinstance(tree, list):
        return [_put_together(item, pieces) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if "tuple" in tree:
        return tuple(_put_together(item, pieces) for item in tree["tuple"])
    if "dict" in tree:
        return {_put_together(key, pieces): _put_together(item, pieces) for key, item in tree["dict"]}
    if "path" in tree:
        return Path(tree["path"])
    if "bytes" in tree:
        return bytes(pieces[tree["bytes"]])
    if "array" in tree:
        return _array(tree, pieces[tree["array"]])
    return _array(tree, pieces[tree["scalar"]])[()]


def _array(tree: dict[str, Any], piece: memoryview) -> Array:
    dtype, shape = np.dtype(str(tree["dtype"])), tuple(int(n) for n in tree["shape"])
    if dtype.kind not in _KINDS or any(n < 0 for n in shape) or prod(shape) * dtype.itemsize != len(piece):
        raise ValueError("an array")
    return np.frombuffer(piece, dtype).reshape(shape) if len(piece) else np.empty(shape, dtype)
