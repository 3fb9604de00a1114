"""What every measure of masks asks of its input: two masks of one shape, and a spacing that fits them."""

from __future__ import annotations

from typing import Any

import numpy as np

from sagittal.errors import GeometryError, MaskError
from sagittal.types import Array, Bools, Floats


def check_masks(pred: Array, truth: Array) -> tuple[Bools, Bools]:
    """Both masks as they are, once they fit each other.

    Raises
    ------
    MaskError
        If the masks are not boolean, differ in shape or have no (I, J) or (I, J, K) axes.
    """
    for name, mask in (("pred", pred), ("truth", truth)):
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
            found = mask.dtype if isinstance(mask, np.ndarray) else type(mask).__name__
            raise MaskError(f"{name} is {found}, expected a bool array: compare the label map first, as in labels == 1")
    if pred.shape != truth.shape:
        raise MaskError(
            f"pred {pred.shape} and truth {truth.shape} differ in shape: bring the prediction to the truth's grid first"
        )
    if pred.ndim not in (2, 3):
        raise MaskError(f"masks have axes (I, J) or (I, J, K), not the shape {pred.shape}")
    return pred, truth


def check_spacing(spacing: Any, ndim: int) -> Floats:
    """Voxel edge lengths as (ndim,) float64, mm.

    A third number is allowed, and left out, where the masks have two axes.

    Raises
    ------
    GeometryError
        If there are too few numbers, or one is not a positive length.
    """
    if spacing is None:
        raise GeometryError("this measure needs a spacing in mm, and the image has none; give (1, 1, 1) for pixels")
    lengths = np.asarray(spacing, dtype=np.float64)
    if lengths.ndim != 1 or len(lengths) not in (ndim, 3):
        raise GeometryError(f"spacing holds one length for each of {ndim} axes, not {np.shape(spacing)}")
    lengths = lengths[:ndim]
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise GeometryError(f"spacing holds positive lengths in mm, not {lengths.tolist()}")
    return lengths


def flat(mask: Bools) -> Bools:
    """A mask of one slice as (I, J): a picture has a contour, and no upper and lower side."""
    return mask[:, :, 0] if mask.ndim == 3 and mask.shape[2] == 1 else mask
