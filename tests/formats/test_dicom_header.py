"""Headers found by our own walk hold what pydicom reads."""

from __future__ import annotations

import copy
import struct
import warnings

import numpy as np
import pydicom
import pytest
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from sagittal.errors import ReadError
from sagittal.formats import dicom_header
from sagittal.formats.dicom_file import open_dicom
from sagittal.formats.dicom_header import LazyHeader, open_header

RAMP = np.arange(5 * 7, dtype=np.int16).reshape(5, 7)


def _compare(found, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that are longer than they may be
        _compare_elements(found, expected)


def _compare_elements(found, expected):
    for element in expected:
        tag, keyword = element.tag, keyword_for_tag(element.tag)
        assert tag in found
        if tag == 0x7FE00010:
            continue
        if keyword:
            assert keyword in found
            assert found.get(keyword) == element.value, element
            assert getattr(found, keyword) == element.value, element
        assert found[tag].value == element.value, element
        assert found[tag].VR == element.VR, element
        assert found.get(tag).value == element.value


def test_every_element_of_every_real_file_equals_pydicoms(bench_data):
    lazy, memos = 0, {}
    for path in sorted((bench_data / "dicom").rglob("*")):
        if path.is_dir() or path.suffix in {".gz", ".nii", ".json", ".sh", ".md", ".txt", ".npy"}:
            continue
        with path.open("rb") as file:
            if file.read(132)[128:] != b"DICM":
                continue
        try:
            found = open_header(path, memos.setdefault(path.parent, {}))
        except ReadError:
            continue
        if not isinstance(found, LazyHeader):
            continue
        expected = pydicom.dcmread(path, stop_before_pixels=True)
        assert not found.loaded
        if found.get("NumberOfFrames") in {None, 1} or lazy % 4 == 0:
            _compare(found, expected)
        assert not found.loaded, "no element needed the whole file"
        lazy += 1
    assert lazy > 200


def test_absent_elements_are_absent(write_slice):
    found = open_header(write_slice("a.dcm", RAMP), {})
    assert isinstance(found, LazyHeader)
    assert "RescaleSlope" not in found
    assert (0x0028, 0x1053) not in found
    assert "NotAKeyword" not in found
    assert found.get("RescaleSlope") is None
    assert found.get("RescaleSlope", 3) == 3
    assert found.get(0x00281053) is None
    with pytest.raises(AttributeError):
        _ = found.RescaleSlope
    with pytest.raises(KeyError):
        found["RescaleSlope"]
    assert "PixelData" in found


def test_anything_else_works_as_on_a_data_set_of_pydicom(write_slice):
    path = write_slice("a.dcm", RAMP, PatientName="A^B")
    whole = pydicom.dcmread(path)
    assert list(open_header(path, {})) == list(whole)
    assert len(open_header(path, {})) == len(whole)
    assert str(open_header(path, {})) == str(whole)
    assert open_header(path, {}).file_meta == whole.file_meta
    assert open_header(path, {}).PixelData == RAMP.tobytes()
    assert open_header(path, {}).original_encoding == whole.original_encoding
    assert open_header(path, {}).dir("Patient") == whole.dir("Patient")
    np.testing.assert_array_equal(open_header(path, {}).pixel_array, RAMP)
    changed = open_header(path, {})
    changed.PatientID = "other"
    del changed.PatientName
    assert (changed.PatientID, changed.get("PatientName"), changed.Rows) == ("other", None, 5)
    assert list(copy.deepcopy(open_header(path, {}))) == list(whole)


@pytest.mark.parametrize(
    "fields",
    [
        {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "患者", "StudyDescription": "Über"},
        {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう"},
        {"ImageComments": "long text " * 900},
        {"WindowCenter": [40, 300.5], "WindowWidth": "", "ImageType": ["ORIGINAL", "PRIMARY", ""]},
        {"PixelPaddingValue": -2000, "SmallestImagePixelValue": -5},
        {"ReferencedImageSequence": Sequence([Dataset()]), "ProcedureCodeSequence": Sequence([])},
    ],
)
@pytest.mark.parametrize("implicit", [False, True])
def test_odd_elements_equal_pydicoms(write_slice, tmp_path, fields, implicit):
    fields = dict(fields)
    if "ReferencedImageSequence" in fields:
        item = Dataset()
        item.ReferencedSOPInstanceUID = "1.2.3"
        item.PurposeOfReferenceCodeSequence = Sequence([Dataset(), Dataset()])
        fields["ReferencedImageSequence"] = Sequence([item])
    header = pydicom.dcmread(write_slice("a.dcm", RAMP, **fields))
    if implicit:
        header.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2"
    for undefined in (False, True):
        for element in header:
            if element.VR == "SQ":
                element.is_undefined_length = undefined
        pydicom.dcmwrite(tmp_path / "b.dcm", header, implicit_vr=implicit, little_endian=True)
        found = open_header(tmp_path / "b.dcm", {})
        assert isinstance(found, LazyHeader)
        _compare(found, pydicom.dcmread(tmp_path / "b.dcm", stop_before_pixels=True))
        assert not found.loaded


def test_a_memo_of_one_series_keeps_values_apart(write_slice):
    memo = {}
    texts = [("ISO_IR 100", "M\xfcller"), ("ISO_IR 192", "Müller"), ("ISO_IR 144", "Жук")]
    for number, (charset, name) in enumerate(texts * 2):
        path = write_slice(f"{number}.dcm", RAMP, SpecificCharacterSet=charset, StudyDescription=name)
        found = open_header(path, memo)
        assert (found.StudyDescription, found.get("InstanceNumber")) == (name, open_dicom(path).get("InstanceNumber"))


@pytest.mark.parametrize(
    "change",
    [
        lambda raw, at: raw[:at] + b"\x08\x00\x60\x00CS\x02\x00OT" + raw[at:],  # out of order
        lambda raw, at: raw[:at] + b"\xdf\x7f\x10\x00ZZ\x02\x00OT" + raw[at:],  # no such representation
        lambda raw, at: raw[:at] + b"\xe0\x7f\x08\x00OF\0\0\x04\0\0\0\0\0\0\0" + raw[at + 12 + 70 :],  # other pixels
        lambda raw, at: b"\0" * 4 + raw[132:],
    ],
)
def test_unusual_files_are_left_to_pydicom(write_slice, change):
    path = write_slice("a.dcm", RAMP)
    raw = path.read_bytes()
    path.write_bytes(change(raw, raw.find(b"\xe0\x7f\x10\x00")))
    try:
        found = open_header(path, {})
    except ReadError:
        return
    assert not isinstance(found, LazyHeader)


def test_a_long_header_is_read_in_pieces(write_slice, monkeypatch):
    path = write_slice("a.dcm", RAMP, ImageComments="x" * 9000, StudyDescription="end")
    monkeypatch.setattr(dicom_header, "_FIRST", 200)
    found = open_header(path, {})
    assert isinstance(found, LazyHeader)
    assert (len(found.ImageComments), found.StudyDescription) == (9000, "end")


def test_any_cut_is_an_error_or_ends_in_the_pixels(write_slice):
    path = write_slice("a.dcm", RAMP, ReferencedImageSequence=Sequence([Dataset()]))
    raw = path.read_bytes()
    pixels = raw.find(b"\xe0\x7f\x10\x00") + 12
    for end in range(1, len(raw), 7):
        path.write_bytes(raw[:end])
        try:
            found = open_header(path, {})
        except ReadError:
            continue
        if isinstance(found, LazyHeader):
            assert found.pixels_length == end - pixels >= 0


def test_lengths_beyond_the_file_are_refused(write_slice):
    path = write_slice("a.dcm", RAMP)
    raw = bytearray(path.read_bytes())
    at = raw.find(b"\x20\x00\x0d\x00UI") + 6
    raw[at : at + 2] = struct.pack("<H", 60000)
    path.write_bytes(raw)
    with pytest.raises(ReadError, match="cut off"):
        open_header(path, {})
