"""Maps on disk: pictures, values where they lie in the patient, and rows that tell what was written."""

from __future__ import annotations

import errno
import io
import os
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from sagittal.case import Case, ImageSource
from sagittal.errors import ConfigError, DataError, GeometryError, ReadError, ResourceError
from sagittal.explain.maps import METHODS, explain_case
from sagittal.explain.overlay import cut, draw_overlay, score_text
from sagittal.formats.nifti import read_nifti
from sagittal.grid import Grid
from sagittal.image import Image
from sagittal.labels import LabelScheme
from sagittal.model.calibrate import Calibration
from sagittal.model.package import Model
from sagittal.networks.heads import build_network
from sagittal.prepare.plan import InputPlan, NetworkPlan, Plan, PreparePlan
from sagittal.tasks.registry import make_task
from sagittal.write.maps import explain_cases, file_stem
from sagittal.write.nifti import write_nifti
from sagittal.write.raster import png_bytes, write_png


def tilted(shape: tuple[int, int, int], spacing=(0.7, 0.9, 5.0)) -> Grid:
    turn = np.radians(20)
    affine = np.eye(4)
    affine[:3, :3] = [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]
    affine[:3, :3] *= spacing
    affine[:3, 3] = [-60, 20, 300]
    return Grid(shape, affine)


@pytest.fixture(scope="module", params=[2, 3], ids=["2-D", "3-D"])
def model(request) -> Model:
    """An untrained network: what is tested here is the way to the disk."""
    size = (12, 10) if request.param == 2 else (8, 12, 10)
    plan = Plan(
        LabelScheme("binary", ("no", "yes")),
        input=InputPlan(dimensions=request.param),
        network=NetworkPlan(name="resnet-small", width=4, depth=(1,)),
        prepare=PreparePlan(size=size, offset=(100.0,), scale=(40.0,)),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network(plan.network, channels=1, dimensions=request.param, head=make_task(plan).head)
    return Model("raw", plan, (network.eval(),), Calibration(), ())


def case_of(model: Model, name: str = "study-1", *, position: bool = True, channels: int = 1) -> Case:
    shape = (20, 24, 1) if model.plan.input.dimensions == 2 else (20, 24, 9)
    data = np.random.default_rng(0).uniform(0, 255, (channels, *shape)).astype(np.float32)
    image = Image(data, tilted(shape) if position else Grid(shape), bits=8)
    return Case(name, "patient-secret", {"image": ImageSource(partial(_same, image))})


def _same(image: Image) -> Image:
    return image


@pytest.mark.parametrize("shape", [(5, 6, 7), (3, 5, 6, 7), (9, 4, 1)])
@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_nifti_keeps_the_place_of_every_voxel(tmp_path, shape, ending):
    values = np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)
    grid = tilted(shape[-3:])
    path = tmp_path / f"map{ending}"
    write_nifti(values, grid, path)
    other = nib.load(path)  # another library's eyes: RAS+
    corner = np.array([2, 3, 0, 1])
    np.testing.assert_allclose((other.affine @ corner)[:3] * [-1, -1, 1], (grid.affine @ corner)[:3], atol=1e-4)
    assert (int(other.header["qform_code"]), int(other.header["sform_code"])) == (1, 1)
    np.testing.assert_allclose(other.get_qform(), other.affine, atol=1e-4)
    assert other.header.get_xyzt_units()[0] == "mm"
    back = read_nifti(path)
    assert back.grid.same_place(grid, tolerance_mm=1e-3)
    np.testing.assert_array_equal(back.data, values if values.ndim == 4 else values[None])
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_nifti_never_invents_a_position(tmp_path):
    with pytest.raises(GeometryError, match="has no position in the patient"):
        write_nifti(np.zeros((4, 4, 1), np.float32), Grid((4, 4, 1)), tmp_path / "x.nii.gz")
    with pytest.raises(GeometryError, match="do not fit the grid"):
        write_nifti(np.zeros((4, 4, 2), np.float32), tilted((4, 4, 3)), tmp_path / "x.nii.gz")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float64, np.int64])
