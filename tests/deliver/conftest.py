"""Objects of a result, and real peers on loopback: storescp of dcmtk, Orthanc, servers for HTTP and MLLP."""

from __future__ import annotations

import json
import os
import shutil
import socket
import socketserver
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from sagittal.write.service_objects import KINDS, ObjectFile


def make_files(folder: Path, kinds: tuple[str, ...] = ("sr", "sc"), pixels: int = 64) -> list[ObjectFile]:
    """Small files of the kinds: secondary captures under other names, and text."""
    import hashlib

    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for kind in kinds:
        number = 1 + ("sr", "sc", "ko", "seg", "rtstruct", *KINDS).index(kind)
        media_type, name = KINDS[kind]
        path = folder / name
        uids = ("", "", "")
        if media_type == "application/dicom":
            header = Dataset()
            header.file_meta = FileMetaDataset()
            header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            sop_class = "1.2.840.10008.5.1.4.1.1.88.34" if kind == "sr" else "1.2.840.10008.5.1.4.1.1.7"
            header.SOPClassUID, header.SOPInstanceUID = sop_class, f"2.25.7{number}"
            header.StudyInstanceUID, header.SeriesInstanceUID = "2.25.70", f"2.25.8{number}"
            header.PatientID, header.PatientName, header.AccessionNumber = "P-7", "Phantom^Sent", "ACC-7"
            header.StudyDate, header.StudyTime, header.Modality = "20260101", "101112", "SR" if kind == "sr" else "OT"
            header.PatientBirthDate, header.PatientSex, header.StudyID = "", "", "1"
            if kind != "sr":
                header.Rows = header.Columns = pixels
                header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
                header.BitsAllocated = header.BitsStored = 8
                header.HighBit, header.PixelRepresentation = 7, 0
                header.PixelData = bytes(range(256)) * (pixels * pixels // 256)
                header["PixelData"].VR = "OB"
            pydicom.dcmwrite(path, header, enforce_file_format=True)
            uids = (str(header.SOPInstanceUID), sop_class, str(header.SeriesInstanceUID))
        elif kind == "hl7":
            path.write_bytes(
                b"MSH|^~\\&|SAGITTAL||||20260304||ORU^R01^ORU_R01|ABC123|P|2.5.1|||AL|NE||UNICODE UTF-8\r"
                + "PID|1||P-7||王^小东\r".encode()
            )
        else:
            path.write_text(json.dumps({"state": "answered", "kind": kind}))
        data = path.read_bytes()
        made.append(ObjectFile(kind, path, media_type, *uids, hashlib.sha256(data).hexdigest(), len(data)))
    return made


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., list[ObjectFile]]:
    """Objects of a result: ``files(kinds)``; see :func:`make_files`."""
    return lambda kinds=("sr", "sc"), name="objects", **given: make_files(tmp_path / name, kinds, **given)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture
def unused_port() -> int:
    """A port of loopback on which nobody listens."""
    return free_port()


def find_program(name: str, package: str) -> str:
    """The program; the test is skipped where it is missing, and fails so in CI."""
    program = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        if os.environ.get("CI"):
            pytest.fail(f"{name} is missing: apt-get install {package}")
        pytest.skip(f"{name} is not installed (Debian package {package})")
    return program


def wait_for_port(port: int, process: subprocess.Popen[Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if process.poll() is not None:
            raise RuntimeError(f"the peer stopped with {process.returncode}")
        time.sleep(0.02)
    raise RuntimeError("the peer does not listen")


@pytest.fixture
def run_peer() -> Iterator[Callable[..., subprocess.Popen[Any]]]:
    """Start a program that listens on a port, and stop it in the end: ``run_peer(port, program, *arguments)``."""
    running: list[subprocess.Popen[Any]] = []

    def start(port: int, *command: str, **given: Any) -> subprocess.Popen[Any]:
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "TCP_NODELAY": "1"},
            **given,
        )
        running.append(process)
        wait_for_port(port, process)
        return process

    yield start
    for process in running:
        process.terminate()
    for process in running:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


@pytest.fixture
def storescp(run_peer: Callable[..., Any], tmp_path: Path) -> Callable[..., tuple[int, Path]]:
    """dcmtk's storescp: ``storescp(*options)`` gives its port and the folder it stores in."""

    def start(*options: str) -> tuple[int, Path]:
        program, port = find_program("storescp", "dcmtk"), free_port()
        folder = tmp_path / f"stored-{port}"
        folder.mkdir()
        run_peer(port, program, "-aet", "STORE", "-od", str(folder), *options, str(port))
        return port, folder

    return start


@pytest.fixture
def dcmqrscp(run_peer: Any, tmp_path: Path) -> tuple[int, int]:
    """dcmtk's archive, which decompresses nothing; its port, and the port of the node MOVER that it knows."""
    program, port, mover = find_program("dcmqrscp", "dcmtk"), free_port(), free_port()
    (tmp_path / "archive").mkdir()
    config = tmp_path / "dcmqrscp.cfg"
    config.write_text(
        f"NetworkTCPPort = {port}\nMaxPDUSize = 16384\nMaxAssociations = 16\n"
        f"HostTable BEGIN\nmover = (MOVER, 127.0.0.1, {mover})\nHostTable END\nVendorTable BEGIN\nVendorTable END\n"
        f"AETable BEGIN\nQR {tmp_path / 'archive'} RW (200, 1024mb) ANY\nAETable END\n"
    )
    run_peer(port, program, "-c", str(config))
    return port, mover


