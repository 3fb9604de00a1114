"""Finding the elements of hostile and honest files, compared with pydicom."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from sagittal.archive.archive import Archive
from sagittal.archive.elements import Elements, More, find_elements
from sagittal.archive.facts import facts_of
from sagittal.archive.header import image_classes, kept_syntaxes, read_header
from sagittal.archive.receive import Receipt
from sagittal.archive.refused import Refused

Put = Callable[..., Receipt]
Make = Callable[..., bytes]
IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
ORDERS = [IMPLICIT, EXPLICIT, BIG]


def dump(dataset: Dataset, syntax: str) -> bytes:
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    stream = io.BytesIO()
    pydicom.dcmwrite(
        stream, dataset, enforce_file_format=True, implicit_vr=syntax == IMPLICIT, little_endian=syntax != BIG
    )
    return stream.getvalue()


def element(tag: int, value: bytes, syntax: str, vr: bytes = b"SQ", length: int | None = None) -> bytes:
    """One element with a long length."""
    order = ">" if syntax == BIG else "<"
    head = struct.pack(order + "HH", tag >> 16, tag & 0xFFFF)
    size = struct.pack(order + "I", len(value) if length is None else length)
    return head + (b"" if syntax == IMPLICIT else vr + b"\0\0") + size + value


def item(value: bytes, syntax: str, undefined: bool) -> bytes:
    order = ">" if syntax == BIG else "<"
    if undefined:
        return (
            struct.pack(order + "HHI", 0xFFFE, 0xE000, 2**32 - 1)
            + value
            + struct.pack(order + "HHI", 0xFFFE, 0xE00D, 0)
        )
    return struct.pack(order + "HHI", 0xFFFE, 0xE000, len(value)) + value


def nested(depth: int, syntax: str, undefined: bool) -> bytes:
    """Sequences inside each other, from the inside outwards."""
    order = ">" if syntax == BIG else "<"
    end = struct.pack(order + "HHI", 0xFFFE, 0xE0DD, 0)
    pieces: list[bytes] = []
    if undefined:
        head = element(0x00081140, b"", syntax, length=2**32 - 1) + struct.pack(
            order + "HHI", 0xFFFE, 0xE000, 2**32 - 1
        )
        return head * depth + (struct.pack(order + "HHI", 0xFFFE, 0xE00D, 0) + end) * depth
    size = 0
    for _ in range(depth):
        pieces.append(
            element(0x00081140, b"", syntax, length=size + 8) + struct.pack(order + "HHI", 0xFFFE, 0xE000, size)
        )
        size += len(pieces[-1])
    return b"".join(reversed(pieces))


def with_elements(extra: bytes, syntax: str, make_object: Make) -> bytes:
    """An object with more elements between its UIDs and its image."""
    dataset = pydicom.dcmread(io.BytesIO(make_object()))
    dataset.PixelData = np.arange(48, dtype=">u2" if syntax == BIG else "<u2").tobytes()
    data = dump(dataset, syntax)
    order = ">" if syntax == BIG else "<"
    at = data.index(struct.pack(order + "HH", 0x0008, 0x0060))
    return data[:at] + extra + data[at:]


@pytest.mark.parametrize("syntax", ORDERS)
@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize(
    ("depth", "kept"), [(1, True), (60, True), (64, True), (65, False), (70, False), (1000, False), (100_000, False)]
)
def test_nesting_has_a_limit(make_object: Make, syntax: str, undefined: bool, depth: int, kept: bool) -> None:
    if not undefined and depth > 1000:
        depth = 5000  # building it is quadratic
    data = with_elements(nested(depth, syntax, undefined), syntax, make_object)
    if kept:
        assert 0x00081140 in find_elements(data, len(data)).places
    else:
        with pytest.raises(Refused, match="nested deeper than 64") as told:
            find_elements(data, len(data))
        assert told.value.code == "too-deep"


def test_a_sequence_of_unknown_type_is_measured_too(make_object: Make) -> None:
    inside = nested(70, IMPLICIT, False)
    data = with_elements(element(0x00091010, inside[8:], EXPLICIT, b"UN"), EXPLICIT, make_object)
    with pytest.raises(Refused, match="nested deeper"):
        find_elements(data, len(data))
    data = with_elements(
        element(0x00091010, nested(70, IMPLICIT, True)[8:], EXPLICIT, b"UN", 2**32 - 1), EXPLICIT, make_object
    )
    with pytest.raises(Refused, match="nested deeper"):
        find_elements(data, len(data))
    plain = with_elements(
        element(0x00091010, b"\xfe\xff\x00\xe0 is not a sequence at all", EXPLICIT, b"UN"), EXPLICIT, make_object
    )
    assert find_elements(plain, len(plain)).raw(0x00091010).endswith(b"at all")


def test_the_number_of_elements_has_a_limit(make_object: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sagittal.archive.elements.MAX_ELEMENTS", 10_000)
    many = element(0x00081140, item(b"", EXPLICIT, False) * 20_000, EXPLICIT)
    for extra in (many, b"".join(element(0x00091000, b"", EXPLICIT, b"OB") for _ in range(20_000))):
        data = with_elements(extra, EXPLICIT, make_object)
        with pytest.raises(Refused, match="more than 10,000 elements|more elements than any object has"):
            find_elements(data, len(data))
    monkeypatch.undo()
    loose = b"".join(
        element(0x00091000 + 65536 * 2 * (n // 60000) + n % 60000, b"", EXPLICIT, b"OB") for n in range(25_000)
    )
    data = with_elements(loose, EXPLICIT, make_object)
    with pytest.raises(Refused, match="more elements than any object has"):
        find_elements(data, len(data))
    monkeypatch.setattr("sagittal.archive.elements.MAX_ELEMENTS", 1000)
    data = compressed(make_object, 1, [b""] * 2000)
    with pytest.raises(Refused, match="more than 1,000 fragments"):
        read_header(find_elements(data, len(data)), len(data))


_TEXT = {"LO": st.text("abc XYZ09", max_size=12), "SH": st.text("abc", max_size=8), "CS": st.text("ABC_ ", max_size=8)}
_KEYS = {"LO": [0x00081030, 0x0008103E, 0x00191001], "SH": [0x00080050, 0x00291001], "CS": [0x00180015, 0x00311001]}


@st.composite
def datasets(draw: st.DrawFn, depth: int = 2) -> Dataset:
    made = Dataset()
    for vr, tags in _KEYS.items():
        for tag in tags:
            if draw(st.booleans()):
                made.add_new(tag, vr, draw(_TEXT[vr]).strip())
    if draw(st.booleans()):
        made.add_new(0x00191002, "UN" if draw(st.booleans()) else "OB", draw(st.binary(max_size=9)) or b"\0\0")
    if depth and draw(st.booleans()):
        made.add_new(0x00081140, "SQ", draw(st.lists(datasets(depth - 1), max_size=3)))
        made[0x00081140].is_undefined_length = draw(st.booleans())
    return made


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(extra=datasets(), syntax=st.sampled_from(ORDERS))
def test_it_finds_what_pydicom_finds(make_object: Make, extra: Dataset, syntax: str) -> None:
    dataset = pydicom.dcmread(io.BytesIO(make_object()))
    dataset.update(extra)
    data = dump(dataset, syntax)
    found = find_elements(data, len(data))
    header = read_header(found, len(data))
    assert set(found.places) == {int(e.tag) for e in dataset.elements()}
    assert (header.syntax, header.sop_instance_uid, header.rows, header.columns) == (
        syntax,
        dataset.SOPInstanceUID,
        6,
        8,
    )
    for tags in _KEYS.values():
        for tag in tags:
            expected = str(dataset[tag].value or "") if tag in dataset else ""
            assert " ".join(header.text(tag).split()) == " ".join(expected.split())
    # From any beginning of it: the same, or a wish for more.
    cut = len(data) // 2
    with suppress(More):
        assert find_elements(data[:cut], len(data)).places.keys() == found.places.keys()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(128, 900), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.integers(0, 900),
)
def test_no_damage_is_anything_but_refused_or_understood(
    make_object: Make, changes: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(make_object(StudyDescription="x", SpecificCharacterSet="GB18030", PatientName="王^小东"))
    for place, value in changes:
        data[place % len(data)] = value
    raw = bytes(data[: len(data) - cut % len(data)]) if cut % 3 == 0 else bytes(data)
    try:
        header = read_header(find_elements(raw, len(raw)), len(raw))
    except Refused:
        return
    facts_of(header)
    assert len(header.sop_instance_uid) <= 64


NUMBERS = [0, 1, 2, 255, 256, 4095, 4096, 32767, 32768, 65535]


@pytest.mark.parametrize("vr", [b"US", b"UL", b"SS", b"IS"])
def test_sizes_that_overflow_are_compared_as_whole_numbers(make_object: Make, vr: bytes) -> None:
    """CVE-2026-5442 and its like: Rows, Columns, Frames and BitsAllocated as other types and of absurd values."""
    data = make_object(NumberOfFrames="00001")
    sizes = {b"US": "<H", b"SS": "<H", b"UL": "<I"}
    for rows in [*NUMBERS, 2**31, 2**32 - 1]:
        for columns in NUMBERS:
            for frames in ("1", "65535", "2147483647", "-1", "99999999999999999999"):
                raw = data
                for tag, value in ((0x10, rows), (0x11, columns)):
                    at = raw.index(b"\x28\0" + bytes([tag]) + b"\0US")
                    packed = (
                        str(value).encode()
                        if vr == b"IS"
                        else struct.pack(sizes[vr], value % 256 ** struct.calcsize(sizes[vr]))
                    )
                    packed += b" " * (len(packed) % 2)
                    raw = raw[: at + 4] + vr + struct.pack("<H", len(packed)) + packed + raw[at + 10 :]
                at = raw.index(b"\x28\0\x08\0IS")
                text = frames.encode() + b" " * (len(frames) % 2)
                raw = raw[: at + 6] + struct.pack("<H", len(text)) + text + raw[at + 8 + 6 :]
                expected = rows * columns * (int(frames) if len(frames) < 12 else 0) * 2
                told, size = "", 0
                try:
                    header = read_header(find_elements(raw, len(raw)), len(raw))
                    size = (header.rows or 0) * (header.columns or 0) * header.frames * 2
                except Refused as refused:
                    told = refused.code
                assert (told, size) in {("pixel-length", 0), ("", 96)}
                if vr in {b"US", b"UL"} and rows < 65536:
                    assert (size == 96) == (expected == 96)


@pytest.mark.parametrize(
    ("allocated", "stored", "high", "kept"),
    [
        (16, 16, 15, True), (16, 12, 11, True), (16, 12, 15, True), (16, 17, 15, False), (16, 16, 16, False), (16, 0, 0, False),
        (8, 8, 7, False), (16, 65535, 15, False), (16, 16, 65535, False), (0, 0, 0, False), (32, 16, 15, False), (65535, 16, 15, False),
    ],
)  # fmt: skip
def test_bits_must_fit_each_other_and_the_pixels(
    make_object: Make, allocated: int, stored: int, high: int, kept: bool
) -> None:
    data = make_object(BitsAllocated=allocated, BitsStored=stored, HighBit=high)
    if kept:
        read_header(find_elements(data, len(data)), len(data))
    else:
        with pytest.raises(Refused) as told:
            read_header(find_elements(data, len(data)), len(data))
        assert told.value.code == "pixel-length"


def compressed(
    make_object: Make, frames: int, fragments: list[bytes], end: bool = True, syntax: str = "1.2.840.10008.1.2.4.80"
) -> bytes:
    data = make_object(NumberOfFrames=frames, TransferSyntaxUID=syntax, PixelData=None)
    body = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(one)) + one for one in [b"", *fragments])
    tail = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0) if end else b""
    return data + struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 2**32 - 1) + body + tail


def test_compressed_pixels_are_walked_to_their_end(make_object: Make, put: Put) -> None:
    assert put(compressed(make_object, 2, [b"ab", b"cdef"])).outcome == "stored"
    assert put(compressed(make_object, 9, [b"ab"], syntax="1.2.840.10008.1.2.4.102")).outcome == "stored"  # one stream
    native = compressed(make_object, 1, [b"ab"])
    native = native[: native.index(b"OB\0\0\xff\xff\xff\xff")] + b"OB\0\0" + struct.pack("<I", 96) + bytes(96)
    for bad in (
        compressed(make_object, 1, []),
        compressed(make_object, 3, [b"ab", b"cd"]),
        compressed(make_object, 1, [b"ab"], end=False),
        compressed(make_object, 1, [b"ab"])[:-9],
        compressed(make_object, 1, [b"ab"], syntax=EXPLICIT),  # fragments where there must be none
        native,  # none where there must be
    ):
        with pytest.raises(Refused) as told:
            put(bad)
        assert told.value.code == "pixel-length"


def test_a_long_multi_frame_is_walked_on_the_disk(make_object: Make, put: Put, archive: Archive) -> None:
    data = compressed(make_object, 300, [bytes(8000)] * 300)
    assert archive.open(put(data).instance_id).read_bytes() == data
    with pytest.raises(Refused, match="damaged or cut off|is cut off"):
        put(compressed(make_object, 300, [bytes(8000)] * 300)[:-8000])


@pytest.mark.parametrize("start", [b"\x02\0", b"\x08\0"])
@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_a_file_without_preamble_gets_one(
    make_object: Make, put: Put, archive: Archive, start: bytes, syntax: str
) -> None:
    dataset = pydicom.dcmread(io.BytesIO(make_object(SpecificCharacterSet="ISO_IR 100")))
    whole = dump(dataset, syntax)
    begin = (
        132 if start == b"\x02\0" else 144 + pydicom.dcmread(io.BytesIO(whole)).file_meta.FileMetaInformationGroupLength
    )
    assert whole[begin:].startswith(start)
    for piece in (1, 100, 2**17):
        receipt = put(whole[begin:], piece=piece)
    assert receipt.outcome == "already"
    kept = pydicom.dcmread(archive.open(receipt.instance_id))
    assert kept.file_meta.TransferSyntaxUID == syntax
    assert kept == dataset
    assert put(whole).outcome == "already"


def test_a_directory_of_a_disc_is_refused_with_its_reason(put: Put) -> None:
    from pydicom.data import get_testdata_file

    path = get_testdata_file("DICOMDIR")
    with open(path, "rb") as file, pytest.raises(Refused, match="a DICOMDIR is a list of files") as told:
        put(file.read())
    assert told.value.code == "unsupported"


def test_an_enhanced_object_gives_its_measures(make_object: Make) -> None:
    dataset = pydicom.dcmread(io.BytesIO(make_object()))
    measures, plane, group = Dataset(), Dataset(), Dataset()
    measures.SliceThickness, measures.PixelSpacing, measures.SpacingBetweenSlices = "2.5", [0.7, 0.6], "2"
    plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    group.PixelMeasuresSequence, group.PlaneOrientationSequence = [measures], [plane]
    dataset.SharedFunctionalGroupsSequence = [group]
    for syntax in ORDERS:
        for undefined in (False, True):
            dataset["SharedFunctionalGroupsSequence"].is_undefined_length = undefined
            data = dump(dataset, syntax)
            facts = facts_of(read_header(find_elements(data, len(data)), len(data)))
            assert (facts["thickness_mm"], facts["between_mm"], facts["pixel_mm"]) == (2.5, 2.0, [0.7, 0.6])
            assert facts["orientation"] == [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize(("agent", "contrast"), [("Iomeprol", True), ("NONE", False), ("", None), (None, False)])
def test_contrast_is_told_unless_the_header_leaves_it_open(
    make_object: Make, agent: str | None, contrast: bool | None
) -> None:
    data = make_object(**({} if agent is None else {"ContrastBolusAgent": agent}))
    facts: dict[str, Any] = facts_of(read_header(find_elements(data, len(data)), len(data)))
    assert facts.get("contrast") is contrast


def test_every_image_class_and_syntax_of_the_standard_is_known() -> None:
    assert {
        "1.2.840.10008.5.1.4.1.1.2",
        "1.2.840.10008.5.1.4.1.1.1.1",
        "1.2.840.10008.5.1.4.1.1.66.4",
        "1.2.840.10008.5.1.4.1.1.77.1.6",
    } <= image_classes()
    assert (
        not {"1.2.840.10008.5.1.4.1.1.88.33", "1.2.840.10008.5.1.4.1.1.66", "1.2.840.10008.5.1.4.1.1.104.1"}
        & image_classes()
    )
    assert {
        IMPLICIT,
        EXPLICIT,
        BIG,
        "1.2.840.10008.1.2.5",
        "1.2.840.10008.1.2.4.201",
        "1.2.840.10008.1.2.4.90",
    } <= kept_syntaxes()
    assert not {"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.7.1"} & kept_syntaxes()


def test_a_length_of_4_gib_allocates_nothing(make_object: Make) -> None:
    data = with_elements(element(0x00091010, b"x" * 10, EXPLICIT, b"OB", 2**32 - 2), EXPLICIT, make_object)
    tracemalloc.start()
    begun = time.process_time()
    with pytest.raises(Refused, match="cut off"):
        find_elements(data, len(data))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
    assert time.process_time() - begun < 1.0


def test_ten_thousand_malformed_headers_take_no_memory(make_object: Make) -> None:
    """CVE-2026-3650: value representations that are none, in the file meta information."""
    good = make_object()
    tracemalloc.start()
    before = 0
    for number in range(10_000):
        data = bytearray(good)
        at = 132 + 8 * (number % 20)
        data[at + 4 : at + 6] = struct.pack("<H", number * 7 % 65536)
        try:
            found: Elements = find_elements(bytes(data), len(data))
            assert found.syntax
        except Refused:
            pass
        if number == 1000:
            before = tracemalloc.get_traced_memory()[0]
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 100_000
