"""Frames into slices: the short way equals the general one, and takes no more memory than the volume."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from sagittal.errors import ReadError
from sagittal.formats import dicom_stack
from sagittal.formats.dicom import read_dicom, read_dicom_series
from sagittal.formats.dicom_header import LazyHeader
from sagittal.formats.dicom_stack import open_series


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("dtype", "fields"),
    [
        (np.int16, {"RescaleSlope": 1, "RescaleIntercept": -1024}),
        (np.uint16, {"BitsStored": 12, "HighBit": 11, "RescaleSlope": "0.37", "RescaleIntercept": "-3.5"}),
        (np.int16, {"BitsStored": 13, "HighBit": 12, "RescaleSlope": 1, "RescaleIntercept": "0.5"}),
        (np.uint8, {"PhotometricInterpretation": "MONOCHROME1", "Modality": "DX"}),
        (np.int32, {"RescaleSlope": "1e-5", "RescaleIntercept": 0}),
    ],
)
def test_the_short_way_equals_the_general_one(write_series, write_slice, monkeypatch, threads, dtype, fields):
    rng = np.random.default_rng(0)
    info = np.iinfo(dtype)
    volume = rng.integers(info.min, info.max, (5, 11, 13), dtype, endpoint=True)
    fields = {
        **fields,
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [1, 1],
    }
    paths = [
        write_slice(f"{k}.dcm", frame, **fields, ImagePositionPatient=[0, 0, 3 * k]) for k, frame in enumerate(volume)
    ]
    monkeypatch.setattr(dicom_stack, "_WORTH_THREADS", 0)
    monkeypatch.setattr(dicom_stack, "cores", lambda: threads)
    assert all(isinstance(header, LazyHeader) for header in open_series(paths))
    short = read_dicom_series(paths)
    monkeypatch.setattr(dicom_stack, "_goes_straight", lambda _: False)
    general = read_dicom_series(paths)
    np.testing.assert_array_equal(short.data, general.data)
    stored = int(fields.get("BitsStored", info.bits))
    if info.bits == stored and dtype is not np.uint8:
        slope, intercept = float(fields["RescaleSlope"]), float(fields["RescaleIntercept"])
        np.testing.assert_array_equal(short.data[0], (volume * slope + intercept).astype(np.float32).transpose(2, 1, 0))


def test_frames_of_one_file_go_straight_too(write_slice):
    frames = np.random.default_rng(0).integers(0, 4096, (7, 9, 5)).astype(np.uint16)
    path = write_slice("a.dcm", frames[0], NumberOfFrames=7, PixelData=frames.tobytes(), Modality="MR")
    np.testing.assert_array_equal(read_dicom(path).data[0], frames.transpose(2, 1, 0))


def test_a_slice_that_is_cut_is_refused(write_series):
    paths = write_series("s", np.zeros((4, 16, 16), np.int16), [0.0, 1.0, 2.0, 3.0])
    whole = paths[2].read_bytes()
    for missing in (1, 100, 511):
        paths[2].write_bytes(whole[:-missing])
        with pytest.raises(ReadError, match="cut off or damaged"):
            read_dicom_series(paths)


def test_a_series_takes_little_more_than_its_volume(write_series):
    volume = np.zeros((40, 128, 128), np.int16)
    paths = write_series("s", volume, [float(k) for k in range(40)])
    read_dicom_series(paths[:2])
    tracemalloc.start()
    image = read_dicom_series(paths)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * image.data.nbytes
