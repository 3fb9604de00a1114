"""Real DICOM series against the NIfTI truth of their conversion: voxels and places, beside SimpleITK, dcm2niix, dicom2nifti.

    python benchmarks/geometry.py            # one row a series of dicom/geometry, those that must be refused included

A voxel counts as equal where the truth has the same value at the same place in the patient (any order and direction of
axes), to one unit in the last place of float32 where the values have fractions; "mm" is the largest distance between a voxel's centre and the truth's nearest. Peers that are not installed are
left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom

from sagittal.errors import SagittalError
from sagittal.formats.dicom import read_dicom_series

DATA = Path(os.environ.get("SAGITTAL_BENCH_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # RAS+ <-> LPS+
#: Voxels (C, I, J, K) and their affine to LPS+ mm.
Volume = tuple[np.ndarray, np.ndarray]


def ours(files: list[Path], **options: Any) -> Volume:
    """What Sagittal reads; a slice without stated thickness takes 1 mm here, so that its plane can be compared."""
    image = read_dicom_series(files, **options)
    if image.grid.affine is not None:
        return image.data, np.asarray(image.grid.affine)
    header = pydicom.dcmread(files[0], stop_before_pixels=True)
    row, column = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
    between, within = map(float, header.PixelSpacing)
    affine = np.eye(4)
    affine[:3] = np.column_stack([row * within, column * between, np.cross(row, column), header.ImagePositionPatient])
    return image.data, affine


def by_simpleitk(files: list[Path]) -> Volume:
    """What SimpleITK's series reader makes of the files, sorted by GDCM."""
    import SimpleITK as Itk

    Itk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = Itk.ImageSeriesReader()
    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            (Path(folder) / file.name).symlink_to(file)
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(folder))
        image = Itk.ReadImage(files[0]) if len(files) == 1 else reader.Execute()
    data = Itk.GetArrayFromImage(image)
    data = data[..., np.newaxis] if image.GetNumberOfComponentsPerPixel() == 1 else data
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return data.transpose(3, 2, 1, 0), affine


def by_dcm2niix(files: list[Path]) -> Volume:
    """The one volume that dcm2niix writes; more than one counts as a split."""
    import dcm2niix

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in", Path(folder) / "out"
        source.mkdir(), target.mkdir()
        for file in files:
            shutil.copy(file, source / file.name)
        command = [dcm2niix.bin, "-z", "n", "-b", "n", "-f", "%s_%p", "-o", target, source]
        subprocess.run(command, check=False, capture_output=True, timeout=120)
        written = sorted(target.glob("*.nii"))
        if len(written) != 1:
            raise ValueError(f"{len(written)} volumes: " + ", ".join(str(nib.load(w).shape) for w in written))
        return load_truth(written[0])


def by_dicom2nifti(files: list[Path]) -> Volume:
    """What dicom2nifti writes."""
    import dicom2nifti

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in", Path(folder) / "out.nii"
        source.mkdir()
        for file in files:
            shutil.copy(file, source / file.name)
        dicom2nifti.dicom_series_to_nifti(source, target, reorient_nifti=False)
        return load_truth(target)


def load_truth(path: Path) -> Volume:
    """A NIfTI file as (C, I, J, K) and its affine to LPS+."""
    nifti = nib.load(path)
    data = np.asarray(nifti.dataobj)
    if data.dtype.names:
        data = np.stack([data[c] for c in "RGB"])
    elif data.ndim == 3:
        data = data[np.newaxis]
    else:
        data = np.moveaxis(data, -1, 0)
    return data, FLIP @ nifti.affine


def compare(volume: Volume, truth: Volume) -> tuple[bool, float, str]:
    """Whether all voxels are equal, how far they lie from the truth's in mm, and both in words."""
    (data, affine), (expected, there) = volume, truth
    if sorted(data.shape[1:]) != sorted(expected.shape[1:]) or len(data) != len(expected):
        return False, np.inf, f"other shape {data.shape}"
    index = np.indices(data.shape[1:]).reshape(3, -1)
    world = affine @ np.vstack([index, np.ones(index.shape[1])])
    nearest = np.rint((np.linalg.inv(there) @ world)[:3]).astype(int)
    away = np.linalg.norm((there @ np.vstack([nearest, np.ones(index.shape[1])]) - world)[:3], axis=0).max()
    inside = np.all((nearest >= 0) & (nearest < np.array(expected.shape[1:])[:, np.newaxis]), axis=0)
    if not inside.all():
        return False, float(away), f"{np.mean(~inside):.0%} of the voxels lie elsewhere"
    own = data.reshape(len(data), -1).astype(np.float32)
    wanted = expected[(slice(None), *nearest)].astype(np.float32)
    # Slope times value in float32, as some converters compute it, is off by one unit in the last place.
    same = np.abs(own.astype(np.float64) - wanted) <= np.spacing(np.abs(wanted))
    words = (
        "equal" if np.array_equal(own, wanted) else "equal to 1 ulp" if same.all() else f"{np.mean(~same):.1%} differ"
    )
    return bool(same.all()), float(away), words + ("" if away < 1e-3 else f", {away:.3g} mm off")


