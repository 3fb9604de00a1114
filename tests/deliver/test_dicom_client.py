"""DICOM as a client, against dcmtk, Orthanc and nodes that misbehave."""

from __future__ import annotations

import io
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest

pytest.importorskip("pynetdicom")

from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless
from pynetdicom import AE, evt

from sagittal.deliver.destinations import DicomDestination, DicomPeer
from sagittal.deliver.dicom_client import (
    Commitments,
    Retrieved,
    echo,
    find_studies,
    get_study,
    move_study,
    read_report,
    request_commitment,
    store,
)
from sagittal.deliver.dicom_offer import offer
from sagittal.deliver.outcome import DeliveryError
from sagittal.deliver.send import send
from sagittal.errors import ConfigError

COMMITMENT = "1.2.840.10008.1.20.1"


def peer_at(port: int, ae_title: str = "STORE", **given: Any) -> DicomDestination:
    return DicomDestination(
        name="pacs", host="127.0.0.1", port=port, ae_title=ae_title, connect_s=10, **{"answer_s": 30.0, **given}
    )


@pytest.fixture
def node() -> Any:
    """A node of pynetdicom: ``node(handlers, contexts)`` gives its port."""
    running: list[Any] = []

    def start(
        handlers: list[Any], classes: list[Any], change: Callable[[Any], None] | None = None, **given: Any
    ) -> int:
        ae = AE(ae_title="STORE")
        for one in classes:
            ae.add_supported_context(one, scu_role=given.get("scu_role"), scp_role=True) if given.get(
                "scu_role"
            ) else ae.add_supported_context(one)
        if change is not None:
            change(ae)
        server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        running.append(server)
        return int(server.socket.getsockname()[1])

    yield start
    for server in running:
        server.shutdown()


def test_stores_what_the_files_hold_and_again_without_harm(files: Any, storescp: Any) -> None:
    port, folder = storescp()
    objects = files(("sr", "sc", "ko"))
    assert echo(peer_at(port)) < 5
    for _ in range(2):
        sent = send(objects, peer_at(port))
        assert (sent.objects, sent.confirmed, sent.warnings) == (3, False, ())
    stored = {str(h.SOPInstanceUID): h for h in (pydicom.dcmread(p) for p in folder.iterdir())}
    assert set(stored) == {one.sop_instance_uid for one in objects}
    for one in objects:
        ours = pydicom.dcmread(one.path)
        assert stored[one.sop_instance_uid].to_json() == ours.to_json()


def test_nothing_is_transcoded(files: Any, node: Any, tmp_path: Path) -> None:
    (one,) = files(("sc",))
    header = pydicom.dcmread(one.path)
    header.file_meta.TransferSyntaxUID = JPEG2000Lossless
    header.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51" + bytes(12)])
    header["PixelData"].is_undefined_length = True
    pydicom.dcmwrite(one.path, header, enforce_file_format=True)
    got: list[Any] = []

    def keep(event: Any) -> int:
        got.append((str(event.context.transfer_syntax), event.request.DataSet.getvalue()))
        return 0

    port = node(
        [(evt.EVT_C_STORE, keep)], [], lambda ae: ae.add_supported_context(header.SOPClassUID, JPEG2000Lossless)
    )
    store([one], peer_at(port))
    ((syntax, bytes_),) = got
    assert syntax == JPEG2000Lossless
    assert one.path.read_bytes().endswith(bytes_)
    # A node without that syntax does not get it in another one.
    port = node([(evt.EVT_C_STORE, keep)], [str(header.SOPClassUID)])
    with pytest.raises(DeliveryError, match="accepts none of what is offered") as caught:
        store([one], peer_at(port))
    assert (caught.value.retry, caught.value.trouble) == (False, "refused")


