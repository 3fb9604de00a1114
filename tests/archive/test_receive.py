"""Receiving: what is acknowledged is safe, what is not leaves nothing behind."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import random
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import sqlalchemy as sa
from pydicom.uid import generate_uid

from sagittal.archive import disk
from sagittal.archive.archive import Archive, Limits
from sagittal.archive.elements import find_elements
from sagittal.archive.header import read_header
from sagittal.archive.meta import FileMeta
from sagittal.archive.receive import Incoming, Receipt
from sagittal.archive.refused import ArchiveFull, Refused
from sagittal.archive.rows import MIXED_PATIENTS, MIXED_STUDIES, Arrival
from sagittal.database.connect import Database
from sagittal.database.events import open_events
from sagittal.database.schema import conflicts, instances, refusals, series, studies
from sagittal.errors import ResourceError, ServeError

CT = "1.2.840.10008.5.1.4.1.1.2"
Put = Callable[..., Receipt]
Make = Callable[..., bytes]


def rows(db: Database, table: sa.Table) -> list[dict[str, Any]]:
    with db.read() as c:
        return [dict(row) for row in c.execute(sa.select(table).order_by(table.c.id)).mappings()]


def files(archive: Archive) -> set[str]:
    return {
        str(p.relative_to(archive.folder))
        for p in archive.folder.rglob("*")
        if p.is_file() and p.name != "archive.lock"
    }


def stream(incoming: Incoming, times: int, piece: bytes) -> None:
    for _ in range(times):
        incoming.write(piece)


def test_what_is_received_lies_on_the_disk_byte_for_byte_and_has_its_rows(
    archive: Archive, put: Put, make_object: Make
) -> None:
    data = make_object(
        InstanceNumber=7, PatientID="P1", AccessionNumber="A1", StudyDate="20260102", SliceThickness="2.5"
    )
    receipt = put(data)
    assert receipt.outcome == "stored"
    path = archive.open(receipt.instance_id)
    assert path.read_bytes() == data
    (instance,) = rows(archive.db, instances)
    assert instance["sha256"] == hashlib.sha256(data).hexdigest()
    assert path.name.startswith(instance["sha256"])
    assert (instance["size"], instance["number"], instance["rows"], instance["columns"]) == (len(data), 7, 6, 8)
    assert instance["attributes"]["00280010"] == {"vr": "US", "Value": [6]}
    (study,) = rows(archive.db, studies)
    assert (study["patient_id"], study["accession"], study["study_date"], study["modalities"]) == (
        "P1",
        "A1",
        "20260102",
        "CT",
    )
    assert (study["instance_count"], study["series_count"], study["status"]) == (1, 1, "receiving")
    (row,) = rows(archive.db, series)
    assert (row["modality"], row["instance_count"], row["complete_at"], row["problem"]) == ("CT", 1, None, "")
    assert row["facts"]["thickness_mm"] == 2.5
    assert files(archive) == {instance["path"]}


@pytest.mark.parametrize("piece", [1, 100, 131, 132, 133, 4096])
def test_pieces_of_any_length_make_the_same_file(archive: Archive, put: Put, make_object: Make, piece: int) -> None:
    data = make_object()
    assert archive.open(put(data, piece=piece).instance_id).read_bytes() == data


def test_a_large_object_streams_to_the_disk(archive: Archive, put: Put, make_object: Make) -> None:
    data = make_object(np.zeros((1200, 1200), np.uint16))
    with archive.receive("test") as incoming:
        for start in range(0, len(data), 2**16):
            incoming.write(memoryview(data)[start : start + 2**16])
        assert len(files(archive)) == 1  # on its way in already
        receipt = incoming.finish()
    assert archive.open(receipt.instance_id).read_bytes() == data


@pytest.mark.parametrize("left", [140_000, 1_000_000, -1])
def test_a_large_object_that_is_cut_off_is_refused(archive: Archive, put: Put, make_object: Make, left: int) -> None:
    data = make_object(np.zeros((1200, 1200), np.uint16))
    with pytest.raises(Refused, match="cut off: the pixel data reaches past the end"):
        put(data[:left], piece=2**16)
    assert files(archive) == set()


def test_a_large_header_is_understood_from_the_disk(archive: Archive, put: Put, make_object: Make) -> None:
    data = make_object(
        SOPClassUID="1.2.840.10008.5.1.4.1.1.66", PatientID="BIG", PixelData=None, TextValue="x" * 3_000_000
    )
    receipt = put(data)
    assert rows(archive.db, studies)[0]["patient_id"] == "BIG"
    assert archive.open(receipt.instance_id).read_bytes() == data


def test_a_data_set_without_meta_becomes_a_file_of_part_10(archive: Archive, put: Put, make_object: Make) -> None:
    data = make_object(SOPInstanceUID="1.2.3.4.5.6")
    header = pydicom.dcmread(io.BytesIO(data))
    start = 144 + header.file_meta.FileMetaInformationGroupLength
    meta = FileMeta(CT, "1.2.3.4.5.6", header.file_meta.TransferSyntaxUID, "1.2.3.9", "SAGITTAL_01", "SENDER")
    with archive.receive("dicom SENDER", meta=meta) as incoming:
        incoming.write(data[start:])
        receipt = incoming.finish()
    kept = pydicom.dcmread(archive.open(receipt.instance_id))
    assert kept.PixelData == header.PixelData
    assert kept.file_meta.SourceApplicationEntityTitle == "SENDER"
    assert kept.file_meta.ImplementationClassUID == "1.2.3.9"
    assert kept.file_meta.MediaStorageSOPInstanceUID == "1.2.3.4.5.6"
    assert put(data).outcome == "already"  # the same data set under another meta information


@pytest.mark.parametrize("field", ["sop_class_uid", "sop_instance_uid"])
def test_a_data_set_that_is_not_what_was_announced_is_refused(archive: Archive, make_object: Make, field: str) -> None:
    data = make_object(SOPInstanceUID="1.2.3.4.5.6")
    announced = {"sop_class_uid": CT, "sop_instance_uid": "1.2.3.4.5.6", field: "1.2.3.4.5.7"}
    meta = FileMeta(**announced, transfer_syntax_uid="1.2.840.10008.1.2.1", implementation_class_uid="1.2.3.9")
    incoming = archive.receive("dicom SENDER", meta=meta)
    incoming.write(data[144 + pydicom.dcmread(io.BytesIO(data)).file_meta.FileMetaInformationGroupLength :])
    with pytest.raises(Refused, match="another SOP class or instance") as told:
        incoming.finish()
    assert told.value.code == "mismatch"
    assert files(archive) == set()


def test_the_same_object_again_is_a_success_and_nothing_changes(archive: Archive, put: Put, make_object: Make) -> None:
    data = make_object()
    first = put(data)
    before = (rows(archive.db, series), rows(archive.db, studies), files(archive))
    second = put(data)
    assert second == Receipt("already", first.instance_id, first.series_id, first.study_id)
    assert (rows(archive.db, series), rows(archive.db, studies), files(archive)) == before


def test_other_bytes_under_the_same_uid_are_kept_and_shown_once(archive: Archive, put: Put, make_object: Make) -> None:
    first = make_object(SOPInstanceUID="1.2.3.4.5.6")
    other = make_object(SOPInstanceUID="1.2.3.4.5.6", InstanceNumber=9)
    receipt = put(first)
    assert put(other) == Receipt("conflict", receipt.instance_id, receipt.series_id, receipt.study_id)
    assert put(other).outcome == "conflict"
    (conflict,) = rows(archive.db, conflicts)
    assert archive.path_of(conflict["path"]).read_bytes() == other
    assert archive.open(receipt.instance_id).read_bytes() == first
    assert rows(archive.db, series)[0]["instance_count"] == 1
    assert len(files(archive)) == 2
    assert [(e.code, e.count) for e in open_events(archive.db)] == [("conflict", 1)]


@pytest.mark.parametrize("program", [b"MZ\x90", b"\x7fELF", b"\xfe\xed\xfa\xcf", b"\xca\xfe\xba\xbe", b"#!/bin/sh\n"])
def test_a_preamble_that_could_be_executed_becomes_zeros(
    archive: Archive, put: Put, make_object: Make, program: bytes
) -> None:
    data = make_object(preamble=program)
    with archive.receive("test") as incoming:
        incoming.write(data)
        receipt = incoming.finish()
        assert incoming.cleaned
    kept = archive.open(receipt.instance_id).read_bytes()
    assert kept == b"\0" * 128 + data[128:]
    assert rows(archive.db, instances)[0]["sha256"] == hashlib.sha256(kept).hexdigest()
    assert [e.code for e in open_events(archive.db)] == ["executable-preamble"]
    assert put(data).outcome == "already"


def test_a_preamble_of_a_tiff_file_stays(archive: Archive, put: Put, make_object: Make) -> None:
    data = make_object(preamble=b"II*\0" + bytes(range(100)))
    assert archive.open(put(data).instance_id).read_bytes() == data


@pytest.mark.parametrize(
    "uid",
    ["..", "../x", "a/b", "1.2\0.3", "1" * 65, "", "1..2", ".1", "1.", "/etc/passwd", "1.2.3\n", "１.2", "1.2\\3"],
)
@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"])
def test_a_uid_that_is_none_is_refused_and_never_a_name(
    archive: Archive, make_object: Make, put: Put, uid: str, keyword: str
) -> None:
    marker = {"SOPInstanceUID": "1.9.9.1", "SeriesInstanceUID": "1.9.9.2", "StudyInstanceUID": "1.9.9.3"}[keyword]
    data = make_object(**{keyword: marker})
    raw = uid.encode()
    raw += b"\0" * (len(raw) % 2)
    padded = marker.encode() + b"\0"
    at = data.rindex(b"UI\x08\0" + padded)
    data = data[:at] + b"UI" + len(raw).to_bytes(2, "little") + raw + data[at + 12 :]
    with pytest.raises(Refused, match="UID") as told:
        put(data)
    assert told.value.code == "identifiers"
    assert files(archive) == set()
    assert rows(archive.db, instances) == []
    (refusal,) = rows(archive.db, refusals)
    assert (refusal["code"], refusal["source"]) == ("identifiers", "test")
    assert not uid or uid not in refusal["reason"]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"PixelData": None}, "no-pixel-data"),
        ({"Rows": 7}, "pixel-length"),
        ({"Rows": 65535, "Columns": 65535, "NumberOfFrames": "2147483647"}, "pixel-length"),
        ({"NumberOfFrames": "-1"}, "pixel-length"),
        ({"NumberOfFrames": "0"}, "pixel-length"),
        ({"Rows": 0}, "pixel-length"),
        ({"Rows": None}, "pixel-length"),
        ({"Rows": 3}, "pixel-length"),  # more than a frame too much
        ({"BitsAllocated": 13}, "pixel-length"),
        ({"HighBit": 16}, "pixel-length"),
        ({"BitsStored": 17}, "pixel-length"),
        ({"SamplesPerPixel": 65535}, "pixel-length"),
    ],
)
def test_pixels_that_do_not_fit_the_header_are_refused(
    archive: Archive, put: Put, make_object: Make, fields: dict[str, Any], code: str
) -> None:
    with pytest.raises(Refused) as told:
        put(make_object(**fields))
    assert told.value.code == code
    assert files(archive) == set()


def test_an_object_that_is_no_image_needs_no_pixels(put: Put, make_object: Make) -> None:
    assert put(make_object(SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", PixelData=None)).outcome == "stored"


def test_a_deflated_object_is_refused_before_it_comes_in_whole(archive: Archive, make_object: Make, put: Put) -> None:
    data = make_object()
    deflated = data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99", 1)
    at = deflated.index(b"UI\x14\0" + b"1.2.840.10008.1.2.1.99")
    deflated = deflated[: at + 2] + b"\x16\0" + deflated[at + 4 :]
    with pytest.raises(Refused, match="deflated transfer syntax is not kept") as told:
        put(deflated)
    assert told.value.code == "transfer-syntax"
    incoming = archive.receive("test")
    incoming.write(deflated)
    with pytest.raises(Refused, match="deflated"):
        stream(incoming, 20, b"\0" * 2**18)
    assert files(archive) == set()
    with pytest.raises(Refused, match="deflated"):
        archive.receive("test", meta=FileMeta(CT, "1.2", "1.2.840.10008.1.2.1.99", "1.2.3"))


def test_more_bytes_than_allowed_are_refused_while_they_come(archive: Archive, make_object: Make) -> None:
    incoming = archive.receive("test")
    incoming.write(make_object())
    with pytest.raises(Refused, match="more than the 16,777,216 bytes") as told:
        stream(incoming, 100, b"\0" * 2**20)
    assert told.value.code == "too-large"
    assert files(archive) == set()
    assert archive.receiving == 0


def test_an_object_cut_off_anywhere_is_refused(archive: Archive, put: Put, make_object: Make) -> None:
    data = make_object()
    for length in [*range(0, len(data) - 1, 7), len(data) - 1]:
        with pytest.raises(Refused):
            put(data[:length])
    assert files(archive) == set()
    assert rows(archive.db, instances) == []


def test_noise_is_refused(archive: Archive, put: Put) -> None:
    draw = random.Random(5)
    for _ in range(50):
        with pytest.raises(Refused):
            put(draw.randbytes(draw.randrange(1, 3000)))
    assert files(archive) == set()


def test_a_series_of_mixed_patients_is_kept_and_marked(archive: Archive, put: Put, make_object: Make) -> None:
    assert put(make_object(PatientID="A")).outcome == "stored"
    assert rows(archive.db, series)[0]["problem"] == ""
    assert put(make_object(PatientID="B")).outcome == "stored"
    assert put(make_object(PatientID="A")).outcome == "stored"
    (row,) = rows(archive.db, series)
    assert (row["problem"], row["instance_count"]) == (MIXED_PATIENTS, 3)
    assert [(e.code, e.about, e.count) for e in open_events(archive.db)] == [("mixed-series", "series 1", 1)]


def test_a_series_in_two_studies_is_kept_and_marked(archive: Archive, put: Put, make_object: Make) -> None:
    put(make_object(StudyInstanceUID="1.2.3.4"))
    put(make_object(StudyInstanceUID="1.2.3.5"))
    assert rows(archive.db, series)[0]["problem"] == MIXED_STUDIES


@pytest.mark.parametrize(
    ("character_set", "raw", "shown"),
    [
        # The examples of PS3.5 Annexes H, I, J and K, byte for byte.
        ("GB18030", b"Wang^XiaoDong=\xcd\xf5^\xd0\xa1\xb6\xab=", "Wang^XiaoDong=王^小东"),
        ("\\ISO 2022 IR 58", b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab=", "Zhang^XiaoDong=张^小东"),
        ("\\ISO 2022 IR 58", b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\xd0\xa1\xb6\xab=", "Zhang^XiaoDong=张^小东"),
        ("ISO_IR 192", "Wang^XiaoDong=王^小東=".encode(), "Wang^XiaoDong=王^小東"),
        (
            "\\ISO 2022 IR 149",
            b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",
            "Hong^Gildong=洪^吉洞=홍^길동",
        ),
        (
            "\\ISO 2022 IR 87",
            b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
            "Yamada^Tarou=山田^太郎=やまだ^たろう",
        ),
        ("ISO_IR 100", b"Buc^J\xe9r\xf4me", "Buc^Jérôme"),
        ("ISO_IR 144", b"\xbb\xee\xdace\xdc\xd1yp\xd3", "Люкceмбypг"),
    ],
)  # fmt: skip
def test_names_are_decoded_in_their_character_set(
    archive: Archive, put: Put, make_object: Make, character_set: str, raw: bytes, shown: str
) -> None:
    data = make_object(SpecificCharacterSet=character_set.split("\\"), PatientName="N" * (len(raw) + len(raw) % 2))
    put(data.replace(b"N" * (len(raw) + len(raw) % 2), raw + b" " * (len(raw) % 2), 1))
    (study,) = rows(archive.db, studies)
    assert study["patient_name"] == shown
    parts = dict(zip(("Alphabetic", "Ideographic", "Phonetic"), shown.split("="), strict=False))
    assert study["attributes"]["00100010"] == {"vr": "PN", "Value": [parts]}


def test_a_value_of_bytes_that_look_like_a_backslash_is_one_value(
    archive: Archive, put: Put, make_object: Make
) -> None:
    raw = "功能".encode("gb18030") + "誠".encode("gb18030")  # its second byte is that of a backslash
    assert b"\\" in raw
    data = make_object(SpecificCharacterSet="GB18030", StudyDescription="D" * len(raw))
    put(data.replace(b"D" * len(raw), raw))
    (study,) = rows(archive.db, studies)
    assert study["description"] == "功能誠"
    assert study["attributes"]["00081030"]["Value"] == ["功能誠"]


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_name_without_a_declared_set_is_taken_for_utf_8_or_latin_1(
    archive: Archive, put: Put, make_object: Make, encoding: str
) -> None:
    data = make_object(PatientName="M@@ller")
    put(data.replace(b"M@@ller", "Müller".encode(encoding).ljust(7)))
    assert rows(archive.db, studies)[0]["patient_name"] == "Müller"


def test_text_longer_than_the_standard_allows_is_cut_for_the_rows(
    archive: Archive, put: Put, make_object: Make
) -> None:
    long = {name: f"<{name}>" + "é" * 30000 for name in ("PatientName", "StudyDescription", "SeriesDescription")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, on what it writes here
        data = make_object(SpecificCharacterSet="ISO_IR 192", **long, PatientID="i" * 70, AccessionNumber="a" * 20)
    receipt = put(data)
    assert archive.open(receipt.instance_id).read_bytes() == data
    (study,) = rows(archive.db, studies)
    assert study["patient_name"].startswith("<PatientName>")
    assert len(study["patient_name"]) == 512
    assert len(study["patient_search"].encode()) < 2500
    assert len(study["description"]) == 1024
    assert len(str(study["attributes"])) < 5000


def test_a_disk_without_room_beyond_the_reserve_takes_nothing(db: Database, tmp_path: Path) -> None:
    archive = Archive(db, tmp_path / "archive", Limits(disk_reserve=2**60))
    with pytest.raises(ArchiveFull, match="are kept free"):
        archive.receive("test")
    assert [e.code for e in open_events(db)] == ["disk-full"]


class Breaks:
    """Lets one call of the system fail, as on a full disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, when: int, code: int = errno.ENOSPC) -> None:
        self.real, self.left, self.code = getattr(os, name), when, code
        monkeypatch.setattr(disk.os, name, self)

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise OSError(self.code, os.strerror(self.code))
        return self.real(*args, **options)


