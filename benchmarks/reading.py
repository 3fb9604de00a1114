"""Time reading beside its peers, in one run: series of CT in five transfer syntaxes, an index of headers, int16 .nii.gz.

    python benchmarks/reading.py                     # 300 slices of 512 x 512, 10,000 headers
    python benchmarks/reading.py --slices 40 --files 500 --repeats 1 --rows raw rle nifti

Everyone reads the same files, written here from a phantom chest with bones, lungs, vessels and correlated noise, to a
sorted volume in Hounsfield units in float32: Sagittal's checked image; a loop of pydicom's dcmread and pixel_array with
rescaling; SimpleITK's ImageSeriesReader; dcm2niix to an uncompressed NIfTI file in a folder of the same file system. Our
voxels are compared with the phantom, every one. Each is run once unmeasured; wall and CPU seconds are medians, the CPU
seconds with those of processes.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from machine import describe

SYNTAXES = {
    "raw": "1.2.840.10008.1.2.1",
    "rle": "1.2.840.10008.1.2.5",
    "jpeg-lossless": "1.2.840.10008.1.2.4.70",
    "jpeg-ls": "1.2.840.10008.1.2.4.80",
    "jpeg2000": "1.2.840.10008.1.2.4.90",
}
ROWS = (*SYNTAXES, "index", "nifti")
SPACING = (0.7, 0.7, 1.25)  # mm, along columns, rows, slices


def phantom_slice(k: int, slices: int, size: int) -> np.ndarray:
    """One slice of a chest, (size, size) HU int16; the same for the same arguments."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(k)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    z = k / max(slices - 1, 1)
    hu = np.full((size, size), -1000.0)
    body = (x / (0.82 + 0.05 * np.sin(6 * z))) ** 2 + (y / 0.62) ** 2 < 1
    hu[body] = -90  # fat
    hu[(x / 0.76) ** 2 + (y / 0.56) ** 2 < 1] = 45  # muscle
    for side in (-1, 1):
        lung = ((x - side * 0.36) / 0.27) ** 2 + (y / (0.44 - 0.3 * (z - 0.5) ** 2)) ** 2 < 1
        texture = gaussian_filter(np.random.default_rng(7 + side).normal(size=(size, size)), 3)
        hu[lung] = (-860 + 500 * np.roll(texture, 2 * k, 0).clip(0, None))[lung]
    hu[((x - 0.06) / 0.2) ** 2 + ((y + 0.05) / 0.2) ** 2 < 1] = 130  # heart, with contrast
    hu[x**2 + ((y - 0.42) / 1.1) ** 2 < 0.012] = 350  # spine
    for angle in np.linspace(0, 2 * np.pi, 12, endpoint=False) + 3 * z:
        hu[((x - 0.79 * np.cos(angle)) / 0.05) ** 2 + ((y - 0.585 * np.sin(angle)) / 0.03) ** 2 < 1] = 700  # ribs
    hu[np.abs(y - 0.75) < 0.01] = -300  # table
    noise = gaussian_filter(rng.normal(size=(size, size)), 0.7)
    return np.round(hu + noise * (40 + 40 * body)).clip(-1024, 3071).astype(np.int16)