@pytest.mark.parametrize(
    ("status", "trouble", "retry"),
    [
        (0xA700, "resources", True),
        (0xA900, "object", False),
        (0xC123, "object", False),
        (0x0124, "refused", False),
        (0x0122, "object", False),
    ],
)
def test_each_failure_says_whether_to_try_again(files: Any, node: Any, status: int, trouble: str, retry: bool) -> None:
    answers = iter([status, 0x0000])
    port = node([(evt.EVT_C_STORE, lambda _: next(answers))], ["1.2.840.10008.5.1.4.1.1.7"])
    with pytest.raises(DeliveryError, match=f"did not store sc .0x{status:04X}") as caught:
        store(files(("sc", "ko")), peer_at(port))
    # The second went all the same.
    assert next(answers, None) is None
    assert (caught.value.trouble, caught.value.retry, caught.value.failed) == (trouble, retry, ("sc",))


@pytest.mark.parametrize("status", [0xB000, 0xB006, 0xB007, 0x0111])
def test_warnings_and_duplicates_are_successes(files: Any, node: Any, status: int) -> None:
    port = node([(evt.EVT_C_STORE, lambda _: status)], ["1.2.840.10008.5.1.4.1.1.7"])
    warnings = store(files(("sc",)), peer_at(port))
    assert len(warnings) == (0 if status == 0x0111 else 1)


def test_one_class_that_is_not_accepted_does_not_stop_the_others(files: Any, node: Any) -> None:
    got: list[str] = []

    def keep(event: Any) -> int:
        got.append(str(event.request.AffectedSOPInstanceUID))
        return 0

    port = node([(evt.EVT_C_STORE, keep)], ["1.2.840.10008.5.1.4.1.1.7"])
    objects = files(("sr", "sc"))
    with pytest.raises(DeliveryError, match="sr .its class or transfer syntax is not accepted") as caught:
        store(objects, peer_at(port))
    assert got == [objects[1].sop_instance_uid]
    assert caught.value.failed == ("sr",)


def test_a_node_that_is_away_is_tried_again(files: Any, unused_port: int) -> None:
    with pytest.raises(DeliveryError, match="cannot be reached") as caught:
        send(files(), peer_at(unused_port))
    assert (caught.value.retry, caught.value.trouble) == (True, "away")


def test_a_node_that_never_answers_does_not_hold_us(files: Any) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        start = time.monotonic()
        with pytest.raises(DeliveryError) as caught:
            send(files(), peer_at(silent.getsockname()[1], answer_s=0.5))
        assert time.monotonic() - start < 12
        assert (caught.value.retry, caught.value.trouble) == (True, "away")


def test_a_node_that_falls_silent_after_the_association_does_not_hold_us(files: Any, node: Any) -> None:
    release = threading.Event()

    def stall(_: Any) -> int:
        release.wait(20)
        return 0

    port = node([(evt.EVT_C_STORE, stall)], ["1.2.840.10008.5.1.4.1.1.7"])
    start = time.monotonic()
    with pytest.raises(DeliveryError, match="no answer to C-STORE") as caught:
        store(files(("sc",)), peer_at(port, answer_s=0.5))
    release.set()
    assert time.monotonic() - start < 12
    assert caught.value.retry


def test_rejections_say_what_to_change(files: Any, node: Any) -> None:
    def strict(ae: Any) -> None:
        ae.require_called_aet = True
        ae.require_calling_aet = ["SAGITTAL"]

    port = node([], ["1.2.840.10008.5.1.4.1.1.7"], strict)
    with pytest.raises(DeliveryError, match="this is not its AE title") as caught:
        send(files(("sc",)), peer_at(port, "OTHER"))
    assert (caught.value.retry, caught.value.trouble) == (False, "refused")
    with pytest.raises(DeliveryError, match="does not know our AE title"):
        send(files(("sc",)), peer_at(port, calling_ae_title="STRANGER"))

    def crowded(ae: Any) -> None:
        ae.maximum_associations = 1

    port = node([], ["1.2.840.10008.5.1.4.1.1.7"], crowded)
    other = AE()
    other.add_requested_context("1.2.840.10008.5.1.4.1.1.7")
    held = other.associate("127.0.0.1", port)
    with pytest.raises(DeliveryError, match="too many") as caught:
        send(files(("sc",)), peer_at(port))
    held.release()
    assert (caught.value.retry, caught.value.trouble) == (True, "resources")


