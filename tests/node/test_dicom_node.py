"""The DICOM node against real senders and against a socket that breaks the rules."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
import sqlalchemy as sa

from sagittal.archive.archive import Archive
from sagittal.archive.refused import ArchiveFull
from sagittal.database.events import open_events, recent_events
from sagittal.database.schema import audit, conflicts, instances, refusals
from sagittal.errors import ServeError
from sagittal.node.dicom_node import DicomNode
from sagittal.protect.audit import Audit
from sagittal.serve.config import Dicom

FOLDER = Path(__file__).resolve().parents[2] / "fuzz"
sys.path.insert(0, str(FOLDER))
import dicom_peer  # noqa: E402
from dicom_peer import CT, ECHO, EXPLICIT, VERIFICATION, Peer, bare_data_set, context  # noqa: E402

sys.path.remove(str(FOLDER))


def rows(archive: Archive, table: sa.Table = instances) -> list[Any]:
    with archive.db.read() as c:
        return list(c.execute(sa.select(table)).mappings())


def stored_data_set(archive: Archive, row: Any) -> bytes:
    return bare_data_set(archive.path_of(row["path"]))[0]


def call(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a tool of dcmtk."""
    program = shutil.which(name)
    if program is None:
        if os.environ.get("CI"):
            pytest.fail(f"{name} is missing: apt-get install dcmtk")
        pytest.skip(f"{name} is not installed (Debian package dcmtk)")
    return subprocess.run(
        [program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=os.environ | {"TCP_NODELAY": "1"},
    )


# Real senders ---------------------------------------------------------------------------------------------------------


def test_echoscu_is_answered(start: Callable[..., DicomNode]) -> None:
    node = start()
    result = call("echoscu", "-v", "-aec", "SAGITTAL", "127.0.0.1", str(node.port))
    assert result.returncode == 0, result.stderr
    assert "Received Echo Response (Success)" in result.stdout + result.stderr


@pytest.mark.parametrize("tool", ["storescu", "dcmsend"])
def test_dcmtk_sends_whole_objects(
    tool: str, start: Callable[..., DicomNode], archive: Archive, make_slice: Callable[..., Path]
) -> None:
    node = start()
    paths = [make_slice(k, size=300) for k in range(5)]
    result = call(tool, "-aec", "SAGITTAL", "127.0.0.1", str(node.port), *map(str, paths))
    assert result.returncode == 0, result.stdout + result.stderr
    kept = {row["sop_instance_uid"]: pydicom.dcmread(archive.path_of(row["path"])) for row in rows(archive)}
    assert len(kept) == 5
    for path in paths:  # element by element: these tools encode a data set anew
        sent = pydicom.dcmread(path)
        assert kept[sent.SOPInstanceUID].PixelData == sent.PixelData
        assert list(kept[sent.SOPInstanceUID]) == [e for e in sent if e.tag.group != 0xFFFC]  # padding


def test_every_transfer_syntax_arrives_byte_for_byte(start: Callable[..., DicomNode], archive: Archive) -> None:
    from pynetdicom import AE

    node = start()
    objects: dict[str, tuple[Path, str, str, str]] = {}
    for path in sorted((Path(pydicom.data.__file__).parent / "test_files").rglob("*.dcm")):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True)
            _, sop_class, uid, syntax = bare_data_set(path)
        except Exception:  # files that are broken on purpose, or not part 10
            continue
        if header.get("SOPInstanceUID") == uid and header.get("StudyInstanceUID") and header.get("SeriesInstanceUID"):
            objects.setdefault(syntax, (path, sop_class, uid, syntax))
    assert len(objects) >= 10
    refused = objects.pop("1.2.840.10008.1.2.1.99", None)
    assert refused is not None
    for syntax, (path, sop_class, uid, _) in objects.items():
        with Peer(node.port) as peer:
            assert peer.associate(context(1, sop_class, (syntax,)))
            assert peer.accepted[1] == (0, syntax)
            status = peer.store(1, bare_data_set(path)[0], uid, sop_class=sop_class)
            assert status == 0, f"{path.name}: {status:04X}"
    kept = [archive.path_of(row["path"]) for row in (*rows(archive), *rows(archive, conflicts))]
    data = {syntax: bare_data_set(path)[0] for syntax, (path, *_) in objects.items()}
    assert {bare_data_set(path)[3]: bare_data_set(path)[0] for path in kept} == data
    entity = AE()
    entity.add_requested_context(refused[1], "1.2.840.10008.1.2.1.99")
    association = entity.associate("127.0.0.1", node.port, ae_title="SAGITTAL")
    assert [c.result for c in association.rejected_contexts] == [4]
    association.release()


