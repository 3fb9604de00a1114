"""HL7 messages over MLLP (HL7 Transport Specification, release 1): send one, wait for its acknowledgement."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Sequence

from sagittal.deliver.destinations import MllpDestination
from sagittal.deliver.outcome import DeliveryError, Sent
from sagittal.errors import ResourceError
from sagittal.write.hl7_text import Parties, address_message
from sagittal.write.object_file import ObjectFile

START, END = b"\x0b", b"\x1c\x0d"
#: Longest acknowledgement that is read.
MOST = 2**20
#: Of table 0357: what passes by itself, and what says that the message is known already.
_PASSING, _KNOWN = {"206", "207"}, {"205"}


def deliver_mllp(objects: Sequence[ObjectFile], destination: MllpDestination) -> Sent:
    """Send each message and wait until it is acknowledged.

    A message keeps its control id (MSH-10): sent again, a receiver knows it as the same, and "duplicate key" counts as
    arrived.

    Raises
    ------
    DeliveryError
        If nobody answers, the answer is of another message, or the message is refused (AE, AR, CE, CR).
    """
    warnings: list[str] = []
    for one in objects:
        try:
            message = one.path.read_bytes()
        except OSError as error:
            raise ResourceError("the file of an HL7 message is not there any more") from error
        parties = Parties(
            sending_facility=destination.sending_facility,
            receiving_application=destination.receiving_application,
            receiving_facility=destination.receiving_facility,
        )
        answer = exchange(address_message(message, parties, destination.charset), destination)
        warnings += check_answer(answer, message, destination.name)
    return Sent(destination.name, len(objects), confirmed=True, warnings=tuple(warnings))


def exchange(message: bytes, destination: MllpDestination) -> bytes:
    """Send one message in its frame, give back the framed answer without its frame.

    Raises
    ------
    DeliveryError
        If there is no connection, or no whole answer in time.
    """
    name, deadline = destination.name, time.monotonic() + destination.connect_s + destination.answer_s
    if END[:1] in message or START in message:
        raise DeliveryError(f"{name}: the message holds a sign of the frame", retry=False, trouble="object")
    try:
        with socket.create_connection((destination.host, destination.port), destination.connect_s) as plain:
            plain.settimeout(destination.answer_s)
            if destination.secured is None:
                return _speak(plain, message, name, deadline)
            with destination.secured.context().wrap_socket(plain, server_hostname=destination.host) as secure:
                return _speak(secure, message, name, deadline)
    except TimeoutError as error:
        raise DeliveryError(f"{name}: no answer in time", retry=True, trouble="away") from error
    except ssl.SSLCertVerificationError as error:
        raise DeliveryError(
            f"{name}: no connection (its certificate is not believed)", retry=True, trouble="away"
        ) from error
    except OSError as error:
        raise DeliveryError(f"{name}: no connection ({type(error).__name__})", retry=True, trouble="away") from error


def _speak(connection: socket.socket, message: bytes, name: str, deadline: float) -> bytes:
    connection.sendall(START + message + END)
    received = bytearray()
    while not received.endswith(END):
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        part = connection.recv(65536)
        if not part:
            raise DeliveryError(f"{name}: closed the connection before its answer", retry=True, trouble="away")
        received += part
        if len(received) > MOST:
            raise DeliveryError(f"{name}: its answer is longer than any answer", retry=False, trouble="refused")
    start = received.find(START)
    if start < 0:
        raise DeliveryError(f"{name}: its answer is no MLLP", retry=False, trouble="refused")
    return bytes(received[start + 1 : -len(END)])


def check_answer(answer: bytes, message: bytes, name: str) -> list[str]:
    """Warnings of an acknowledgement (MSA, ERR) that says that a message has arrived.

    Raises
    ------
    DeliveryError
        If it says otherwise, is none, or is of another message.
    """
    segments = [line.split("|") for line in answer.decode("utf-8", "replace").replace("\n", "\r").split("\r")]
    said = next((fields for fields in segments if fields[0].strip() == "MSA"), None)
    if said is None or len(said) < 2:
        raise DeliveryError(f"{name}: its answer is no acknowledgement", retry=False, trouble="refused")
    asked = _control_id(message)
    if len(said) > 2 and said[2].strip() and said[2].strip() != asked:
        raise DeliveryError(f"{name}: acknowledged another message", retry=True, trouble="away")
    codes = {fields[3].split("^")[0].strip() for fields in segments if fields[0] == "ERR" and len(fields) > 3}
    codes |= {said[6].split("^")[0].strip()} if len(said) > 6 else set()
    code = said[1].strip().upper()
    if code in {"AA", "CA"}:
        return []
    if codes & _KNOWN:
        return ["the message was known already"]
    numbers = sorted(one for one in codes if one.isdigit() and len(one) == 3)
    shown = f" (error {', '.join(numbers)})" if numbers else ""
    if code in {"AE", "CE"}:
        passing = bool(codes & _PASSING)
        raise DeliveryError(
            f"{name}: could not take the message{shown}", retry=passing, trouble="resources" if passing else "object"
        )
    if code in {"AR", "CR"}:
        passing = bool(codes & _PASSING)
        raise DeliveryError(
            f"{name}: refused the message{shown}", retry=passing, trouble="resources" if passing else "refused"
        )
    raise DeliveryError(f"{name}: answered with an unknown code", retry=False, trouble="refused")


def _control_id(message: bytes) -> str:
    fields = message.split(b"\r", 1)[0].split(b"|")
    return fields[9].decode("ascii", "replace") if len(fields) > 9 else ""
