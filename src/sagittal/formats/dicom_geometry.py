"""Where the planes of a DICOM series lie: their order along the normal, and the grid that they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset as Header

from sagittal.errors import GeometryError
from sagittal.formats.dicom_file import PixelFormat
from sagittal.grid import Grid
from sagittal.guard.limits import check_size
from sagittal.types import Floats

#: Sine of the greatest angle between the slices' shift and their normal that passes as no gantry tilt, 0.5 degrees.
_TILT = 0.0087


@dataclass(frozen=True, eq=False)
class Plane:
    """One frame: where it lies, and what its stored values mean."""

    layout: PixelFormat
    orientation: Floats | None  # (6,)
    position: Floats | None  # (3,), mm
    spacing: Floats | None  # (2,): between rows, between columns, mm
    thickness: float | None  # mm
    rescale: Header | None  # the data set or item that holds slope and intercept or a LUT
    cine: bool
    real_world: Sequence[Header] = ()  # items of the frame's RealWorldValueMappingSequence
    frame: int = 0  # of its file
    tile: tuple[int, int, int, int] | None = None  # the part of the frame that it is: first row, column, rows, columns

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.tile[2:] if self.tile else (self.layout.rows, self.layout.columns)

    @property
    def bits(self) -> int:
        """Bits of the values after decoding."""
        return 8 if self.layout.photometric == "PALETTE COLOR" else self.layout.stored


def check_alike(planes: list[Plane]) -> None:
    """Compare the planes' sizes and photometric interpretations.

    Raises
    ------
    GeometryError
        If they differ.
    ReadError
        If all together are absurdly large.
    """
    first = planes[0]
    for plane in planes:
        for word, a, b in (
            ("sizes", plane.size, first.size),
            ("photometric interpretations", plane.layout.photometric, first.layout.photometric),
        ):
            if a != b:
                raise GeometryError(f"DICOM: the slices are of different {word}, {b} and {a}: not one volume")
    check_size((len(planes), *first.size, first.layout.samples), "DICOM series")


def place_planes(planes: list[Plane], *, tilt: str = "refuse") -> tuple[list[int], Grid]:
    """The order of the planes along their normal, and the grid.

    Parameters
    ----------
    planes : list of Plane
    tilt : str
        ``"refuse"`` slices that are shifted against each other as a tilted gantry does, or ``"shear"``: give the exact
        affine, whose third column is then not perpendicular to the others.

    Raises
    ------
    GeometryError
        If the planes make no volume.
    """
    first = planes[0]
    shape = (first.size[1], first.size[0], len(planes))
    order = list(range(len(planes)))
    spacing = first.spacing
    if any(p.orientation is None or p.position is None for p in planes) or spacing is None:
        if len(planes) > 1 and not first.cine:
            raise GeometryError(
                f"DICOM: {len(planes)} slices without position, orientation or pixel spacing make no volume; read them one by one"
            )
        if spacing is None:
            return order, Grid(shape)
        # What lies between the frames of a loop is time.
        third = np.nan if first.cine else first.thickness or np.nan
        return order, Grid(shape, spacing=(spacing[1], spacing[0], third))
    orientations = np.array([p.orientation for p in planes])
    positions = np.array([p.position for p in planes])
    row, column = _axes(orientations[0])
    normal = np.cross(row, column)
    depths = positions @ normal
    if np.abs(orientations - orientations[0]).max() > 1e-3:
        raise GeometryError(
            f"DICOM: the slices have different orientations, so they are not one volume; {_depths(depths)}"
        )
    if any(p.spacing is None or np.abs(p.spacing / spacing - 1).max() > 1e-3 for p in planes):
        raise GeometryError(
            f"DICOM: the slices have different pixel spacings, so they are not one volume; {_depths(depths)}"
        )
    order = [int(n) for n in np.argsort(depths, kind="stable")]
    step = _step(positions[order], depths[order], normal, first.thickness, tilt)
    if step is None:
        return order, Grid(shape, spacing=(spacing[1], spacing[0], np.nan))
    affine = np.eye(4)
    affine[:3, 0] = row * spacing[1]
    affine[:3, 1] = column * spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = positions[order[0]]
    return order, Grid(shape, affine)


def _axes(orientation: Floats) -> tuple[Floats, Floats]:
    row, column = orientation[:3], orientation[3:]
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if abs(lengths[0] - 1) > 1e-2 or abs(lengths[1] - 1) > 1e-2 or abs(row @ column) > 1e-2:
        raise GeometryError(
            f"DICOM: ImageOrientationPatient is not two perpendicular unit vectors: {np.round(orientation, 4).tolist()}"
        )
    return row / lengths[0], column / lengths[1]


def _step(positions: Floats, depths: Floats, normal: Floats, thickness: float | None, tilt: str) -> Floats | None:
    """The vector from one slice to the next, mm; slices sorted. ``None`` for one slice of unknown thickness."""
    count = len(positions)
    if count == 1:
        return np.asarray(normal * thickness) if thickness is not None else None
    steps = np.diff(depths)
    if steps.min() < 1e-3:
        raise GeometryError(
            f"DICOM: {int((steps < 1e-3).sum())} slices lie at the place of another (several phases, echoes or copies "
            f"in one series); give each as a series of its own; {_depths(depths)}"
        )
    step = (positions[-1] - positions[0]) / (count - 1)
    usual = float(np.sort(steps)[(len(steps) - 1) // 2])  # the lower median: a mean of two would be nobody's distance
    # Positions are often rounded to a tenth of a millimetre.
    tolerance = max(0.05 * usual, 0.06)
    # Depths alone decide on gaps: a tilted gantry shifts slices within their planes.
    if (
        np.abs(steps - usual).max() > 2 * tolerance
        or np.abs(depths - np.linspace(depths[0], depths[-1], count)).max() > tolerance
    ):
        worst = int(np.abs(steps - usual).argmax())
        missing = round(float(steps[worst]) / usual) - 1
        raise GeometryError(
            "DICOM: the slices are not evenly spaced: "
            f"{steps[worst]:.2f} mm between slices {worst + 1} and {worst + 2}, {usual:.2f} mm elsewhere"
            + (f" ({missing} missing)" if missing > 0 and abs(steps[worst] / usual - missing - 1) < 0.1 else "")
            + f"; {_depths(depths)}"
        )
    sine = float(np.linalg.norm(np.cross(step, normal)) / np.linalg.norm(step))
    if sine > _TILT and tilt != "shear":
        raise GeometryError(
            f"DICOM: the gantry is tilted by {np.degrees(np.arcsin(min(sine, 1.0))):.1f} degrees against the slices; "
            "correct the tilt first (resample to straight slices), or ask for the exact sheared grid with "
            f"tilt='shear'; {_depths(depths)}"
        )
    if np.linalg.norm(positions - (positions[0] + np.arange(count)[:, np.newaxis] * step), axis=1).max() > max(
        tolerance, 0.5
    ):
        raise GeometryError(f"DICOM: the slices are shifted against each other within their planes; {_depths(depths)}")
    return np.asarray(step)


def _depths(depths: Floats) -> str:
    shown = [f"{d:.2f}" for d in sorted(depths.tolist())]
    if len(shown) > 24:
        shown = [*shown[:12], "...", *shown[-12:]]
    return f"positions along the normal in mm: {', '.join(shown)}"
