"""Image: voxel values on a grid."""

from __future__ import annotations

from dataclasses import dataclass

from sagittal.errors import GeometryError
from sagittal.grid import Grid
from sagittal.types import Floats


@dataclass(frozen=True, eq=False)
class Image:
    """Voxel values on a grid.

    Parameters
    ----------
    data : (C, I, J, K) float32
        Channels first, then the grid's own axes: column index, row index, slice index. For a picture of
        ``height x width`` that is ``(C, width, height, 1)``; colour is C == 3 in the order R, G, B.
    grid : Grid
    unit : str
        ``"HU"``, ``"SUV"``, ``"g/cm3"``; ``"1"`` where the scale is arbitrary, as in most MR and pictures.
    modality : str
        DICOM modality code (PS3.3 C.7.3.1.1.1): ``"CT"``, ``"MR"``, ``"US"``, ``"CR"``, ``"XC"`` ...;
        ``"OT"`` where the file does not say.
    bits : int
        Bits that the stored values needed, 8 for an ordinary picture; 0 where unknown or real-valued.
    body_part : str
        DICOM BodyPartExamined, upper case; empty where the file does not say.
    burned_in : bool, optional
        Whether names or numbers of the patient may stand in the pixels (BurnedInAnnotation); ``None`` where the file
        does not say, as most ultrasound and photographs do not.
    notes : tuple of str
        What was decided on reading that the values do not show, such as why activity was not turned into SUV.
    """

    data: Floats
    grid: Grid
    unit: str = "1"
    modality: str = "OT"
    bits: int = 0
    body_part: str = ""
    burned_in: bool | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.data.ndim != 4 or self.data.shape[1:] != self.grid.shape:
            raise GeometryError(f"data {self.data.shape} does not fit grid {self.grid.shape}: expected (C, I, J, K)")

    @property
    def channels(self) -> int:
        """Values in each voxel: 1 for grey, 3 for colour."""
        return int(self.data.shape[0])
