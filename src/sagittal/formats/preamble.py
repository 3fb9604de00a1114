"""The 128 bytes before a DICOM file's mark: harmless, or a program (CVE-2019-11687)."""

from __future__ import annotations

from pathlib import Path

#: How a program begins -> its kind. TIFF, for which PS3.10 keeps the preamble free, is none.
_PROGRAMS = {
    b"MZ": "Windows program",
    b"\x7fELF": "Linux program",
    b"\xfe\xed\xfa\xce": "macOS program",
    b"\xfe\xed\xfa\xcf": "macOS program",
    b"\xce\xfa\xed\xfe": "macOS program",
    b"\xcf\xfa\xed\xfe": "macOS program",
    b"\xca\xfe\xba\xbe": "macOS or Java program",
    b"#!": "script",
}


def executable_preamble(path: Path) -> str:
    """What program a DICOM file's preamble begins like; empty for an ordinary file, and for one that is not DICOM.

    Such a file is an image to a viewer and a program to the operating system (PS3.10 7.5). Reading it is safe, as the
    preamble is never looked at; passing it on is not.

    Parameters
    ----------
    path : Path

    Returns
    -------
    str
        Such as ``"Windows program"``.
    """
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError:
        return ""
    if start[128:] != b"DICM":
        return ""
    return next((kind for mark, kind in _PROGRAMS.items() if start.startswith(mark)), "")


def has_executable_preamble(path: Path) -> bool:
    """Whether a DICOM file begins like a program as well; see :func:`executable_preamble`."""
    return bool(executable_preamble(path))
