"""JSON from outside: capped in size and depth, its root an object, its damage told by line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from sagittal.errors import ReadError
from sagittal.guard.limits import check_file, check_memory

#: Bytes of one JSON file; the annotations of COCO's training set have 449 million.
MAX_JSON_BYTES = 2**30
#: Lists and objects inside each other; the polygons of COCO lie six deep.
MAX_JSON_DEPTH = 64
_OPEN, _CLOSE = b"[{", b"]}"
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')


def read_json(path: Path, *, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises
    ------
    ReadError
        If the file is damaged, too large or too deep, holds NaN or Infinity, or its root is no object.
    """
    size = check_file(path)
    if size > limit:
        raise ReadError(f"{path.name}: has {size:,} bytes; JSON of at most {limit:,} is read")
    check_memory(size * 8, path.name)  # measured: parsed annotations take about six times their text
    raw = path.read_bytes()
    if _depth(raw) > MAX_JSON_DEPTH and _depth(_STRING.sub(b"", raw)) > MAX_JSON_DEPTH:
        raise ReadError(f"{path.name}: is nested more than {MAX_JSON_DEPTH} deep: damaged, or made to do harm")
    try:
        values = json.loads(raw, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise ReadError(f"{path.name}: is damaged or cut off in line {error.lineno}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise ReadError(f"{path.name}: is no text in UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise ReadError(f"{path.name}: holds {error}, which is no JSON") from error
    if not isinstance(values, dict):
        raise ReadError(f"{path.name}: holds a {type(values).__name__} where an object {{...}} was expected")
    return values


def _refuse(name: str) -> Any:
    raise ValueError(f"the number {name}")


def _depth(raw: bytes) -> int:
    """How deep brackets lie inside each other; those in strings count too."""
    deepest = level = 0
    for start in range(0, len(raw), 2**22):
        part = np.frombuffer(raw, np.uint8, min(2**22, len(raw) - start), start)
        step = np.zeros(256, np.int8)
        step[list(_OPEN)], step[list(_CLOSE)] = 1, -1
        levels = np.cumsum(step[part], dtype=np.int32)
        deepest = max(deepest, level + int(levels.max()))
        level += int(levels[-1])
    return deepest
