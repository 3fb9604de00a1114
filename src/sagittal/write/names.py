"""Names of files made from the ids of cases: safe on every system, different for different cases."""

from __future__ import annotations

import hashlib
import re


def case_stem(case: str) -> str:
    """A file name without its ending.

    >>> case_stem("study-1")
    'study-1'
    >>> case_stem("../etc/passwd")
    'etc-passwd-7fef78f5'
    """
    safe = safe_word(case, most=80, empty="")
    if safe != case or not safe:
        safe = f"{safe or 'case'}-{hashlib.sha256(case.encode()).hexdigest()[:8]}"
    return safe


def safe_word(name: str, *, most: int = 40, empty: str = "structure") -> str:
    """A name of letters, digits, ``-`` and ``_``, for a part of a file's name.

    >>> safe_word("left kidney / cyst")
    'left-kidney-cyst'
    """
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:most] or empty
