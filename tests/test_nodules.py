"""Nodule phantoms: the list says where the nodules are, what is drawn there, and the readers find them again."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import sagittal
from sagittal.anatomy import TISSUE_HU, Patient, Scan, draw_chest, place_nodules
from sagittal.errors import ConfigError, ResourceError
from sagittal.nodules import DIAMETERS_MM, draw_scans, make_nodule_ct
from sagittal.truth import Boxes

SEED = 3


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nodules")
    return make_nodule_ct(folder, scans=4, seed=SEED).parent


def test_the_reader_finds_every_nodule_where_it_was_drawn(made: Path) -> None:
    found = sagittal.open_dataset(made, labels=made / "nodules.csv")
    drawn = draw_scans(4, SEED)
    assert found.scheme.kind == "objects"
    assert len(found.cases) == 4
    assert not found.skipped
    expected = {tuple(sorted(round(n.diameter_mm, 1) for n in one.nodules)) for one in drawn}
    assert () in expected  # a scan without nodules is read as one in which none was found
    read = set()
    checked = 0
    for case in found.cases:
        image = case.image()
        assert isinstance(case.truth, Boxes)
        boxes = case.truth.on(image.grid)
        spacing = np.asarray(image.grid.spacing)
        read.add(tuple(sorted(np.round(boxes.sizes[:, 0] * spacing[0], 1).tolist())))
        for corners, size in zip(boxes.corners, boxes.sizes * spacing, strict=True):
            np.testing.assert_allclose(size, size[0], rtol=1e-6)  # a ball in mm, whatever the voxels
            if size[0] > 9:
                i, j, k = np.rint(corners.mean(axis=0)).astype(int)
                core = image.data[0, i - 1 : i + 2, j - 1 : j + 2, k]
                assert np.mean(core) == pytest.approx(TISSUE_HU["nodule"], abs=45)
                checked += 1
    assert read == expected
    assert checked > 2


def test_the_list_is_that_of_luna(made: Path) -> None:
    with (made / "nodules.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["seriesuid", "coordX", "coordY", "coordZ", "diameter_mm"]
    assert len({row["seriesuid"] for row in rows}) == 4
    sizes = [float(row["diameter_mm"]) for row in rows if row["diameter_mm"]]
    assert all(DIAMETERS_MM[0] <= size <= DIAMETERS_MM[1] for size in sizes)
    assert sum(not row["diameter_mm"] for row in rows) == 1


def test_the_same_seed_writes_the_same_bytes(made: Path, tmp_path: Path) -> None:
    def digest(folder: Path) -> str:
        parts = [
            path.relative_to(folder).as_posix().encode() + path.read_bytes() for path in sorted(folder.rglob("*.*"))
        ]
        return hashlib.sha256(b"".join(parts)).hexdigest()

    make_nodule_ct(tmp_path, scans=4, seed=SEED)
    assert digest(tmp_path) == digest(made)


def test_scans_of_other_seeds_are_of_other_patients() -> None:
    patients = [{one.patient.anatomy for one in draw_scans(3, seed)} for seed in (1, 2)]
    assert not patients[0] & patients[1]
    assert all(len(own) == 3 for own in patients)


def test_a_drawn_nodule_has_the_volume_of_its_ball() -> None:
    patient, scan = Patient(anatomy=5), Scan(pixels=80, field_mm=160.0, slice_mm=2.5, height_mm=100.0, centre_x_mm=66.0)
    tries = (place_nodules(patient, scan, 1, np.random.default_rng(n), diameters_mm=[12.0])[0] for n in range(9))
    ball = replace(next(nodule for nodule in tries if nodule.site == "free"), spiculated=False)
    volume = float(draw_chest(patient, scan, (ball,)).occupancy["nodule"].sum()) * float(np.prod(scan.spacing))
    assert volume == pytest.approx(np.pi / 6 * 12**3, rel=0.05)


@pytest.mark.parametrize("sizes", [[5.0], [5.0, 6.0, 7.0]])
def test_diameters_that_do_not_fit_the_count_are_refused(sizes: list[float]) -> None:
    with pytest.raises(ConfigError, match=f"2 nodules need as many diameters, not {len(sizes)}"):
        place_nodules(Patient(anatomy=1), Scan(), 2, np.random.default_rng(0), diameters_mm=sizes)


def test_too_few_scans_and_a_folder_that_cannot_be_written_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 4 scans, not 3"):
        make_nodule_ct(tmp_path / "new", scans=3)
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(ResourceError, match="cannot write the nodule phantoms"):
        make_nodule_ct(blocked, scans=4)
