"""Nodule phantoms: synthetic chest CT whose nodules are listed one by one, for questions of where.

The chests are those of :mod:`sagittal.phantom`, in finer voxels; the list is that of LUNA16, one row a nodule with its
centre in mm and its diameter.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sagittal.anatomy import KERNELS, Nodule, Patient, Scan, draw_chest, place_nodules
from sagittal.errors import ConfigError, ResourceError
from sagittal.phantom import write_series
from sagittal.progress import Quiet, Reporter

#: Smallest and largest diameter, mm: below 4 mm guidelines ask for no follow-up, above 20 mm no one needs help.
DIAMETERS_MM = (4.0, 20.0)
#: Share of scans without a nodule.
WITHOUT = 0.3

_COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm")


@dataclass(frozen=True)
class NoduleScan:
    """One scan to be drawn.

    Parameters
    ----------
    patient : Patient
    scan : Scan
    nodules : tuple of Nodule
    """

    patient: Patient
    scan: Scan
    nodules: tuple[Nodule, ...]


def draw_scans(scans: int, seed: int) -> list[NoduleScan]:
    """Patients, scans of one of their lungs, and what lies in it.

    Three in ten scans hold no nodule, the others one to four, of 4 to 20 mm: as many between 4 and 9 mm as above. Dose,
    kernel and slice thickness say nothing about them.
    """
    rng = np.random.default_rng(seed)
    without = set(rng.permutation(scans)[: round(WITHOUT * scans)].tolist())
    made = []
    for number in range(scans):
        patient = Patient(
            anatomy=int(rng.integers(2**31)),
            age=int(rng.integers(38, 84)),
            sex="FM"[rng.integers(2)],
            size=float(rng.uniform(0.92, 1.06)),
            fat_mm=float(rng.uniform(8, 22)),
        )
        scan = Scan(
            dose_mgy=round(float(np.exp(rng.uniform(np.log(2.0), np.log(10.0)))), 2),
            kernel=tuple(KERNELS)[rng.integers(3)],
            slice_mm=float(rng.choice([2.5, 3.0])),
            pixels=80,
            field_mm=160.0,
            height_mm=150.0,
            centre_x_mm=float(rng.choice([-66.0, 66.0])),
            noise=int(rng.integers(2**31)),
        )
        count = 0 if number in without else int(rng.integers(1, 5))
        sizes = np.exp(rng.uniform(np.log(DIAMETERS_MM[0]), np.log(DIAMETERS_MM[1]), count)).round(1).tolist()
        own = np.random.default_rng(patient.anatomy)
        made.append(NoduleScan(patient, scan, place_nodules(patient, scan, count, own, diameters_mm=sizes)))
    return made


def make_nodule_ct(folder: str | Path, *, scans: int = 60, seed: int = 0, reporter: Reporter | None = None) -> Path:
    """Write synthetic chest CT with lung nodules as DICOM series, and the list of the nodules.

    Each scan is a targeted reconstruction of one lung, 80 x 80 pixels of 2 mm and 50 or 60 slices, of a patient of its
    own; see :func:`draw_scans`.

    Parameters
    ----------
    folder : path
        Made if missing; ``folder/scans/NNNN/`` gets one series each.
    scans : int
        How many, at least 4.
    seed : int
        The same seed writes the same bytes; different seeds are different patients.
    reporter : Reporter, optional

    Returns
    -------
    Path
        ``folder/nodules.csv``: a row a nodule with ``seriesuid``, ``coordX``, ``coordY``, ``coordZ`` (LPS+ mm) and
        ``diameter_mm``; a row without numbers for a scan without nodules.

    Raises
    ------
    ConfigError
        If fewer than 4 scans are asked for.
    ResourceError
        If the folder cannot be written.
    """
    if scans < 4:
        raise ConfigError(f"a data set of nodules has at least 4 scans, not {scans}")
    folder = Path(folder)
    reporter = reporter or Quiet()
    rows: list[tuple[str, ...]] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with reporter.track("drawing synthetic chest CT", scans) as advance:
            for number, one in enumerate(draw_scans(scans, seed), start=1):
                phantom = draw_chest(one.patient, one.scan, one.nodules)
                place = folder / "scans" / f"{number:04d}"
                write_series(phantom, place, one.patient, one.scan, number=number)
                series = _series_uid(place)
                rows += [(series, *_numbers(nodule)) for nodule in one.nodules] or [(series, "", "", "", "")]
                advance(1.0, f"scan {number}")
        with (folder / "nodules.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(_COLUMNS)
            table.writerows(rows)
    except OSError as error:
        raise ResourceError(
            f"cannot write the nodule phantoms to {folder}: {error.strerror}. They need about {scans} MB."
        ) from error
    return folder / "nodules.csv"


def _numbers(nodule: Nodule) -> tuple[str, str, str, str]:
    x, y, z = (f"{value:.3f}" for value in nodule.centre)
    return x, y, z, f"{nodule.diameter_mm:.1f}"


def _series_uid(folder: Path) -> str:
    import pydicom

    return str(pydicom.dcmread(folder / "slice0001.dcm", stop_before_pixels=True).SeriesInstanceUID)
