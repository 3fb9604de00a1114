"""Headers as DICOM JSON (PS3.18 F), large values as links to them; those of a series are made once and kept beside the archive."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset as Header
from pydicom.tag import Tag

from sagittal.errors import ReadError
from sagittal.formats.dicom_file import open_dicom
from sagittal.formats.dicom_header import LazyHeader, open_header
from sagittal.guard.limits import as_read_error
from sagittal.serve.instance_rows import Stored
from sagittal.serve.series_cache import kept_file

#: Binary values up to this length stand in the JSON itself.
INLINE_BYTES = 1024
_SWITCH = re.compile(r"\\u001b[ -/]+[0-~]")
_BINARY = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
_PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
#: What stands for the address of the service in what is kept; no value of a header can contain it, as quotes are escaped.
_LINK, _HERE = '"BulkDataURI": "', '"BulkDataURI": "@'


def instance_metadata(path: Path, one: Stored) -> str:
    """The header of one file as the text of a JSON object; links begin with ``@`` in the place of the service's address.

    Raises
    ------
    ReadError
        If the file is damaged.
    """
    with as_read_error("DICOM"):
        lazy = open_header(path, {})
        header = open_dicom(path, pixels=False) if isinstance(lazy, LazyHeader) else lazy
        where = f"@/studies/{one.study_uid}/series/{one.series_uid}/instances/{one.uid}/bulkdata"
        found = _object(header, where)
        if isinstance(lazy, LazyHeader):
            vr = lazy.pixels_vr.decode() or "OW"
            found["7FE00010"] = {"vr": vr, "BulkDataURI": f"{where}/7FE00010"}
        found["00083002"] = {"vr": "UI", "Value": [one.syntax]}
        if "00080005" in found:  # JSON is UTF-8 (PS3.18 F.2)
            found["00080005"] = {"vr": "CS", "Value": ["ISO_IR 192"]}
        return json.dumps(dict(sorted(found.items())), ensure_ascii=False, allow_nan=False)


def _object(header: Header, where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for element in header.elements():
        tag = int(element.tag)
        if tag >> 16 == 2:
            continue
        key = f"{tag:08X}"
        try:
            value = _value(header, tag, f"{where}/{key}")
        except Exception:  # noqa: S112
            continue  # a value that its type does not allow is left out; the others are still of use
        found[key] = value
    return found


def _value(header: Header, tag: int, where: str) -> dict[str, Any]:
    element = header[tag]
    vr = str(element.VR)
    if tag in _PIXELS:
        return {"vr": "OW" if " or " in vr else vr, "BulkDataURI": where}
    if vr == "SQ":
        items = [_object(item, f"{where}/{n}") for n, item in enumerate(element.value or [], start=1)]
        return {"vr": "SQ", "Value": items} if items else {"vr": "SQ"}
    if vr in _BINARY and isinstance(element.value, bytes) and len(element.value) > INLINE_BYTES:
        return {"vr": vr, "BulkDataURI": where}
    made: dict[str, Any] = element.to_json_dict(None, 0)
    text = json.dumps(made, ensure_ascii=False, allow_nan=False)  # raises where JSON has no such number
    if "\\u001b" in text:  # what pydicom leaves of the switches between character sets (PS3.5 6.1.2.5.3)
        made = json.loads(_SWITCH.sub("", text))
    return made


def bulk_value(path: Path, place: Sequence[str]) -> bytes:
    """The bytes that a link of the metadata leads to.

    Parameters
    ----------
    path : Path
    place : sequence of str
        Tags and numbers of items in turn, as in the link: ``["00880200", "1", "7FE00010"]``.

    Raises
    ------
    KeyError
        If there is nothing.
    ReadError
        If the file is damaged.
    """
    with as_read_error("DICOM"):
        header: Any = open_dicom(path)
    try:
        for tag, number in zip(place[:-1:2], place[1:-1:2], strict=True):
            header = header[Tag(int(tag, 16))].value[_item(number)]
        element = header[Tag(int(place[-1], 16))]
    except (ValueError, IndexError, OverflowError, TypeError, AttributeError) as error:
        raise KeyError("no such value") from error
    if not isinstance(element.value, bytes):
        raise KeyError("no such value")
    return bytes(element.value)


def _item(number: str) -> int:
    value = int(number)
    if value < 1:
        raise IndexError(number)
    return value - 1


def series_metadata(path_of: Callable[[str], Path], cache: Path, members: Sequence[Stored]) -> Iterator[str]:
    """The headers of the instances of one series, each as the text of a JSON object; kept for the next time.

    Parameters
    ----------
    path_of : callable
        Of the archive: where the file of a row lies.
    cache : Path
        Folder of what is kept of a series.
    members : sequence of Stored
        Of one series.

    Raises
    ------
    ReadError
        If none of the files can be read.
    """
    if not members:
        return
    print_ = hashlib.sha256("".join(one.sha256 for one in members).encode()).hexdigest()[:32]

    def make(target: Path) -> None:
        made, failed = [], None
        for one in members:
            try:
                made.append(instance_metadata(path_of(one.path), one))
            except ReadError as error:
                failed = error
        if failed is not None and not made:
            raise failed
        target.write_text("\n".join(made), encoding="utf-8")

    file = kept_file(cache, members[0].series_id, f"metadata-{print_}.jsonl", make)
    # A line is an object: JSON has no line break that is not escaped.
    yield from file.read_text(encoding="utf-8").split("\n")


def linked(text: str, root: str) -> str:
    """The text with the service's address in its links.

    Parameters
    ----------
    root : str
        Of DICOMweb, ``https://host/dicom-web``.
    """
    return text.replace(_HERE, _LINK + json.dumps(root)[1:-1])
