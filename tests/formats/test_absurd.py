"""Headers that declare the absurd: sizes, bits and types against the bytes that are there, nesting, and many in a row.

Rows 6, 7, 13 and 14 of the incidents that this package is built against: integer overflow in Rows x Columns written with
another VR, endless nesting, malformed headers that leak, bit depths that do not fit.
"""

from __future__ import annotations

import resource
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sagittal.errors import ReadError, SagittalError
from sagittal.formats.open_image import read_image

EXPLICIT, BASELINE, RLE = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.5"
#: Numbers at which multiplications overflow or signs turn.
NUMBERS = (0, 1, 2, 4, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)
PACKED = {"US": "<H", "SS": "<h", "UL": "<I", "SL": "<i", "FD": "<d", "FL": "<f"}


def element(tag: int, vr: str, value: bytes) -> bytes:
    """One element in explicit little endian."""
    value += b"\0" * (len(value) % 2)
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr.encode()
    if vr in {"OB", "OW", "SQ", "UN", "UT"}:
        return head + b"\0\0" + struct.pack("<I", len(value)) + value
    return head + struct.pack("<H", len(value)) + value


def number(tag: int, vr: str, value: int) -> bytes:
    """A number written in a VR that may be the wrong one for its tag, cut to what the VR holds."""
    if vr in {"IS", "DS", "LO"}:
        return element(tag, vr, str(value).encode())
    kind = PACKED[vr]
    bits = 8 * struct.calcsize(kind)
    if vr in {"SS", "SL"}:
        value = (value + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)
    return element(tag, vr, struct.pack(kind, value % 2**bits if vr in {"US", "UL"} else value))


def write(path: Path, syntax: str, body: bytes) -> Path:
    """A file of part 10 around a data set."""
    meta = element(0x00020010, "UI", syntax.encode())
    group = element(0x00020000, "UL", struct.pack("<I", len(meta)))
    path.write_bytes(b"\0" * 128 + b"DICM" + group + meta + body)
    return path


def image(fields: dict[int, tuple[str, int]], pixels: bytes, *, before: bytes = b"") -> bytes:
    """The data set of a small grey image, some of its numbers replaced."""
    whole = {
        0x00280002: ("US", 1),
        0x00280008: ("IS", 1),
        0x00280010: ("US", 4),
        0x00280011: ("US", 4),
        0x00280100: ("US", 16),
        0x00280101: ("US", 16),
        0x00280102: ("US", 15),
        0x00280103: ("US", 0),
    } | fields
    text = element(0x00080060, "CS", b"OT") + before
    parts = {tag: number(tag, vr, value) for tag, (vr, value) in whole.items()}
    parts[0x00280004] = element(0x00280004, "CS", b"MONOCHROME2")
    return text + b"".join(parts[tag] for tag in sorted(parts)) + element(0x7FE00010, "OW", pixels)


vrs = st.sampled_from(["US", "SS", "UL", "SL", "IS", "DS", "FD", "FL", "LO"])
numbers = st.sampled_from(NUMBERS)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.tuples(vrs, numbers),
    columns=st.tuples(vrs, numbers),
    frames=st.tuples(st.sampled_from(["IS", "DS", "UL"]), numbers),
    allocated=st.tuples(vrs, st.sampled_from([0, 1, 7, 8, 12, 16, 24, 32, 64, 128, 65535])),
    syntax=st.sampled_from([EXPLICIT, BASELINE, RLE]),
)
@example(("UL", 65536), ("UL", 65536), ("IS", 1), ("US", 16), EXPLICIT)  # 2**32 wraps to 0 in 32 bits
@example(("US", 32768), ("US", 32768), ("IS", 4), ("US", 16), EXPLICIT)
def test_declared_sizes_are_compared_with_the_bytes_that_are_there(
    tmp_path: Path,
    rows: tuple[str, int],
    columns: tuple[str, int],
    frames: tuple[str, int],
    allocated: tuple[str, int],
    syntax: str,
) -> None:
    fields = {0x00280010: rows, 0x00280011: columns, 0x00280008: frames, 0x00280100: allocated}
    path = write(tmp_path / "f.dcm", syntax, image(fields, bytes(32)))
    try:
        read = read_image(path)
    except SagittalError:
        return
    assert read.data.size <= 32 * 8  # a bit a voxel at most, for 32 bytes


def test_the_honest_image_of_these_tests_is_read(tmp_path: Path) -> None:
    pixels = np.arange(16, dtype="<u2")
    read = read_image(write(tmp_path / "f.dcm", EXPLICIT, image({}, pixels.tobytes())))
    np.testing.assert_array_equal(read.data[0, :, :, 0].T, pixels.reshape(4, 4))


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("depth", [1, 30, 65, 200, 5000, 100_000])
def test_nesting_is_read_or_refused_and_never_exhausts_the_stack(depth: int, closed: bool, tmp_path: Path) -> None:
    opening = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    closing = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    nested = opening * depth + closing * depth * closed
    path = write(tmp_path / "f.dcm", EXPLICIT, image({}, bytes(32), before=nested))
    if depth <= 30 and closed:
        assert read_image(path).data.shape == (1, 4, 4, 1)
    elif depth >= 65:
        with pytest.raises(ReadError, match="nested deeper than 64 levels"):
            read_image(path)
    else:
        with pytest.raises(ReadError):
            read_image(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({0x00280101: ("US", 17)}, "do not fit BitsAllocated 16"),
        ({0x00280102: ("US", 16)}, "do not fit BitsAllocated 16"),
        ({0x00280101: ("US", 12), 0x00280102: ("US", 3)}, "do not fit BitsAllocated 16"),
        ({0x00280100: ("US", 24)}, "BitsAllocated is 24"),
        ({0x00280002: ("US", 2)}, "SamplesPerPixel is 2"),
        ({0x00280002: ("US", 65535)}, "SamplesPerPixel is 65535"),
        ({0x00280010: ("US", 0)}, "at least 1"),
        ({0x00280010: ("US", 5)}, "cut off or damaged"),
        ({0x00280010: ("US", 2)}, "one frame more"),
        ({0x00280008: ("IS", 2)}, "cut off or damaged"),
    ],
)
def test_bits_samples_and_frames_that_do_not_fit_are_refused(
    fields: dict[int, tuple[str, int]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ReadError, match=message):
        read_image(write(tmp_path / "f.dcm", EXPLICIT, image(fields, bytes(32))))


def test_ten_thousand_malformed_headers_leave_no_memory_behind(tmp_path: Path) -> None:
    """Non-standard value representations in the file meta information, lengths beyond the end, cut elements."""
    rng = np.random.default_rng(5)
    honest = image({}, bytes(32))
    path = tmp_path / "f.dcm"

    def hammer(count: int) -> None:
        for _ in range(count):
            vr = bytes(rng.integers(33, 127, 2, dtype=np.uint8)).decode("latin-1")
            meta = struct.pack("<HH", 2, int(rng.integers(0, 0x110))) + vr.encode("latin-1")
            meta += struct.pack("<H", int(rng.integers(0, 2**16))) + bytes(int(rng.integers(0, 200)))
            path.write_bytes(b"\0" * 128 + b"DICM" + meta + honest[: int(rng.integers(0, len(honest)))])
            with pytest.raises(SagittalError):
                read_image(path)

    hammer(1000)
    before = resident_kib()
    hammer(9000)
    assert resident_kib() - before < 2**14  # 16 MiB


def resident_kib() -> int:
    """Memory that this process holds now; its highest mark where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
