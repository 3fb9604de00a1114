"""Deliveries over the web: STOW-RS into Orthanc and into servers that misbehave, web hooks with their signature."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import random
import ssl
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httpx")

from sagittal.deliver import web
from sagittal.deliver.destinations import StowDestination, WebhookDestination
from sagittal.deliver.outcome import DeliveryError
from sagittal.deliver.send import send
from sagittal.deliver.stow import ask, read_stored
from sagittal.deliver.web import Answer
from sagittal.errors import ConfigError


def stow(url: str, **given: Any) -> StowDestination:
    return StowDestination(name="web", url=url, connect_s=10, **{"answer_s": 30.0, "total_s": 60.0, **given})


def hook(url: str, **given: Any) -> WebhookDestination:
    return WebhookDestination(name="hook", url=url, connect_s=10, **{"answer_s": 30.0, "total_s": 60.0, **given})


def told(failed: list[tuple[str, int]] = (), stored: list[str] = ()) -> bytes:  # type: ignore[assignment]
    def item(uid: str, reason: int | None) -> dict[str, Any]:
        made: dict[str, Any] = {"00081155": {"vr": "UI", "Value": [uid]}}
        return made if reason is None else {**made, "00081197": {"vr": "US", "Value": [reason]}}

    values: dict[str, Any] = {}
    if failed:
        values["00081198"] = {"vr": "SQ", "Value": [item(*one) for one in failed]}
    if stored:
        values["00081199"] = {"vr": "SQ", "Value": [item(one, None) for one in stored]}
    return json.dumps(values).encode()


# STOW-RS --------------------------------------------------------------------------------------------------------------


def test_orthanc_stores_and_finds_again(files: Any, orthanc: Any) -> None:
    objects = files(("sr", "sc"))
    for _ in range(2):
        sent = send(objects, stow(f"{orthanc.url}/dicom-web/", confirm=True))
        assert (sent.objects, sent.confirmed) == (2, True)
    for one in objects:
        (found,) = orthanc.get(f"/dicom-web/instances?SOPInstanceUID={one.sop_instance_uid}")
        assert found["00100010"]["Value"][0]["Alphabetic"] == "Phantom^Sent"


def test_a_large_object_is_streamed(files: Any, orthanc: Any) -> None:
    (one,) = files(("sc",), name="large", pixels=4096)
    assert one.size > 16e6
    assert send([one], stow(f"{orthanc.url}/dicom-web")).objects == 1


def test_an_object_that_is_no_dicom_is_refused_by_orthanc(files: Any, orthanc: Any) -> None:
    good, bad = files(("sr", "sc"))
    bad.path.write_bytes(b"x" * bad.size)
    with pytest.raises(DeliveryError) as caught:
        send([good, bad], stow(f"{orthanc.url}/dicom-web", confirm=True))
    assert caught.value.trouble == "object"


def test_the_request_is_as_the_standard_asks(files: Any, web_peer: Any, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret\n")
    objects = files(("sr", "sc"))
    peer = web_peer(200, told(stored=[one.sop_instance_uid for one in objects]))
    send(objects, stow(peer.url, username="me", password_file=tmp_path / "password"))
    ((path, headers, body),) = peer.got
    assert path == "/studies"
    assert headers["Accept"] == "application/dicom+json"
    assert headers["Authorization"] == "Basic " + base64.b64encode(b"me:secret").decode()
    kind, _, boundary = headers["Content-Type"].rpartition("boundary=")
    assert kind == 'multipart/related; type="application/dicom"; '
    parts = body.split(f"--{boundary}".encode())
    assert (parts[0], parts[-1]) == (b"", b"--\r\n")
    for part, one in zip(parts[1:-1], objects, strict=True):
        assert part == b"\r\nContent-Type: application/dicom\r\n\r\n" + one.path.read_bytes() + b"\r\n"


@pytest.mark.parametrize(
    ("status", "body", "trouble", "retry"),
    [
        (202, told([("2.25.72", 0xA700)], ["2.25.71"]), "resources", True),
        (202, told([("2.25.72", 0xC000)], ["2.25.71"]), "object", False),
        (409, told([("2.25.71", 0x0110), ("2.25.72", 0x0110)]), "object", False),
        (200, told(stored=["2.25.71"]), "away", True),
        (409, b"", "object", False),
        (400, b"", "object", False),
        (401, b"", "refused", False),
        (404, b"", "refused", False),
        (429, b"", "away", True),
        (500, b"", "away", True),
        (503, b"", "away", True),
        (507, b"", "resources", True),
        (302, b"", "refused", False),
    ],
)
def test_each_answer_says_whether_to_try_again(
    files: Any, web_peer: Any, status: int, body: bytes, trouble: str, retry: bool
) -> None:
    peer = web_peer(status, body, {"Location": "http://127.0.0.1:1/", "Content-Type": "application/dicom+json"})
    with pytest.raises(DeliveryError) as caught:
        send(files(("sr", "sc")), stow(peer.url))
    assert (caught.value.trouble, caught.value.retry) == (trouble, retry)
    assert "2.25" not in str(caught.value)
    assert len(peer.got) == 1


def test_what_is_known_already_is_no_failure(files: Any, web_peer: Any) -> None:
    peer = web_peer(409, told([("2.25.71", 0x0111), ("2.25.72", 0x0111)]))
    assert send(files(("sr", "sc")), stow(peer.url)).objects == 2


def test_ten_thousand_damaged_answers_end_in_a_result_or_an_error_of_ours(files: Any) -> None:
    objects = files(("sr", "sc"))
    rng = random.Random(5)
    seed = told([("2.25.72", 0xA700)], ["2.25.71"])
    ends = {"sent": 0, "error": 0}
    for _ in range(10_000):
        data = bytearray(seed)
        for _ in range(rng.randint(1, 6)):
            where = rng.randrange(len(data) + 1)
            data[where : where + rng.choice((0, 1, 1, 3))] = bytes(
                rng.choice(b'[]{}",:0a9e-\x00\xff') for _ in range(rng.randint(0, 3))
            )
        answer = Answer(rng.choice((200, 202, 409, 500)), "application/dicom+json", bytes(data))
        try:
            read_stored(answer, objects, "web")
            ends["sent"] += 1
        except DeliveryError:
            ends["error"] += 1
    assert min(ends.values()) > 100
    for body in (b"[" * 100_000, b"1", b'"x"', b"[]", b"[1]", b'{"00081198": 1}', b'{"00081198": {"Value": [1, {}]}}'):
        with suppress(DeliveryError):
            read_stored(Answer(200, "", body), objects, "web")


# Web hooks ------------------------------------------------------------------------------------------------------------


def test_a_hook_is_signed_and_knows_a_repetition(files: Any, web_peer: Any, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("shared secret\n")
    peer = web_peer(204)
    objects = files(("json", "fhir"))
    destination = hook(peer.url + "/in?x=1", secret_file=tmp_path / "key", sends=("json", "fhir"))
    for _ in range(2):
        assert send(objects, destination, key="result-12").objects == 2
    first, _, again, _ = peer.got
    path, headers, body = first
    assert (path, headers["Content-Type"], body) == ("/in?x=1", "application/json", objects[0].path.read_bytes())
    assert headers["webhook-id"] == again[1]["webhook-id"]
    assert headers["webhook-id"].startswith("result-12-json-")
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 30
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(b"shared secret", signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert peer.got[1][1]["webhook-id"] != headers["webhook-id"]


def test_a_hook_that_knows_it_already_has_it(files: Any, web_peer: Any) -> None:
    assert send(files(("json",)), hook(web_peer(409).url)).objects == 1


@pytest.mark.parametrize(("status", "retry"), [(400, False), (401, False), (500, True), (503, True), (301, False)])
def test_a_hook_that_refuses(files: Any, web_peer: Any, status: int, retry: bool) -> None:
    peer = web_peer(status, headers={"Location": "http://169.254.169.254/latest"})
    with pytest.raises(DeliveryError) as caught:
        send(files(("json",)), hook(peer.url))
    assert caught.value.retry == retry
    assert len(peer.got) == 1


def test_a_hook_is_not_sent_too_much(files: Any, web_peer: Any) -> None:
    peer = web_peer(200)
    with pytest.raises(DeliveryError, match="json has .* bytes, it takes 10"):
        send(files(("json",)), hook(peer.url, most_bytes=10))
    assert peer.got == []


def test_secrets_come_from_files_of_one_line(files: Any, web_peer: Any, tmp_path: Path) -> None:
    for content in (b"", b"a\nb", b"\xff\xfe", b"x" * 9000):
        (tmp_path / "key").write_bytes(content)
        with pytest.raises(ConfigError, match="a file with a secret"):
            send(files(("json",)), hook(web_peer(200).url, secret_file=tmp_path / "key"))
    with pytest.raises(ConfigError, match="cannot be read"):
        send(files(("json",)), hook(web_peer(200).url, token_file=tmp_path / "missing"))


# Both -----------------------------------------------------------------------------------------------------------------


def test_nobody_there_is_tried_again(files: Any, unused_port: int) -> None:
    for destination in (
        stow(f"http://127.0.0.1:{unused_port}"),
        hook(f"http://127.0.0.1:{unused_port}", sends=("sr",)),
    ):
        with pytest.raises(DeliveryError, match="no connection") as caught:
            send(files(("sr",)), destination)
        assert (caught.value.retry, caught.value.trouble) == (True, "away")


def test_a_server_that_drips_is_cut_off(files: Any, web_peer: Any) -> None:
    def drip(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(400):
            try:
                handler.wfile.write(b"x")
                handler.wfile.flush()
            except OSError:
                return
            time.sleep(0.05)

    start = time.monotonic()
    with pytest.raises(DeliveryError) as caught:
        send(files(("json",)), hook(web_peer(answer=drip).url, total_s=0.5))
    assert time.monotonic() - start < 12
    assert (caught.value.retry, caught.value.trouble) == (True, "away")


def test_headers_that_drip_are_cut_off_too(files: Any, web_peer: Any) -> None:
    def drip(handler: Any) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        for _ in range(400):
            try:
                handler.wfile.write(b"x")
                handler.wfile.flush()
            except OSError:
                return
            time.sleep(0.05)

    start = time.monotonic()
    with pytest.raises(DeliveryError, match="in time") as caught:
        send(files(("json",)), hook(web_peer(answer=drip).url, total_s=0.5))
    assert time.monotonic() - start < 12
    assert caught.value.retry


def test_an_endless_answer_is_not_read(files: Any, web_peer: Any) -> None:
    def flood(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        try:
            for _ in range(1000):
                handler.wfile.write(b"x" * 65536)
        except OSError:
            pass

    with pytest.raises(DeliveryError, match="longer than any answer"):
        send(files(("json",)), hook(web_peer(answer=flood).url))


def test_addresses_that_hand_out_credentials_are_not_spoken_to(
    files: Any, web_peer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = web_peer(200)

    class Linked:
        is_link_local, is_multicast, is_unspecified = True, False, False

    # A name that leads to 169.254.169.254 is refused once it is connected, before anything is sent.
    monkeypatch.setattr(web.ipaddress, "ip_address", lambda _: Linked())
    with pytest.raises(DeliveryError, match="an address that is not spoken to") as caught:
        send(files(("json",)), hook(peer.url))
    assert not caught.value.retry
    assert peer.got == []


def test_tls_is_checked(files: Any, web_peer: Any, certificates: Path) -> None:
    peer = web_peer(200)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    peer.server.socket = context.wrap_socket(peer.server.socket, server_side=True)
    url = peer.url.replace("http://", "https://")
    assert send(files(("json",)), hook(url, ca=certificates / "ca.pem")).objects == 1
    with pytest.raises(DeliveryError, match="its certificate is not believed"):
        send(files(("json",)), hook(url, ca=certificates / "stranger.pem"))
    assert len(peer.got) == 1


def test_logs_hold_no_identifiers(files: Any, web_peer: Any, caplog: Any) -> None:
    caplog.set_level(logging.DEBUG)
    objects = files(("sr",))
    peer = web_peer(200, told(stored=["2.25.71"]))
    send(objects, stow(peer.url, confirm=True))
    assert len(peer.got) == 2
    assert "2.25" not in caplog.text


def test_a_server_is_asked_whether_it_is_there(orthanc: Any, web_peer: Any, unused_port: int) -> None:
    ask(stow(f"{orthanc.url}/dicom-web"))
    for url, trouble in ((web_peer(401).url, "refused"), (f"http://127.0.0.1:{unused_port}", "away")):
        with pytest.raises(DeliveryError) as caught:
            ask(stow(url))
        assert caught.value.trouble == trouble
