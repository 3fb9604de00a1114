"""Compressed frames: every value as it was stored, whatever the sign, the bits and the cut into fragments."""

from __future__ import annotations

import contextlib
import io
import struct
import sys

import numpy as np
import PIL.Image
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as of_numpy
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from sagittal.errors import ReadError
from sagittal.formats import codecs, dicom_pixels
from sagittal.formats.codecs import COMPRESSED, FrameFormat, cut_to_bits, decode_frame
from sagittal.formats.dicom import read_dicom, read_dicom_series
from sagittal.guard import limited, limits

imagecodecs = pytest.importorskip("imagecodecs")
JPEG = "1.2.840.10008.1.2.4."
RLE = "1.2.840.10008.1.2.5"


def rle(values: np.ndarray) -> bytes:
    """RLE of (rows, columns, samples), written from PS3.5 annex G."""
    rows, _, samples = values.shape
    width = values.dtype.itemsize
    planes = values.astype(values.dtype.newbyteorder(">")).view(np.uint8).reshape(*values.shape, width)
    segments = []
    for sample in range(samples):
        for byte in range(width):
            segment = b"".join(
                imagecodecs.packbits_encode(planes[row, :, sample, byte].tobytes()) for row in range(rows)
            )
            segments.append(segment + b"\0" * (len(segment) % 2))
    starts = np.cumsum([64, *(len(s) for s in segments)])[:-1]
    return struct.pack("<16I", len(segments), *starts, *[0] * (15 - len(segments))) + b"".join(segments)


def jpeg2000(values: np.ndarray, bits: int) -> bytes:
    return imagecodecs.jpeg2k_encode(values, codecformat="j2k", level=0, reversible=True, bitspersample=bits)


def jpegls(values: np.ndarray, bits: int) -> bytes:
    import jpeg_ls

    colour = values.ndim == 3
    return bytes(
        jpeg_ls.encode_pixel_data(
            np.ascontiguousarray(values).tobytes(),
            rows=values.shape[0],
            columns=values.shape[1],
            samples_per_pixel=3 if colour else 1,
            bits_stored=bits,
            photometric_interpretation="RGB" if colour else "MONOCHROME2",
            planar_configuration=0,
            interleave_mode=2 if colour else 0,
        )
    )


ENCODERS = {
    RLE: lambda v, bits: rle(v[..., np.newaxis] if v.ndim == 2 else v),
    JPEG + "57": lambda v, bits: imagecodecs.jpeg8_encode(v, lossless=True, predictor=4, bitspersample=bits),
    JPEG + "70": lambda v, bits: imagecodecs.jpeg8_encode(v, lossless=True, predictor=1, bitspersample=bits),
    JPEG + "80": jpegls,
    JPEG + "90": jpeg2000,
    JPEG + "91": jpeg2000,
    JPEG + "201": lambda v, bits: imagecodecs.htj2k_encode(v, reversible=True),
    JPEG + "203": lambda v, bits: imagecodecs.htj2k_encode(v, reversible=True),
}


def grey(bits: int, signed: bool, seed: int = 0) -> np.ndarray:
    """Values over the whole range of some bits, with the pattern above them clear, as files store them."""
    rng = np.random.default_rng(seed)
    low = -(1 << bits - 1) if signed else 0
    values = rng.integers(low, low + (1 << bits), (33, 21))
    values[0, :2] = low, low + (1 << bits) - 1
    return values.astype(("i" if signed else "u") + ("1" if bits <= 8 else "2"))


def stored_pattern(values: np.ndarray, bits: int) -> np.ndarray:
    unsigned = values.view(f"u{values.itemsize}")
    return unsigned & unsigned.dtype.type((1 << bits) - 1)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [8, 10, 12, 13, 15, 16])
@pytest.mark.parametrize("syntax", ENCODERS)
def test_grey_of_any_depth_and_sign_is_exact(monkeypatch, syntax, bits, signed):
    values = grey(bits, signed)
    form = FrameFormat(syntax, 33, 21, 1, 8 * values.itemsize, bits, bits - 1, signed, "MONOCHROME2")
    # OpenJPH's encoder writes whole bytes, with the sign.
    whole = syntax in {JPEG + "201", JPEG + "203"}
    frame = ENCODERS[syntax](values if whole else stored_pattern(values, bits), bits)
    found = decode_frame(form.job(frame))
    np.testing.assert_array_equal(found[..., 0], values)
    assert found.dtype.kind == values.dtype.kind