def test_dcmsend_sends_compressed_objects_as_they_are(start: Callable[..., DicomNode], archive: Archive) -> None:
    node = start()
    folder = Path(pydicom.data.__file__).parent / "test_files"
    names = (
        "MR_small_RLE.dcm",
        "JPEG2000.dcm",
        "SC_rgb_jpeg_gdcm.dcm",
        "examples_ybr_color.dcm",
    )
    sent = {pydicom.dcmread(folder / name).SOPInstanceUID: pydicom.dcmread(folder / name) for name in names}
    result = call("dcmsend", "-aec", "SAGITTAL", "127.0.0.1", str(node.port), *(str(folder / name) for name in names))
    assert result.returncode == 0, result.stdout + result.stderr
    assert {row["sop_instance_uid"] for row in rows(archive)} == set(sent)
    for row in rows(archive):
        kept = pydicom.dcmread(archive.path_of(row["path"]))
        assert kept.file_meta.TransferSyntaxUID == sent[row["sop_instance_uid"]].file_meta.TransferSyntaxUID
        assert kept.PixelData == sent[row["sop_instance_uid"]].PixelData


def test_pynetdicom_sends_in_each_context(start: Callable[..., DicomNode], archive: Archive) -> None:
    from pynetdicom import AE

    node = start()
    folder = Path(pydicom.data.__file__).parent / "test_files"
    objects = [pydicom.dcmread(folder / name) for name in ("CT_small.dcm", "MR_small_bigendian.dcm", "JPEG2000.dcm")]
    entity = AE("CT1")
    for sent in objects:
        entity.add_requested_context(sent.SOPClassUID, sent.file_meta.TransferSyntaxUID)
    association = entity.associate("127.0.0.1", node.port, ae_title="SAGITTAL", max_pdu=4096)
    assert association.is_established
    assert [association.send_c_store(sent).Status for sent in objects] == [0, 0, 0]
    association.release()
    assert {row["transfer_syntax_uid"] for row in rows(archive)} == {o.file_meta.TransferSyntaxUID for o in objects}


def test_the_file_that_is_written_can_be_read(start: Callable[..., DicomNode], archive: Archive, ct: Path) -> None:
    node = start()
    data, sop_class, uid, syntax = bare_data_set(ct)
    with Peer(node.port) as peer:
        assert peer.associate(context(1, sop_class, (syntax,)), calling="SENDER")
        assert peer.store(1, data, uid) == 0
        assert peer.release()
    header = pydicom.dcmread(archive.path_of(rows(archive)[0]["path"]))
    assert header.file_meta.SourceApplicationEntityTitle == "SENDER"
    assert header.file_meta.MediaStorageSOPInstanceUID == uid
    assert header.pixel_array.shape == (64, 64)


@pytest.mark.parametrize("size", [16, 17, 1000, 65537, 131072])
def test_chunks_of_any_size_make_the_same_file(
    size: int, start: Callable[..., DicomNode], archive: Archive, make_slice: Callable[..., Path]
) -> None:
    node = start()
    path = make_slice(size=20 if size < 100 else 400)
    data, sop_class, uid, syntax = bare_data_set(path)
    with Peer(node.port) as peer:
        assert peer.associate(context(1, sop_class, (syntax,)))
        assert peer.store(1, data, uid, size=size) == 0
    assert hashlib.sha256(stored_data_set(archive, rows(archive)[0])).digest() == hashlib.sha256(data).digest()


def test_a_command_may_come_in_pieces_and_with_its_data(
    start: Callable[..., DicomNode], archive: Archive, ct: Path
) -> None:
    node = start()
    data, sop_class, uid, syntax = bare_data_set(ct)
    asked = dicom_peer.store_command(uid)
    values = b"".join(
        struct.pack(">IBB", len(piece) + 2, 1, header) + piece
        for header, piece in ((1, asked[:20]), (1, b""), (3, asked[20:]), (0, data[:100]), (2, data[100:]))
    )
    with Peer(node.port) as peer:
        assert peer.associate(context(1, sop_class, (syntax,)))
        whole = dicom_peer.unit(4, values)
        for at in range(0, len(whole), 997):  # and the units in pieces of TCP
            peer.send(whole[at : at + 997])
        assert peer.status() == 0
    assert stored_data_set(archive, rows(archive)[0]) == data


