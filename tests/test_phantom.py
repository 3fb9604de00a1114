"""The phantoms are what they say: tissues in HU, noise by dose, nodules by volume, valid DICOM, the same by seed."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest

from sagittal.anatomy import KERNELS, TISSUE_HU, Nodule, Patient, Scan, draw_chest, noise_sd, place_nodules
from sagittal.errors import ConfigError, ResourceError
from sagittal.phantom import make_chest_ct, write_series

PATIENT = Patient(anatomy=11, age=52, sex="F", fat_mm=18.0)
SCAN = Scan(pixels=64, slice_mm=8.0)


def digest(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return found.hexdigest()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    return make_chest_ct(folder, studies=6, seed=4).parent


def series(folder: Path) -> list[pydicom.Dataset]:
    read = [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]
    return sorted(read, key=lambda image: float(image.ImagePositionPatient[2]))


def test_lung_is_air_with_some_tissue_and_denser_where_it_lies() -> None:
    phantom = draw_chest(PATIENT, SCAN)
    inside = (phantom.occupancy["lung"] > 0.99) & (phantom.occupancy["vessel"] < 0.01)
    assert np.median(phantom.clean[inside]) == pytest.approx(TISSUE_HU["lung"], abs=45)
    _, rows, _ = np.nonzero(inside)
    front, back = phantom.clean[inside][rows < 26], phantom.clean[inside][rows > 38]
    # Supine: 0.25 to 0.75 HU per mm over the 80 mm or so between the two halves.
    assert 10 < np.median(back) - np.median(front) < 70


def test_tissues_have_their_hounsfield_units() -> None:
    """The values of the histogram's peaks, from tables of CT numbers."""
    # Thick slices and no noise: the peaks are those of whole voxels.
    clean = draw_chest(PATIENT, SCAN).clean
    for tissue, low, high in (("air", -1010, -990), ("fat", -118, -82), ("muscle", 35, 68)):
        window = clean[(clean > TISSUE_HU[tissue] - 60) & (clean < TISSUE_HU[tissue] + 60)]
        counts, edges = np.histogram(window, bins=np.arange(TISSUE_HU[tissue] - 60, TISSUE_HU[tissue] + 61, 6))
        peak = edges[int(np.argmax(counts))] + 3
        assert low < peak < high, tissue
    assert clean.max() > 300  # bone


@pytest.mark.parametrize("kernel", KERNELS)
def test_noise_follows_the_counts(kernel: str) -> None:
    """A quarter of the dose doubles the noise; so does a quarter of the thickness."""
    scans = [
        Scan(pixels=64, height_mm=80.0, slice_mm=8.0, dose_mgy=8.0, kernel=kernel, noise=1),
        Scan(pixels=64, height_mm=80.0, slice_mm=8.0, dose_mgy=2.0, kernel=kernel, noise=2),
        Scan(pixels=64, height_mm=20.0, slice_mm=2.0, dose_mgy=8.0, kernel=kernel, noise=3),
    ]
    measured = []
    for scan in scans:
        phantom = draw_chest(PATIENT, scan)
        middle = (slice(None), slice(24, 40), slice(24, 40))
        measured.append(float(np.std((phantom.hu - phantom.clean)[middle])))
        assert measured[-1] == pytest.approx(noise_sd(scan), rel=0.15)
    assert measured[1] / measured[0] == pytest.approx(2.0, rel=0.08)
    assert measured[2] / measured[0] == pytest.approx(2.0, rel=0.08)


def test_noise_has_a_texture_by_kernel() -> None:
    """Neighbouring pixels share noise under a soft kernel, and hardly under a sharp one."""

    def neighbours(kernel: str) -> float:
        phantom = draw_chest(PATIENT, replace(SCAN, kernel=kernel))
        noise = (phantom.hu - phantom.clean)[:, 20:44, 20:44]
        return float(np.corrcoef(noise[:, :, 1:].ravel(), noise[:, :, :-1].ravel())[0, 1])

    assert neighbours("soft") > neighbours("standard") > neighbours("sharp")


