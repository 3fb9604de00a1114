"""Time reading a DICOM SEG of many segments beside highdicom, and NRRD and MetaImage beside SimpleITK, in one run.

    python benchmarks/outlines.py                             # 20 segments in 512 x 512 x 300
    python benchmarks/outlines.py --slices 20 --segments 5 --size 128

Everyone reads the same files, written here by the peers; our voxels are compared with what was written, every one.
Sagittal gives a label map on the grid of the segmentation, and again on that of its CT series; highdicom the label map of
``get_volume(combine_segments=True)``. Each is run once unmeasured; seconds are medians of wall time. SimpleITK runs with one
thread and gives float32, as ours do.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import generate_uid

from machine import describe


def ellipsoids(shape: tuple[int, int, int], count: int) -> np.ndarray:
    """Label map (K, J, I) of ellipsoids in a fixed place each."""
    rng = np.random.default_rng(0)
    labels = np.zeros(shape, np.uint8)
    axes = [np.arange(n, dtype=np.float32) for n in shape]
    for number in range(1, count + 1):
        centre, radii = [rng.uniform(0.25, 0.75) * n for n in shape], [rng.uniform(0.08, 0.2) * n for n in shape]
        z, y, x = (((a - c) / r) ** 2 for a, c, r in zip(axes, centre, radii, strict=True))
        labels[z[:, None, None] + y[None, :, None] + x[None, None, :] < 1] = number
    return labels


def write_series(folder: Path, shape: tuple[int, int, int]) -> list[Path]:
    """A CT series of noise, 0.7 x 0.7 x 1 mm."""
    paths = []
    rng = np.random.default_rng(1)
    for k in range(shape[0]):
        header = pydicom.Dataset()
        header.file_meta = pydicom.dataset.FileMetaDataset()
        header.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        header.SOPClassUID, header.SOPInstanceUID = pydicom.uid.CTImageStorage, generate_uid()
        header.StudyInstanceUID, header.SeriesInstanceUID, header.FrameOfReferenceUID = "1.2.3", "1.2.3.4", "1.2.3.5"
        for name in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
                     "StudyDate", "StudyTime", "ReferringPhysicianName"):  # fmt: skip
            setattr(header, name, "")
        header.Modality, header.SeriesNumber, header.InstanceNumber = "CT", 1, k + 1
        header.ImageOrientationPatient, header.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-180, -180, float(k)]
        header.PixelSpacing, header.SliceThickness = [0.7, 0.7], 1
        header.Rows, header.Columns = shape[1:]
        header.SamplesPerPixel, header.PhotometricInterpretation, header.PixelRepresentation = 1, "MONOCHROME2", 1
        header.BitsAllocated, header.BitsStored, header.HighBit = 16, 16, 15
        header.PixelData = rng.integers(-1000, 1000, shape[1:], dtype=np.int16).tobytes()
        header["PixelData"].VR = "OW"
        paths.append(folder / f"{k:04d}.dcm")
        pydicom.dcmwrite(paths[-1], header, enforce_file_format=True)
    return paths


def write_seg(path: Path, series: list[Path], labels: np.ndarray, kind: str) -> None:
    import highdicom as hd

    code = hd.sr.CodedConcept("10200004", "SCT", "Liver")
    described = [
        hd.seg.SegmentDescription(n, f"s{n}", code, code, hd.seg.SegmentAlgorithmTypeValues.MANUAL)
        for n in range(1, int(labels.max()) + 1)
    ]
    headers = [pydicom.dcmread(p, stop_before_pixels=True) for p in series]
    hd.seg.Segmentation(
        headers, labels, kind, described, generate_uid(), 9, generate_uid(), 1, "m", "m", "1", "1"
    ).save_as(path)


def seconds(run: Callable[[], object], repeats: int) -> float:
    """Median wall time, after one run that is not measured."""
    run()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--segments", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    import highdicom as hd
    import SimpleITK

    from sagittal.formats.dicom_seg import read_dicom_seg
    from sagittal.formats.open_image import read_image

    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    print(describe())
    shape = (args.slices, args.size, args.size)
    labels = ellipsoids(shape, args.segments)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "ct").mkdir()
        series = write_series(folder / "ct", shape)
        print(f"{args.segments} segments in {args.size} x {args.size} x {args.slices}; seconds, ratio to the peer")
        for kind in ("BINARY", "LABELMAP"):
            path = folder / f"{kind}.dcm"
            write_seg(path, series, labels, kind)
            placed = read_dicom_seg(path, series)
            if not np.array_equal(placed.layers[0].transpose(2, 1, 0), labels):
                raise SystemExit(f"{kind}: other voxels than were written")
            own = seconds(lambda path=path: read_dicom_seg(path), args.repeats)
            on_images = seconds(lambda path=path: read_dicom_seg(path, series), args.repeats)
            peer = seconds(lambda path=path: hd.seg.segread(path).get_volume(combine_segments=True), args.repeats)
            print(
                f"{kind:9} ours {own:6.2f}  on the grid of its images {on_images:6.2f}  highdicom {peer:6.2f}  x{peer / own:.1f}"
            )
        volume = SimpleITK.GetImageFromArray((labels * 37 + np.arange(args.size)).astype(np.int16))
        for suffix in ("nrrd", "mha"):
            for packed in (False, True):
                path = folder / f"a.{suffix}"
                SimpleITK.WriteImage(volume, str(path), useCompression=packed)
                ours = seconds(lambda path=path: read_image(path), args.repeats)
                peer = seconds(
                    lambda path=path: SimpleITK.GetArrayFromImage(
                        SimpleITK.ReadImage(str(path), SimpleITK.sitkFloat32)
                    ),
                    args.repeats,
                )
                print(
                    f"{suffix:4} {'packed' if packed else 'raw':6} ours {ours:6.2f}  SimpleITK {peer:6.2f}  x{peer / ours:.1f}"
                )


if __name__ == "__main__":
    main()