# What is answered -----------------------------------------------------------------------------------------------------


def test_the_same_again_and_a_conflict_are_success(
    start: Callable[..., DicomNode], archive: Archive, make_slice: Callable[..., Path]
) -> None:
    node = start()
    first = bare_data_set(make_slice(1, uid="1.2.3.9"))
    other = bare_data_set(make_slice(2, uid="1.2.3.9"))
    with Peer(node.port) as peer:
        assert peer.associate(context(1, CT, (EXPLICIT,)))
        assert [peer.store(1, d[0], "1.2.3.9") for d in (first, first, other)] == [0, 0, 0]
    assert len(rows(archive)) == 1
    assert stored_data_set(archive, rows(archive)[0]) == first[0]
    assert stored_data_set(archive, rows(archive, conflicts)[0]) == other[0]


@pytest.mark.parametrize(
    ("uid", "status"),
    [
        ("..", 0x117),
        ("../x", 0x117),
        ("a/b", 0x117),
        ("1.2\0.3", 0x117),
        ("1" * 65, 0x117),
        ("", 0x117),
        ("1.2.3", 0xA900),
    ],
)
def test_uids_that_are_none_or_not_the_objects_are_refused(
    uid: str, status: int, start: Callable[..., DicomNode], archive: Archive, ct: Path
) -> None:
    node = start()
    data = bare_data_set(ct)[0]
    with Peer(node.port) as peer:
        assert peer.associate(context(1, CT, (EXPLICIT,)))
        assert peer.store(1, data, uid) == status
        assert peer.store(1, data, bare_data_set(ct)[2]) == 0  # and the association goes on
    assert len(rows(archive)) == 1
    assert len(rows(archive, refusals)) == 1
    assert not [p for p in archive.folder.rglob("*") if p.is_file() and (p.name == "x" or p.suffix == ".part")]


def test_other_classes_than_the_contexts_are_refused(start: Callable[..., DicomNode], ct: Path) -> None:
    node = start()
    data, _, uid, syntax = bare_data_set(ct)
    with Peer(node.port) as peer:
        assert peer.associate(context(1, "1.2.840.10008.5.1.4.1.1.4", (syntax,)), context(3, VERIFICATION))
        assert peer.store(1, data, uid) == 0x122
        assert peer.store(1, data, uid, sop_class="1.2.840.10008.5.1.4.1.1.4") == 0xA900
        assert peer.store(3, data, uid, sop_class=VERIFICATION) == 0x122


def test_what_is_no_data_set_is_not_understood(start: Callable[..., DicomNode], archive: Archive) -> None:
    node = start()
    with Peer(node.port) as peer:
        assert peer.associate(context(1, CT, (EXPLICIT,)))
        assert peer.store(1, b"\x08\x00\x16\x00UI\xff\xff" + b"1" * 500, "1.2.3") >> 12 == 0xC
    assert not rows(archive)
    assert not list((archive.folder / "incoming").iterdir())


def test_an_object_over_the_limit_is_refused_and_the_next_is_taken(
    start: Callable[..., DicomNode], archive: Archive, make_slice: Callable[..., Path]
) -> None:
    node = start(most_object_bytes=100_000)
    large, small = bare_data_set(make_slice(1, size=600)), bare_data_set(make_slice(2, size=16))
    with Peer(node.port) as peer:
        assert peer.associate(context(1, CT, (EXPLICIT,)))
        assert peer.store(1, large[0], large[2]) == 0xC002
        assert peer.store(1, small[0], small[2]) == 0
    assert [row["code"] for row in rows(archive, refusals)] == ["too-large"]


