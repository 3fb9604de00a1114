"""Small honest files of every format that is read: where mutation begins.

All are made by code; with the benchmark data (``SAGITTAL_BENCH_DATA``) its smallest real files are added.
"""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

FORMATS = ("dicom", "nifti", "nrrd", "mha", "picture", "npz", "outlines", "zip", "received")
#: Real files up to this size are taken: mutation of a few bytes in megabytes finds little.
MOST_BYTES = 300_000


def write_seeds(kind: str, folder: Path) -> list[Path]:
    """Write the seeds of one format into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, (suffix, content) in enumerate(MAKERS[kind]()):
        path = folder / f"made-{number:03d}{suffix}"
        path.write_bytes(content)
        paths.append(path)
    for number, real in enumerate(_real(kind)):
        path = folder / f"real-{number:03d}{''.join(real.suffixes[-2:]) if real.name.endswith('.gz') else real.suffix}"
        path.write_bytes(real.read_bytes())
        paths.append(path)
    return paths


def _real(kind: str) -> list[Path]:
    data = Path(os.environ.get("SAGITTAL_BENCH_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    patterns = {
        "dicom": ("dicom/**/*.dcm", "dicom/syntaxes/CT?_J2KR"),
        "nifti": ("hippocampus/imagesTr/hippocampus_00*.nii.gz", "dicom/geometry/**/*.nii.gz"),
        "nrrd": ("dicom/seg/**/*.nrrd",),
        "mha": (),
        "picture": ("bccd/JPEGImages/*00?.jpg", "ham10000/**/*00?.jpg", "chase/*01L_1stHO.png"),
        "npz": (),
        "outlines": ("dicom/seg/segmentations/*.dcm", "dicom/seg/sr-example/seg.dcm", "dicom/rtstruct/**/*rt.dcm"),
        "zip": (),
        "received": ("dicom/seg/sr-example/*.dcm", "dicom/rtstruct/**/*rt.dcm", "dicom/geometry/**/*.dcm"),
    }
    found = [path for pattern in patterns[kind] for path in sorted(data.glob(pattern)) if path.is_file()]
    found = [path for path in found if path.stat().st_size <= MOST_BYTES]
    return found[:: max(1, len(found) // 40)]


def _volume(dtype: str = "i2", shape: tuple[int, ...] = (5, 7, 6)) -> np.ndarray:
    values = np.random.default_rng(3).normal(40, 30, shape)
    return np.clip(values, 0, 120).astype(dtype)


def _header(pixels: np.ndarray, syntax: str, **fields: object) -> Any:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID

    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = UID(syntax)
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3.4.5.6"
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.PatientID, ds.Modality = "1.2.3", "1.2.3.4", "seed", "CT"
    ds.Rows, ds.Columns = pixels.shape[:2]
    ds.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    ds.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = ds.BitsStored = 8 * pixels.dtype.itemsize
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, int(pixels.dtype.kind == "i")
    ds.ImageOrientationPatient, ds.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 5]
    ds.PixelSpacing, ds.SliceThickness, ds.RescaleSlope, ds.RescaleIntercept = [0.7, 0.5], 2, 1, -1024
    for name, value in fields.items():
        setattr(ds, name, value)
    return ds


def _dump(ds: Any) -> tuple[str, bytes]:
    from pydicom import dcmwrite

    out = io.BytesIO()
    syntax = ds.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True
    dcmwrite(
        out, ds, enforce_file_format=True, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian
    )
    return ".dcm", out.getvalue()


def _dicom() -> Iterator[tuple[str, bytes]]:
    import imagecodecs
    from pydicom.dataset import Dataset
    from pydicom.encaps import encapsulate
    from pydicom.pixels.encoders import RLELosslessEncoder

    grey, colour = _volume("u2", (24, 20)), _volume("u1", (24, 20, 3))
    base = "1.2.840.10008.1.2"
    for syntax in (base, base + ".1", base + ".2", base + ".1.99"):
        pixels = grey.astype(">u2") if syntax.endswith("1.2.2") else grey
        yield _dump(_header(grey, syntax, PixelData=pixels.tobytes()))
    rle = RLELosslessEncoder.encode(grey.tobytes(), rows=24, columns=20, samples_per_pixel=1, bits_allocated=16,
                                    bits_stored=16, pixel_representation=0, photometric_interpretation="MONOCHROME2",
                                    number_of_frames=1)  # fmt: skip
    yield _dump(_header(grey, base + ".5", PixelData=encapsulate([rle])))
    codecs: list[tuple[str, Callable[[np.ndarray], bytes], np.ndarray]] = [
        ("50", lambda a: imagecodecs.jpeg8_encode(a, level=80), grey.astype("u1")),
        ("50", lambda a: imagecodecs.jpeg8_encode(a, level=80), colour),
        ("70", imagecodecs.ljpeg_encode, grey),
        ("80", imagecodecs.jpegls_encode, grey),
        ("90", lambda a: imagecodecs.jpeg2k_encode(a, level=0, codecformat="j2k"), grey),
        ("91", lambda a: imagecodecs.jpeg2k_encode(a, level=40, codecformat="j2k"), colour),
    ]
    for syntax, encode, pixels in codecs:
        fields = {"PhotometricInterpretation": "YBR_FULL_422"} if syntax == "50" and pixels.ndim == 3 else {}
        yield _dump(_header(pixels, f"{base}.4.{syntax}", PixelData=encapsulate([encode(pixels)]), **fields))
    palette = np.arange(256, dtype="<u2").tobytes()
    lut = {f"{c}PaletteColorLookupTableDescriptor": [256, 0, 16] for c in ("Red", "Green", "Blue")}
    lut |= {f"{c}PaletteColorLookupTableData": palette for c in ("Red", "Green", "Blue")}
    small = grey.astype("u1")
    yield _dump(
        _header(small, base + ".1", PhotometricInterpretation="PALETTE COLOR", PixelData=small.tobytes(), **lut)
    )
    frames = np.stack([grey] * 3)
    enhanced = _header(grey, base + ".1", NumberOfFrames=3, PixelData=frames.tobytes())
    enhanced.SOPClassUID = enhanced.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    groups = []
    for z in range(3):
        group, place, measures, orientation = Dataset(), Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [0, 0, 2 * z]
        measures.PixelSpacing, measures.SliceThickness = [0.7, 0.5], 2
        orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        group.PlanePositionSequence, group.PixelMeasuresSequence = [place], [measures]
        group.PlaneOrientationSequence = [orientation]
        groups.append(group)
    enhanced.PerFrameFunctionalGroupsSequence = groups
    yield _dump(enhanced)


def _received() -> Iterator[tuple[str, bytes]]:
    """What is sent to the archive: images, and objects with sequences in sequences, text of several character sets."""
    from pydicom.dataset import Dataset

    yield from (
        (suffix, data) for suffix, data in _dicom() if b"1.2.840.10008.1.2.1.99" not in data[:1024]
    )  # is refused
    for syntax in ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"):
        report = _header(_volume("u2", (2, 2)), syntax, Modality="SR", SpecificCharacterSet="ISO_IR 192")
        report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.33"
        report.PatientName, report.StudyDescription = "Wang^XiaoDong=王^小东", "Thorax"
        item = Dataset()
        item.TextValue = "word"
        for _ in range(8):
            outer = Dataset()
            outer.ContentSequence, outer.ValueType = [item, item], "CONTAINER"
            item = outer
        report.ContentSequence = [item]
        report["ContentSequence"].is_undefined_length = True
        yield _dump(report)
    chinese = _header(_volume("u2", (4, 4)), "1.2.840.10008.1.2.1", PixelData=_volume("u2", (4, 4)).tobytes())
    chinese.SpecificCharacterSet, chinese.PatientName = ["", "ISO 2022 IR 58"], "Zhang^XiaoDong=张^小东"
    yield _dump(chinese)


def _nifti() -> Iterator[tuple[str, bytes]]:
    import nibabel as nib

    affine = np.array([[0.7, 0.1, 0, 3], [0, 0.6, 0.2, 4], [0.1, 0, 2.5, 5], [0, 0, 0, 1]])
    for dtype, shape in (("i2", (5, 7, 6)), ("u1", (4, 4)), ("f4", (5, 4, 3, 2)), ("f8", (3, 3, 3)), ("i4", (3, 4, 5))):
        for kind in (nib.Nifti1Image, nib.Nifti2Image):
            image = kind(_volume(dtype, shape), affine)
            image.header.set_slope_inter(2, -10)
            raw = image.to_bytes()
            yield ".nii", raw
            yield ".nii.gz", gzip.compress(raw, 1)


def _nrrd() -> Iterator[tuple[str, bytes]]:
    for dtype, name in (("<i2", "short"), ("|u1", "uchar"), ("<f4", "float"), (">i2", "short"), ("<f8", "double")):
        for encoding in ("raw", "gzip", "bzip2"):
            values = _volume(dtype)
            text = (
                f"NRRD0005\n# made\ntype: {name}\ndimension: 3\nspace: left-posterior-superior\nsizes: 6 7 5\n"
                "space directions: (0.7,0.1,0) (0,0.6,0.2) (0.1,0,2.5)\nkinds: domain domain domain\n"
                f"endian: {'big' if dtype[0] == '>' else 'little'}\nencoding: {encoding}\nspace origin: (3,4,5)\nnote:=seed\n\n"
            )
            raw = values.tobytes()
            if encoding == "gzip":
                raw = gzip.compress(raw, 1)
            elif encoding == "bzip2":
                import bz2

                raw = bz2.compress(raw)
            yield ".nrrd", text.encode() + raw
    colour = (
        "NRRD0004\ntype: uchar\ndimension: 4\nspace: RAS\nsizes: 3 6 7 5\nspace directions: none (1,0,0) (0,1,0) (0,0,2)\n"
        "kinds: RGB-color domain domain domain\nencoding: raw\nspace origin: (0,0,0)\n\n"
    )
    yield ".nrrd", colour.encode() + _volume("u1", (5, 7, 6, 3)).tobytes()


def _mha() -> Iterator[tuple[str, bytes]]:
    for dtype, name, big in (("<i2", "MET_SHORT", False), ("|u1", "MET_UCHAR", False), ("<f4", "MET_FLOAT", False),
                             (">i2", "MET_SHORT", True)):  # fmt: skip
        for packed in (False, True):
            raw = _volume(dtype).tobytes()
            raw = zlib.compress(raw) if packed else raw
            text = (
                "ObjectType = Image\nNDims = 3\nBinaryData = True\n"
                f"BinaryDataByteOrderMSB = {big}\nCompressedData = {packed}\n"
                + (f"CompressedDataSize = {len(raw)}\n" if packed else "")
                + "TransformMatrix = 0.8 0.6 0 -0.6 0.8 0 0 0 1\nOffset = 3 4 5\nCenterOfRotation = 0 0 0\n"
                "AnatomicalOrientation = RAI\nElementSpacing = 0.7 0.6 2.5\nDimSize = 6 7 5\n"
                f"ElementType = {name}\nElementDataFile = LOCAL\n"
            )
            yield ".mha", text.encode() + raw
    text = (
        "ObjectType = Image\nNDims = 2\nDimSize = 6 7\nElementNumberOfChannels = 3\nElementType = MET_UCHAR\n"
        "ElementSpacing = 1 1\nBinaryData = True\nElementDataFile = LOCAL\n"
    )
    yield ".mha", text.encode() + _volume("u1", (7, 6, 3)).tobytes()


def _picture() -> Iterator[tuple[str, bytes]]:
    from PIL import Image

    grey, colour, deep = _volume("u1", (24, 20)), _volume("u1", (24, 20, 3)), _volume("u2", (24, 20)) * 500
    for picture in (Image.fromarray(grey), Image.fromarray(colour), Image.fromarray(deep),
                    Image.fromarray(grey).convert("P"), Image.fromarray(grey > 40), Image.fromarray(colour).convert("RGBA")):  # fmt: skip
        for kind in ("PNG", "TIFF"):
            out = io.BytesIO()
            picture.save(out, kind)
            yield f".{kind.lower()}", out.getvalue()
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        out = io.BytesIO()
        Image.fromarray(colour).save(out, "TIFF", compression=compression)
        yield ".tif", out.getvalue()
    pages = io.BytesIO()
    Image.fromarray(grey).save(pages, "TIFF", save_all=True, append_images=[Image.fromarray(grey)] * 3)
    yield ".tif", pages.getvalue()
    exif = Image.Exif()
    exif[274] = 6
    for options in ({"quality": 80}, {"quality": 50, "progressive": True}, {"exif": exif}):
        out = io.BytesIO()
        Image.fromarray(colour).save(out, "JPEG", **options)
        yield ".jpg", out.getvalue()
    out = io.BytesIO()
    Image.fromarray(colour).save(out, "BMP")
    yield ".bmp", out.getvalue()


def _npz() -> Iterator[tuple[str, bytes]]:
    for dtype, shape in (("u1", (6, 5)), ("i2", (4, 6, 5)), ("f4", (4, 6, 5)), ("u1", (6, 5, 3)), (">i2", (3, 4, 5))):
        out = io.BytesIO()
        np.save(out, _volume(dtype, shape))
        yield ".npy", out.getvalue()
        for save in (np.savez, np.savez_compressed):
            out = io.BytesIO()
            save(out, image=_volume(dtype, shape))
            yield ".npz", out.getvalue()


def write_series(folder: Path) -> list[Path]:
    """Three slices of a CT, which the segmentations and structure sets here refer to."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, (_, content) in enumerate(_slices()):
        paths.append(folder / f"{number}.dcm")
        paths[-1].write_bytes(content)
    return paths