@pytest.mark.parametrize("syntax", [RLE, JPEG + "57", JPEG + "70", JPEG + "80", JPEG + "90", JPEG + "201"])
def test_colour_is_exact(syntax):
    values = np.random.default_rng(0).integers(0, 256, (33, 21, 3), np.uint8)
    if syntax == JPEG + "90":
        frame = imagecodecs.jpeg2k_encode(values, codecformat="j2k", level=0, reversible=True, mct=False)
    elif syntax in {JPEG + "57", JPEG + "70"}:
        frame = imagecodecs.jpeg8_encode(values, lossless=True, colorspace="RGB", outcolorspace="RGB")
    else:
        frame = ENCODERS[syntax](values, 8)
    found = decode_frame(FrameFormat(syntax, 33, 21, 3, 8, 8, 7, False, "RGB").job(frame))
    np.testing.assert_array_equal(found, values)


def test_ybr_in_run_lengths_becomes_rgb():
    # As in test_dicom: PS3.3 C.7.6.3.1.2.
    ybr = np.array([[[100, 128, 128], [100, 128, 228]]], np.uint8)
    found = decode_frame(FrameFormat(RLE, 1, 2, 3, 8, 8, 7, False, "YBR_FULL").job(rle(ybr)))
    np.testing.assert_allclose(found[0], [[100, 100, 100], [240, 29, 100]], atol=1)


def test_the_reversible_colour_transform_of_jpeg2000_is_undone():
    values = np.random.default_rng(0).integers(0, 256, (33, 21, 3), np.uint8)
    frame = imagecodecs.jpeg2k_encode(values, codecformat="j2k", level=0, reversible=True, mct=True)
    found = decode_frame(FrameFormat(JPEG + "90", 33, 21, 3, 8, 8, 7, False, "YBR_RCT").job(frame))
    np.testing.assert_array_equal(found, values)


def test_baseline_colour_equals_pillows():
    values = np.zeros((32, 32, 3), np.uint8)
    values[:16] = 200, 30, 60
    frame = imagecodecs.jpeg8_encode(values, level=95)
    found = decode_frame(FrameFormat(JPEG + "50", 32, 32, 3, 8, 8, 7, False, "YBR_FULL_422").job(frame))
    with PIL.Image.open(io.BytesIO(frame)) as picture:
        np.testing.assert_allclose(found, np.asarray(picture), atol=2)


def test_32_bits_in_run_lengths():
    values = np.random.default_rng(0).integers(-(2**31), 2**31, (5, 7, 1)).astype(np.int32)
    found = decode_frame(FrameFormat(RLE, 5, 7, 1, 32, 32, 31, True, "MONOCHROME2").job(rle(values)))
    np.testing.assert_array_equal(found, values)


@settings(max_examples=40, deadline=None)
@given(
    of_numpy.arrays(
        np.uint16,
        of_numpy.array_shapes(min_dims=2, max_dims=2, max_side=40),
        elements=st.sampled_from([0, 1, 255, 256, 65535]),
    )
)
def test_run_lengths_equal_pydicoms(values):
    from pydicom.pixels.decoders.rle import _rle_decode_frame

    frame = rle(values[..., np.newaxis])
    form = FrameFormat(RLE, *values.shape, 1, 16, 16, 15, False, "MONOCHROME2")
    np.testing.assert_array_equal(decode_frame(form.job(frame))[..., 0], values)
    planes = np.frombuffer(_rle_decode_frame(frame, *values.shape, 1, 16), np.uint8)
    np.testing.assert_array_equal(planes.view("<u2").reshape(values.shape), values)


def test_run_lengths_without_imagecodecs(monkeypatch):
    values = grey(12, False)
    frame = rle(values[..., np.newaxis])
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    form = FrameFormat(RLE, 33, 21, 1, 16, 12, 11, False, "MONOCHROME2")
    np.testing.assert_array_equal(decode_frame(form.job(frame))[..., 0], values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f[:40], "does not hold the 2 segments"),
        (lambda f: b"\x03" + f[1:], "does not hold the 2 segments"),
        (lambda f: f[:4] + struct.pack("<I", 9) + f[8:], "lie outside of it"),
        (lambda f: f[:8] + struct.pack("<I", 2**31) + f[12:], "lie outside of it"),
        (lambda f: f[:-30], "shorter than the frame|damaged"),
    ],
)
def test_damaged_run_lengths_are_refused(change, message):
    frame = change(rle(grey(16, False)[..., np.newaxis]))
    form = FrameFormat(RLE, 33, 21, 1, 16, 16, 15, False, "MONOCHROME2")
    with pytest.raises(ReadError, match=message):
        decode_frame(form.job(frame))


