"""The decathlon and nnU-Net: what their lists name, what lies on disk, and what differs between the two."""

from __future__ import annotations

import gzip
import json
import pickle
import shutil

import numpy as np
import pytest

from sagittal.errors import ConfigError, DataError, ReadError
from sagittal.read.open_dataset import open_dataset
from sagittal.truth import SegmentationSource

VOLUME = np.arange(60, dtype=np.int16).reshape(5, 4, 3)
LABELS = {"0": "background", "1": "Anterior", "2": "Posterior"}


@pytest.fixture
def decathlon(tmp_path, write_nifti, write_text):
    """Three pairs, one test image, and what a Mac left behind; ``decathlon(**changes)`` of dataset.json."""

    def make(cases=("a_001", "a_002", "a_003"), **changes):
        for n, name in enumerate(cases):
            write_nifti(f"Task/imagesTr/{name}.nii.gz", VOLUME + n)
            write_nifti(f"Task/labelsTr/{name}.nii.gz", (VOLUME % 3).astype(np.uint8))
            write_text(f"Task/imagesTr/._{name}.nii.gz", "finder")
        write_nifti("Task/imagesTs/a_009.nii.gz", VOLUME)
        listed = [{"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in cases]
        values = {
            "name": "A", "tensorImageSize": "3D", "modality": {"0": "MRI"}, "labels": LABELS, "numTraining": len(cases),
            "training": listed, "test": ["./imagesTs/a_009.nii.gz"],
        }  # fmt: skip
        write_text("Task/dataset.json", {**values, **changes})
        return tmp_path / "Task"

    return make


def reasons(dataset):
    return {one.case: one.reason for one in dataset.skipped}


def test_a_task_of_the_decathlon(decathlon):
    folder = decathlon()
    for source in (folder, folder / "dataset.json"):
        dataset = open_dataset(source)
        assert (dataset.layout, dataset.scheme.kind, dataset.scheme.classes) == (
            "msd",
            "structures",
            ("Anterior", "Posterior"),
        )
        assert dataset.scheme.meaning == {"Anterior": "label 1", "Posterior": "label 2"}
        assert [c.id for c in dataset] == ["a_001", "a_002", "a_003", "a_009"]
        assert not dataset.skipped
    case = dataset.cases[1]
    np.testing.assert_array_equal(case.image().data[0], VOLUME + 1)
    assert case.image().modality == "MR"
    assert isinstance(case.truth, SegmentationSource)
    assert case.truth.structures == ("Anterior", "Posterior")
    np.testing.assert_array_equal(case.truth.load().mask("Posterior"), VOLUME % 3 == 2)
    assert dataset.cases[3].truth is None
    assert len(dataset.labelled()) == 3
    assert dataset.splits == ()


def test_channels_of_four_dimensions_are_images_by_name(decathlon, write_nifti):
    folder = decathlon(cases=("b",), modality={"1": "T1w", "0": "FLAIR"}, test=[])
    (folder / "imagesTs" / "a_009.nii.gz").unlink()
    four = np.stack([VOLUME, VOLUME + 100], axis=-1)
    write_nifti("Task/imagesTr/b.nii.gz", four)
    dataset = open_dataset(folder)
    (case,) = dataset
    assert list(case.images) == ["FLAIR", "T1w"]
    np.testing.assert_array_equal(case.image("FLAIR").data, [VOLUME])
    np.testing.assert_array_equal(case.image("T1w").data, [VOLUME + 100])
    assert [s.member for s in case.images.values()] == ["channel 0", "channel 1"]
    assert "images FLAIR, T1w" in dataset.notes
    write_nifti("Task/imagesTr/b.nii.gz", VOLUME)
    with pytest.raises(ReadError, match="case b: has 1 channels, where the data set names a channel 1"):
        case.image("T1w")


def test_the_list_and_the_disk_are_compared(decathlon, write_nifti):
    listed = ("kept", "no_image", "no_label", "gone", "empty")
    folder = decathlon(cases=listed, numTraining=9)
    (folder / "imagesTr" / "no_image.nii.gz").unlink()
    (folder / "labelsTr" / "no_label.nii.gz").unlink()
    for part in ("imagesTr", "labelsTr"):
        (folder / part / "gone.nii.gz").unlink()
    (folder / "labelsTr" / "empty.nii.gz").write_bytes(b"")
    for name in ("imagesTr/more", "labelsTr/more", "imagesTr/single", "labelsTr/lonely", "elsewhere/x"):
        write_nifti(f"Task/{name}.nii.gz", VOLUME)
    dataset = open_dataset(folder)
    assert [c.id for c in dataset] == ["kept", "a_009"]
    assert reasons(dataset) == {
        "no_image": "a label without image: dataset.json lists one that is not there",
        "no_label": "an image without label: dataset.json lists one that is not there",
        "gone": "dataset.json lists it, but it is not there",
        "empty": "the file is empty (0 bytes)",
        "imagesTr/more.nii.gz": "an image, which dataset.json does not list",
        "labelsTr/more.nii.gz": "a label, which dataset.json does not list",
        "imagesTr/single.nii.gz": "an image without label, which dataset.json does not list",
        "labelsTr/lonely.nii.gz": "a label without image, which dataset.json does not list",
        "elsewhere/x.nii.gz": "a file outside imagesTr, labelsTr and imagesTs, which dataset.json does not list",
    }
    assert "dataset.json says numTraining = 9, but 5 training cases are there" in dataset.notes


def test_test_images_with_labels_are_a_split(decathlon, write_nifti):
    folder = decathlon()
    write_nifti("Task/labelsTs/a_009.nii.gz", (VOLUME % 3).astype(np.uint8))
    dataset = open_dataset(folder)
    assert [c.split for c in dataset] == ["train", "train", "train", "test"]
    assert dataset.cases[3].truth.known


def test_structures_may_be_chosen(decathlon):
    dataset = open_dataset(decathlon(), target="Posterior")
    assert dataset.scheme.classes == ("Posterior",)
    found = dataset.cases[0].truth.load()
    assert [s.name for s in found.structures] == ["Posterior"]
    assert sorted(np.unique(found.layers)) == [0, 2]
    with pytest.raises(DataError, match="has no structures called 'Posteror'. Did you mean 'Posterior'"):
        open_dataset(decathlon(), target="Posteror")
    with pytest.raises(DataError, match=r"is of kind 'structures' \(Anterior, Posterior\), not 'binary'"):
        open_dataset(decathlon(), kind="binary")
    with pytest.raises(ConfigError, match="unknown kind of labels 'structure'. Did you mean 'structures'"):
        open_dataset(decathlon(), kind="structure")


def test_regions_are_made_of_labels(decathlon):
    folder = decathlon(regions={"hippocampus": ["Anterior", 2], "head": [1]})
    dataset = open_dataset(folder)
    assert dataset.scheme.classes == ("hippocampus", "head"), "regions are the question where there are some"
    assert dataset.scheme.meaning["hippocampus"] == "label 1 + 2"
    found = dataset.cases[0].truth.load()
    np.testing.assert_array_equal(found.mask("hippocampus"), VOLUME % 3 > 0)
    np.testing.assert_array_equal(found.mask("head"), VOLUME % 3 == 1)
    both = open_dataset(folder, target="hippocampus,Posterior")
    assert both.scheme.classes == ("Posterior", "hippocampus")
    np.testing.assert_array_equal(both.cases[0].truth.load().mask("Posterior"), VOLUME % 3 == 2)
    objects = open_dataset(folder, kind="objects", target="head")
    assert (objects.scheme.kind, objects.scheme.classes) == ("objects", ("head",))
    for regions, message in (
        ([1], "'regions' is no object"),
        ({"whole": [1, 7]}, r"the region 'whole' must have a name of its own and be made of labels: Anterior \(1\)"),
        ({"Anterior": [1]}, "must have a name of its own"),
        ({"whole": ["anterior"]}, "be made of labels"),
    ):
        with pytest.raises(DataError, match=message):
            open_dataset(decathlon(regions=regions))


def test_structures_of_both_sides_forbid_mirroring(decathlon):
    assert open_dataset(decathlon(labels={"0": "background", "1": "left kidney", "2": "right kidney"})).scheme.lateral


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"labels": None}, DataError, "dataset.json names no labels"),
        ({"labels": {"0": "background"}}, DataError, "names no structures"),
        ({"labels": {"0": "background", "1": "a", "2": "a"}}, DataError, "two labels are called 'a'"),
        ({"labels": {"one": "a"}}, DataError, "the label 'one' is no name with whole numbers"),
        ({"training": []}, DataError, "lists no training cases"),
        ({"training": "all"}, ReadError, "'training' holds no list"),
        ({"training": [{"label": "x"}]}, ReadError, "an entry of 'training' names no image"),
    ],
)
def test_a_description_that_cannot_be_used(decathlon, changes, error, message):
    with pytest.raises(error, match=message):
        open_dataset(decathlon(**changes), layout="msd")