def test_a_file_that_is_gone_or_no_dicom_is_an_error_of_ours(files: Any, unused_port: int) -> None:
    (one,) = files(("sc",))
    one.path.write_bytes(b"no DICOM" * 100)
    with pytest.raises(DeliveryError, match="no DICOM") as caught:
        store([one], peer_at(unused_port))
    assert not caught.value.retry
    one.path.unlink()
    with pytest.raises(OSError, match="not there any more"):
        store([one], peer_at(unused_port))


# Orthanc --------------------------------------------------------------------------------------------------------------


def test_orthanc_stores_finds_and_gives_back(files: Any, orthanc: Any) -> None:
    peer = peer_at(orthanc.dicom, "ORTHANC")
    objects = files(("sr", "sc"))
    for _ in range(2):
        assert send(objects, peer).objects == 2
    (by_number,) = find_studies(peer, accession="ACC-7")
    assert (by_number.study_uid, by_number.instances) == ("2.25.70", 2)
    assert by_number.patient_id == "P-7"
    assert set(by_number.modalities) == {"SR", "OT"}
    assert find_studies(peer, patient_id="P-7") == [by_number]
    assert find_studies(peer, patient_id="P-8") == []
    got: list[Retrieved] = []

    def keep(one: Retrieved) -> int:
        got.append(one)
        return 0x0000

    fetched = get_study(peer, "2.25.70", keep)
    assert (fetched.completed, fetched.failed) == (2, 0)
    assert {one.sop_instance_uid for one in got} == {one.sop_instance_uid for one in objects}
    for one in got:
        assert one.transfer_syntax_uid in {"1.2.840.10008.1.2.1", "1.2.840.10008.1.2"}
        header = pydicom.dcmread(io.BytesIO(one.dataset), force=True)
        assert header.SOPInstanceUID == one.sop_instance_uid


def test_orthanc_commits_itself(files: Any, orthanc: Any, node: Any) -> None:
    commitments = Commitments()

    def take(event: Any) -> tuple[int, None]:
        commitments.report(read_report(event.event_information))
        return 0x0000, None

    port = node([(evt.EVT_N_EVENT_REPORT, take)], [COMMITMENT], scu_role=True)
    import json
    import urllib.request

    request = urllib.request.Request(
        f"{orthanc.url}/modalities/sagittal",
        method="PUT",
        data=json.dumps({"AET": "SAGITTAL", "Host": "127.0.0.1", "Port": port}).encode(),
    )
    urllib.request.urlopen(request, timeout=60).close()
    objects = files(("sr", "sc"))
    sent = send(objects, peer_at(orthanc.dicom, "ORTHANC", confirm=True), transaction_uid="2.25.4711")
    assert sent.transaction_uid == "2.25.4711"
    report = commitments.wait("2.25.4711", 60)
    assert report is not None
    assert set(report.committed) == {one.sop_instance_uid for one in objects}
    assert report.failed == ()
    # What it never got it does not promise to keep.
    request_commitment(
        peer_at(orthanc.dicom, "ORTHANC"), [("1.2.840.10008.5.1.4.1.1.7", "2.25.999")], "2.25.4712", linger_s=0
    )
    report = commitments.wait("2.25.4712", 60)
    assert report is not None
    assert report.failed == ("2.25.999",)


