"""Results to a web hook: a signed POST for each object, which its receiver can tell from a forged or a repeated one.

The headers are those of Standard Webhooks: ``webhook-id`` (the same each time the same object is sent),
``webhook-timestamp`` (seconds since 1970) and ``webhook-signature``: ``v1,`` and the base64 of an HMAC-SHA256 over
``id.timestamp.body`` with the shared secret. A receiver refuses what is older than some minutes and what it has seen.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Sequence

from sagittal.deliver.destinations import WebhookDestination
from sagittal.deliver.outcome import DeliveryError, Sent
from sagittal.deliver.web import Line, check_status, read_secret, request
from sagittal.errors import ResourceError
from sagittal.write.object_file import ObjectFile

_MOST_ANSWER = 65536


def deliver_webhook(objects: Sequence[ObjectFile], destination: WebhookDestination, key: str) -> Sent:
    """Post each object; any 2xx means that it arrived, 409 that it was known already.

    Parameters
    ----------
    objects : sequence of ObjectFile
    destination : WebhookDestination
    key : str
        Part of the ids.

    Raises
    ------
    DeliveryError
        If nobody answers, or it is refused; objects before it have arrived.
    ConfigError
        If a secret cannot be read.
    """
    line = Line(
        destination.name, destination.secured, destination.connect_s, destination.answer_s, destination.total_s,
        _MOST_ANSWER,
    )  # fmt: skip
    secret = None if destination.secret_file is None else read_secret(destination.secret_file, destination.name)
    for one in objects:
        if one.size > destination.most_bytes:
            raise DeliveryError(
                f"{destination.name}: {one.kind} has {one.size:,} bytes, it takes {destination.most_bytes:,}",
                retry=False,
                trouble="object",
                failed=[one.kind],
            )
        try:
            body = one.path.read_bytes()
        except OSError as error:
            raise ResourceError(f"the file of an object of kind '{one.kind}' is not there any more") from error
        name = f"{key}-{one.kind}-{hashlib.sha256(body).hexdigest()[:16]}"
        headers = {
            "Content-Type": one.media_type,
            "User-Agent": "sagittal",
            **sign(body, name, int(time.time()), secret),
        }
        if destination.token_file is not None:
            headers["Authorization"] = f"Bearer {read_secret(destination.token_file, destination.name)}"
        answer = request(line, "POST", destination.url, headers=headers, content=body)
        if answer.status != 409:
            check_status(answer, destination.name)
    return Sent(destination.name, len(objects), confirmed=True)


def sign(body: bytes, name: str, moment: int, secret: str | None) -> dict[str, str]:
    """The headers that identify and, with a secret, sign a body.

    >>> sign(b"{}", "result-1-json", 1700000000, "key")["webhook-signature"]
    'v1,BT2NumDVwZ7aOn0eaBmAZCM8H6H2YwQNfCftSfiNQDg='
    """
    headers = {"webhook-id": name, "webhook-timestamp": str(moment)}
    if secret is not None:
        signed = f"{name}.{moment}.".encode() + body
        digest = hmac.new(_key(secret), signed, hashlib.sha256).digest()
        headers["webhook-signature"] = f"v1,{base64.b64encode(digest).decode()}"
    return headers


def _key(secret: str) -> bytes:
    """The bytes of a secret: those that follow ``whsec_`` in base64, else the text's own."""
    if secret.startswith("whsec_"):
        try:
            return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        except ValueError:
            pass
    return secret.encode()
