"""Names that files and formats take: safe on every system, one value of one line."""

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


def one_line(text: str, most: int = 64) -> str:
    r"""Text as one value of one line, cut to so many bytes of UTF-8 between two signs.

    A backslash would divide values (PS3.5 6.2) and control characters are not allowed. The standard counts signs; many
    archives and a validator count bytes.

    >>> one_line("chest\\2\n beta")
    'chest/2 beta'
    >>> one_line("肺结节", most=7)
    '肺结'
    """
    plain = "".join(sign if sign.isprintable() else " " for sign in text.replace("\\", "/"))
    return " ".join(plain.split()).encode()[:most].decode(errors="ignore").strip()