def test_orthanc_moves_a_study_to_us(files: Any, orthanc: Any, node: Any) -> None:
    import json
    import urllib.request

    peer = peer_at(orthanc.dicom, "ORTHANC")
    objects = files(("sr", "sc"))
    send(objects, peer)
    got: list[str] = []

    def keep(event: Any) -> int:
        got.append(str(event.request.AffectedSOPInstanceUID))
        return 0

    port = node([(evt.EVT_C_STORE, keep)], [one.sop_class_uid for one in objects])
    request = urllib.request.Request(
        f"{orthanc.url}/modalities/mover",
        method="PUT",
        data=json.dumps({"AET": "MOVER", "Host": "127.0.0.1", "Port": port}).encode(),
    )
    urllib.request.urlopen(request, timeout=60).close()
    fetched = move_study(peer, "2.25.70", "MOVER")
    assert (fetched.completed, fetched.failed) == (2, 0)
    assert set(got) == {one.sop_instance_uid for one in objects}
    with pytest.raises(DeliveryError):
        move_study(peer, "2.25.70", "NOBODY")


# dcmtk's archive ------------------------------------------------------------------------------------------------------


def test_a_study_comes_from_dcmtk(files: Any, dcmqrscp: Any) -> None:
    peer = peer_at(dcmqrscp[0], "QR")
    objects = files(("sc", "ko"))
    store(objects, peer)
    (found,) = find_studies(peer, accession="ACC-7")
    assert found.study_uid == "2.25.70"
    got: list[Retrieved] = []

    def keep(one: Retrieved) -> int:
        got.append(one)
        return 0x0000

    fetched = get_study(peer, "2.25.70", keep)
    assert (fetched.completed, fetched.failed) == (2, 0)
    for one in got:
        ours = next(o for o in objects if o.sop_instance_uid == one.sop_instance_uid)
        assert ours.path.read_bytes().endswith(one.dataset)


def test_a_study_comes_compressed_where_it_is_stored_so(files: Any, node: Any) -> None:
    plain, packed = files(("sc", "ko"))
    header = pydicom.dcmread(packed.path)
    header.file_meta.TransferSyntaxUID = JPEG2000Lossless
    header.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51" + bytes(12)])
    header["PixelData"].is_undefined_length = True

    def describe(event: Any) -> Any:
        one = Dataset()
        one.QueryRetrieveLevel, one.StudyInstanceUID = "STUDY", event.identifier.StudyInstanceUID
        one.SOPClassesInStudy = ["1.2.840.10008.5.1.4.1.1.7"]
        yield 0xFF00, one

    def give(_: Any) -> Any:
        yield 2
        for one in (pydicom.dcmread(plain.path), header):
            yield 0xFF00, one

    got: dict[str, str] = {}

    def keep(one: Retrieved) -> int:
        got[one.sop_instance_uid] = one.transfer_syntax_uid
        return 0x0000

    def open_up(ae: Any) -> None:
        for syntax in ("1.2.840.10008.1.2.1", JPEG2000Lossless):
            ae.add_supported_context("1.2.840.10008.5.1.4.1.1.7", syntax, scu_role=True, scp_role=True)

    root = "1.2.840.10008.5.1.4.1.2.2."
    port = node([(evt.EVT_C_FIND, describe), (evt.EVT_C_GET, give)], [f"{root}1", f"{root}3"], open_up)
    fetched = get_study(peer_at(port), "2.25.70", keep)
    assert (fetched.completed, fetched.failed) == (2, 0)
    assert got == {plain.sop_instance_uid: "1.2.840.10008.1.2.1", packed.sop_instance_uid: JPEG2000Lossless}


def test_an_instance_that_cannot_be_kept_is_not_said_to_be(files: Any, dcmqrscp: Any) -> None:
    peer = peer_at(dcmqrscp[0], "QR")
    store(files(("sc", "ko")), peer)
    count = iter(range(9))

    def keep(_: Retrieved) -> int:
        if next(count):
            raise OSError("no room")
        return 0x0000

    fetched = get_study(peer, "2.25.70", keep)
    assert (fetched.completed, fetched.failed) == (1, 1)