def _slices() -> Iterator[tuple[str, bytes]]:
    for z in range(3):
        fields = {
            "SOPInstanceUID": f"1.2.3.5.{z}",
            "ImagePositionPatient": [0, 0, 2 * z],
            "InstanceNumber": z + 1,
            "FrameOfReferenceUID": "1.2.3.9",
            "PixelData": _volume("u2", (24, 20)).tobytes(),
        }
        yield _dump(_header(_volume("u2", (24, 20)), "1.2.840.10008.1.2.1", **fields))


def _outlines() -> Iterator[tuple[str, bytes]]:
    from pydicom.dataset import Dataset

    ds = _header(_volume("u2", (24, 20)), "1.2.840.10008.1.2.1", Modality="RTSTRUCT", SOPInstanceUID="1.2.3.7")
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    for name in ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(ds, name)
    frame, study, series, roi, drawn = Dataset(), Dataset(), Dataset(), Dataset(), Dataset()
    frame.FrameOfReferenceUID, series.SeriesInstanceUID, series.ContourImageSequence = "1.2.3.9", "1.2.3.4", []
    for z in range(3):
        image = Dataset()
        image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", f"1.2.3.5.{z}"
        series.ContourImageSequence.append(image)
    study.RTReferencedSeriesSequence, frame.RTReferencedStudySequence = [series], [study]
    ds.ReferencedFrameOfReferenceSequence = [frame]
    roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID, drawn.ReferencedROINumber = 1, "liver", "1.2.3.9", 1
    drawn.ContourSequence = []
    for z in range(3):
        contour = Dataset()
        contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", 4
        contour.ContourData = [1, 1, 2 * z, 6, 1, 2 * z, 6, 9, 2 * z, 1, 9, 2 * z]
        drawn.ContourSequence.append(contour)
    ds.StructureSetROISequence, ds.ROIContourSequence = [roi], [drawn]
    yield _dump(ds)

    seg = _header(_volume("u1", (24, 20)), "1.2.840.10008.1.2.1", Modality="SEG", SOPInstanceUID="1.2.3.8")
    seg.SOPClassUID = seg.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"
    seg.SegmentationType, seg.FrameOfReferenceUID, seg.NumberOfFrames = "BINARY", "1.2.3.9", 3
    seg.BitsAllocated = seg.BitsStored = 1
    seg.HighBit = 0
    seg.PixelData = bytes(range(180))
    segment, shared, measures, orientation = Dataset(), Dataset(), Dataset(), Dataset()
    segment.SegmentNumber, segment.SegmentLabel, segment.SegmentAlgorithmType = 1, "liver", "MANUAL"
    measures.PixelSpacing, measures.SliceThickness, measures.SpacingBetweenSlices = [0.7, 0.5], 2, 2
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    seg.SegmentSequence, seg.SharedFunctionalGroupsSequence, seg.PerFrameFunctionalGroupsSequence = (
        [segment],
        [shared],
        [],
    )
    for z in range(3):
        group, place, which = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient, which.ReferencedSegmentNumber = [0, 0, 2 * z], 1
        group.PlanePositionSequence, group.SegmentIdentificationSequence = [place], [which]
        seg.PerFrameFunctionalGroupsSequence.append(group)
    yield _dump(seg)


def _zip() -> Iterator[tuple[str, bytes]]:
    import zipfile

    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        for count in (1, 4):
            out = io.BytesIO()
            with zipfile.ZipFile(out, "w", method) as archive:
                for number in range(count):
                    archive.writestr(f"study/series/{number}.bin", _volume("u1").tobytes() * (number + 1))
            yield ".zip", out.getvalue()


MAKERS: dict[str, Callable[[], Iterator[tuple[str, bytes]]]] = {
    "dicom": _dicom,
    "received": _received,
    "mha": _mha,
    "nifti": _nifti,
    "npz": _npz,
    "nrrd": _nrrd,
    "outlines": _outlines,
    "picture": _picture,
    "zip": _zip,
}