def test_nifti_types(tmp_path, kind):
    write_nifti(np.arange(24).reshape(2, 3, 4).astype(kind), tilted((2, 3, 4)), tmp_path / "x.nii")
    stored = nib.load(tmp_path / "x.nii").header.get_data_dtype()
    assert stored == (kind if kind in (np.uint8, np.int16) else np.float32)


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(self, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(ResourceError, match=r"x.nii.gz: cannot be written: the disk is full"):
        write_nifti(np.zeros((4, 4, 2), np.float32), tilted((4, 4, 2)), tmp_path / "x.nii.gz")
    with pytest.raises(ResourceError, match=r"x.png: cannot be written: the disk is full"):
        write_png(np.zeros((4, 4), np.uint8), tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_png_keeps_every_pixel(tmp_path, shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    write_png(pixels, tmp_path / "deep" / "x.png")
    np.testing.assert_array_equal(np.asarray(Pillow.open(tmp_path / "deep" / "x.png")), pixels)


def test_what_is_no_picture_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"not \(4, 4\) float64"):
        png_bytes(np.zeros((4, 4)))
    with pytest.raises(DataError, match=r"not \(4, 4, 4\) uint8"):
        png_bytes(np.zeros((4, 4, 4), np.uint8))
    with pytest.raises(DataError, match="must be PNG bytes"):
        write_png(b"<svg>", tmp_path / "x.png")


def test_a_row_and_two_files_for_each_method(tmp_path, model):
    rows = explain_cases(model, [case_of(model)], tmp_path, methods=list(METHODS))
    assert [row["method"] for row in rows] == list(METHODS)
    for row in rows:
        assert row["case"] == "study-1"
        assert row["class"] in ("no", "yes")
        assert row["better_than_random"] in ("yes", "no")
        for key in ("probability", "deletion", "insertion", "random_deletion", "random_insertion", "p_value"):
            assert 0 <= row[key] <= 1
        assert row["picture"] == f"study-1.{row['method']}.png"
        values = read_nifti(tmp_path / row["values"])
        (found,) = explain_case(model, case_of(model), (row["method"],), randoms=0)
        np.testing.assert_allclose(values.data[0], found.heat, atol=1e-6)
        assert values.grid.same_place(found.grid)
    assert len(list(tmp_path.iterdir())) == 2 * len(METHODS)


def test_without_a_position_the_values_are_an_array(tmp_path, model):
    (row,) = explain_cases(model, [case_of(model, position=False)], tmp_path)
    assert row["values"] == "study-1.gradcam.npz"
    with np.load(tmp_path / row["values"], allow_pickle=False) as stored:
        assert stored["map"].shape == case_of(model).image().grid.shape


def test_bad_cases_do_not_stop_good_ones(tmp_path, model):
    def read(error):
        raise error

    cases = [
        Case("cut", "p", {"image": ImageSource(partial(read, ReadError("case cut: ends after 3 bytes")))}),
        Case("odd", "p", {"image": ImageSource(partial(read, RuntimeError("MÜLLER^HANS")))}),
        case_of(model),
    ]
    rows = explain_cases(model, cases, tmp_path)
    assert rows[0] == {"case": "cut", "error": "case cut: ends after 3 bytes"}
    assert "MÜLLER" not in rows[1]["error"]
    assert "RuntimeError" in rows[1]["error"]
    assert rows[2]["picture"]


def test_mistakes_of_the_user_stop_at_once(tmp_path, model):
    with pytest.raises(ConfigError, match="Did you mean 'gradcam'"):
        explain_cases(model, [case_of(model)], tmp_path, methods=["gradcan"])
    with pytest.raises(ConfigError, match="no class 'maybe'"):
        explain_cases(model, [case_of(model)], tmp_path, class_name="maybe")


@pytest.mark.parametrize(
    "name", ["../../evil", "/etc/passwd", "a/b", "a\\b", "x" * 300, "病例 7", "..", "con.png", "", "a\nb"]
)
def test_names_of_cases_never_leave_the_folder(tmp_path, name):
    stem = file_stem(name, "gradcam")
    assert (tmp_path / f"{stem}.png").resolve().parent == tmp_path.resolve()
    assert len(stem) < 110
    assert not stem.startswith(".")


def test_different_cases_have_different_files():
    names = ["a/b", "a b", "a-b", "a\\b", "a_b", "A-b"]
    assert len({file_stem(name, "m") for name in names}) == len(names)


def test_overlays_are_pictures_with_the_map_in_its_place(model):
    case = case_of(model)
    (found,) = explain_case(model, case, randoms=2)
    image = case.image()
    picture = np.asarray(Pillow.open(io.BytesIO(draw_overlay(image, found))).convert("RGB"))
    assert picture.shape[0] > 300
    assert picture.shape[1] > 900
    coloured = np.ptp(picture.astype(int), axis=2) > 40
    assert coloured.any()  # the map and the curves; the study itself is grey


def test_planes_go_through_the_strongest_voxel_with_the_head_up():
    heat = np.zeros((6, 8, 5), np.float32)
    heat[1, 6, 3] = 2
    heat[0, 0, 0] = -9  # what speaks against the class is not drawn
    image = Image(np.random.default_rng(0).uniform(0, 255, (1, 6, 8, 5)).astype(np.float32), tilted((6, 8, 5)), bits=8)
    axial, coronal, sagittal = cut(image, heat)
    assert [p.name for p in (axial, coronal, sagittal)] == ["slice 4 of 5", "row 7 of 8", "column 2 of 6"]
    assert axial.pixels.shape == (8, 6, 3)
    assert coronal.pixels.shape == (5, 6, 3)
    assert sagittal.pixels.shape == (5, 8, 3)
    assert np.unravel_index(np.argmax(axial.heat), axial.heat.shape) == (6, 1)
    assert np.unravel_index(np.argmax(coronal.heat), coronal.heat.shape) == (1, 1)  # 5 - 1 - 3: the head is up
    assert np.unravel_index(np.argmax(sagittal.heat), sagittal.heat.shape) == (1, 6)
    assert axial.pixels[6, 1, 0] == coronal.pixels[1, 1, 0] == sagittal.pixels[1, 6, 0]
    assert axial.aspect == pytest.approx(0.9 / 0.7)
    assert coronal.aspect == pytest.approx(5 / 0.7)
    assert all(p.heat.min() >= 0 for p in (axial, coronal, sagittal))
    nowhere = Image(image.data, Grid((6, 8, 5)), bits=8)
    assert np.argmax(cut(nowhere, heat)[1].heat) // 6 == 3  # without a position the file's order stays


def test_scores_are_told_in_words(model):
    (found,) = explain_case(model, case_of(model), randoms=4)
    text = score_text(found.faithfulness)
    assert "deletion 0." in text
    assert "random" in text
    assert score_text(None) == "faithfulness not measured"