def test_dcmtk_moves_a_study_to_a_node_that_it_knows(files: Any, dcmqrscp: Any) -> None:
    port, mover = dcmqrscp
    peer = peer_at(port, "QR")
    store(files(("sc", "ko")), peer)
    got: list[str] = []

    def keep(event: Any) -> int:
        got.append(str(event.request.AffectedSOPInstanceUID))
        return 0

    ae = AE(ae_title="MOVER")
    ae.add_supported_context("1.2.840.10008.5.1.4.1.1.7")
    server = ae.start_server(("127.0.0.1", mover), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)])
    try:
        assert move_study(peer, "2.25.70", "MOVER").completed == 2
    finally:
        server.shutdown()
    assert len(got) == 2
    with pytest.raises(DeliveryError, match="does not know where to send") as caught:
        move_study(peer, "2.25.70", "STRANGER")
    assert not caught.value.retry


@pytest.mark.parametrize(
    ("classes", "modalities"),
    [
        ((), ()),
        ((), ("CT", "SEG")),
        ((), ("CT", "??")),
        (("1.2",), ()),
        (tuple(f"1.2.{n}" for n in range(60)), ()),
        (tuple(f"1.2.{n}" for n in range(200)), ()),
    ],
)
def test_an_offer_fits_into_an_association(classes: Any, modalities: Any) -> None:
    made = offer(classes, modalities)
    assert 0 < len(made) <= 127
    syntaxes = {str(s) for one in made for s in one.transfer_syntax}
    few = len(classes) in range(1, 60) or modalities == ("CT", "SEG")
    assert (str(JPEG2000Lossless) in syntaxes) == few


# Queries and reports --------------------------------------------------------------------------------------------------


def test_answers_beside_the_question_are_left_out(node: Any) -> None:
    def answer(_: Any) -> Any:
        for number, accession in enumerate(("ACC-1", "OTHER", "ACC-1")):
            one = Dataset()
            one.QueryRetrieveLevel, one.AccessionNumber = "STUDY", accession
            one.StudyInstanceUID, one.StudyDate = f"1.2.{number}", f"2026010{number + 1}"
            yield 0xFF00, one
        yield 0x0000, None

    port = node([(evt.EVT_C_FIND, answer)], ["1.2.840.10008.5.1.4.1.2.2.1"])
    assert [one.study_uid for one in find_studies(peer_at(port), accession="ACC-1")] == ["1.2.2", "1.2.0"]


def test_a_node_that_answers_without_end_is_left(node: Any) -> None:
    sent: list[int] = []

    def answer(_: Any) -> Any:
        for number in range(100_000):
            one = Dataset()
            one.QueryRetrieveLevel, one.AccessionNumber, one.StudyInstanceUID = "STUDY", "ACC-1", f"1.2.{number}"
            sent.append(number)
            yield 0xFF00, one

    port = node([(evt.EVT_C_FIND, answer)], ["1.2.840.10008.5.1.4.1.2.2.1"])
    assert len(find_studies(peer_at(port), accession="ACC-1", most=20)) == 20
    assert len(find_studies(peer_at(port), accession="OTHER", most=20)) == 0
    assert len(sent) < 5000


@pytest.mark.parametrize("value", ["A*", "A?", "A\\B", "x" * 65, "A\nB"])
def test_queries_take_no_wild_cards(unused_port: int, value: str) -> None:
    with pytest.raises(ConfigError, match="no wild card"):
        find_studies(peer_at(unused_port), accession=value)
    with pytest.raises(ConfigError, match="needs an accession number"):
        find_studies(peer_at(unused_port))


def test_a_failed_query_is_an_error(node: Any) -> None:
    def answer(_: Any) -> Any:
        yield 0xC001, None

    port = node([(evt.EVT_C_FIND, answer)], ["1.2.840.10008.5.1.4.1.2.2.1"])
    with pytest.raises(DeliveryError, match="C-FIND failed .0xC001"):
        find_studies(peer_at(port), accession="1")