def header_of(k: int, size: int, syntax: str) -> Any:
    """A header of about 110 elements, as a scanner writes them."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.sequence import Sequence

    h = Dataset()
    h.file_meta = FileMetaDataset()
    h.file_meta.TransferSyntaxUID = syntax
    h.file_meta.MediaStorageSOPClassUID = h.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    h.file_meta.MediaStorageSOPInstanceUID = h.SOPInstanceUID = f"1.2.826.0.1.3680043.8.498.77.{k + 1}"
    h.file_meta.ImplementationClassUID = "1.2.826.0.1.3680043.8.498.1"
    h.SpecificCharacterSet = "ISO_IR 100"
    h.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    h.StudyDate = h.SeriesDate = h.AcquisitionDate = h.ContentDate = "20260101"
    h.StudyTime, h.SeriesTime, h.AcquisitionTime, h.ContentTime = "101500", "101700", f"1018{k % 60:02d}.5", "101900"
    h.AccessionNumber, h.Modality, h.Manufacturer, h.InstitutionName = "A1", "CT", "Phantom", "None"
    h.ReferringPhysicianName, h.StationName, h.StudyDescription, h.SeriesDescription = "", "CT1", "Chest", "1.25 soft"
    h.ManufacturerModelName, h.PatientName, h.PatientID = "Model", "Phantom^Chest", "P1"
    h.PatientBirthDate, h.PatientSex, h.PatientAge, h.PatientWeight = "19600101", "O", "066Y", "80"
    h.BodyPartExamined, h.ScanOptions, h.SliceThickness, h.KVP = "CHEST", "HELICAL MODE", SPACING[2], "120"
    h.SpacingBetweenSlices, h.DataCollectionDiameter, h.ReconstructionDiameter = SPACING[2], "500", "358.4"
    h.DistanceSourceToDetector, h.DistanceSourceToPatient, h.GantryDetectorTilt = "1085.6", "595", "0"
    h.TableHeight, h.RotationDirection, h.ExposureTime, h.XRayTubeCurrent = "-150.2", "CW", "500", f"{300 + k % 50}"
    h.Exposure, h.FilterType, h.GeneratorPower, h.FocalSpots = "150", "BODY FILTER", "36000", ["0.7"]
    h.ConvolutionKernel, h.PatientPosition, h.SoftwareVersions, h.ProtocolName = "STANDARD", "HFS", "1.0", "Chest"
    h.StudyInstanceUID, h.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.5", "1.2.826.0.1.3680043.8.498.6"
    h.StudyID, h.SeriesNumber, h.AcquisitionNumber, h.InstanceNumber = "1", "2", "1", str(k + 1)
    h.ImagePositionPatient = [-179.2, -179.2, round(-200 + k * SPACING[2], 3)]
    h.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    h.FrameOfReferenceUID, h.PositionReferenceIndicator = "1.2.826.0.1.3680043.8.498.8", "SN"
    h.SliceLocation = f"{-200 + k * SPACING[2]:.3f}"
    h.SamplesPerPixel, h.PhotometricInterpretation, h.Rows, h.Columns = 1, "MONOCHROME2", size, size
    h.PixelSpacing = [SPACING[1], SPACING[0]]
    h.BitsAllocated, h.BitsStored, h.HighBit, h.PixelRepresentation = 16, 16, 15, 0
    h.WindowCenter, h.WindowWidth, h.RescaleIntercept, h.RescaleSlope, h.RescaleType = "40", "400", "-1024", "1", "HU"
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = h.SOPClassUID, "1.2.826.0.1.3680043.8.498.9"
    h.ReferencedImageSequence = Sequence([item])
    block = h.private_block(0x0045, "PHANTOM CT 1.0", create=True)
    for n in range(30):
        block.add_new(n, ("DS", "LO", "US", "FL")[n % 4], ("1.5", f"private {n}", n, 0.5)[n % 4])
    return h


def encode(stored: np.ndarray, name: str) -> list[bytes]:
    """The frame in the syntax of that name, empty for raw."""
    import imagecodecs

    if name == "raw":
        return []
    if name == "rle":
        segments = []
        for plane in ((stored >> 8).astype(np.uint8), stored.astype(np.uint8)):
            segment = b"".join(imagecodecs.packbits_encode(row.tobytes()) for row in plane)  # rows apart, PS3.5 G.3.1
            segments.append(segment + b"\0" * (len(segment) % 2))
        starts = [64, 64 + len(segments[0])]
        head = np.zeros(16, "<u4")
        head[:3] = [2, *starts]
        return [head.tobytes() + b"".join(segments)]
    if name == "jpeg-lossless":
        return [imagecodecs.ljpeg_encode(stored, bitspersample=16)]
    if name == "jpeg-ls":
        return [imagecodecs.jpegls_encode(stored)]
    return [imagecodecs.jpeg2k_encode(stored, codecformat="j2k", level=0, reversible=True)]


def write_slice(folder: Path, k: int, slices: int, size: int, names: list[str]) -> np.ndarray:
    from pydicom.encaps import encapsulate

    hu = phantom_slice(k, slices, size)
    stored = (hu.astype(np.int32) + 1024).astype(np.uint16)
    for name in names:
        header = header_of(k, size, SYNTAXES[name])
        frames = encode(stored, name)
        header.PixelData = encapsulate(frames) if frames else stored.tobytes()
        header["PixelData"].VR = "OB" if frames else "OW"
        # Names do not tell the order.
        header.save_as(folder / name / f"{(k * 7919) % 100_003:06d}.dcm", enforce_file_format=True)
    return hu


def make_series(folder: Path, slices: int, size: int, names: list[str]) -> np.ndarray:
    """Write the series, one folder a syntax; the truth, (slices, rows, columns) HU."""
    for name in names:
        (folder / name).mkdir(parents=True)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(write_slice, folder, k, slices, size, names) for k in range(slices)]
        return np.stack([job.result() for job in jobs])


# ---- who reads


def by_sagittal(folder: Path) -> np.ndarray:
    from sagittal.formats.dicom import read_dicom_series

    image = read_dicom_series(sorted(folder.iterdir()))
    assert image.unit == "HU"
    return image.data[0].transpose(2, 1, 0)


def by_pydicom(folder: Path) -> np.ndarray:
    import pydicom

    slices = []
    for path in sorted(folder.iterdir()):
        header = pydicom.dcmread(path)
        values = header.pixel_array.astype(np.float32)
        values *= np.float32(header.RescaleSlope)
        values += np.float32(header.RescaleIntercept)
        slices.append((float(header.ImagePositionPatient[2]), values))
    return np.stack([values for _, values in sorted(slices, key=lambda s: s[0])])


def by_simpleitk(folder: Path) -> np.ndarray:
    import SimpleITK as sitk  # noqa: N813

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    reader.SetOutputPixelType(sitk.sitkFloat32)
    return sitk.GetArrayFromImage(reader.Execute())


def by_dcm2niix(folder: Path) -> np.ndarray | None:
    output = folder.parent / "dcm2niix"
    output.mkdir(exist_ok=True)
    command = Path(sys.executable).with_name("dcm2niix")
    done = subprocess.run(
        [command, "-z", "n", "-b", "n", "-w", "1", "-f", "out", "-o", output, folder], capture_output=True, check=False
    )
    if done.returncode or not (output / "out.nii").exists():
        raise RuntimeError("dcm2niix does not read it")
    return None  # its file is its answer


PEERS: dict[str, Callable[[Path], np.ndarray | None]] = {
    "sagittal": by_sagittal,
    "pydicom": by_pydicom,
    "simpleitk": by_simpleitk,
    "dcm2niix": by_dcm2niix,
}


def cpu_seconds() -> float:
    """Of this process, the processes that it has waited for, and our decoders, which stay."""
    spent = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    from sagittal.guard import limited

    for worker in limited._LIVE:
        fields = Path(f"/proc/{worker.process.pid}/stat").read_text().rpartition(")")[2].split()
        spent += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return spent


def measure(readers: dict[str, Callable[[], Any]], repeats: int) -> dict[str, tuple[float, float]]:
    """Median wall and CPU seconds of each, in turns; those that fail are left out."""
    times: dict[str, list[tuple[float, float]]] = {}
    for turn in range(repeats + 1):
        for name, read in readers.items():
            if turn and name not in times:
                continue
            cpu, wall = cpu_seconds(), time.perf_counter()
            try:
                result = read()
            except Exception as error:
                print(f"  {name}: {type(error).__name__}: {str(error)[:100]}", file=sys.stderr)
                continue
            spent = time.perf_counter() - wall, cpu_seconds() - cpu
            del result
            times.setdefault(name, [])
            if turn:
                times[name].append(spent)
    return {n: (statistics.median(w for w, _ in t), statistics.median(c for _, c in t)) for n, t in times.items() if t}


def show(row: str, times: dict[str, tuple[float, float]]) -> None:
    ours = times["sagittal"][0]
    peers = {name: wall for name, (wall, _) in times.items() if name != "sagittal"}
    best = min(peers, key=lambda name: peers[name])
    cells = [f"{name} {wall:.3f} ({cpu:.2f})" for name, (wall, cpu) in times.items()]
    print(f"| {row} | {' | '.join(cells)} | {peers[best] / ours:.2f}x faster than {best} |", flush=True)


def time_series(folder: Path, arguments: argparse.Namespace, names: list[str]) -> None:
    print(f"making {arguments.slices} slices of {arguments.size} x {arguments.size} ...", file=sys.stderr)
    truth = make_series(folder, arguments.slices, arguments.size, names)
    for name in names:
        read = by_sagittal(folder / name)
        assert read.dtype == np.float32
        assert np.array_equal(read, truth), f"{name}: our voxels differ from the truth"
        del read
        readers = {peer: (lambda read=read, name=name: read(folder / name)) for peer, read in PEERS.items()}
        show(name, measure(readers, arguments.repeats))


def time_index(folder: Path, arguments: argparse.Namespace) -> None:
    import pydicom

    from sagittal.formats.dicom_index import index_object

    header = header_of(0, 16, SYNTAXES["raw"])
    header.PixelData = bytes(512)
    header["PixelData"].VR = "OW"
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = "1.2.826.0.1.3680043.8.498.77.000000"
    folder.mkdir()
    header.save_as(folder / "template", enforce_file_format=True)
    raw = (folder / "template").read_bytes()
    (folder / "template").unlink()
    paths = []
    for k in range(arguments.files):
        paths.append(folder / f"{k % 100:02d}" / f"{k:06d}.dcm")
        paths[-1].parent.mkdir(exist_ok=True)
        paths[-1].write_bytes(raw.replace(b"77.000000", b"77.%06d" % k))
    assert len({index_object(path).uid for path in paths}) == len(paths)
    readers = {
        "sagittal": lambda: [index_object(path) for path in paths],
        "pydicom": lambda: [pydicom.dcmread(path, stop_before_pixels=True) for path in paths],
    }
    show(f"index of {len(paths):,} headers", measure(readers, arguments.repeats))


def time_nifti(folder: Path, arguments: argparse.Namespace) -> None:
    import nibabel as nib
    import SimpleITK as sitk  # noqa: N813

    from sagittal.formats.nifti import read_nifti

    folder.mkdir()
    truth = np.stack([phantom_slice(k, 100, 256) for k in range(100)], axis=-1)
    path = folder / "a.nii.gz"
    nib.openers.Opener.default_compresslevel = 6
    nib.save(nib.Nifti1Image(truth, np.diag([*SPACING, 1])), path)
    assert np.array_equal(read_nifti(path).data[0], truth)
    readers = {
        "sagittal": lambda: [read_nifti(path) for _ in range(10)],
        "nibabel": lambda: [np.asarray(nib.load(path).dataobj, np.float32) for _ in range(10)],
        "simpleitk": lambda: [sitk.GetArrayFromImage(sitk.ReadImage(path, sitk.sitkFloat32)) for _ in range(10)],
    }
    show("10 x int16 .nii.gz, 256 x 256 x 100", measure(readers, arguments.repeats))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the files are written; a temporary folder where left out")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    folder = Path(tempfile.mkdtemp(prefix="reading-", dir=arguments.folder))
    print(f"{describe()}; wall seconds (CPU seconds), median of {arguments.repeats}\n")
    try:
        names = [name for name in SYNTAXES if name in arguments.rows]
        if names:
            time_series(folder / "series", arguments, names)
        if "index" in arguments.rows:
            time_index(folder / "index", arguments)
        if "nifti" in arguments.rows:
            time_nifti(folder / "nifti", arguments)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
