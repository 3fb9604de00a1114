"""HL7 over MLLP: acknowledged, refused, damaged, silent."""

from __future__ import annotations

import random
import ssl
import time
from pathlib import Path
from typing import Any

import pytest

from sagittal.deliver.destinations import MllpDestination
from sagittal.deliver.mllp import check_answer
from sagittal.deliver.outcome import DeliveryError
from sagittal.deliver.send import send


def his(port: int, **given: Any) -> MllpDestination:
    return MllpDestination(name="his", host="127.0.0.1", port=port, **{"connect_s": 10.0, "answer_s": 30.0, **given})


def test_a_message_arrives_as_it_was_made(files: Any, mllp_peer: Any) -> None:
    peer = mllp_peer()
    objects = files(("sr", "hl7"))
    for _ in range(2):
        sent = send(objects, his(peer.port))
        assert (sent.objects, sent.confirmed) == (1, True)
    assert peer.got[0] == peer.got[1] == b"\x0b" + objects[1].path.read_bytes() + b"\x1c\x0d"


def test_a_message_to_a_system_with_another_character_set(files: Any, mllp_peer: Any) -> None:
    peer = mllp_peer()
    send(files(("hl7",)), his(peer.port, charset="gb18030", receiving_application="HIS", receiving_facility="Ward 3"))
    header, patient, _ = peer.got[0][1:-2].split(b"\r")
    assert header.decode().split("|")[2:6] == ["SAGITTAL", "", "HIS", "Ward 3"]
    assert header.decode().split("|")[17] == "GB 18030-2000"
    assert patient.decode("gb18030").endswith("王^小东")


@pytest.mark.parametrize(
    ("code", "error", "trouble", "retry"),
    [
        ("AE", "101", "object", False),
        ("AE", "207", "resources", True),
        ("AR", "201", "refused", False),
        ("AR", "206", "resources", True),
        ("CE", "", "object", False),
        ("CR", "", "refused", False),
        ("XX", "", "refused", False),
    ],
)
def test_each_refusal_says_whether_to_try_again(
    files: Any, mllp_peer: Any, acknowledge: Any, code: str, error: str, trouble: str, retry: bool
) -> None:
    peer = mllp_peer(lambda message: acknowledge(message, code, error))
    with pytest.raises(DeliveryError) as caught:
        send(files(("hl7",)), his(peer.port))
    assert (caught.value.trouble, caught.value.retry) == (trouble, retry)
    assert (error in str(caught.value)) or not error


def test_a_message_that_is_known_already_has_arrived(files: Any, mllp_peer: Any, acknowledge: Any) -> None:
    peer = mllp_peer(lambda message: acknowledge(message, "AE", "205"))
    assert send(files(("hl7",)), his(peer.port)).warnings == ("the message was known already",)


def test_the_acknowledgement_of_another_message_is_none(files: Any, mllp_peer: Any, acknowledge: Any) -> None:
    peer = mllp_peer(lambda message: acknowledge(message.replace(b"ABC123", b"OTHER")))
    with pytest.raises(DeliveryError, match="acknowledged another message") as caught:
        send(files(("hl7",)), his(peer.port))
    assert caught.value.retry


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "closed the connection"),
        (b"HTTP/1.1 400 Bad\r\n\x1c\x0d", "is no MLLP"),
        (b"\x0bMSH|^~\\&|\r\x1c\x0d", "is no acknowledgement"),
        (b"\x0b" + b"x" * (2**20 + 9), "longer than any answer"),
    ],
)
def test_what_is_no_acknowledgement(files: Any, mllp_peer: Any, answer: bytes, message: str) -> None:
    with pytest.raises(DeliveryError, match=message):
        send(files(("hl7",)), his(mllp_peer(lambda _: answer).port))


def test_nobody_there_and_nobody_answering(files: Any, mllp_peer: Any, unused_port: int) -> None:
    with pytest.raises(DeliveryError, match="no connection") as caught:
        send(files(("hl7",)), his(unused_port))
    assert (caught.value.retry, caught.value.trouble) == (True, "away")

    def stall(_: bytes) -> None:
        time.sleep(20)

    start = time.monotonic()
    with pytest.raises(DeliveryError, match="no answer in time") as caught:
        send(files(("hl7",)), his(mllp_peer(stall).port, connect_s=0.2, answer_s=0.2))
    assert time.monotonic() - start < 12
    assert caught.value.retry


def test_mutual_tls(files: Any, mllp_peer: Any, certificates: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    context.load_verify_locations(certificates / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    peer = mllp_peer(context=context)
    own = {"tls": True, "certificate": certificates / "client.pem", "key": certificates / "client.key"}
    assert send(files(("hl7",)), his(peer.port, ca=certificates / "ca.pem", **own)).objects == 1
    for given in ({"tls": True, "ca": certificates / "ca.pem"}, {**own, "ca": certificates / "stranger.pem"}):
        with pytest.raises(DeliveryError) as caught:
            send(files(("hl7",)), his(peer.port, **given))
        assert caught.value.retry
    assert len(peer.got) == 1


def test_ten_thousand_damaged_acknowledgements(acknowledge: Any) -> None:
    message = b"MSH|^~\\&|SAGITTAL||||20260304||ORU^R01^ORU_R01|ABC123|P|2.5.1\r"
    seed = acknowledge(message, "AE", "207")[1:-2]
    rng = random.Random(7)
    ends = {"sent": 0, "error": 0}
    for _ in range(10_000):
        data = bytearray(seed)
        for _ in range(rng.randint(1, 5)):
            where = rng.randrange(len(data) + 1)
            data[where : where + rng.choice((0, 1, 2, 40))] = bytes(
                rng.choice(b"|^~\\&\r\nMSAE05\x00\xff\x0b") for _ in range(rng.randint(0, 4))
            )
        try:
            check_answer(bytes(data), message, "his")
            ends["sent"] += 1
        except DeliveryError:
            ends["error"] += 1
    assert ends["error"] > 5000
