"""What a user asks a model about: files, folders, tables and manifests, with one image a case or several."""

from __future__ import annotations

import numpy as np
import pytest

from sagittal.errors import ConfigError, GeometryError, ReadError
from sagittal.read.manifest import write_manifest
from sagittal.read.open_dataset import open_dataset
from sagittal.read.requested import find_requested

VOLUME = np.zeros((5, 4, 3), np.int16)


def shown(cases):
    return {case.id: {name: float(case.image(name).data.max()) for name in case.images} for case in cases}


def test_a_table_names_its_images_and_keeps_its_columns(tmp_path, write_png, write_text):
    for n in range(3):
        write_png(f"im/{n}.png", np.full((9, 12), n, np.uint8))
    table = write_text("im/new.csv", "file,age,label,patient_id\n0.png,40,yes,a\n2.png,,no,b\n7.png,1,no,c\n")
    cases, failures = find_requested(table)
    assert shown(cases) == {"0": {"image": 0}, "2": {"image": 2}}
    assert [dict(case.table) for case in cases] == [{"age": 40, "label": "yes"}, {"age": None, "label": "no"}]
    assert all(case.truth is None for case in cases)
    assert [(f.case, f.error) for f in failures] == [("7", "case 7: the table names an image that was not found")]


def test_a_table_of_several_images_a_case(tmp_path, write_nifti, write_text):
    for n, name in enumerate(("T1", "FLAIR")):
        write_nifti(f"im/a_{name}.nii.gz", VOLUME + n)
    write_nifti("im/b_T1.nii.gz", VOLUME)
    table = write_text("im/new.csv", "t1,flair,T2\na_T1.nii.gz,a_FLAIR.nii.gz,x\nb_T1.nii.gz,b_FLAIR.nii.gz,\n")
    cases, failures = find_requested(table, images=("FLAIR", "T1"))
    assert shown(cases) == {"a_FLAIR": {"FLAIR": 1, "T1": 0}}
    assert [f.error for f in failures] == ["case b_FLAIR: the image of column 'flair' was not found"]


def test_folders_of_cases_with_named_files(tmp_path, write_nifti):
    for n, role in enumerate(("t1n", "t2f", "seg")):
        for case in ("P1", "P2"):
            if (case, role) != ("P2", "t2f"):
                write_nifti(f"new/{case}/{case}-{role}.nii.gz", VOLUME + n)
    cases, failures = find_requested(tmp_path / "new", images=("t1n", "t2f"))
    assert shown(cases) == {"P1": {"t1n": 0, "t2f": 1}}
    assert [f.error for f in failures] == ["case P2: image t2f is not there; the model needs t1n, t2f"]
    cases, _ = find_requested(tmp_path / "new" / "P1", images=("T1", "FLAIR"), patterns="T1=t1n,FLAIR=t2f")
    assert shown(cases) == {"P1": {"T1": 0, "FLAIR": 1}}
    assert cases[0].image("FLAIR").modality == "MR"
    for patterns, message in (
        ("T1=t1n", "leaves out FLAIR, which the model needs as well"),
        ("T1=t1n,FLAIER=t2f", "names 'FLAIER', which the model does not take. Did you mean 'FLAIR'"),
    ):
        with pytest.raises(ConfigError, match=message):
            find_requested(tmp_path / "new", images=("T1", "FLAIR"), patterns=patterns)


def test_numbered_files_and_files_of_several_channels(tmp_path, write_nifti):
    for n in range(2):
        write_nifti(f"imagesTs/a_{n:04d}.nii.gz", VOLUME + n)
    write_nifti("imagesTs/b_0000.nii.gz", VOLUME)
    cases, failures = find_requested(tmp_path / "imagesTs", images=("T2", "ADC"))
    assert shown(cases) == {"a": {"T2": 0, "ADC": 1}}
    assert [f.error for f in failures] == ["case b: has the channels 0000, the model takes 2 (T2, ADC)"]
    whole = write_nifti("c.nii.gz", np.stack([VOLUME, VOLUME + 1], axis=-1))
    assert shown(find_requested(whole, images=("T2", "ADC"))[0]) == {"c": {"T2": 0, "ADC": 1}}
    with pytest.raises(ReadError, match="case d: has 1 channels, where the data set names a channel 1"):
        find_requested(write_nifti("d.nii.gz", VOLUME), images=("T2", "ADC"))[0][0].image("ADC")


def test_series_of_dicom_studies_by_their_description(tmp_path, write_series):
    for study in range(2):
        for n, name in enumerate(("T1 PRE", "FLAIR")):
            write_series(
                f"d/{study}{n}", np.full((3, 4, 4), n, np.int16), [0, 1, 2.0], SeriesDescription=name,
                StudyInstanceUID=f"1.{study}", SeriesInstanceUID=f"1.{study}.{n}",
            )  # fmt: skip
    cases, failures = find_requested(tmp_path / "d", images=("T1", "FLAIR"), patterns="T1=*T1*,FLAIR=*FLAIR*")
    assert (len(cases), failures) == (2, [])
    assert [sorted(case.images) for case in cases] == [["FLAIR", "T1"]] * 2


def test_a_manifest_without_its_truth(tmp_path, write_png):
    for name in ("a/1", "b/2"):
        write_png(f"set/{name}.png")
    write_manifest(open_dataset(tmp_path / "set"), tmp_path / "manifest")
    cases, _ = find_requested(tmp_path / "manifest")
    assert [(case.id, case.truth) for case in cases] == [("a/1", None), ("b/2", None)]


def test_a_tilted_series_is_sheared_where_asked_for(tmp_path, write_series):
    depths = [0.0, 2.0, 4.0, 6.0]
    row, column = np.array([0.8, 0.36, 0.48]), np.array([-0.6, 0.48, 0.64])
    normal = np.cross(row, column)
    paths = write_series("ct", np.zeros((4, 4, 4), np.int16), depths)
    import pydicom

    for n, path in enumerate(paths):
        header = pydicom.dcmread(path)
        header.ImagePositionPatient = list(depths[n] * normal + 0.5 * depths[n] * column)
        header.save_as(path)
    with pytest.raises(GeometryError, match="tilt"):
        find_requested(tmp_path / "ct")[0][0].image()
    assert find_requested(tmp_path / "ct", tilt="shear")[0][0].image().grid.has_position
    with pytest.raises(ConfigError, match="tilt='sheer' is not known. Did you mean 'shear'"):
        find_requested(tmp_path / "ct", tilt="sheer")


def test_nothing_at_all(tmp_path):
    with pytest.raises(ReadError, match="no image was found"):
        find_requested(tmp_path, images=("a", "b"))