@pytest.mark.parametrize(("call", "when"), [("open", 1), ("writev", 1), ("fsync", 1), ("rename", 1), ("fsync", 2)])
def test_a_disk_that_is_full_at_any_call_leaves_nothing_half_there(
    archive: Archive, put: Put, make_object: Make, monkeypatch: pytest.MonkeyPatch, call: str, when: int
) -> None:
    put(make_object())  # the folder is open
    before = files(archive)
    data = make_object()
    with monkeypatch.context() as broken:
        Breaks(broken, call, when)
        with pytest.raises(ArchiveFull, match="the disk of the archive is full"):
            put(data)
    assert files(archive) == before
    assert len(rows(archive.db, instances)) == 1
    assert [e.code for e in open_events(archive.db)] == ["disk-full"]
    receipt = put(data)  # it recovers by itself
    assert archive.open(receipt.instance_id).read_bytes() == data
    assert open_events(archive.db) == []


def test_a_disk_that_fails_is_told_and_what_it_did_not_take_is_not_acknowledged(
    archive: Archive, put: Put, make_object: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_object()
    with monkeypatch.context() as broken:
        Breaks(broken, "fsync", 1, errno.EIO)
        with pytest.raises(ServeError, match="the archive's disk cannot be used"):
            put(data)
    assert files(archive) == set()
    assert [e.code for e in open_events(archive.db)] == ["disk-broken"]
    assert put(data).outcome == "stored"
    assert open_events(archive.db) == []


def test_a_database_that_is_full_or_locked_leaves_nothing_half_there(
    archive: Archive, put: Put, make_object: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_object()
    for error in (ResourceError("the disk of the database is full"), ServeError("locked")):
        with monkeypatch.context() as broken:

            def fail(*_: Any, error: Exception = error) -> None:
                raise error

            broken.setattr(archive._index, "_one", fail)
            with pytest.raises(type(error)):
                put(data)
        assert files(archive) == set()
    assert put(data).outcome == "stored"


def test_what_is_abandoned_leaves_nothing(archive: Archive, make_object: Make) -> None:
    with archive.receive("test") as incoming:
        incoming.write(make_object(np.zeros((1200, 1200), np.uint16)))
        assert archive.receiving == 1
    assert files(archive) == set()
    assert archive.receiving == 0
    with pytest.raises(ServeError, match="finished or abandoned"):
        incoming.write(b"x")
    with pytest.raises(ServeError, match="finished or abandoned"):
        incoming.finish()


def test_many_receive_at_once_and_share_their_flushes(archive: Archive, make_object: Make) -> None:
    objects = [make_object(SeriesInstanceUID=f"1.2.3.{n % 3}", InstanceNumber=n) for n in range(48)]
    flushed, commits = [], []
    real = os.fsync
    sa.event.listen(archive.db._writers, "commit", lambda _c: commits.append(1))

    def count(file: int) -> None:
        flushed.append(file)
        real(file)

    failures: list[BaseException] = []

    def receive(part: list[bytes]) -> None:
        try:
            for data in part:
                with archive.receive("test") as incoming:
                    incoming.write(data)
                    assert incoming.finish().outcome == "stored"
        except BaseException as error:
            failures.append(error)

    disk.os.fsync = count  # type: ignore[attr-defined]
    try:
        threads = [threading.Thread(target=receive, args=(objects[n::8],)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        disk.os.fsync = real  # type: ignore[attr-defined]
    assert failures == []
    kept = rows(archive.db, instances)
    assert sorted(row["sha256"] for row in kept) == sorted(hashlib.sha256(data).hexdigest() for data in objects)
    assert len(commits) < 48
    assert 48 < len(flushed) < 96
    assert sorted(row["instance_count"] for row in rows(archive.db, series)) == [16, 16, 16]
    assert rows(archive.db, studies)[0]["instance_count"] == 48


def test_the_same_object_from_many_at_once_is_one(archive: Archive, make_object: Make) -> None:
    data = make_object()
    outcomes: list[str] = []

    def receive() -> None:
        with archive.receive("test") as incoming:
            incoming.write(data)
            outcomes.append(incoming.finish().outcome)

    threads = [threading.Thread(target=receive) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["already"] * 5 + ["stored"]
    (row,) = rows(archive.db, instances)
    assert files(archive) == {row["path"]}
    assert archive.open(row["id"]).read_bytes() == data


def test_folders_hold_a_limited_number_of_files(
    archive: Archive, put: Put, make_object: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "FOLDER_FILES", 3)
    for _ in range(7):
        put(make_object())
    assert [row["path"][:14] for row in rows(archive.db, instances)] == ["objects/000001"] * 3 + [
        "objects/000002"
    ] * 3 + ["objects/000003"]
    again = Archive(archive.db, archive.folder, archive.limits)
    with again.receive("test") as incoming:
        incoming.write(make_object())
        assert incoming.finish().outcome == "stored"
    assert rows(archive.db, instances)[-1]["path"].startswith("objects/000003/")


def test_a_full_folder_is_let_go(
    archive: Archive, put: Put, make_object: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc")
    monkeypatch.setattr(disk, "FOLDER_FILES", 1)
    put(make_object())
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        put(make_object())
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_a_conflict_that_is_looked_at_again_keeps_its_file(archive: Archive, put: Put, make_object: Make) -> None:
    """As when the check of a folder meets a file that is just being given its rows."""
    put(make_object(SOPInstanceUID="1.2.9"))
    other = make_object(SOPInstanceUID="1.2.9", InstanceNumber=9)
    put(other)
    (conflict,) = rows(archive.db, conflicts)
    path = archive.path_of(conflict["path"])
    header = read_header(find_elements(other, len(other)), len(other))
    again = Arrival(header, conflict["path"], conflict["sha256"], len(other), "recovered")
    assert archive.settle(again).outcome == "conflict"
    assert path.read_bytes() == other


def test_a_result_opens_no_series_and_is_no_modality_of_the_study(
    archive: Archive, put: Put, make_object: Make
) -> None:
    put(make_object())
    with archive.db.write() as c:
        c.execute(sa.update(series).values(complete_at=1.0, completed_by="silence", revision=1))
        c.execute(sa.update(studies).values(status="answered"))
    result = pydicom.dcmread(io.BytesIO(make_object(Modality="SEG", SeriesInstanceUID=generate_uid())))
    receipt = archive.store_result(result)
    assert receipt.outcome == "stored"
    one, two = rows(archive.db, series)
    assert (one["complete_at"], two["completed_by"]) == (1.0, "result")
    assert two["complete_at"] is not None
    (study,) = rows(archive.db, studies)
    assert (study["status"], study["modalities"], study["instance_count"], study["series_count"]) == (
        "answered",
        "CT",
        2,
        2,
    )
    assert rows(archive.db, instances)[1]["source"] == "result"


def test_a_late_slice_opens_its_series_again(archive: Archive, put: Put, make_object: Make) -> None:
    put(make_object())
    with archive.db.write() as c:
        c.execute(sa.update(series).values(complete_at=1.0, completed_by="silence", revision=1))
        c.execute(sa.update(studies).values(status="answered"))
    put(make_object())
    (row,) = rows(archive.db, series)
    assert (row["complete_at"], row["completed_by"], row["revision"]) == (None, "", 1)
    assert rows(archive.db, studies)[0]["status"] == "receiving"


def test_a_file_of_another_kind_is_kept_by_its_hash(archive: Archive) -> None:
    kept = archive.store_file(b'{"a": 1}', ".json")
    assert archive.path_of(kept.path).read_bytes() == b'{"a": 1}'
    assert (kept.sha256, kept.size) == (hashlib.sha256(b'{"a": 1}').hexdigest(), 8)
    with pytest.raises(ServeError, match="suffix"):
        archive.store_file(b"", "/../x")


@pytest.mark.parametrize(
    "place",
    [
        "../x",
        "objects/../x",
        "/etc/passwd",
        "objects/000001/../../x",
        "objects/1/a/b",
        "other/1/a.dcm",
        "objects/000001/..",
        "objects/000001/.dcm",
    ],
)
def test_a_row_that_names_another_file_is_not_followed(archive: Archive, place: str) -> None:
    with pytest.raises(ServeError, match="did not make"):
        archive.path_of(place)


def test_no_other_code_of_the_archive_joins_a_path_from_outside() -> None:
    """CVE-2026-50003: a fix in one place, and the same hole in another."""
    import ast

    import sagittal.archive

    joined = []
    for path in sorted(Path(sagittal.archive.__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.BinOp)
                and isinstance(node.op, ast.Div)
                and not isinstance(node.right, ast.Constant)
            ):
                joined.append(f"{path.stem}: {ast.unparse(node.right)}")
    numbers = {"integrity: bytes_per_s", "archive: 2 ** 30"}
    ours = {"archive: f'{self.new_name()}.part'", "backup: f'{_INDEX}.part'"}
    ours |= {f"backup: {name}" for name in ("_ARCHIVE", "_DATABASE", "_INDEX")}
    ours |= {"disk: name", "disk: names[-1]", "disk: place", "recover: name"}  # made or listed by us
    one_way = {"disk: parts[0]", "disk: parts[1]", "disk: parts[2]"}  # path_in
    assert set(joined) <= numbers | ours | one_way


def test_two_processes_do_not_receive_into_one_folder(archive: Archive) -> None:
    archive.own()
    with pytest.raises(ServeError, match="another process receives"):
        Archive(archive.db, archive.folder).own()
    archive.close()
    Archive(archive.db, archive.folder).own()


def test_the_same_refusal_of_the_same_sender_is_one_row(archive: Archive, put: Put, make_object: Make) -> None:
    for _ in range(3):
        with pytest.raises(Refused):
            put(make_object(PixelData=None), source="dicom A")
    with pytest.raises(Refused):
        put(make_object(PixelData=None), source="dicom B")
    assert [(row["source"], row["count"]) for row in rows(archive.db, refusals)] == [("dicom A", 3), ("dicom B", 1)]