def test_a_damaged_description_is_told_by_line(decathlon):
    folder = decathlon()
    (folder / "dataset.json").write_text('{\n"labels": {\n')
    with pytest.raises(ReadError, match="dataset.json: is damaged or cut off in line 3"):
        open_dataset(folder)


def test_paths_out_of_the_folder_are_not_followed(decathlon):
    listed = [{"image": name, "label": "./labelsTr/a_001.nii.gz"} for name in ("../../secret.nii.gz", "/etc/x.nii.gz")]
    listed.append({"image": "./imagesTr/a_002.nii.gz", "label": "./labelsTr/a_002.nii.gz"})
    dataset = open_dataset(decathlon(training=listed))
    assert [c.id for c in dataset] == ["a_002", "a_009"]
    assert reasons(dataset)["secret"] == "dataset.json lists a path outside of the data set's folder"


def test_values_that_the_list_does_not_name_are_an_error_of_their_case(decathlon):
    folder = decathlon(labels={"0": "background", "1": "Anterior"})
    with pytest.raises(
        DataError, match=r"case a_001: label map: holds the values 2, which no structure has \(Anterior = 1\)"
    ):
        open_dataset(folder).cases[0].truth.load()


def test_sources_go_to_other_processes(decathlon):
    case = pickle.loads(pickle.dumps(open_dataset(decathlon()).cases[0]))
    assert case.truth.load().mask("Anterior").any()


