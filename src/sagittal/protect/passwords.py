"""Passwords: kept as Argon2id, long enough, and not what an attacker tries first."""

from __future__ import annotations

import re
import threading
import unicodedata
from dataclasses import dataclass

from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerificationError

from sagittal.errors import ConfigError

#: Shortest and longest password, characters. NIST SP 800-63B-4 3.1.1.2 asks for 15 where nothing else is asked beside
#: it, 8 with a second factor; 12 with attempts limited is what OWASP ASVS 5.0 6.2.9 lies between.
SHORTEST, LONGEST = 12, 1024

#: 64 MiB and three passes, above what RFC 9106 4 names as its second choice on one lane; 0.1 s on one core.
_HASHER = PasswordHasher(time_cost=3, memory_cost=65536, parallelism=1, hash_len=32, salt_len=16, type=Type.ID)
#: So many at once: a storm of logins takes 128 MiB, never all of memory.
_ROOM = threading.BoundedSemaphore(2)

_COMMON = re.compile(
    "password|passwort|passw0rd|p@ssw0rd|kennwort|mima|qwerty|qwertz|azerty|asdfgh|zxcvbn|yxcvbn|1q2w3e4r|1qaz2wsx|"
    "letmein|welcome|willkommen|changeme|iloveyou|abc123|admin|administrator|sunshine|princess|football|monkey|dragon|"
    "hospital|klinik|clinic|radiology|radiologie|dicom|orthanc|pacs|sagittal|doctor|summer|winter|spring|autumn|"
    "january|february|march|april|june|july|august|september|october|november|december|(?:19|20)\\d\\d"
)
_ROWS = ("abcdefghijklmnopqrstuvwxyz", "01234567890", "qwertyuiop", "qwertzuiop", "asdfghjkl", "zxcvbnm", "yxcvbnm")


@dataclass(frozen=True)
class Match:
    """Whether a password is the right one, and whether its hash should be made again with today's costs."""

    right: bool
    outdated: bool = False


def hash_password(password: str) -> str:
    """The Argon2id hash of a password, with its salt and costs.

    >>> hash_password("bone window at dusk").startswith("$argon2id$")
    True
    """
    with _ROOM:
        return _HASHER.hash(_plain(password))


def match_password(stored: str, password: str) -> Match:
    """Compare a password with what was kept of it, in the same time whether or not there is one.

    Parameters
    ----------
    stored : str
        From :func:`hash_password`; empty for a name that is unknown or has no password, which never matches.
    """
    if len(password) > LONGEST:
        return Match(False)
    with _ROOM:
        try:
            _HASHER.verify(stored or _nobody(), _plain(password))
        except (VerificationError, InvalidHashError):
            return Match(False)
    return Match(bool(stored), outdated=bool(stored) and _HASHER.check_needs_rehash(stored))


def check_password(password: str, name: str) -> None:
    """Refuse a password that is short, long, the user's own name or one of those tried first.

    Raises
    ------
    ConfigError
        With the reason, never with the password.
    """
    if len(password) < SHORTEST:
        raise ConfigError(f"the password has {len(password)} characters; at least {SHORTEST} are needed")
    if len(password) > LONGEST:
        raise ConfigError(f"the password has {len(password)} characters; at most {LONGEST} are taken")
    lower = _plain(password).lower()
    for part in re.split(r"[\W_]+", _plain(name).lower()):
        if len(part) >= 3:
            lower = lower.replace(part, "")
    rest = _COMMON.sub("", lower)
    for row in _ROWS:
        for line in (row, row[::-1]):
            for length in range(len(line), 3, -1):
                for start in range(len(line) - length + 1):
                    rest = rest.replace(line[start : start + length], "")
    if len(rest) < 6 or len(set(rest)) < 4:
        raise ConfigError(
            "the password is made of the user's name, of common words, of rows of keys or of repeated signs; such are "
            "tried first. Take four words that do not belong together."
        )


def _plain(password: str) -> str:
    """One form for what different keyboards send for the same signs (NIST SP 800-63B-4 3.1.1.2: NFKC)."""
    return unicodedata.normalize("NFKC", password)


_made: list[str] = []


def _nobody() -> str:
    """The hash of a password that nobody has, with today's costs."""
    if not _made:
        _made.append(_HASHER.hash("nobody's"))
    return _made[0]