@pytest.mark.parametrize("diameter", [12.0, 20.0, 28.0])
@pytest.mark.parametrize("spacing", [(64, 5.0), (96, 3.0)])
def test_nodule_has_the_volume_of_its_sphere(diameter: float, spacing: tuple[int, float]) -> None:
    """Partial volumes add up to 4/3 pi r³, whatever the voxels."""
    scan = Scan(pixels=spacing[0], slice_mm=spacing[1], height_mm=90.0)
    phantom = draw_chest(PATIENT, scan, (Nodule((-75.3, 1.7, 10.2), diameter),))
    volume = float(phantom.occupancy["nodule"].sum()) * float(np.prod(scan.spacing))
    assert volume == pytest.approx(4 / 3 * np.pi * (diameter / 2) ** 3, rel=0.03)


def test_nodule_adds_its_contrast_where_it_was_put() -> None:
    at = (-75.3, 1.7, 10.2)
    scan = Scan(height_mm=90.0, slice_mm=3.0)
    with_it, without = (draw_chest(PATIENT, scan, nodules).clean for nodules in ((Nodule(at, 20.0),), ()))
    added = with_it - without
    x, y, z = scan.centres()
    centre = [float((axis * added).sum() / added.sum()) for axis in (x, y, z)]
    # Vessels already there weigh a little less: a tenth of a voxel.
    assert centre == pytest.approx(at, abs=0.6)
    k, j, i = np.unravel_index(int(np.argmin(np.abs(x - at[0]) + np.abs(y - at[1]) + np.abs(z - at[2]))), added.shape)
    assert with_it[k, j, i] == pytest.approx(TISSUE_HU["nodule"], abs=8)


def test_spiculated_nodule_has_rays() -> None:
    scan = Scan(height_mm=90.0, slice_mm=3.0)
    smooth, spiked = (
        draw_chest(PATIENT, scan, (Nodule((-75.3, 1.7, 10.2), 20.0, spiculated),)).occupancy["nodule"]
        for spiculated in (False, True)
    )
    reach = [np.ptp(np.nonzero(part > 0.02), axis=1).max() for part in (smooth, spiked)]
    assert reach[1] > reach[0]


def test_nodules_are_placed_inside_the_lungs() -> None:
    scan = Scan()
    nodules = place_nodules(PATIENT, scan, 3, np.random.default_rng(5))
    assert len(nodules) == 3
    phantom = draw_chest(PATIENT, scan, nodules)
    x, y, z = scan.centres()
    for nodule in nodules:
        near = np.sqrt(sum((axis - at) ** 2 for axis, at in zip((x, y, z), nodule.centre, strict=True)))
        # On the pleura, or on a vessel near it, a part of it may be cut off by the chest wall.
        share = phantom.occupancy["nodule"][near < 0.25 * nodule.diameter_mm].mean()
        assert share > (0.95 if nodule.site == "free" else 0.6)


def test_nodules_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="found no place for 3 nodules in a scan of 20 mm"):
        place_nodules(PATIENT, Scan(height_mm=20.0, pixels=32), 3, np.random.default_rng(5))


@pytest.mark.parametrize(
    ("given", "said"), [({"kernel": "b30f"}, "unknown kernel 'b30f'"), ({"dose_mgy": 0}, "positive")]
)
def test_scan_that_cannot_be_is_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Scan(**given)  # type: ignore[arg-type]


def test_series_lies_where_its_headers_say(tmp_path: Path) -> None:
    """The nodule's centre of mass, found through the files alone, is where it was put."""
    at = (-75.3, 1.7, 10.2)
    scan = Scan(height_mm=90.0, slice_mm=3.0)
    for name, nodules in (("with", (Nodule(at, 20.0),)), ("without", ())):
        write_series(draw_chest(PATIENT, scan, nodules), tmp_path / name, PATIENT, scan, number=1)
    images, plain = series(tmp_path / "with"), series(tmp_path / "without")
    assert len(images) == scan.slices
    weight, total = np.zeros(3), 0.0
    for image, other in zip(images, plain, strict=True):
        added = image.pixel_array.astype(float) - other.pixel_array.astype(float)
        rows, columns = np.nonzero(added > 100)
        right, down = np.array(image.ImageOrientationPatient[:3]), np.array(image.ImageOrientationPatient[3:])
        edge = [float(value) for value in image.PixelSpacing]
        position = np.array(image.ImagePositionPatient, float)
        for row, column in zip(rows, columns, strict=True):
            weight += added[row, column] * (position + right * column * edge[1] + down * row * edge[0])
            total += added[row, column]
    assert weight / total == pytest.approx(at, abs=0.6)
    gaps = np.diff([float(image.ImagePositionPatient[2]) for image in images])
    assert gaps == pytest.approx(3.0)


