"""Phantoms: a labelled set of synthetic chest CT studies, written as real DICOM series.

They let the whole journey run offline on any machine, and they let tests know the truth in closed form. They are drawn
(:mod:`sagittal.anatomy`), not taken from any patient, and say so in every file: QualityControlImage is YES, and the
series description, the comments and the patient's name say "synthetic".
"""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from sagittal.anatomy import KERNELS, Nodule, Patient, Phantom, Scan, draw_chest, place_nodules
from sagittal.errors import ConfigError, ResourceError
from sagittal.progress import Quiet, Reporter

_COLUMNS = ("StudyInstanceUID", "nodule", "age", "sex", "dose_mgy", "kernel")


def make_chest_ct(folder: str | Path, *, studies: int = 72, seed: int = 0, reporter: Reporter | None = None) -> Path:
    """Write a labelled set of synthetic chest CT studies as DICOM series.

    Each is a targeted reconstruction of the right lung, 64 x 64 pixels of 2.75 mm and 27 to 40 slices. About one patient
    in five has a second study a year later, so that splits must be grouped. Nodules become more frequent with age; dose,
    kernel and slice thickness say nothing about them.

    Parameters
    ----------
    folder : path
        Made if missing; ``folder/studies/NNNN/`` gets one series each, ``folder/nodules.json`` what was drawn.
    studies : int
        How many, at least 4.
    seed : int
        The same seed writes the same bytes.
    reporter : Reporter, optional

    Returns
    -------
    Path
        ``folder/labels.csv``, keyed by StudyInstanceUID: ``nodule`` (yes / no), ``age``, ``sex``, ``dose_mgy``,
        ``kernel``.

    Raises
    ------
    ConfigError
        If fewer than 4 studies are asked for.
    ResourceError
        If the folder cannot be written.
    """
    if studies < 4:
        raise ConfigError(f"a data set of phantoms has at least 4 studies, not {studies}: two of each class")
    folder = Path(folder)
    reporter = reporter or Quiet()
    rows, drawn = [], {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with reporter.track("drawing synthetic chest CT", studies) as advance:
            for number, (patient, scan, count, visit) in enumerate(_cohort(studies, seed), start=1):
                nodules = _seen_at(visit, place_nodules(patient, scan, count, np.random.default_rng(patient.anatomy)))
                phantom = draw_chest(patient, scan, nodules)
                study = write_series(
                    phantom, folder / "studies" / f"{number:04d}", patient, scan, number=number, visit=visit
                )
                label = "yes" if nodules else "no"
                rows.append((study, label, patient.age + visit, patient.sex, scan.dose_mgy, scan.kernel))
                drawn[study] = [asdict(one) for one in nodules]
                advance(1.0, f"study {number}")
        with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(_COLUMNS)
            table.writerows(rows)
        (folder / "nodules.json").write_text(json.dumps(drawn, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ResourceError(
            f"cannot write the phantoms to {folder}: {error.strerror}. They need about {max(1, studies // 3)} MB."
        ) from error
    return folder / "labels.csv"


def _cohort(studies: int, seed: int) -> list[tuple[Patient, Scan, int, int]]:
    """Patient, scan, number of nodules and visit of each study."""
    rng = np.random.default_rng(seed)
    second = studies // 6
    people = [
        Patient(
            anatomy=int(rng.integers(2**31)),
            age=int(rng.integers(38, 84)),
            sex="FM"[rng.integers(2)],
            size=float(rng.uniform(0.92, 1.06)),
            fat_mm=float(rng.uniform(8, 22)),
        )
        for _ in range(studies - second)
    ]
    # Exactly 45 in 100 have nodules, the older ones more often: Gumbel noise on the age draws without replacement.
    rank = np.argsort([-(one.age / 22.0 + rng.gumbel()) for one in people])
    with_nodule = set(rank[: max(2, round(0.45 * len(people)))].tolist())
    visits = [(n, 0) for n in range(len(people))] + [(int(n), 1) for n in rng.permutation(len(people))[:second]]
    result = []
    for n, visit in (visits[m] for m in rng.permutation(len(visits))):
        count = 3 + people[n].anatomy % 3 if n in with_nodule else 0
        scan = Scan(
            dose_mgy=round(float(np.exp(rng.uniform(np.log(1.2), np.log(8.0)))), 2),
            kernel=tuple(KERNELS)[rng.integers(3)],
            slice_mm=float(rng.choice([4.0, 5.0, 6.0])),
            field_mm=176.0,
            centre_x_mm=-66.0,
            noise=int(rng.integers(2**31)),
        )
        result.append((people[n], scan, count, visit))
    return result


def _seen_at(visit: int, nodules: tuple[Nodule, ...]) -> tuple[Nodule, ...]:
    """The nodules a year later have 1.15 times the diameter."""
    return tuple(replace(one, diameter_mm=one.diameter_mm * 1.15**visit) for one in nodules)


def write_series(phantom: Phantom, folder: Path, patient: Patient, scan: Scan, *, number: int, visit: int = 0) -> str:
    """Write one phantom as a series of CT Image Storage, one file a slice.

    Parameters
    ----------
    phantom : Phantom
    folder : Path
        Gets ``slice0001.dcm`` and so on.
    patient, scan : Patient, Scan
        What the phantom was drawn from.
    number : int
        Of the study, for its identifiers.
    visit : int
        0 for the first study of a patient, 1 for the one a year later.

    Returns
    -------
    str
        The StudyInstanceUID, the same for the same arguments.
    """
    folder.mkdir(parents=True, exist_ok=True)
    header = _header(patient, scan, number, visit)
    edge, _, step = scan.spacing
    across = (scan.pixels - 1) / 2 * edge
    stored = (np.rint(phantom.hu) + 1024).astype("<u2")
    for k, plane in enumerate(stored):
        z = (k - (scan.slices - 1) / 2) * step
        header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = _uid(
            patient, scan, number, visit, "image", k
        )
        header.InstanceNumber = k + 1
        header.ImagePositionPatient = [f"{scan.centre_x_mm - across:.6g}", f"{-across:.6g}", f"{z:.6g}"]
        header.SliceLocation = f"{z:.6g}"
        header.PixelData = plane.tobytes()
        header.save_as(folder / f"slice{k + 1:04d}.dcm", enforce_file_format=True)
    return str(header.StudyInstanceUID)


def _uid(*parts: Any) -> str:
    from pydicom.uid import generate_uid

    return generate_uid(entropy_srcs=["sagittal phantom", *(str(part) for part in parts)])


def _header(patient: Patient, scan: Scan, number: int, visit: int) -> Any:
    """What all slices of a series share; the modules of the CT Image IOD (DICOM PS3.3 A.3)."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    day = date(2021, 1, 4) + timedelta(days=patient.anatomy % 600 + 365 * visit)
    series = (patient, scan, number, visit)
    region = "chest" if scan.centre_x_mm == 0 else "right lung" if scan.centre_x_mm < 0 else "left lung"
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = CTImageStorage
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SpecificCharacterSet = "ISO_IR 192"
    header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    header.QualityControlImage = "YES"  # PS3.3 C.7.6.1: "a quality control or phantom image"
    header.BurnedInAnnotation = "NO"
    header.StudyDate = header.SeriesDate = header.AcquisitionDate = header.ContentDate = day.strftime("%Y%m%d")
    header.StudyTime = header.SeriesTime = header.AcquisitionTime = header.ContentTime = "080000"
    header.AccessionNumber = f"PH{number:06d}"
    header.Modality = "CT"
    header.Manufacturer = "Sagittal (synthetic phantom)"
    header.ManufacturerModelName = "phantom"
    header.SoftwareVersions = "1"
    header.DeviceSerialNumber = "0"
    header.ReferringPhysicianName = ""
    header.StudyDescription = "SYNTHETIC chest CT phantom"
    header.SeriesDescription = f"SYNTHETIC {region} {scan.slice_mm:g} mm {scan.kernel}"
    header.ImageComments = "Synthetic phantom, not a patient"
    header.PatientName = f"SYNTHETIC^PHANTOM {patient.anatomy}"
    header.PatientID = f"SYNTHETIC-{patient.anatomy}"
    header.PatientBirthDate = date(day.year - visit - patient.age - 1, 12, 31).strftime("%Y%m%d")
    header.PatientSex = patient.sex
    header.PatientAge = f"{patient.age + visit:03d}Y"
    header.BodyPartExamined = "CHEST"
    header.PatientPosition = "HFS"
    header.KVP = "120"
    header.XRayTubeCurrent = str(round(40 * scan.dose_mgy))
    header.ExposureTime = "500"
    header.CTDIvol = float(scan.dose_mgy)
    body = Dataset()
    body.CodeValue, body.CodingSchemeDesignator = "113691", "DCM"
    body.CodeMeaning = "IEC Body Dosimetry Phantom"
    header.CTDIPhantomTypeCodeSequence = [body]
    header.ConvolutionKernel = scan.kernel.upper()
    header.SliceThickness = f"{scan.slice_mm:g}"
    header.ReconstructionDiameter = f"{scan.field_mm:g}"
    header.StudyInstanceUID = _uid(*series, "study")
    header.SeriesInstanceUID = _uid(*series, "series")
    header.FrameOfReferenceUID = _uid(*series, "frame")
    header.PositionReferenceIndicator = ""
    header.StudyID = str(number)
    header.SeriesNumber = header.AcquisitionNumber = 1
    header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    header.SamplesPerPixel = 1
    header.PhotometricInterpretation = "MONOCHROME2"
    header.Rows = header.Columns = scan.pixels
    header.PixelSpacing = [f"{edge:.6g}" for edge in scan.spacing[:2]]
    header.BitsAllocated, header.BitsStored, header.HighBit = 16, 12, 11
    header.PixelRepresentation = 0
    header.RescaleIntercept, header.RescaleSlope, header.RescaleType = -1024, 1, "HU"
    header.WindowCenter, header.WindowWidth = [-600, 40], [1500, 400]
    return header