class Orthanc:
    """A real PACS: its DICOM port, its address, and what it holds."""

    def __init__(self, dicom: int, http: int) -> None:
        self.dicom, self.url = dicom, f"http://127.0.0.1:{http}"

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.loads(answer.read())


@pytest.fixture(scope="session")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """Orthanc with DICOMweb on loopback, knowing us as SAGITTAL."""
    program = find_program("Orthanc", "orthanc orthanc-dicomweb")
    plugin = next((p for p in Path("/usr").glob("**/libOrthancDicomWeb.so") if p.is_file()), None) or next(
        (p for p in (Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so"),) if p.exists()), None
    )
    if plugin is None:
        if os.environ.get("CI"):
            pytest.fail("orthanc-dicomweb is missing: apt-get install orthanc-dicomweb")
        pytest.skip("orthanc-dicomweb is not installed")
    folder = tmp_path_factory.mktemp("orthanc")
    dicom, http = free_port(), free_port()
    settings = {
        "Name": "test",
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "HttpPort": http,
        "DicomPort": dicom,
        "DicomAet": "ORTHANC",
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomCheckCalledAet": True,
        "DicomModalities": {"sagittal": ["SAGITTAL", "127.0.0.1", free_port()]},
        "Plugins": [str(plugin)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": False},
        "OverwriteInstances": False,
    }
    config = folder / "orthanc.json"
    config.write_text(json.dumps(settings))
    process = subprocess.Popen([program, str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(dicom, process)
        wait_for_port(http, process)
        yield Orthanc(dicom, http)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


class WebPeer:
    """An HTTP server that answers as it is told, and keeps what it was sent."""

    def __init__(self, answer: Callable[[Any], None]) -> None:
        peer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                peer.got.append((self.path, dict(self.headers), self.rfile.read(length)))
                answer(self)

            do_GET = do_POST  # noqa: N815

        self.got: list[tuple[str, dict[str, str], bytes]] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def web_peer() -> Iterator[Callable[..., WebPeer]]:
    """Start an HTTP server: ``web_peer(status, body, headers)`` or ``web_peer(answer=function)``."""
    running: list[WebPeer] = []

    def start(
        status: int = 200, body: bytes = b"", headers: dict[str, str] | None = None, answer: Any = None
    ) -> WebPeer:
        def plain(handler: Any) -> None:
            handler.send_response(status)
            for key, value in (headers or {}).items():
                handler.send_header(key, value)
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body)

        running.append(WebPeer(answer or plain))
        return running[-1]

    yield start
    for peer in running:
        peer.server.shutdown()
        peer.server.server_close()


class MllpPeer:
    """A receiver of HL7 messages that acknowledges them as it is told."""

    def __init__(self, acknowledge: Callable[[bytes], bytes | None], context: Any = None) -> None:
        peer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                connection = self.request
                if context is not None:
                    connection = context.wrap_socket(connection, server_side=True)
                data = b""
                while not data.endswith(b"\x1c\x0d"):
                    part = connection.recv(65536)
                    if not part:
                        return
                    data += part
                peer.got.append(data)
                answer = acknowledge(data[1:-2])
                if answer is not None:
                    connection.sendall(answer)
                if context is not None:
                    connection.close()

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                pass

        self.got: list[bytes] = []
        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = int(self.server.server_address[1])
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


def acknowledgement(message: bytes, code: str = "AA", error: str = "") -> bytes:
    """An acknowledgement of a message, framed."""
    name = message.split(b"\r")[0].split(b"|")[9].decode()
    text = f"MSH|^~\\&|HIS||SAGITTAL||20260304||ACK^R01^ACK|1|P|2.5.1\rMSA|{code}|{name}\r"
    text += f"ERR||PID^1|{error}^words|E\r" if error else ""
    return b"\x0b" + text.encode() + b"\x1c\x0d"


@pytest.fixture
def mllp_peer() -> Iterator[Callable[..., MllpPeer]]:
    """Start a receiver of messages: ``mllp_peer(acknowledge, context=)``."""
    running: list[MllpPeer] = []

    def start(acknowledge: Callable[[bytes], bytes | None] = acknowledgement, context: Any = None) -> MllpPeer:
        running.append(MllpPeer(acknowledge, context))
        return running[-1]

    yield start
    for peer in running:
        peer.server.shutdown()
        peer.server.server_close()


@pytest.fixture
def acknowledge() -> Callable[..., bytes]:
    """An acknowledgement: ``acknowledge(message, code, error)``; see :func:`acknowledgement`."""
    return acknowledgement


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate authority, and certificates that it signed for 127.0.0.1 and for us."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path_factory.mktemp("certificates")
    now = datetime.datetime.now(datetime.UTC)

    def write(name: str, issuer: Any, signer: Any, authority: bool) -> tuple[Any, Any]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer or subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), True)
            .add_extension(
                x509.SubjectAlternativeName(
                    [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
                ),
                False,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        )
        if authority:
            usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
            made = made.add_extension(usage, True)
        else:
            made = made.add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key((signer or key).public_key()), False
            )
        certificate = made.sign(signer or key, hashes.SHA256())
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (folder / f"{name}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return certificate.subject, key

    subject, key = write("ca", None, None, True)
    write("server", subject, key, False)
    write("client", subject, key, False)
    write("stranger", None, None, True)
    return folder
