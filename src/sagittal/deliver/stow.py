"""Results to a DICOMweb server: STOW-RS (PS3.18 10.5), and a look whether they are there (QIDO-RS, 10.6)."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

from sagittal.deliver.destinations import StowDestination
from sagittal.deliver.outcome import DeliveryError, Sent, Trouble
from sagittal.deliver.web import Answer, Line, check_status, read_secret, request
from sagittal.errors import ResourceError
from sagittal.write.object_file import ObjectFile

_FAILED, _STORED, _REASON, _WARNING, _INSTANCE = "00081198", "00081199", "00081197", "00081196", "00081155"
_CHUNK = 2**20
#: Failure reasons (PS3.18 table 10.5.3-1): known already; out of resources.
_DUPLICATE, _RESOURCES = 0x0111, range(0xA700, 0xA800)


def deliver_stow(objects: Sequence[ObjectFile], destination: StowDestination) -> Sent:
    """Store some objects in one request; the answer is read instance by instance.

    Stored again they are known already, which is no failure.

    Raises
    ------
    DeliveryError
        If nobody answers, or an instance was not stored; it names the kinds.
    ConfigError
        If a secret cannot be read.
    """
    boundary = f"sagittal-{secrets.token_hex(16)}"
    heads = [_part_head(boundary, first=n == 0) for n in range(len(objects))]
    end = f"\r\n--{boundary}--\r\n".encode()
    length = sum(len(head) + one.size for head, one in zip(heads, objects, strict=True)) + len(end)
    headers = {
        **_headers(destination),
        "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
        "Content-Length": str(length),
        "Accept": "application/dicom+json",
    }
    line = _line(destination)
    url = f"{destination.url.rstrip('/')}/studies"
    answer = request(line, "POST", url, headers=headers, content=_body(objects, heads, end))
    warnings = read_stored(answer, objects, destination.name)
    if destination.confirm:
        for one in objects:
            _look_for(one, destination, line)
    return Sent(destination.name, len(objects), confirmed=destination.confirm, warnings=tuple(warnings))


def ask(destination: StowDestination) -> None:
    """Ask for one study, whichever: whether the server is there and lets us in.

    Raises
    ------
    DeliveryError
        If nobody answers, or it refuses.
    ConfigError
        If a secret cannot be read.
    """
    headers = {**_headers(destination), "Accept": "application/dicom+json"}
    url = f"{destination.url.rstrip('/')}/studies?limit=1"
    check_status(request(_line(destination), "GET", url, headers=headers), destination.name)


def _part_head(boundary: str, *, first: bool) -> bytes:
    start = "" if first else "\r\n"
    return f"{start}--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()


def _body(objects: Sequence[ObjectFile], heads: Sequence[bytes], end: bytes) -> Iterator[bytes]:
    for one, head in zip(objects, heads, strict=True):
        yield head
        try:
            with one.path.open("rb") as file:
                while part := file.read(_CHUNK):
                    yield part
        except OSError as error:
            raise ResourceError(f"the file of an object of kind '{one.kind}' cannot be read any more") from error
    yield end


def read_stored(answer: Answer, objects: Sequence[ObjectFile], name: str) -> list[str]:
    """Warnings of an answer that says that all objects were stored.

    Raises
    ------
    DeliveryError
        If one was not, or the answer cannot tell.
    """
    told = _parse(answer)
    kinds = {one.sop_instance_uid: one.kind for one in objects}
    failed = {uid: reason for uid, reason in _items(told, _FAILED, _REASON) if reason != _DUPLICATE}
    if answer.status not in {200, 202} and not (answer.status == 409 and told):
        check_status(answer, name)
    lost = [kinds[uid] for uid in failed if uid in kinds]
    lost += ["unknown"] if failed and not lost else []
    if lost:
        full = any(reason in _RESOURCES for reason in failed.values())
        trouble: Trouble = "resources" if full else "object"
        numbers = ", ".join(sorted({f"0x{reason:04X}" for reason in failed.values()}))
        raise DeliveryError(
            f"{name}: did not store {', '.join(sorted(lost))} ({numbers})", retry=full, trouble=trouble, failed=lost
        )
    if answer.status == 409 and not _items(told, _FAILED, _REASON):
        check_status(answer, name)
    stored = {uid for uid, _ in _items(told, _STORED, _WARNING)}
    duplicates = {uid for uid, reason in _items(told, _FAILED, _REASON) if reason == _DUPLICATE}
    if stored and (missing := [kind for uid, kind in kinds.items() if uid not in stored | duplicates]):
        raise DeliveryError(
            f"{name}: its answer does not name {', '.join(sorted(missing))}", retry=True, trouble="away", failed=missing
        )
    coerced = sorted({f"0x{reason:04X}" for _, reason in _items(told, _STORED, _WARNING) if reason})
    return [f"changed what it stored ({', '.join(coerced)})"] if coerced else []


def _parse(answer: Answer) -> dict[str, Any]:
    """The data set of the answer; empty where it is none."""
    if not answer.body.strip():
        return {}
    try:
        values = json.loads(answer.body)
    except (ValueError, RecursionError):
        return {}
    if isinstance(values, list):
        values = values[0] if values else {}
    return values if isinstance(values, dict) else {}


def _items(values: dict[str, Any], sequence: str, number: str) -> list[tuple[str, int]]:
    """Instance UIDs of a sequence of DICOM JSON, each with one number (0 where it has none)."""
    element = values.get(sequence)
    items = element.get("Value") if isinstance(element, dict) else None
    found = []
    for item in items if isinstance(items, list) else ():
        if isinstance(item, dict):
            reason = _first(item, number)
            found.append((str(_first(item, _INSTANCE) or ""), reason if isinstance(reason, int) else 0))
    return found


def _first(item: dict[str, Any], tag: str) -> Any:
    element = item.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return values[0] if isinstance(values, list) and values else None


def _look_for(one: ObjectFile, destination: StowDestination, line: Line) -> None:
    """Ask for one instance."""
    url = f"{destination.url.rstrip('/')}/instances?SOPInstanceUID={one.sop_instance_uid}&limit=1"
    headers = {**_headers(destination), "Accept": "application/dicom+json"}
    answer = request(line, "GET", url, headers=headers)
    if answer.status != 204:
        check_status(answer, destination.name)
    if answer.status == 204 or not _parse(answer):
        raise DeliveryError(
            f"{destination.name}: took {one.kind}, but does not find it",
            retry=True,
            trouble="object",
            failed=[one.kind],
        )


def _headers(destination: StowDestination) -> dict[str, str]:
    if destination.token_file is not None:
        return {"Authorization": f"Bearer {read_secret(destination.token_file, destination.name)}"}
    if destination.password_file is not None:
        password = read_secret(destination.password_file, destination.name)
        pair = base64.b64encode(f"{destination.username}:{password}".encode()).decode()
        return {"Authorization": f"Basic {pair}"}
    return {}


def _line(destination: StowDestination) -> Line:
    return Line(destination.name, destination.secured, destination.connect_s, destination.answer_s, destination.total_s)
