"""A folder for each case, as BraTS and TotalSegmentator have them."""

from __future__ import annotations

import numpy as np
import pytest

from sagittal.errors import DataError
from sagittal.read.case_folders import is_case_folders
from sagittal.read.open_dataset import open_dataset

AFFINE = np.array([[-0.7, 0.1, 0, 10], [0, 0, 2.0, 20], [0, 0.8, 0, -30], [0, 0, 0, 1.0]])
VALUES = np.arange(60, dtype=np.uint8).reshape(5, 4, 3) % 4
ROLES = ("t1n", "t1c", "t2w", "t2f")


@pytest.fixture
def brats(tmp_path, write_nifti):
    """Four visits of three patients, the last without a mask."""
    for name in ("00001-000", "00001-001", "00002-000", "00003-000"):
        case = f"BraTS-GLI-{name}"
        for n, role in enumerate(ROLES):
            write_nifti(f"set/{case}/{case}-{role}.nii.gz", np.full((5, 4, 3), n, np.int16), AFFINE)
        if name != "00003-000":
            write_nifti(f"set/{case}/{case}-seg.nii.gz", VALUES, AFFINE)
    return tmp_path / "set"


def test_images_of_a_case_by_name(brats):
    dataset = open_dataset(brats, target="whole=1+2+3,core=1+3,enhancing=3")
    assert (dataset.layout, dataset.scheme.kind) == ("case_folders", "structures")
    assert dataset.scheme.classes == ("whole", "core", "enhancing")
    assert [case.id for case in dataset] == [f"BraTS-GLI-{n}" for n in ("00001-000", "00001-001", "00002-000")]
    assert dataset.patients == ("BraTS-GLI-00001", "BraTS-GLI-00002"), "two visits of one patient stay together"
    case = dataset.cases[0]
    assert list(case.images) == sorted(ROLES)
    assert [float(case.image(role).data.max()) for role in ROLES] == [0, 1, 2, 3]
    found = case.truth.load()
    np.testing.assert_array_equal(found.mask("core"), np.isin(VALUES, (1, 3)))
    assert found.grid.same_place(case.image("t1c").grid)
    (left,) = dataset.skipped
    assert (left.case, left.reason, left.code) == ("BraTS-GLI-00003-000", "a case without mask", "no-truth")


def test_images_may_be_chosen_and_renamed(brats):
    dataset = open_dataset(brats, images="T1=t1c,FLAIR=t2f")
    case = dataset.cases[0]
    assert [float(case.image(name).data.max()) for name in ("T1", "FLAIR")] == [1, 3]
    assert case.image("FLAIR").modality == "MR"
    assert dataset.scheme.classes == ("1", "2", "3")
    assert any("not used: t1n, t2w (choose images with --images" in told for told in dataset.notes)
    with pytest.raises(DataError, match="no file is called by the image 't2ff'. Did you mean 't2f'"):
        open_dataset(brats, images="T2=t2ff")


def test_a_case_without_one_of_its_images_is_told(brats):
    (brats / "BraTS-GLI-00002-000" / "BraTS-GLI-00002-000-t2f.nii.gz").unlink()
    left = {one.case: (one.reason, one.code) for one in open_dataset(brats).skipped}
    assert left["BraTS-GLI-00002-000"] == ("image t2f is not there", "incomplete")