def test_a_full_disk_is_answered_and_nothing_is_lost(
    start: Callable[..., DicomNode], archive: Archive, make_slice: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = start()
    one, two = bare_data_set(make_slice(1)), bare_data_set(make_slice(2))

    def full(_more: int) -> None:
        raise ArchiveFull("no room")

    with Peer(node.port) as peer:
        assert peer.associate(context(1, CT, (EXPLICIT,)))
        assert peer.store(1, one[0], one[2]) == 0
        with monkeypatch.context() as patch:
            patch.setattr(archive, "check_space", full)
            assert peer.store(1, two[0], two[2]) == 0xA700
            with Peer(node.port) as late:
                assert not late.associate(context(1, CT))
                assert late.answer.hex() == "00020301"  # transient, by the provider: temporary congestion
            with Peer(node.port) as echo:
                assert echo.associate(context(1, VERIFICATION))
        assert peer.store(1, two[0], two[2]) == 0
    assert len(rows(archive)) == 2
    assert [event.code for event in recent_events(archive.db)] == ["disk-full"]
    assert open_events(archive.db) == []


def test_a_fault_of_ours_is_answered_with_an_id_and_no_text(
    start: Callable[..., DicomNode], archive: Archive, ct: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    node = start()
    data, _, uid, _ = bare_data_set(ct)

    def broken(*_: Any) -> None:
        raise RuntimeError("Secret^Name")

    monkeypatch.setattr(archive, "keep", broken)
    with Peer(node.port) as peer:
        assert peer.associate(context(1, CT, (EXPLICIT,)))
        peer.send(dicom_peer.data(1, 3, dicom_peer.store_command(uid)) + dicom_peer.data_units(1, data, 16384))
        answer = peer.elements()
    assert answer[0x900] == b"\x10\x01"
    name = answer[0x902].decode().split()[-1]
    assert name in caplog.text
    assert "RuntimeError at" in caplog.text
    assert "Secret" not in caplog.text + answer[0x902].decode()


def test_answers_name_what_they_answer(start: Callable[..., DicomNode], ct: Path) -> None:
    node = start()
    data, _, uid, _ = bare_data_set(ct)
    with Peer(node.port) as peer:
        assert peer.associate(context(1, CT, (EXPLICIT,)), context(3, VERIFICATION))
        peer.send(dicom_peer.data(1, 3, dicom_peer.store_command(uid, message=4711)))
        peer.send(dicom_peer.data_units(1, data, 16384))
        answer = peer.elements()
        assert struct.unpack("<HHHH", answer[0x100] + answer[0x120] + answer[0x800] + answer[0x900]) == (
            *(0x8001, 4711, 0x101, 0),
        )
        assert answer[2].rstrip(b"\0").decode() == CT
        assert answer[0x1000].rstrip(b"\0").decode() == uid
        length = struct.unpack("<I", answer.pop(0))[0]
        assert length == sum(8 + len(value) for value in answer.values())
        peer.send(dicom_peer.data(3, 3, ECHO))
        assert peer.elements()[0x100] == struct.pack("<H", 0x8030)


def test_unknown_operations_are_answered_and_cancel_is_not(start: Callable[..., DicomNode]) -> None:
    node = start()
    find = dicom_peer.command(
        dicom_peer.element(2, b"1.2.3"),
        dicom_peer.short(0x100, 0x20),
        dicom_peer.short(0x110, 5),
        dicom_peer.short(0x800, 1),
    )
    cancel = dicom_peer.command(
        dicom_peer.short(0x100, 0xFFF), dicom_peer.short(0x120, 5), dicom_peer.short(0x800, 0x101)
    )
    with Peer(node.port) as peer:
        assert peer.associate(context(1, VERIFICATION))
        peer.send(dicom_peer.data(1, 3, find) + dicom_peer.data(1, 2, b"\0" * 10))
        assert peer.status() == 0x211
        peer.send(dicom_peer.data(1, 3, cancel) + dicom_peer.data(1, 3, ECHO))
        assert peer.status() == 0


def test_a_fault_within_an_association_ends_only_that_one(
    start: Callable[..., DicomNode], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    node = start()

    def broken(*_: Any) -> None:
        raise RuntimeError("Secret^Name")

    with monkeypatch.context() as patch:
        patch.setattr("sagittal.node.dicom_services.dimse.read_command", broken)
        with Peer(node.port) as peer:
            assert peer.associate(context(1, VERIFICATION))
            peer.send(dicom_peer.data(1, 3, ECHO))
            assert peer.read_unit() == (7, bytes(4))
    assert "RuntimeError at" in caplog.text
    assert "Secret" not in caplog.text
    with Peer(node.port) as peer:
        assert peer.associate(context(1, VERIFICATION))


# Stopping -------------------------------------------------------------------------------------------------------------


def test_stopping_lets_an_object_finish_and_takes_no_more(
    start: Callable[..., DicomNode], archive: Archive, ct: Path
) -> None:
    node = start()
    data, _, uid, _ = bare_data_set(ct)
    units = dicom_peer.data(1, 3, dicom_peer.store_command(uid)) + dicom_peer.data_units(1, data, 4096)
    with Peer(node.port) as busy, Peer(node.port) as idle:
        assert busy.associate(context(1, CT, (EXPLICIT,)))
        assert idle.associate(context(1, CT, (EXPLICIT,)))
        busy.send(units[:5000])
        time.sleep(0.3)
        stopper = threading.Thread(target=node.stop, args=(10.0,))
        stopper.start()
        assert idle.read_unit() == (7, bytes(4))
        busy.send(units[5000:])
        assert busy.status() == 0
        assert busy.read_unit() == (7, bytes(4))
    stopper.join(10)
    assert not stopper.is_alive()
    assert [row["sop_instance_uid"] for row in rows(archive)] == [uid]
    with pytest.raises(ServeError, match="has not been started"):
        _ = node.port


def test_stopping_cuts_an_object_that_does_not_end(start: Callable[..., DicomNode], archive: Archive, ct: Path) -> None:
    node = start()
    data, _, uid, _ = bare_data_set(ct)
    with Peer(node.port) as peer:
        assert peer.associate(context(1, CT, (EXPLICIT,)))
        peer.send(dicom_peer.data(1, 3, dicom_peer.store_command(uid)) + dicom_peer.data(1, 0, data[:1000]))
        time.sleep(0.3)
        began = time.monotonic()
        node.stop(0.3)
        assert time.monotonic() - began < 4
    assert not rows(archive)
    assert not list((archive.folder / "incoming").iterdir())


def test_an_association_that_breaks_leaves_nothing(
    start: Callable[..., DicomNode], archive: Archive, make_slice: Callable[..., Path]
) -> None:
    node = start()
    data, _, uid, _ = bare_data_set(make_slice(size=900))
    for ending in (b"", dicom_peer.unit(7, bytes(4))):
        with Peer(node.port) as peer:
            assert peer.associate(context(1, CT, (EXPLICIT,)))
            peer.send(dicom_peer.data(1, 3, dicom_peer.store_command(uid)) + dicom_peer.data(1, 0, data[:100_000]))
            peer.send(ending)
    for _ in range(100):
        if not node.associations:
            break
        time.sleep(0.02)
    assert archive.receiving == 0
    assert not rows(archive)
    assert not list((archive.folder / "incoming").iterdir())


def test_a_port_that_is_taken_is_said(archive: Archive) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        node = DicomNode(Dicom(port=taken.getsockname()[1]), archive)
        with pytest.raises(ServeError, match="cannot listen at 127.0.0.1 port"):
            node.start()


# The trail ------------------------------------------------------------------------------------------------------------


def test_what_came_is_recorded_once_a_study(
    start: Callable[..., DicomNode], archive: Archive, make_slice: Callable[..., Path], caplog: Any
) -> None:
    caplog.set_level("DEBUG", "sagittal")
    node = start(audit=Audit(archive.db))
    with Peer(node.port) as peer:
        assert peer.associate(context(1, CT, (EXPLICIT,)), calling="CT1")
        for k in range(3):
            data, _, uid, _ = bare_data_set(make_slice(k))
            assert peer.store(1, data, uid) == 0
        assert peer.release()
    for _ in range(200):
        if rows(archive, audit):
            break
        time.sleep(0.02)
    (record,) = rows(archive, audit)
    assert (record["actor"], record["action"], record["details"]) == ("CT1", "receive", {"stored": 3})
    assert record["study_id"] == 1
    for secret in ("Secret", "SECRET", "1.2.826", "CT1"):
        assert secret not in caplog.text


def test_what_happens_is_counted(start: Callable[..., DicomNode], ct: Path) -> None:
    from sagittal.serve.metrics import Metrics

    metrics = Metrics()
    node = start(count=metrics.count)
    data, _, uid, _ = bare_data_set(ct)
    with Peer(node.port) as peer:
        assert not peer.associate(context(1, CT), called="OTHER")
    with Peer(node.port) as peer:
        assert peer.associate(context(1, CT, (EXPLICIT,)))
        assert [peer.store(1, data, u) for u in (uid, uid, "..")] == [0, 0, 0x117]
    text = ""
    for _ in range(100):
        text = metrics.text().decode()
        if "dicom_bytes_total" in text:
            break
        time.sleep(0.02)
    for line in (
        'sagittal_dicom_associations_total{outcome="accepted"} 1.0',
        'sagittal_dicom_associations_total{outcome="refused"} 1.0',
        'sagittal_dicom_objects_total{outcome="stored"} 1.0',
        'sagittal_dicom_objects_total{outcome="already"} 1.0',
        'sagittal_dicom_objects_total{outcome="refused"} 1.0',
    ):
        assert line in text
