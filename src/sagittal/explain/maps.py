"""Maps: what a model's answer about a case rests on, by several methods, each with a measure of its worth."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sagittal.case import Case
from sagittal.errors import ConfigError, nearest
from sagittal.explain.cam import grad_cam, has_places
from sagittal.explain.faithfulness import RANDOMS, Faithfulness, measure
from sagittal.explain.gradients import integrated_gradients
from sagittal.explain.occlusion import occlusion
from sagittal.explain.subject import Subject
from sagittal.grid import Grid
from sagittal.model.package import Model
from sagittal.types import Floats

#: A method takes a subject and gives a map on the network's lattice, high where the answer comes from.
Method = Callable[[Subject], Floats]

METHODS: dict[str, Method] = {
    "gradcam": grad_cam,
    "integrated-gradients": integrated_gradients,
    "occlusion": occlusion,
}


@dataclass(frozen=True, eq=False)
class Map:
    """Where a model looked.

    Parameters
    ----------
    case, method : str
    target : str
        The class that the map speaks for.
    probability : float
        Calibrated, of that class.
    heat : (I, J, K) float32
        On the study's own grid; zero where the network did not look.
    grid : Grid
    lattice : (*size) float32
        The same on the network's lattice.
    faithfulness : Faithfulness, optional
    seconds : float
        Making the map, and measuring it.
    """

    case: str
    method: str
    target: str
    probability: float
    heat: Floats
    grid: Grid
    lattice: Floats
    faithfulness: Faithfulness | None
    seconds: float


def explain_case(
    model: Model,
    case: Case,
    methods: Sequence[str] | None = None,
    target: str | None = None,
    *,
    randoms: int = RANDOMS,
    seed: int = 0,
) -> list[Map]:
    """One map for each method.

    Parameters
    ----------
    model : Model
    case : Case
    methods : sequence of {"gradcam", "integrated-gradients", "occlusion"}, optional
        By default Grad-CAM, or occlusion for networks whose last feature map is one voxel and knows no places.
    target : str, optional
        Class to explain; the most probable one where not given.
    randoms : int
        Random maps beside which each map is measured; 0 leaves the measure out.
    seed : int
        Of the random maps.

    Raises
    ------
    ConfigError
        If a method or class is not known.
    ReadError, GeometryError, DataError, ScopeError
        As in prediction.
    """
    for name in methods or ():
        if name not in METHODS:
            raise ConfigError(f"unknown method '{name}'. {nearest(name, METHODS)}")
    subject = Subject.of(model, case, target)
    methods = methods or (("gradcam",) if has_places(subject) else ("occlusion",))
    probability = float(subject.scores(subject.image)[0])
    maps = []
    for name in methods:
        start = time.perf_counter()
        lattice = np.asarray(METHODS[name](subject), dtype=np.float32)
        worth = measure(subject, lattice, randoms=randoms, seed=seed) if randoms else None
        heat = subject.prepared.restore(lattice)
        seconds = time.perf_counter() - start
        grid = subject.prepared.grid
        maps.append(Map(case.id, name, subject.name, probability, heat, grid, lattice, worth, seconds))
    return maps
