"""Mutations that know the formats: lengths and values of DICOM elements, words of text headers, checksums of PNG."""

from __future__ import annotations

import gzip
import random
import re
import struct
import zlib
from collections.abc import Callable

INTERESTING = (0, 1, 2, 3, 4, 7, 8, 15, 16, 63, 64, 127, 128, 255, 256, 4095, 4096, 32767, 32768, 65534, 65535, 2**31 - 1,
               2**31, 2**32 - 2, 2**32 - 1)  # fmt: skip
WORDS = (b"0", b"-1", b"1", b"3", b"65536", b"2147483648", b"99999999999999999999", b"nan", b"inf", b"1e400", b"", b"none",
         b"\\", b"..", b"/etc/passwd", b"LIST", b"raw", b"gzip", b"(0,0,0)")  # fmt: skip


def mutate(
    data: bytes, limit: int, kind: str, rng: random.Random, other: Callable[[bytes, int], bytes] | None = None
) -> bytes:
    """One mutant, by the format's own rules, half of the time by `other` where it is given."""
    other = other or (lambda data, limit: scramble(data, limit, rng))
    if rng.random() < 0.5:
        return other(data, limit)
    if data[:2] == b"\x1f\x8b":
        try:
            return gzip.compress(mutate(zlib.decompressobj(31).decompress(data, 2**22), limit, kind, rng, other), 1)[
                :limit
            ]
        except zlib.error:
            return other(data, limit)
    raw = bytearray(data)
    if not raw:
        return data
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        RULES[kind](raw, rng)
    return mend(bytes(raw), kind)[:limit]


def change_number(raw: bytearray, rng: random.Random, end: int | None = None) -> None:
    """Overwrite 1, 2, 4 or 8 bytes by a number at which programs err."""
    width = rng.choice((1, 2, 4, 8))
    place = rng.randrange(max(1, min(end or len(raw), len(raw)) - width))
    value = rng.choice(INTERESTING) if rng.random() < 0.7 else rng.getrandbits(8 * width)
    raw[place : place + width] = (value % 256**width).to_bytes(width, rng.choice(("little", "big")))


def change_element(raw: bytearray, rng: random.Random) -> None:
    """Change tag, VR, length or value of a DICOM element; remove, double or move one."""
    marks = [
        m.start()
        for m in re.finditer(
            rb"(?=[\x02\x08\x10\x18\x20\x28\x88\xe0\xfe\x00]\x00.\x00[A-Z]{2})|(?=\x28\x00.\x00)",
            bytes(raw[:20000]),
            re.DOTALL,
        )
    ]
    if not marks or rng.random() < 0.2:
        change_number(raw, rng, rng.choice((1500, 5000, len(raw))))
        return
    at = rng.choice(marks)
    choice = rng.random()
    if choice < 0.25:
        raw[at + 4 : at + 6] = rng.choice(
            (b"SQ", b"UN", b"OW", b"OB", b"US", b"UL", b"DS", b"IS", b"FD", b"AT", b"ZZ", b"UT")
        )
    elif choice < 0.5:
        raw[at + 6 : at + 8] = struct.pack("<H", rng.choice(INTERESTING) % 65536)
    elif choice < 0.75 and len(raw) > at + 12:
        raw[at + 8 : at + 12] = struct.pack("<I", rng.choice(INTERESTING) % 2**32)
    elif choice < 0.85:
        del raw[at : at + rng.choice((2, 8, 10, 12, 40))]
    else:
        piece = raw[at : at + rng.choice((8, 12, 30, 80))]
        raw[at:at] = piece * rng.choice((1, 2, 50))


def change_text(raw: bytearray, rng: random.Random) -> None:
    """Change a word of a text header."""
    end = next((m.end() for m in re.finditer(rb"\n\n|LOCAL\n", bytes(raw))), min(len(raw), 600))
    words = [m.span() for m in re.finditer(rb"[^\s,()=:]+", bytes(raw[:end]))]
    if not words or rng.random() < 0.2:
        change_number(raw, rng)
        return
    start, stop = rng.choice(words)
    choice = rng.random()
    if choice < 0.6:
        raw[start:stop] = rng.choice(WORDS) if choice < 0.4 else rng.choice([bytes(raw[a:b]) for a, b in words])
    elif choice < 0.8:
        line = raw.rfind(b"\n", 0, start) + 1
        stop = raw.find(b"\n", start) + 1
        del raw[line:stop]
    else:
        line = raw.rfind(b"\n", 0, start) + 1
        stop = raw.find(b"\n", start) + 1
        raw[line:line] = raw[line:stop] * rng.choice((1, 3, 300))


def change_head(raw: bytearray, rng: random.Random) -> None:
    """Change numbers, mostly in the first bytes, where the sizes stand."""
    change_number(raw, rng, rng.choice((64, 352, 600, len(raw))))


def change_entry(raw: bytearray, rng: random.Random) -> None:
    """Change a number or the name in a record of a zip archive."""
    marks = [m.start() for m in re.finditer(rb"PK(?:\x01\x02|\x03\x04|\x05\x06)", bytes(raw))]
    if not marks or rng.random() < 0.15:
        change_number(raw, rng)
        return
    at = rng.choice(marks)
    if rng.random() < 0.2:
        piece = rng.choice((b"../", b"/", b"C:\\", b"\0", b"a/../../b"))
        place = min(at + rng.choice((30, 46)), len(raw))
        raw[place : place + len(piece)] = piece
        return
    place, width = at + rng.randrange(4, 46), rng.choice((1, 2, 4))
    raw[place : place + width] = (rng.choice(INTERESTING) % 256**width).to_bytes(width, "little")


RULES = {
    "dicom": change_element,
    "received": change_element,
    "mha": change_text,
    "nifti": change_head,
    "npz": change_head,
    "nrrd": change_text,
    "outlines": change_element,
    "zip": change_entry,
    "picture": change_head,
}


def mend(data: bytes, kind: str) -> bytes:
    """Give PNG chunks their right checksums again, so that mutants get past the first door."""
    if kind != "picture" or data[:8] != b"\x89PNG\r\n\x1a\n":
        return data
    out, at = bytearray(data[:8]), 8
    while at + 12 <= len(data):
        length = min(struct.unpack(">I", data[at : at + 4])[0], len(data) - at - 12)
        body = data[at + 4 : at + 8 + length]
        out += data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return bytes(out)


def scramble(data: bytes, limit: int, rng: random.Random) -> bytes:
    """Bytes overwritten, removed, doubled or cut off without any knowledge of the format."""
    raw = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(raw) + 1)
        choice = rng.random()
        if choice < 0.6:
            raw[at : at + 1] = bytes([rng.choice((0, 255, rng.randrange(256)))])
        elif choice < 0.75:
            del raw[at : at + rng.randint(1, 16)]
        elif choice < 0.9:
            raw[at:at] = raw[at : at + rng.randint(1, 64)]
        else:
            del raw[at:]
    return bytes(raw[:limit])
