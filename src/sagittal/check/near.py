"""Near duplicates: images that were encoded again, resized, mirrored or turned, among thousands of look-alikes.

Chest radiographs are alike, and so are photographs of moles. So the frequencies of an image are measured against those of
the whole set: what all images share is taken out, and what sets one apart counts. A first, exhaustive comparison of the
lowest frequencies names candidates; more of the frequencies decide. The thresholds were chosen on the first half of
HAM10000 and the training split of PneumoniaMNIST; ``benchmarks/near_duplicates.py`` reports on other images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sagittal.check.descriptor import turn, turns
from sagittal.types import Array, Floats

#: Frequencies along each axis that name candidates, and the least correlation of a candidate.
_SEARCHED = {2: 8, 3: 5}
_CANDIDATE = 0.75
#: Images less long than this along an axis hold too little to tell a copy from a look-alike.
LEAST_SIDE = 12
#: So many more images, of no particular kind, are taken to belong to the set: a small set says little of what is common.
_PRIOR = 20
#: Rows compared at a time, and the most candidates kept of each.
_ROWS, _MOST = 512, 40


@dataclass(frozen=True)
class Near:
    """Two images that show the same.

    Parameters
    ----------
    first, second : int
        Rows of the descriptors.
    similarity : float
        Correlation of what sets the two apart from the other images, 1 for exact copies.
    turned : bool
        Whether one has to be mirrored or turned to fit the other.
    """

    first: int
    second: int
    similarity: float
    turned: bool


def least_similarity(frequencies: int) -> float:
    """The correlation from which two images are called copies, by how many frequencies could be compared.

    >>> [round(least_similarity(n), 3) for n in (7, 16)]
    [0.975, 0.92]
    """
    return float(np.interp(frequencies, [7, 11, 16], [0.975, 0.942, 0.92]))


def find_near(descriptors: Array, sides: Sequence[int]) -> list[Near]:
    """Pairs of images that show the same, the most similar first.

    Every image is compared with every other in each of the 8 ways to mirror and turn a picture, or 48 for a volume.

    Parameters
    ----------
    descriptors : (N, F, F) or (N, F, F, F)
        From :func:`sagittal.check.descriptor.describe`.
    sides : (N,) int
        Voxels along the shortest axis of each image: a copy of half the size has lost half the frequencies.

    Returns
    -------
    list of Near
        Each pair once, with ``first < second``.
    """
    sides_ = np.asarray(sides, dtype=np.int64)
    usable = np.flatnonzero(sides_ >= LEAST_SIDE)
    if len(usable) < 2:
        return []
    values = np.asarray(descriptors, dtype=np.float32)[usable]
    sides_ = sides_[usable]
    best: dict[tuple[int, int], Near] = {}
    candidates = _candidates(values)
    for frequencies, rows in _by_frequencies(candidates, sides_, values.shape[1], values.ndim - 1):
        least = least_similarity(frequencies)
        judged = _similarities(values, candidates, rows, frequencies, least)
        for n in np.flatnonzero(judged >= least):
            i, j, how = (int(part[rows[n]]) for part in candidates)
            first, second = sorted((int(usable[i]), int(usable[j])))
            # Of an image that is its own mirror image the plain way is told.
            found = Near(first, second, min(1.0, float(judged[n])), how > 0)
            known = best.get((first, second))
            if known is None or (found.similarity - 0.002 * found.turned) > (known.similarity - 0.002 * known.turned):
                best[first, second] = found
    return sorted(best.values(), key=lambda near: (-near.similarity, near.first, near.second))


_Found = tuple[Array, Array, Array]


def _candidates(values: Floats) -> _Found:
    """Pairs whose lowest frequencies agree: first, second, and number of the turn."""
    found: list[_Found] = []
    lowest = _unit(_block(values, _SEARCHED[values.ndim - 1]))
    common, spread = _usual(lowest)
    plain = _apart(lowest, common, spread)
    for number, how in enumerate(turns(values.ndim - 1)):
        turned = _apart(turn(lowest, how), common, spread)
        for start in range(0, len(values) - 1, _ROWS):
            scores = turned[start : start + _ROWS] @ plain[start + 1 :].T
            rows, columns = np.nonzero(scores > _CANDIDATE)
            # Both images lie in this block of rows: the pair comes twice, once the other way round; the first is kept.
            later = columns >= rows
            rows, columns = rows[later], columns[later]
            rows, columns = _strongest(rows, columns, scores)
            ways = np.full(len(rows), number, dtype=np.uint8)
            found.append(((rows + start).astype(np.int32), (columns + start + 1).astype(np.int32), ways))
    first, second, way = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return first, second, way


def _strongest(rows: Array, columns: Array, scores: Floats) -> tuple[Array, Array]:
    """At most so many candidates of one image: a set of thousands of equal frames must not fill the memory."""
    if len(rows) <= _MOST or np.bincount(rows).max() <= _MOST:
        return rows, columns
    order = np.lexsort((-scores[rows, columns], rows))
    rows, columns = rows[order], columns[order]
    starts = np.searchsorted(rows, rows)
    kept = np.arange(len(rows)) - starts < _MOST
    return rows[kept], columns[kept]


def _by_frequencies(candidates: _Found, sides: Array, most: int, dimensions: int) -> Iterator[tuple[int, Array]]:
    """Candidates grouped by how many frequencies both images hold: 0.4 of the shorter side, at most 16 (14 of volumes)."""
    first, second, _ = candidates
    smaller = np.minimum(sides[first], sides[second])
    held = np.clip(np.rint(0.4 * smaller), 7 if dimensions == 2 else 5, min(16, most)).astype(int)
    for frequencies in np.unique(held):
        yield int(frequencies), np.flatnonzero(held == frequencies)


def _similarities(values: Floats, candidates: _Found, rows: Array, frequencies: int, least: float) -> Floats:
    """Correlations of candidates; exact only from `least` on.

    A mirrored image is far from what is common to the set, and so are all others once they are mirrored: seen in a mirror
    they would be alike. Copies are alike however both are turned, so the least similar of these views counts.
    """
    first, second, way = (part[rows] for part in candidates)
    held = _unit(_block(values, frequencies))
    common, spread = _usual(held)
    ways = turns(values.ndim - 1)
    result = np.zeros(len(rows), dtype=np.float32)
    for number, how in enumerate(ways):
        mine = np.flatnonzero(way == number)
        for start in range(0, len(mine), 4096):
            part = mine[start : start + 4096]
            left, right = turn(held[first[part]], how), held[second[part]]
            judged = np.ones(len(part), dtype=np.float32)
            for view in ways:
                # Most candidates fail in the first view; the others are looked at in the next.
                on = np.flatnonzero(judged >= least)
                if not len(on):
                    break
                seen = (_apart(turn(side[on], view), common, spread) for side in (left, right))
                judged[on] = np.minimum(judged[on], np.einsum("nf,nf->n", *seen))
            result[part] = judged
    return result


def _block(values: Floats, frequencies: int) -> Floats:
    return values[(slice(None), *(slice(frequencies),) * (values.ndim - 1))]


def _unit(values: Floats) -> Floats:
    axes = tuple(range(1, values.ndim))
    norm = np.sqrt((values**2).sum(axis=axes, keepdims=True))
    return np.asarray(values / np.maximum(norm, 1e-9))


def _usual(values: Floats) -> tuple[Floats, Floats]:
    """Mean and spread of each frequency over the set."""
    n = len(values) + _PRIOR
    common = values.sum(axis=0) / n
    variance = (((values - common) ** 2).sum(axis=0) + _PRIOR / common.size) / n
    return common, np.asarray(np.sqrt(variance))


def _apart(values: Floats, common: Floats, spread: Floats) -> Floats:
    """What sets each image apart from the set, (N, D) of unit length."""
    return np.asarray(_unit((values - common) / spread).reshape(len(values), -1))