@pytest.mark.parametrize("syntax", sorted(COMPRESSED))
def test_noise_for_a_frame_is_an_error(syntax):
    form = FrameFormat(syntax, 33, 21, 1, 16, 16, 15, False, "MONOCHROME2")
    for frame in (b"", b"\0" * 10, np.random.default_rng(0).bytes(500)):
        with pytest.raises(ReadError):
            decode_frame(form.job(frame))


@given(
    st.integers(1, 16).flatmap(lambda stored: st.tuples(st.just(stored), st.integers(stored - 1, 15))),
    st.booleans(),
    st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=20),
)
def test_bits_are_cut_as_the_standard_says(bits, signed, patterns):
    stored, high = bits
    found = cut_to_bits(np.array(patterns, np.uint16), allocated=16, stored=stored, high=high, signed=signed)
    for pattern, value in zip(patterns, found.tolist(), strict=True):
        # PS3.5 8.1.1: BitsStored bits that end at HighBit, in two's complement if signed.
        expected = (pattern >> (high + 1 - stored)) % (1 << stored)
        assert value == (expected - (1 << stored) if signed and expected >> (stored - 1) else expected)


# ---- files


def write_packed(write_slice, name, syntax, values, frames, **fields):
    path = write_slice(name, values, **fields)
    header = pydicom.dcmread(path)
    header.file_meta.TransferSyntaxUID = UID(syntax)
    header.PixelData = frames
    header["PixelData"].VR = "OB"
    header.save_as(path)
    return path


@pytest.mark.parametrize("syntax", [RLE, JPEG + "70", JPEG + "80", JPEG + "90", JPEG + "201"])
@pytest.mark.parametrize("fragments", [1, 3])
@pytest.mark.parametrize("table", [True, False])
def test_frames_in_fragments_are_put_together(write_slice, syntax, fragments, table):
    volume = np.stack([grey(12, False, seed) for seed in range(3)])
    packed = [ENCODERS[syntax](frame, 12) for frame in volume]
    if fragments > 1 and not table:
        packed = packed[:1]  # without a table, fragments of several frames cannot be told apart
        volume = volume[:1]
    data = encapsulate(packed, fragments_per_frame=fragments, has_bot=table)
    path = write_packed(
        write_slice, "a.dcm", syntax, volume[0], data,
        NumberOfFrames=len(volume), BitsStored=12, HighBit=11, PixelRepresentation=0, Modality="MR",
    )  # fmt: skip
    np.testing.assert_array_equal(read_dicom(path).data[0], volume.transpose(2, 1, 0))


@pytest.mark.parametrize("syntax", [RLE, JPEG + "70", JPEG + "80", JPEG + "90", JPEG + "201"])
def test_palette_indices_may_be_compressed(write_slice, syntax):
    indices = np.arange(33 * 21, dtype=np.uint8).reshape(33, 21) % 4
    table = {}
    for name, values in (("Red", [0, 10, 20, 30]), ("Green", [1, 11, 21, 31]), ("Blue", [2, 12, 22, 32])):
        table[f"{name}PaletteColorLookupTableDescriptor"] = [4, 0, 8]
        table[f"{name}PaletteColorLookupTableData"] = np.array(values, np.uint8).tobytes()
    path = write_packed(
        write_slice, "a.dcm", syntax, indices, encapsulate([ENCODERS[syntax](indices, 8)]),
        PhotometricInterpretation="PALETTE COLOR", Modality="US", **table,
    )  # fmt: skip
    expected = np.stack([indices * 10, indices * 10 + 1, indices * 10 + 2])
    np.testing.assert_array_equal(read_dicom(path).data[..., 0], expected.transpose(0, 2, 1))


def series_of(write_series, write_slice, tmp_path, syntax, count=12):
    volume = np.stack([grey(12, False, seed) for seed in range(count)])
    paths = write_series("s", volume.astype(np.int16), [2.5 * k for k in range(count)])
    for path, frame in zip(paths, volume, strict=True):
        header = pydicom.dcmread(path)
        header.file_meta.TransferSyntaxUID = UID(syntax)
        header.PixelData = encapsulate([ENCODERS[syntax](frame, 12)])
        header["PixelData"].VR = "OB"
        header.BitsStored, header.HighBit = 12, 11
        header.PixelRepresentation = 0
        header.save_as(path)
    return paths, volume