def test_a_folder_of_structures_each(tmp_path, write_nifti):
    for n in range(3):
        write_nifti(f"set/s{n}/ct.nii.gz", VALUES.astype(np.int16))
        for k, organ in enumerate(("liver", "spleen", "kidney_left")):
            if (n, organ) != (1, "spleen"):
                write_nifti(f"set/s{n}/segmentations/{organ}.nii.gz", (k + 1 == VALUES).astype(np.uint8))
    dataset = open_dataset(tmp_path / "set")
    assert (dataset.layout, dataset.scheme.classes) == ("case_folders", ("kidney_left", "liver", "spleen"))
    assert dataset.scheme.lateral
    assert dataset.cases[1].truth.structures == ("kidney_left", "liver"), "what has no file is unknown"
    assert list(dataset.cases[0].images) == ["image"]
    np.testing.assert_array_equal(dataset.cases[2].truth.load().mask("spleen"), VALUES == 2)
    chosen = open_dataset(tmp_path / "set", target="spleen")
    assert (chosen.scheme.classes, len(chosen), chosen.skipped[0].case) == (("spleen",), 2, "s1")
    with pytest.raises(DataError, match="no mask outlines 'splen'. Did you mean 'spleen'"):
        open_dataset(tmp_path / "set", target="splen")


def test_other_folders_are_no_cases(tmp_path, write_png, write_series):
    for name in ("benign", "malignant"):
        for n in range(3):
            write_png(f"classes/{name}/{n}.png")
    write_series("tree/a", np.zeros((2, 4, 4), np.int16), [0, 1])
    for n in range(3):
        write_png(f"pairs/p{n}/scan.png")
        write_png(f"pairs/p{n}/scan-label.png", np.eye(9, 12, dtype=np.uint8))
    for name in ("classes", "tree", "pairs"):
        assert not is_case_folders(tmp_path / name)
    with pytest.raises(DataError, match="the folders hold no image of a common name|holds no folder with"):
        open_dataset(tmp_path / "classes", layout="case_folders")


def test_real_volumes_in_folders(bench_data, tmp_path):
    names = sorted(path.name for path in (bench_data / "hippocampus" / "imagesTr").glob("*.nii.gz"))[:3]
    for name in names:
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / f"{folder.name}_t1.nii.gz").symlink_to(bench_data / "hippocampus" / "imagesTr" / name)
        (folder / f"{folder.name}_t2.nii.gz").symlink_to(bench_data / "hippocampus" / "imagesTr" / name)
        (folder / f"{folder.name}_seg.nii.gz").symlink_to(bench_data / "hippocampus" / "labelsTr" / name)
    dataset = open_dataset(tmp_path, target="hippocampus=1+2,anterior=1")
    assert (dataset.layout, len(dataset), list(dataset.cases[0].images)) == ("case_folders", 3, ["t1", "t2"])
    listed = {case.id: case for case in open_dataset(bench_data / "hippocampus")}
    for case in dataset:
        truth, other = case.truth.load(), listed[case.id].truth.load()
        np.testing.assert_array_equal(truth.mask("hippocampus"), other.mask("Anterior") | other.mask("Posterior"))
        assert truth.grid.same_place(case.image("t1").grid)


@pytest.mark.parametrize("seed", range(12))
def test_names_of_any_kind_end_in_a_data_set_or_in_our_errors(tmp_path, write_png, seed):
    """Random folders and files: whatever the layout is taken for, no file is lost silently and no foreign error comes."""
    from sagittal.errors import SagittalError

    rng = np.random.default_rng(seed)
    words = [
        "images",
        "masks",
        "a",
        "a_mask",
        "a_1",
        "a_1_seg",
        "liver",
        "a_liver",
        "seg",
        "t1",
        "P1",
        "P1-t1",
        "P1-seg",
        "x y",
        "2ndHO",
    ]
    for _ in range(int(rng.integers(1, 14))):
        parts = [words[n] for n in rng.integers(0, len(words), int(rng.integers(1, 4)))]
        values = np.eye(9, 12, dtype=np.uint8) * int(rng.integers(0, 3)) if rng.random() < 0.6 else None
        write_png("set/" + "/".join(parts) + ".png", values)
    for layout in (None, "pairs", "case_folders"):
        try:
            dataset = open_dataset(tmp_path / "set", layout=layout)
        except SagittalError:
            continue
        assert len({case.id for case in dataset}) == len(dataset) > 0
        for case in dataset:
            assert case.images
