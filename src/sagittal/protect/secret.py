"""Secrets that the service makes up: cookies, tokens, links. Only their SHA-256 is kept.

They hold 256 random bits, so a fast hash without salt is enough: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import secrets


def make_secret(prefix: str = "") -> str:
    """A new secret of 43 letters, digits, ``-`` and ``_`` after its prefix.

    >>> len(make_secret("sg_"))
    46
    """
    return prefix + secrets.token_urlsafe(32)


def fingerprint(secret: str) -> str:
    """SHA-256 of a secret, as it is kept and looked up.

    >>> fingerprint("a")[:8]
    'ca978112'
    """
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
