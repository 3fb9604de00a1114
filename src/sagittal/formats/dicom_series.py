"""Several volumes in one DICOM series, told apart by what their headers say.

A series may hold many volumes: echoes, b-values and directions of diffusion, phases of the heart, repetitions, the
water and fat of a Dixon, three planes of a localiser. Frames of different size, frame of reference, orientation or
spacing are never one volume. Where several frames lie at one place, the headers' keys are tried in a fixed order, and
one that differs at one place tells them apart. Frames that no key tells apart are put in the order of acquisition,
only where each place holds equally many; else they stay together, and reading refuses them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sagittal.types import Floats

#: Sines, or direction cosines, that differ by less are the same orientation.
SAME_ORIENTATION = 1e-3
#: Two frames nearer than this along the normal lie at one place, mm.
SAME_DEPTH_MM = 0.01
#: And those that are shifted within their plane by more do not, mm.
_SAME_PLANE_MM = 0.5
#: Different orientations or places that a frame is compared with, so that thousands of them end in time.
_MOST_COMPARED = 600


@dataclass(frozen=True)
class Traits:
    """What tells a frame from the others of its series.

    Parameters
    ----------
    size : tuple
        Rows, columns, and how colours are stored.
    orientation : 6 floats, optional
        ImageOrientationPatient.
    position : 3 floats, optional
        ImagePositionPatient, mm.
    spacing : 2 floats, optional
        Between rows and between columns, mm.
    told : mapping
        Keys of :data:`KEYS` -> value, those that the header gives.
    order : mapping
        ``trigger``, ``acquired``, ``content`` (each a time in any unit), ``number``: what is known of when the frame
        was taken.
    """

    size: tuple[Any, ...]
    orientation: tuple[float, ...] | None = None
    position: tuple[float, ...] | None = None
    spacing: tuple[float, ...] | None = None
    told: Mapping[str, Any] = field(default_factory=dict)
    order: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """Frames that make one volume.

    Attributes
    ----------
    members : tuple of int
        Which of the frames given.
    label : str
        Safe in a name, such as ``echo2`` or ``b1000-dir3``; empty where the series is one volume.
    reason : str
        What tells the volume apart, in words; empty where the series is one volume.
    """

    members: tuple[int, ...]
    label: str = ""
    reason: str = ""


@dataclass(frozen=True)
class _Key:
    words: str
    label: Callable[[Any, int], str]  # value, rank from 1
    weak: bool = False  # may number frames instead of volumes


#: What tells volumes at one place apart, in the order in which it is tried.
KEYS: dict[str, _Key] = {
    "stack": _Key("stack (0020,9056)", lambda v, n: f"stack{n}"),
    "type": _Key("image type (0008,0008)", lambda v, n: f"type{n}"),
    "echo": _Key("echo time (0018,0081)", lambda v, n: f"echo{n}"),
    "inversion": _Key("inversion time (0018,0082)", lambda v, n: f"ti{n}"),
    "b": _Key("b-value (0018,9087)", lambda v, n: f"b{v:.0f}" if v >= 0 else "trace"),
    "direction": _Key("direction of diffusion (0018,9089)", lambda v, n: f"dir{n}" if v else "nodir", weak=True),
    "phase": _Key("temporal position (0020,0100)", lambda v, n: f"phase{n}", weak=True),
    "heart": _Key("percentage of the cardiac cycle (0020,9241)", lambda v, n: f"phase{n}", weak=True),
    "acquisition": _Key("acquisition number (0020,0012)", lambda v, n: f"acq{n}", weak=True),
    **{f"index{d}": _Key("dimension index (0020,9157)", lambda v, n: f"index{n}", weak=True) for d in range(8)},
}
#: Words of ImageType and ComplexImageComponent that are safe to show, and how.
_TYPE_WORDS = {
    "M": "magnitude", "MAGNITUDE": "magnitude", "P": "phasemap", "PHASE": "phasemap", "R": "real", "REAL": "real",
    "I": "imaginary", "IMAGINARY": "imaginary", "W": "water", "WATER": "water", "F": "fat", "FAT": "fat",
    "IP": "inphase", "IN_PHASE": "inphase", "OP": "opposed", "OPP_PHASE": "opposed", "OUT_PHASE": "opposed",
    "ADC": "adc", "FA": "fa", "TRACEW": "trace", "TRACE": "trace", "DERIVED": "derived", "MOSAIC": "mosaic",
    "LOCALIZER": "localiser", "FF": "fatfraction", "FAT_FRACTION": "fatfraction", "R2_STAR": "r2star",
    "T2_STAR": "t2star", "MPR": "mpr", "MIP": "mip", "MINIP": "minip", "PHASE MAP": "phasemap", "SUBTRACTION": "sub",
    "VELOCITY": "velocity",
}  # fmt: skip
_PLANES = ("sagittal", "coronal", "axial")


def split_series(frames: Sequence[Traits]) -> list[Part]:
    """The volumes of one series; one part without label where there is nothing to tell apart.

    Parameters
    ----------
    frames : sequence of Traits

    Returns
    -------
    list of Part
        Each frame in exactly one part, in a fixed order that does not depend on file names.
    """
    found = [piece for part in _alike(frames) for piece in _tell_apart(frames, *part)]
    if len(found) == 1 and not found[0][1]:
        return [Part(tuple(found[0][0]), "", "; ".join(found[0][2]))]
    labels = _unlike(["-".join(label) for _, label, _ in found])
    return [
        Part(
            tuple(members),
            label,
            f"volume {n} of {len(found)} of its series, told apart by " + ", ".join(dict.fromkeys(words)),
        )
        for n, ((members, _, words), label) in enumerate(zip(found, labels, strict=True), 1)
    ]


def repeats(frames: Sequence[Traits]) -> bool:
    """Whether any place holds more than one frame, frames of different basic traits taken apart."""
    return any(max(Counter(_places(frames, members)).values()) > 1 for members, _, _ in _alike(frames))


#: Members, words of the label, what tells them apart.
_Piece = tuple[list[int], list[str], list[str]]


def _alike(frames: Sequence[Traits]) -> list[_Piece]:
    """Frames of equal size, frame of reference, orientation and spacing."""
    parts: list[_Piece] = [(list(range(len(frames))), [], [])] if frames else []
    for name, words, value in _BASIC:
        parts = [piece for part in parts for piece in _basic(frames, part, name, words, value)]
    return parts


def _close(a: tuple[float, ...] | None, b: tuple[float, ...] | None, tolerance: float) -> bool:
    if a is None or b is None:
        return a is b
    return a == b or (len(a) == len(b) and max(abs(x - y) for x, y in zip(a, b, strict=True)) <= tolerance)


def clusters(values: list[tuple[float, ...] | None], tolerance: float) -> list[int]:
    """For each value the number of its cluster, in the order in which they first come."""
    seen: list[tuple[float, ...] | None] = []
    known: dict[tuple[float, ...] | None, int] = {}
    for value in values:
        if value not in known:
            some = seen[:_MOST_COMPARED]
            near = next((n for n, other in enumerate(some) if _close(value, other, tolerance)), None)
            if near is None:
                near = len(seen)
                seen.append(value)
            known[value] = near
    return [known[value] for value in values]


def _plane_word(frame: Traits) -> str:
    if frame.orientation is None:
        return "unplaced"
    normal = np.cross(frame.orientation[:3], frame.orientation[3:])
    return _PLANES[int(np.abs(normal).argmax())] if np.all(np.isfinite(normal)) else "unplaced"


def _equal(values: list[Any]) -> list[int]:
    known: dict[Any, int] = {}
    return [known.setdefault(value, len(known)) for value in values]


def _is_localiser(frame: Traits) -> bool:
    return "LOCALIZER" in frame.told.get("type", ())


_Basic = tuple[str, str, Callable[[list[Traits]], list[int]]]
#: What frames of one volume share in any case: label, words, the cluster of each.
_BASIC: tuple[_Basic, ...] = (
    ("localiser", "image type (0008,0008)", lambda f: _equal([_is_localiser(x) for x in f])),
    ("size", "rows and columns", lambda f: _equal([x.size for x in f])),
    ("frame", "frame of reference (0020,0052)", lambda f: _equal([x.told.get("reference", "") for x in f])),
    ("plane", "orientation (0020,0037)", lambda f: clusters([x.orientation for x in f], SAME_ORIENTATION)),
    ("spacing", "pixel spacing (0028,0030)", lambda f: clusters([x.spacing for x in f], 1e-3)),
)


def _basic(
    frames: Sequence[Traits], part: _Piece, name: str, words: str, value: Callable[[list[Traits]], list[int]]
) -> list[_Piece]:
    members, label, why = part
    clusters = value([frames[m] for m in members])
    count = max(clusters) + 1
    if count == 1:
        return [part]
    pieces: list[_Piece] = []
    for n in range(count):
        own = [m for m, cluster in zip(members, clusters, strict=True) if cluster == n]
        first = frames[own[0]]
        text = {
            "localiser": "localiser" if _is_localiser(first) else "",
            "size": "x".join(str(v) for v in first.size[1::-1] if isinstance(v, int)),
            "plane": _plane_word(first),
        }.get(name, f"{name}{n + 1}")
        pieces.append((own, [*label, text] if text else label, [*why, words]))
    return pieces


def _places(frames: Sequence[Traits], members: list[int]) -> list[tuple[int, int]]:
    """Where each frame lies: the number of its depth along the normal, and of its place within the plane there."""
    first = frames[members[0]]
    if first.orientation is None or any(frames[m].position is None for m in members):
        return [(n, 0) for n in range(len(members))]
    positions = np.array([frames[m].position for m in members], dtype=np.float64)
    depths = _depths(frames, members)
    order = np.argsort(depths, kind="stable")
    level = np.zeros(len(members), dtype=int)
    level[order[1:]] = np.cumsum(np.diff(depths[order]) > SAME_DEPTH_MM)
    starts: dict[int, list[Floats]] = defaultdict(list)
    places = []
    for n, at in zip(level.tolist(), positions, strict=True):
        some = starts[n][:_MOST_COMPARED]
        near = next((k for k, other in enumerate(some) if np.linalg.norm(at - other) <= _SAME_PLANE_MM), None)
        if near is None:
            near = len(starts[n])
            starts[n].append(at)
        places.append((n, near))
    return places


def _depths(frames: Sequence[Traits], members: list[int]) -> Floats:
    orientation = frames[members[0]].orientation or (1, 0, 0, 0, 1, 0)
    normal = np.cross(orientation[:3], orientation[3:])
    return np.array([frames[m].position for m in members], dtype=np.float64) @ normal


def _tell_apart(
    frames: Sequence[Traits], members: list[int], label: list[str], why: list[str], after: int = -1
) -> list[_Piece]:
    places = _places(frames, members)
    most = max(Counter(places).values())
    if most == 1:
        return _by_run(frames, members, label, why)
    for n, (name, key) in enumerate(KEYS.items()):
        if n <= after:
            continue
        values = [frames[m].told.get(name) for m in members]
        if not _tells(places, values) or (key.weak and len(set(values)) > most):
            continue
        ranked = sorted(set(values), key=_sortable)
        pieces: list[_Piece] = []
        for rank, value in enumerate(ranked, 1):
            own = [m for m, v in zip(members, values, strict=True) if v == value]
            text = _type_label(value, ranked, rank) if name == "type" else _label(key, value, rank)
            pieces += _tell_apart(frames, own, [*label, text], [*why, key.words], n)
        return pieces
    return _by_rank(frames, members, label, why, places)


def _tells(places: list[tuple[int, int]], values: list[Any]) -> bool:
    """Whether any place holds frames of different value."""
    at: dict[tuple[int, int], Any] = {}
    return any(at.setdefault(place, value) != value for place, value in zip(places, values, strict=True))


def _sortable(value: Any) -> tuple[int, str, Any]:
    return (0, "", 0) if value is None else (1, type(value).__name__, value)


def _label(key: _Key, value: Any, rank: int) -> str:
    return "other" if value is None else key.label(value, rank)


def _type_label(value: Any, ranked: list[Any], rank: int) -> str:
    common = set.intersection(*(set(v or ()) for v in ranked))
    words = [_TYPE_WORDS[word] for word in value or () if word not in common and word in _TYPE_WORDS]
    others = [{_TYPE_WORDS.get(w, "") for w in v or () if w not in common} for v in ranked if v != value]
    words = list(dict.fromkeys(words))
    return "-".join(words) if words and set(words) not in [o - {""} for o in others] else f"type{rank}"


def _by_rank(
    frames: Sequence[Traits], members: list[int], label: list[str], why: list[str], places: list[tuple[int, int]]
) -> list[_Piece]:
    """Frames that nothing tells apart but when they were taken."""
    count = Counter(places)
    least, most = min(count.values()), max(count.values())
    if least != most:
        return [(members, [*label, "uneven"], [*why, f"nothing: its positions hold {least} to {most} frames each"])]
    for name, text, words in (
        ("trigger", "phase", "trigger time (0018,1060)"),
        ("acquired", "repeat", "acquisition time (0008,0032)"),
        ("number", "repeat", "instance number (0020,0013)"),
        ("content", "repeat", "content time (0008,0033)"),
    ):
        times = [frames[m].order.get(name) for m in members]
        if any(t is None for t in times) or len(set(zip(places, times, strict=True))) < len(members):
            continue
        piles: dict[tuple[int, int], list[tuple[float, int]]] = defaultdict(list)
        for member, place, time in zip(members, places, times, strict=True):
            piles[place].append((time or 0.0, member))
        for pile in piles.values():
            pile.sort()
        return [
            ([pile[n][1] for pile in piles.values()], [*label, f"{text}{n + 1}"], [*why, words]) for n in range(most)
        ]
    return [(members, [*label, "uneven"], [*why, f"nothing: {most} frames at each position, and no time or number"])]


def _by_run(frames: Sequence[Traits], members: list[int], label: list[str], why: list[str]) -> list[_Piece]:
    """One volume; or several runs of slices at different places, where these are even and the whole is not."""
    whole = [(members, label, why)]
    if len(members) < 6 or any(frames[m].position is None for m in members) or _even(_depths(frames, members)):
        return whole
    for name in ("stack", "type", "acquisition"):
        values = [frames[m].told.get(name) for m in members]
        ranked = sorted(set(values), key=_sortable)
        runs = [[m for m, v in zip(members, values, strict=True) if v == value] for value in ranked]
        if len(runs) > 1 and all(len(run) >= 3 and _even(_depths(frames, run)) for run in runs):
            return [
                (
                    run,
                    [*label, _type_label(v, ranked, n) if name == "type" else _label(KEYS[name], v, n)],
                    [*why, KEYS[name].words],
                )
                for n, (run, v) in enumerate(zip(runs, ranked, strict=True), 1)
            ]
    return whole


def _even(depths: Floats) -> bool:
    steps = np.diff(np.sort(depths))
    usual = float(np.median(steps))
    return bool(steps.min() > SAME_DEPTH_MM and np.abs(steps - usual).max() <= max(0.1 * usual, 0.12))


def _unlike(labels: list[str]) -> list[str]:
    """Labels that occur twice told apart by a number; the first without one where it is empty."""
    total, seen = Counter(labels), Counter[str]()
    told = []
    for label in labels:
        seen[label] += 1
        told.append(label if total[label] == 1 else f"{label}-{seen[label]}" if label else f"part{seen[label]}")
    return told