def test_a_commitment_over_the_same_association(files: Any, node: Any) -> None:
    failed: list[str] = []

    def take(event: Any) -> tuple[int, None]:
        items = [
            (str(i.ReferencedSOPClassUID), str(i.ReferencedSOPInstanceUID))
            for i in event.action_information.ReferencedSOPSequence
        ]
        report = Dataset()
        report.TransactionUID = event.action_information.TransactionUID
        report.ReferencedSOPSequence, report.FailedSOPSequence = [], []
        for sop_class, instance in items:
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, instance
            (report.FailedSOPSequence if failed else report.ReferencedSOPSequence).append(item)
        kind = 2 if failed else 1

        def tell() -> None:
            time.sleep(0.1)
            event.assoc.send_n_event_report(report, kind, COMMITMENT, "1.2.840.10008.1.20.1.1")

        threading.Thread(target=tell, daemon=True).start()
        return 0x0000, None

    handlers = [(evt.EVT_C_STORE, lambda _: 0), (evt.EVT_N_ACTION, take)]
    port = node(handlers, ["1.2.840.10008.5.1.4.1.1.7", COMMITMENT])
    sent = send(files(("sc",)), peer_at(port, confirm=True))
    assert sent.confirmed
    failed.append("all")
    with pytest.raises(DeliveryError, match="does not commit itself to 1 of 1"):
        send(files(("sc",)), peer_at(port, confirm=True))


def test_a_report_that_comes_first_is_kept_and_the_oldest_let_go() -> None:
    commitments = Commitments(most=2)
    for name in ("1.1", "1.2", "1.3"):
        information = Dataset()
        information.TransactionUID = name
        commitments.report(read_report(information))
    assert commitments.wait("1.1", 0) is None
    assert commitments.wait("1.3", 0) is not None
    with pytest.raises(DeliveryError, match="names no transaction"):
        read_report(Dataset())


# TLS and logs ---------------------------------------------------------------------------------------------------------


def test_mutual_tls(files: Any, certificates: Path, node: Any) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    context.load_verify_locations(certificates / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    ae = AE(ae_title="STORE")
    ae.add_supported_context("1.2.840.10008.5.1.4.1.1.7")
    server = ae.start_server(
        ("127.0.0.1", 0), block=False, ssl_context=context, evt_handlers=[(evt.EVT_C_STORE, lambda _: 0)]
    )
    port = int(server.socket.getsockname()[1])
    try:
        own = {"certificate": certificates / "client.pem", "key": certificates / "client.key"}
        assert send(files(("sc",)), peer_at(port, tls=True, ca=certificates / "ca.pem", **own)).objects == 1
        for given in ({"ca": certificates / "ca.pem"}, {"ca": certificates / "stranger.pem", **own}):
            with pytest.raises(DeliveryError, match="cannot be reached, or its certificate is not believed"):
                send(files(("sc",)), peer_at(port, tls=True, answer_s=1.0, **given))
        with pytest.raises(DeliveryError):
            send(files(("sc",)), peer_at(port, answer_s=1.0))
    finally:
        server.shutdown()


def test_logs_hold_nothing_of_the_patient(files: Any, orthanc: Any, caplog: Any) -> None:
    caplog.set_level(logging.DEBUG)
    peer = peer_at(orthanc.dicom, "ORTHANC")
    send(files(), peer)
    find_studies(peer, accession="ACC-7")
    for word in ("ACC-7", "P-7", "Phantom", "2.25.70", "2.25.71"):
        assert word not in caplog.text


def test_a_pacs_is_a_peer_too(orthanc: Any) -> None:
    assert echo(DicomPeer(name="pacs", host="127.0.0.1", port=orthanc.dicom, ae_title="ORTHANC")) < 5
