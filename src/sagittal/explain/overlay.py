"""Overlay: a map on its study as a picture for people, with the input beside it and its worth under it."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sagittal.explain.faithfulness import Faithfulness
from sagittal.explain.maps import Map
from sagittal.image import Image
from sagittal.tasks.picture import window
from sagittal.types import Array, Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Perceptually uniform: equal steps of the map look equal, also in grey and to the colour-blind.
COLOURS = "inferno"
#: Strongest cover of the image by the map.
OPACITY = 0.65
DPI = 110


@dataclass(frozen=True, eq=False)
class Plane:
    """A cut through a study: grey or colour values, the map there, and its aspect.

    `pixels` is (rows, columns, 3) uint8 and `heat` (rows, columns) float, 0 to 1; `aspect` is the height of a pixel
    divided by its width; `name` says which cut it is.
    """

    name: str
    pixels: Array
    heat: Floats
    aspect: float


def draw_overlay(image: Image, found: Map) -> bytes:
    """PNG bytes: the input, the map over it with a colour bar, and the deletion and insertion curves.

    Volumes are cut in three planes through the strongest voxel of the map. Only what speaks for the class is drawn; the
    colour scale ends at the 99.8th percentile of the map.

    Parameters
    ----------
    image : Image
        Of the case, on the map's grid.
    found : Map
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    planes = cut(image, found.heat)
    figure = Figure(figsize=(3.1 * len(planes) + 3.4, 6.2) if len(planes) > 1 else (10.4, 3.9), dpi=DPI)
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained")
    if len(planes) == 1:
        first, second, curves = figure.subplots(1, 3, width_ratios=(1, 1.15, 1.1))
        inputs, overlays = [first], [second]
    else:
        widths = [*[p.pixels.shape[1] / p.pixels.shape[0] / p.aspect for p in planes], 1.1]
        mosaic: Any = [[f"i{n}" for n in range(3)] + ["c"], [f"o{n}" for n in range(3)] + ["c"]]
        places = figure.subplot_mosaic(mosaic, width_ratios=np.clip(widths, 0.3, 1.6))
        inputs, overlays = [places[f"i{n}"] for n in range(3)], [places[f"o{n}"] for n in range(3)]
        curves = places["c"]
    shown: Any = None
    for below, above, plane in zip(inputs, overlays, planes, strict=True):
        for axes in (below, above):
            axes.imshow(plane.pixels, aspect=plane.aspect, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
        # What the map does not mark stays visible: cover grows with the map.
        cover = OPACITY * np.sqrt(plane.heat)
        shown = above.imshow(plane.heat, cmap=COLOURS, vmin=0, vmax=1, alpha=cover, aspect=plane.aspect)
        below.set_title(plane.name, fontsize=9)
    figure.colorbar(
        shown, ax=[*inputs, *overlays] if len(planes) > 1 else overlays, shrink=0.8, label="relative importance"
    )
    overlays[0].set_title(
        f"{found.method} for '{found.target}', probability {found.probability:.2f}", fontsize=9, loc="left"
    )
    _draw_curves(curves, found)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def score_text(worth: Faithfulness | None) -> str:
    """Scores and verdict in words."""
    if worth is None:
        return "faithfulness not measured"
    verdict = "better than random maps" if worth.better_than_random else "no better than random maps"
    return (
        f"deletion {worth.deletion:.2f} (random {worth.random_deletion:.2f} ± {worth.random_deletion_std:.2f})\n"
        f"insertion {worth.insertion:.2f} (random {worth.random_insertion:.2f} ± {worth.random_insertion_std:.2f})\n"
        f"{verdict} (p = {worth.p_value:.2f})"
    )


def cut(image: Image, heat: Floats) -> list[Plane]:
    """The plane of a picture, or three planes of a volume through the strongest voxel of the map.

    Rows go down the patient where the file gives a position.
    """
    values = window(image.data, bits=image.bits)
    colour = values if image.channels == 3 else np.repeat(values[:1], 3, axis=0)  # (3, I, J, K)
    positive = np.maximum(heat, 0)
    top = float(np.percentile(positive, 99.8))
    relative = np.clip(positive / (top if top > 0 else max(float(positive.max()), 1e-12)), 0, 1)
    spacing = image.grid.spacing
    mm = np.ones(3) if spacing is None or not np.all(np.isfinite(spacing)) else np.asarray(spacing)
    if image.grid.dimensions == 2:
        return [Plane("input", colour[..., 0].transpose(2, 1, 0), relative[..., 0].T, float(mm[1] / mm[0]))]
    i, j, k = (int(n) for n in np.unravel_index(int(np.argmax(heat)), heat.shape))
    # LPS+: the third patient axis points to the head, so increasing k must go up the picture.
    up = image.grid.affine is not None and image.grid.affine[2, 2] > 0
    cuts: list[tuple[str, Any, int, int, bool]] = [
        (f"slice {k + 1} of {heat.shape[2]}", np.s_[..., :, :, k], 0, 1, False),
        (f"row {j + 1} of {heat.shape[1]}", np.s_[..., :, j, :], 0, 2, up),
        (f"column {i + 1} of {heat.shape[0]}", np.s_[..., i, :, :], 1, 2, up),
    ]
    planes = []
    for name, place, across, down, flip in cuts:
        pixels, map_ = colour[place].transpose(2, 1, 0), relative[place].T
        if flip:
            pixels, map_ = pixels[::-1], map_[::-1]
        planes.append(Plane(name, pixels, map_, float(mm[down] / mm[across])))
    return planes


def _draw_curves(axes: Axes, found: Map) -> None:
    worth = found.faithfulness
    axes.set_title(score_text(worth), fontsize=8, loc="left")
    if worth is None:
        axes.axis("off")
        return
    x = 100 * worth.fraction
    for curve, randoms, colour, name in (
        (worth.deletion_curve, worth.random_deletion_curves, "#b2182b", "deletion"),
        (worth.insertion_curve, worth.random_insertion_curves, "#2166ac", "insertion"),
    ):
        axes.plot(x, curve, color=colour, label=f"{name}, this map")
        if len(randoms):
            low, high = np.quantile(randoms, [0.05, 0.95], axis=0)
            axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0, label=f"{name}, random maps (90 %)")
    axes.set_xlabel("voxels removed or put in, most important first (%)", fontsize=8)
    axes.set_ylabel(f"probability of '{found.target}'", fontsize=8)
    axes.set_ylim(-0.02, 1.02)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=7, loc="center right", framealpha=0.8)