def by_header(files: list[Path], volume: Volume) -> float:
    """Largest distance in mm between a slice's corner by its own header and by the affine; NaN where values differ."""
    data, affine = volume
    worst = 0.0
    for file in files:
        header = pydicom.dcmread(file)
        position = np.array(header.ImagePositionPatient, float)
        index = np.linalg.inv(affine) @ [*position, 1]
        k = round(float(index[2]))
        row, column = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
        between, within = map(float, header.PixelSpacing)
        i, j = header.Columns - 1, header.Rows - 1
        corner = position + row * within * i + column * between * j
        for at, place in (([0, 0, k, 1], position), ([i, j, k, 1], corner)):
            worst = max(worst, float(np.linalg.norm((affine @ at)[:3] - place)))
        values = header.pixel_array * float(header.get("RescaleSlope", 1)) + float(header.get("RescaleIntercept", 0))
        if not np.array_equal(data[0, :, :, k].T, values.astype(np.float32)):
            return np.nan
    return worst


def attempt(read: Callable[[list[Path]], Volume], files: list[Path], truth: Volume | None) -> str:
    """What a reader makes of a series, in words."""
    try:
        volume = read(files)
    except SagittalError as error:
        return f"refused: {str(error).removeprefix('DICOM: ').split(';')[0]}"
    except Exception as error:
        return f"fails ({str(error).splitlines()[0][:60] if str(error) else type(error).__name__})"
    if truth is None:
        return f"makes {'x'.join(map(str, volume[0].shape[1:]))} of it"
    return compare(volume, truth)[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    root = parser.parse_args().data / "dicom" / "geometry"
    if not root.is_dir():
        sys.exit(f"{root} does not exist; set SAGITTAL_BENCH_DATA or give --data")
    peers = {"SimpleITK": by_simpleitk, "dcm2niix": by_dcm2niix, "dicom2nifti": by_dicom2nifti}
    peers = {name: read for name, read in peers.items() if importlib.util.find_spec(name)}
    titles = ["series", "shape", "spacing mm", "voxels", "mm", *peers]
    print("| " + " | ".join(titles) + " |\n" + "|---" * len(titles) + "|")
    folders = sorted({f.parent for f in root.rglob("*") if f.is_file() and ".nii" not in f.name and f.parent != root})
    equal = 0
    regular = 0
    for folder in folders:
        files = sorted(f for f in folder.iterdir() if ".nii" not in f.name)
        name = str(folder.relative_to(root))
        truth_file = folder.parent / f"{folder.name}_ground_truth.nii.gz"
        if "LICENSE" in files[0].name:
            continue
        truth = load_truth(truth_file) if truth_file.exists() else None
        others = [attempt(read, files, truth) for read in peers.values()]
        try:
            volume = ours(files)
        except SagittalError as error:
            print(
                f"| {name} | | | refused: {str(error).removeprefix('DICOM: ').split(';')[0]} | | {' | '.join(others)} |"
            )
            if "tilted" in str(error):
                volume = ours(files, tilt="shear")
                print(
                    f"| {name}, tilt='shear' | {shape_of(volume)} | by header | {by_header(files, volume):.1e} |"
                    + " |" * len(peers)
                )
            continue
        same, away, words = (False, np.nan, "no truth") if truth is None else compare(volume, truth)
        regular += truth is not None
        equal += same and away < 1e-3
        print(f"| {name} | {shape_of(volume)} | {words} | {away:.1e} | {' | '.join(others)} |")
    print(f"\n{equal} of {regular} series with a truth are equal to it, voxel by voxel, within 1e-3 mm.")


def shape_of(volume: Volume) -> str:
    """Shape and spacing, for two columns."""
    data, affine = volume
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return f"{'x'.join(map(str, data.shape))} | " + " x ".join(f"{s:.4g}" for s in spacing)


if __name__ == "__main__":
    main()