def test_a_compressed_series_is_sorted_and_exact(write_series, write_slice, tmp_path):
    paths, volume = series_of(write_series, write_slice, tmp_path, JPEG + "80")
    image = read_dicom_series(paths[::2] + paths[1::2])
    np.testing.assert_array_equal(image.data[0], volume.transpose(2, 1, 0) - 1024.0)


def test_one_damaged_slice_is_an_error_and_the_next_series_is_read(write_series, write_slice, tmp_path):
    paths, volume = series_of(write_series, write_slice, tmp_path, JPEG + "90")
    whole = paths[5].read_bytes()
    at = whole.find(b"\xff\x93") + 40
    paths[5].write_bytes(whole[:at] + b"\xff" * 200 + whole[at + 200 :])
    with contextlib.suppress(ReadError):  # some damage is concealed by the decoder
        read_dicom_series(paths)
    paths[5].write_bytes(whole)
    np.testing.assert_array_equal(read_dicom_series(paths).data[0], volume.transpose(2, 1, 0) - 1024.0)


def test_frames_are_decoded_in_a_process_with_limits(write_series, write_slice, tmp_path, monkeypatch):
    paths, _ = series_of(write_series, write_slice, tmp_path, JPEG + "70", count=2)
    monkeypatch.setitem(codecs._GREY, JPEG + "70", lambda *_: pytest.fail("decoded in this process"))
    assert read_dicom_series(paths).data.shape[-1] == 2
    monkeypatch.setattr(limits, "within_limits", True)
    with pytest.raises(BaseException, match="decoded in this process"):
        read_dicom_series(paths)


@pytest.mark.parametrize("syntax", [JPEG + "51", *ENCODERS])
def test_a_cut_file_is_refused_wherever_it_is_cut(write_slice, syntax):
    values = np.repeat(np.arange(200, dtype=np.uint8)[:, np.newaxis], 100, axis=1)
    frame = imagecodecs.jpeg8_encode(values) if syntax == JPEG + "51" else ENCODERS[syntax](values, 8)
    path = write_packed(write_slice, "a.dcm", syntax, values, encapsulate([frame]))
    raw = path.read_bytes()
    assert read_dicom(path).data.shape == (1, 100, 200, 1)
    start = raw.find(b"\xe0\x7f\x10\x00")
    for end in [*range(start + 12, len(raw), max((len(raw) - start) // 12, 1)), len(raw) - 1]:
        path.write_bytes(raw[:end])
        with pytest.raises(ReadError):
            read_dicom(path)
    # The same within a whole file.
    for part in (0.3, 0.7, 0.9):
        short = write_packed(write_slice, "b.dcm", syntax, values, encapsulate([frame[: int(len(frame) * part)]]))
        with pytest.raises(ReadError):
            read_dicom(short)


def test_a_frame_far_longer_than_its_pixels_is_refused(write_slice):
    values = grey(16, False)
    frame = ENCODERS[JPEG + "80"](values, 16) + bytes(70_000)
    path = write_packed(write_slice, "a.dcm", JPEG + "80", values, encapsulate([frame]))
    with pytest.raises(ReadError, match="more than twice the 1,386 of its pixels"):
        read_dicom(path)


def test_a_frame_beyond_the_limits_says_so(write_slice, monkeypatch):
    values = np.zeros((2048, 2048), np.uint16)
    path = write_packed(write_slice, "a.dcm", JPEG + "90", values, encapsulate([jpeg2000(values, 16)]))
    read_dicom(path)
    limited.stop()  # a process that has decoded may still hold enough memory for another frame
    monkeypatch.setattr(dicom_pixels, "FRAME_MEMORY", (2**22, 0))
    with pytest.raises(ReadError, match="needed more than 4 MiB of memory|damaged"):
        read_dicom(path)
    monkeypatch.setattr(dicom_pixels, "FRAME_MEMORY", (2**28, 24))
    monkeypatch.setattr(dicom_pixels, "FRAME_TIME", (0.0, 1e12))
    with pytest.raises(ReadError, match="more than .* s, and was stopped"):
        read_dicom(path)
