"""Surface elements: how much surface runs through a block of 2 x 2 x 2 voxels, from geometry.

The corners of a small cube are the centres of eight voxels, inside a mask or outside. The surface cuts each edge between
an inside and an outside corner in its middle, as in marching cubes [1]_. Three rules make it unique:

1. Only the rarer kind of corner matters (inside, where both are four), so that a mask and its complement have one surface.
2. On a face with two such corners across, each is cut off by itself.
3. A loop of edge middles that is not flat is cut into triangles that lie in as few planes as possible.

The areas that follow are those of Nikolov et al. [2]_ for every block and every spacing; a test compares them.

References
----------
.. [1] Lorensen and Cline, SIGGRAPH 21:163, 1987.
.. [2] Nikolov et al., J Med Internet Res 23(7):e26151, 2021.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from sagittal.types import Floats

Corner = tuple[int, int, int]
_CORNERS: tuple[Corner, ...] = tuple((a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1))


def surfel_areas(spacing: Floats) -> Floats:
    """Area of the surface in each of the 256 blocks of 2 x 2 x 2 voxels, (256,) mm^2.

    Parameters
    ----------
    spacing : (3,) float, mm
        Or (3, 3): the voxel's edges as columns, for voxels that are no boxes (slices of a tilted gantry).

    Returns
    -------
    (256,) float64
        At the block's code: bit ``4 a + 2 b + c`` is set where voxel (a, b, c) of the block is inside.

    Examples
    --------
    >>> areas = surfel_areas(np.array([1.0, 2.0, 3.0]))
    >>> float(areas[0b00001111]), float(areas[0])  # a plane across the first axis: 2 mm x 3 mm
    (6.0, 0.0)
    """
    edges = np.asarray(spacing, dtype=np.float64)
    if edges.ndim == 1:
        i, j, k = edges
        return np.asarray(np.linalg.norm(_normals() * (j * k, i * k, i * j), axis=2).sum(axis=1))
    # Areas of planes follow the cofactors of a linear map.
    cofactors = np.linalg.det(edges) * np.linalg.inv(edges)
    return np.asarray(np.linalg.norm(_normals() @ cofactors, axis=2).sum(axis=1))


def contour_lengths(spacing: Floats) -> Floats:
    """Length of the contour in each of the 16 blocks of 2 x 2 pixels, (16,) mm; bit ``2 a + b`` for pixel (a, b).

    >>> lengths = contour_lengths(np.array([3.0, 4.0]))
    >>> float(lengths[0b0011]), float(lengths[0b0001]), float(lengths[0b1001])
    (4.0, 2.5, 5.0)
    """
    i, j = (float(s) for s in spacing)
    corner = np.hypot(i, j) / 2
    by_code = np.full(16, corner)  # one corner, or all but one
    by_code[[0b0000, 0b1111]] = 0.0
    by_code[[0b0011, 0b1100]] = j
    by_code[[0b0101, 0b1010]] = i
    by_code[[0b0110, 0b1001]] = 2 * corner
    return by_code


@lru_cache(maxsize=1)
def _normals() -> Floats:
    """Normal of each flat part of the surface in each block, its length the area at unit spacing, (256, 4, 3)."""
    out = np.zeros((256, 4, 3))
    for code in range(1, 255):
        inside = frozenset(c for bit, c in enumerate(_CORNERS) if code >> bit & 1)
        if len(inside) > 4:
            continue
        parts = np.array([normal for loop in _loops(inside) for normal in _flat_parts(loop)])
        out[code, : len(parts)] = parts
        if len(inside) < 4:
            out[255 - code] = -out[code]  # rule 1
    out.flags.writeable = False
    return out


def _loops(inside: frozenset[Corner]) -> Iterator[Floats]:
    """Closed loops of edge middles around the inside corners, (n, 3) each."""
    links: dict[tuple[Corner, Corner], list[tuple[Corner, Corner]]] = {}
    for axis, side in itertools.product(range(3), (0, 1)):
        face = [c for c in _CORNERS if c[axis] == side]
        cut = [(c, d) for c in face if c in inside for d in face if d not in inside and _touch(c, d)]
        if len(cut) == 4:  # two inside corners across from each other: rule 2
            pairs = [[edge for edge in cut if edge[0] == c] for c in face if c in inside]
        else:
            pairs = [cut] if cut else []
        for first, second in pairs:
            links.setdefault(first, []).append(second)
            links.setdefault(second, []).append(first)
    while links:
        at = next(iter(links))
        loop = []
        while at in links:
            loop.append(np.mean(at, axis=0))
            at = next((other for other in links.pop(at) if other in links), at)
        yield np.array(loop)


def _touch(c: Corner, d: Corner) -> bool:
    return sum(x != y for x, y in zip(c, d, strict=True)) == 1


def _flat_parts(loop: Floats) -> list[Floats]:
    """Area normals of the triangles of a loop, those in one plane added up: rule 3."""
    best: list[Floats] = []
    for triangles in _triangulations(tuple(range(len(loop)))):
        planes: dict[tuple[float, ...], Floats] = {}
        for a, b, c in triangles:
            normal = np.cross(loop[b] - loop[a], loop[c] - loop[a]) / 2
            direction = tuple(np.round(normal / np.linalg.norm(normal), 6) + 0.0)
            planes[direction] = planes.get(direction, np.zeros(3)) + normal
        if not best or len(planes) < len(best):
            best = list(planes.values())
        if len(best) == 1:
            break
    return best


def _triangulations(loop: tuple[int, ...]) -> Iterator[list[tuple[int, int, int]]]:
    """Every way to cut a polygon into triangles."""
    if len(loop) < 3:
        yield []
        return
    for k in range(1, len(loop) - 1):
        for before in _triangulations(loop[: k + 1]):
            for after in _triangulations(loop[k:]):
                yield [(loop[0], loop[k], loop[-1]), *before, *after]