def test_hippocampus(bench_data):
    dataset = open_dataset(bench_data / "hippocampus")
    assert (len(dataset), dataset.scheme.classes) == (200, ("Anterior", "Posterior"))
    assert sorted(reasons(dataset)) == [
        "dirty/images/hippocampus_118.nii.gz",
        "dirty/labels/hippocampus_010.nii.gz",
        "dirty/labels/hippocampus_281.nii.gz",
    ]
    for case in dataset.cases[:5]:
        found = case.truth.load()
        assert found.grid.same_place(case.image().grid)
        assert found.mask("Anterior").any()
    with pytest.raises(
        DataError, match=r"1 images without mask \(images/hippocampus_118.nii.gz\) and 2 masks without image"
    ):
        open_dataset(bench_data / "hippocampus" / "dirty")


def test_dirty_files_of_the_decathlon_are_named(bench_data, tmp_path):
    folder = tmp_path / "hippocampus"
    shutil.copytree(bench_data / "hippocampus", folder, ignore=shutil.ignore_patterns("imagesTr", "labelsTr", "dirty"))
    values = json.loads((folder / "dataset.json").read_text())
    dirty = bench_data / "hippocampus" / "dirty"
    pairs = {"118": "images", "010": "labels", "281": "labels"}
    for key, part in pairs.items():
        place = folder / f"{part}Tr"
        place.mkdir(exist_ok=True)
        shutil.copy(dirty / part / f"hippocampus_{key}.nii.gz", place)
    for part in ("images", "labels"):
        shutil.copy(bench_data / "hippocampus" / f"{part}Tr" / "hippocampus_001.nii.gz", folder / f"{part}Tr")
    names = ["001", *pairs]
    values["training"] = [
        {"image": f"./imagesTr/hippocampus_{n}.nii.gz", "label": f"./labelsTr/hippocampus_{n}.nii.gz"} for n in names
    ]
    (folder / "dataset.json").write_text(json.dumps(values))
    dataset = open_dataset(folder)
    assert [c.id for c in dataset] == ["hippocampus_001"]
    told = reasons(dataset)
    assert told["hippocampus_118"].startswith("an image without label")
    assert (
        told["hippocampus_010"]
        == told["hippocampus_281"]
        == "a label without image: dataset.json lists one that is not there"
    )


# ---- nnU-Net


@pytest.fixture
def nnunet(tmp_path, write_nifti, write_text):
    """Two channels, regions and an ignore label: version 2."""

    def make(channels={"0": "T2", "1": "ADC"}, cases=("p_1", "p_2"), **changes):  # noqa: B006
        for name in cases:
            for n in range(len(channels)):
                write_nifti(f"Dataset001/imagesTr/{name}_{n:04d}.nii.gz", VOLUME + n)
            write_nifti(f"Dataset001/labelsTr/{name}.nii.gz", (VOLUME % 5).astype(np.uint8))
        values = {
            "channel_names": channels,
            "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4},
            "regions_class_order": [1, 2, 3], "numTraining": len(cases), "file_ending": ".nii.gz",
        }  # fmt: skip
        write_text("Dataset001/dataset.json", {**values, **changes})
        return tmp_path / "Dataset001"

    return make


def test_regions_ignore_and_channels(nnunet):
    dataset = open_dataset(nnunet())
    assert (dataset.layout, dataset.scheme.classes) == ("nnunet", ("whole", "core", "enhancing"))
    assert dataset.scheme.meaning["core"] == "label 2 + 3"
    case = dataset.cases[0]
    assert (case.id, list(case.images)) == ("p_1", ["T2", "ADC"])
    np.testing.assert_array_equal(case.image("ADC").data[0], VOLUME + 1)
    assert case.image("ADC").modality == "MR"
    found = case.truth.load()
    np.testing.assert_array_equal(found.mask("whole"), np.isin(VOLUME % 5, [1, 2, 3]))
    np.testing.assert_array_equal(found.mask("core"), np.isin(VOLUME % 5, [2, 3]))
    np.testing.assert_array_equal(found.unknown, VOLUME % 5 == 4)
    assert "regions_class_order 1, 2, 3" in dataset.notes
    assert "label 4 means that nothing is known" in dataset.notes


