"""The volume of a series for the page: NIfTI with its exact place in the patient, made once in a process with limits.

Also planes of it as pictures, for who has no WebGL.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sagittal.errors import ConfigError, GeometryError, ReadError, SagittalError
from sagittal.guard.limited import run_limited
from sagittal.guard.limits import as_read_error
from sagittal.types import Array

if TYPE_CHECKING:
    from sagittal.serve.instance_rows import Stored

PLANES = ("axial", "coronal", "sagittal")
#: What making a volume may take.
MEMORY_BYTES, TIMEOUT_S = 6 * 2**30, 300.0
#: Packed fast: the page waits for it, and level 6 saves a tenth of the bytes for four times the time.
_LEVEL = 1
#: One at a time: each may take gigabytes.
_TURN = threading.BoundedSemaphore(1)
_UNPLACED = np.diag([-1.0, -1.0, 1.0, 1.0])


def volume_name(members: Sequence[Stored], part: str = "") -> str:
    """The name under which the volume of some instances is kept; another once one of them is another."""
    key = part + "|" + "".join(one.sha256 for one in members)
    return f"volume{hashlib.sha256(part.encode()).hexdigest()[:6] if part else ''}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.nii.gz"


def make_volume(files: Sequence[Path], part: str, target: Path) -> None:
    """Write the volume in some DICOM files as ``.nii.gz``, in a process with limits.

    Whole values are kept as 16-bit numbers, others as float32; colours as RGB. Slices of a tilted gantry keep their exact
    place by a sheared affine. Where the files give no position, the header says so (both codes 0).

    Parameters
    ----------
    files : sequence of Path
    part : str
        Which volume of several; empty where there is one.
    target : Path

    Raises
    ------
    GeometryError
        If the files make no volume; the message lists the volumes that they hold.
    ReadError
        If they cannot be decoded.
    """
    item = {"files": [str(path) for path in files], "part": part, "target": str(target)}
    with (
        _TURN,
        closing(run_limited(_make, [item], workers=1, memory_bytes=MEMORY_BYTES, timeout_s=TIMEOUT_S)) as running,
    ):
        for _, result in running:
            if isinstance(result, SagittalError):
                raise result


def _make(item: dict[str, Any]) -> bool:
    from sagittal.formats.dicom import read_dicom_series

    files = [Path(name) for name in item["files"]]
    part = item["part"] or None
    try:
        image = read_dicom_series(files, volume=part)
    except GeometryError:
        image = read_dicom_series(files, volume=part, tilt="shear")
    save_volume(image.data, image.grid.affine, image.grid.spacing, Path(item["target"]))
    return True


def save_volume(data: Array, affine: Any, spacing: Any, target: Path) -> None:
    """Write values, (C, I, J, K), as NIfTI for a viewer.

    Parameters
    ----------
    affine : (4, 4) float or None
        Voxel to LPS+ mm.
    spacing : (3,) float or None
        Where there is no affine.
    """
    import nibabel as nib

    if data.shape[0] == 3:
        stacked = np.ascontiguousarray(np.moveaxis(np.clip(np.round(data), 0, 255).astype(np.uint8), 0, -1))
        values: Array = stacked.view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    else:
        values = _small(data[0])
    if affine is not None:
        matrix = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(affine)
    else:
        mm = np.ones(3) if spacing is None else np.nan_to_num(np.asarray(spacing, dtype=float), nan=1.0)
        matrix = _UNPLACED @ np.diag([*mm, 1.0])
    make: Any = nib.Nifti1Image
    nifti = make(values, matrix)
    nifti.header.set_xyzt_units("mm")
    code = 1 if affine is not None else 0
    nifti.set_sform(matrix, code)
    nifti.set_qform(matrix, code, strip_shears=True)
    raw = io.BytesIO()
    nifti.to_file_map({"image": nib.FileHolder(fileobj=raw)})
    target.write_bytes(_packed(raw.getbuffer()))


def _small(values: Array) -> Array:
    """As 16-bit numbers where that loses nothing."""
    low, high = float(values.min()), float(values.max())
    if np.isfinite([low, high]).all() and low >= -32768 and high <= 32767:
        whole = values.astype(np.int16)
        if np.array_equal(whole, values):
            return whole
    return values.astype(np.float32, copy=False)


def _packed(raw: memoryview) -> bytes:
    try:
        from isal import igzip
    except ImportError:
        return gzip.compress(raw, _LEVEL, mtime=0)
    packed: bytes = igzip.compress(raw, _LEVEL)
    return packed


def slice_picture(volume: Path, plane: str, index: int | None, window: tuple[float, float] | None) -> bytes:
    """One plane of a kept volume as PNG: the head up or the front up, the patient's right on the left.

    Parameters
    ----------
    volume : Path
    plane : str
        One of :data:`PLANES`.
    index : int, optional
        From the feet, the back or the left; the middle where left out.
    window : (float, float), optional
        Center and width; between percentiles where left out.

    Raises
    ------
    ConfigError
        If there is no such plane.
    """
    if plane not in PLANES:
        raise ConfigError(f"planes are {', '.join(PLANES)}")
    item = {"volume": str(volume), "plane": plane, "index": index, "window": list(window) if window else None}
    with closing(run_limited(_slice, [item], workers=1, memory_bytes=MEMORY_BYTES, timeout_s=60.0)) as running:
        for _, result in running:
            if isinstance(result, SagittalError):
                raise result
            return bytes(result)
    raise ReadError("nothing came back")


def _slice(item: dict[str, Any]) -> bytes:
    import nibabel as nib
    from PIL import Image as Pillow

    from sagittal.serve.rendered import Window, encode_picture

    with as_read_error("NIfTI"):
        loaded: Any = nib.load(item["volume"])
        canonical: Any = nib.as_closest_canonical
        placed = canonical(loaded)
        values = np.asarray(placed.dataobj)
        mm = np.abs(np.asarray(placed.header.get_zooms()[:3], dtype=float))
    axis = {"axial": 2, "coronal": 1, "sagittal": 0}[item["plane"]]
    count = values.shape[axis]
    number = count // 2 if item["index"] is None else item["index"]
    if not 0 <= number < count:
        raise ConfigError(f"the {item['plane']} planes are numbered from 0 to {count - 1}")
    cut = np.take(values, number, axis=axis)
    others = [mm[n] for n in range(3) if n != axis]
    # RAS+: right is left on the screen, front and head are up; seen from the side, the front is on the left.
    cut = cut[::-1, ::-1].T
    if values.dtype.names:
        shown = np.stack([cut[name] for name in values.dtype.names], axis=-1)
    elif item["window"] is not None:
        shown = Window(*item["window"]).apply(cut)
    else:
        low, high = (float(v) for v in np.percentile(values, (0.5, 99.5)))
        shown = Window((low + high) / 2, max(high - low, 1e-6), "linear-exact").apply(cut)
    rows, columns = shown.shape[:2]
    fine = min(others)
    size = (min(max(round(columns * others[0] / fine), 1), 4096), min(max(round(rows * others[1] / fine), 1), 4096))
    picture = Pillow.fromarray(np.ascontiguousarray(shown)).resize(size, Pillow.Resampling.BILINEAR)
    return encode_picture(np.asarray(picture), "image/png")