def test_set_is_labelled_balanced_and_grouped(made: Path) -> None:
    with (made / "labels.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["StudyInstanceUID", "nodule", "age", "sex", "dose_mgy", "kernel"]
    assert len(rows) == 6
    assert 2 <= sum(row["nodule"] == "yes" for row in rows) <= 4
    drawn = json.loads((made / "nodules.json").read_text(encoding="utf-8"))
    patients = set()
    for number, row in enumerate(rows, start=1):
        images = series(made / "studies" / f"{number:04d}")
        assert {image.StudyInstanceUID for image in images} == {row["StudyInstanceUID"]}
        assert images[0].PatientSex == row["sex"]
        assert int(images[0].PatientAge[:3]) == int(row["age"])
        assert (row["nodule"] == "yes") == bool(drawn[row["StudyInstanceUID"]])
        patients.add(images[0].PatientID)
    assert len(patients) == 5  # one in six has come twice


def test_every_file_says_that_it_is_synthetic(made: Path) -> None:
    for path in sorted(made.glob("studies/*/slice0001.dcm")):
        image = pydicom.dcmread(path)
        assert str(image.PatientName).startswith("SYNTHETIC^PHANTOM")
        assert "SYNTHETIC" in image.SeriesDescription
        assert "synthetic" in image.ImageComments.lower()
        assert image.QualityControlImage == "YES"
        assert image.BurnedInAnnotation == "NO"


def test_identifiers_are_unique(made: Path) -> None:
    images = [pydicom.dcmread(path, stop_before_pixels=True) for path in made.rglob("*.dcm")]
    assert len({image.SOPInstanceUID for image in images}) == len(images)
    assert len({image.StudyInstanceUID for image in images}) == 6


def test_same_seed_writes_the_same_bytes(made: Path, tmp_path: Path) -> None:
    make_chest_ct(tmp_path / "again", studies=6, seed=4)
    assert digest(tmp_path / "again") == digest(made)
    make_chest_ct(tmp_path / "other", studies=4, seed=5)
    first = "studies/0001/slice0001.dcm"
    assert (tmp_path / "other" / first).read_bytes() != (made / first).read_bytes()


def test_label_cannot_be_read_from_the_scan(tmp_path: Path) -> None:
    """Dose, kernel and slice thickness are drawn apart from the label: no shortcut to learn."""
    from sagittal.phantom import _cohort

    cohort = [row for seed in range(30) for row in _cohort(72, seed)]
    truth = np.array([count > 0 for _, _, count, _ in cohort])
    assert 0.40 < truth.mean() < 0.50
    for value in (
        [scan.dose_mgy for _, scan, _, _ in cohort],
        [scan.slice_mm for _, scan, _, _ in cohort],
        [tuple(KERNELS).index(scan.kernel) for _, scan, _, _ in cohort],
        [patient.fat_mm for patient, _, _, _ in cohort],
    ):
        # 2,160 studies: a correlation beyond 4 standard errors of chance.
        assert abs(np.corrcoef(truth, value)[0, 1]) < 4 / np.sqrt(len(cohort))
    ages = np.array([patient.age for patient, _, _, _ in cohort])
    assert ages[truth].mean() > ages[~truth].mean() + 2


def test_too_few_studies_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 4 studies, not 1"):
        make_chest_ct(tmp_path, studies=1)


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match="cannot write the phantoms to"):
        make_chest_ct(tmp_path / "file" / "set", studies=4)


@pytest.mark.parametrize("checker", ["dciodvfy", "dcentvfy"])
def test_dicom_validator_finds_no_error(made: Path, checker: str) -> None:
    program = shutil.which(checker)
    if program is None:
        if os.environ.get("CI"):
            pytest.fail(f"{checker} is missing: apt-get install dicom3tools")
        pytest.skip(f"{checker} is not installed (Debian package dicom3tools)")
    files = sorted(made.glob("studies/0001/*.dcm"))
    runs = [[str(files[0])], [str(files[-1])]] if checker == "dciodvfy" else [[str(path) for path in files]]
    for arguments in runs:
        result = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
        said = (result.stdout + result.stderr).splitlines()
        assert [line for line in said if line.startswith(("Error", "Warning"))] == []