def test_one_channel_is_the_image(nnunet):
    (case,) = open_dataset(nnunet(channels={"0": "CT"}, cases=("x",)))
    assert list(case.images) == ["image"]
    assert case.image().modality == "CT"
    assert case.image().unit == "1", "that values are HU is not said"


def test_version_1_lists_names_without_channels(nnunet):
    folder = nnunet(
        channel_names=None,
        modality={"0": "T2", "1": "ADC"},
        labels={"0": "background", "1": "PZ", "2": "TZ", "3": "x", "4": "y"},
        training=[{"image": "./imagesTr/p_1.nii.gz", "label": "./labelsTr/p_1.nii.gz"}],
    )
    values = json.loads((folder / "dataset.json").read_text())
    del values["channel_names"]
    (folder / "dataset.json").write_text(json.dumps(values))
    dataset = open_dataset(folder)
    assert (dataset.layout, len(dataset), dataset.scheme.classes) == ("nnunet", 2, ("PZ", "TZ", "x", "y"))
    assert list(dataset.cases[0].images) == ["T2", "ADC"]


def test_what_is_missing_is_told(nnunet, write_nifti):
    folder = nnunet(cases=("kept", "half", "blind"), numTraining=5)
    (folder / "imagesTr" / "half_0001.nii.gz").unlink()
    (folder / "labelsTr" / "blind.nii.gz").unlink()
    write_nifti("Dataset001/labelsTr/alone.nii.gz", VOLUME)
    write_nifti("Dataset001/imagesTs/later_0000.nii.gz", VOLUME)
    write_nifti("Dataset001/imagesTs/later_0001.nii.gz", VOLUME)
    dataset = open_dataset(folder)
    assert [c.id for c in dataset] == ["kept", "later"]
    assert [c.truth is None for c in dataset] == [False, True]
    assert reasons(dataset) == {
        "half": "channel 1 (ADC) is missing",
        "blind": "an image without label",
        "labelsTr/alone.nii.gz": "a label without image, which the list of cases does not list",
    }
    assert "dataset.json says numTraining = 5, but 3 training cases are there" in dataset.notes


def test_explicit_paths_of_the_files(nnunet, write_nifti, tmp_path):
    far = write_nifti("store/far.nii.gz", VOLUME + 7)
    folder = nnunet(channels={"0": "CT"}, cases=(), numTraining=3)
    write_nifti("Dataset001/near_image.nii.gz", VOLUME)
    label = write_nifti("Dataset001/any/label.nii.gz", (VOLUME % 3).astype(np.uint8))
    values = json.loads((folder / "dataset.json").read_text())
    values["dataset"] = {
        "one": {"images": [str(far)], "label": str(label)},
        "two": {"images": ["near_image.nii.gz"], "label": "any/label.nii.gz"},
        "three": {"images": ["nowhere.nii.gz"], "label": "any/label.nii.gz"},
    }
    (folder / "dataset.json").write_text(json.dumps(values))
    dataset = open_dataset(folder)
    assert [c.id for c in dataset] == ["one", "two"]
    np.testing.assert_array_equal(dataset.cases[0].image().data[0], VOLUME + 7)
    assert reasons(dataset) == {"three": "1 of the files that dataset.json lists for it are not there"}
    values["dataset"]["two"]["images"] = ["../../etc/passwd"]
    (folder / "dataset.json").write_text(json.dumps(values))
    with pytest.raises(ReadError, match=r"a listed path holds '\.\.'"):
        open_dataset(folder)


def test_a_picture_holds_its_colours_in_one_file(write_png, write_text, tmp_path):
    write_png("D/imagesTr/a_0000.png", np.zeros((6, 8, 3), np.uint8))
    write_png("D/labelsTr/a.png", np.eye(6, 8, dtype=np.uint8))
    write_text(
        "D/dataset.json",
        {
            "channel_names": {"0": "R", "1": "G", "2": "B"},
            "labels": {"background": 0, "vessel": 1},
            "file_ending": ".png",
        },
    )
    (case,) = open_dataset(tmp_path / "D")
    assert case.image().data.shape == (3, 8, 6, 1)
    assert case.truth.load().mask("vessel").sum() == 6


def test_a_truncated_label_is_an_error_of_its_case(nnunet):
    folder = nnunet(cases=("x",))
    path = folder / "labelsTr" / "x.nii.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:400]))
    with pytest.raises(ReadError, match="case x: NIfTI"):
        open_dataset(folder).cases[0].truth.load()
