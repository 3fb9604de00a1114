"""Which cases a report shows, and the pictures of them."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from sagittal.case import Case
from sagittal.dataset import Dataset
from sagittal.errors import SagittalError
from sagittal.evaluate.evidence import Evidence
from sagittal.prediction import Failure, Prediction
from sagittal.tasks.task import Question
from sagittal.types import Array

#: Pixels from which a picture on a page is a JPEG.
LARGE = 250_000

#: Where networks and mirrored views say different things.
DISAGREEMENT = "disagreement"


@dataclass(frozen=True, eq=False)
class MapPicture:
    """An explanation of one case: an overlay, and whether the places that it marks matter to the model.

    Parameters
    ----------
    method : str
        ``gradcam``, ``integrated-gradients``, ``occlusion`` ... or ``disagreement``.
    png : bytes
    deletion, insertion : float
        Area under the probability while marked places are removed (lower is better) and shown (higher is better).
    random_deletion, random_insertion : float
        The same of a random map, beside which they mean something.
    """

    method: str
    png: bytes
    deletion: float = float("nan")
    insertion: float = float("nan")
    random_deletion: float = float("nan")
    random_insertion: float = float("nan")

    @property
    def judged(self) -> bool:
        """Whether it is a map whose marked places should matter to the answer; disagreement is none."""
        return self.method != DISAGREEMENT


@dataclass(frozen=True, eq=False)
class CasePicture:
    """A case as the report shows it.

    Parameters
    ----------
    case : str
    group : {"best", "typical", "worst"}
    png : bytes
        A PNG, or of a large picture a JPEG.
    text : str
        Truth and answer in words.
    maps : tuple of MapPicture
    """

    case: str
    group: str
    png: bytes
    text: str = ""
    maps: tuple[MapPicture, ...] = field(default=())


def choose_cases(evidence: Evidence, *, each: int = 3) -> dict[str, tuple[str, ...]]:
    """The best, the median and the worst cases, by ``best``, ``typical`` and ``worst``; :func:`case_scores` ranks them.

    Chosen by a rule, not by hand. No case is in two groups; with few cases the groups are smaller.
    """
    names = [name for name, _ in sorted(case_scores(evidence).items(), key=lambda pair: (-pair[1], pair[0]))]
    each = min(each, len(names) // 3)
    if each == 0:
        return {"typical": tuple(names)} if names else {}
    start = (len(names) - each) // 2
    return {
        "best": tuple(names[:each]),
        "typical": tuple(names[start : start + each]),
        "worst": tuple(reversed(names[-each:])),
    }


def case_scores(evidence: Evidence) -> dict[str, float]:
    """How well each case is answered, higher is better: minus the log loss, the mean Dice, or the F1 of the boxes.

    An image without objects in which none is found has an F1 of 1. Cases of unknown truth have no score.
    """
    rows = evidence.rows
    if not len(rows):
        return {}
    values = [_case_score(row) for row in rows.to_dict("records")]
    return {str(name): value for name, value in zip(rows["case"], values, strict=True) if math.isfinite(value)}


def _case_score(row: Mapping[Any, Any]) -> float:
    """That of one evidence row; nan where there is none."""
    if "log_loss" in row:
        return -float(row["log_loss"])
    if "mean_dice" in row:
        return float(row["mean_dice"])
    if "n_hit" in row:
        objects, hit, false = (_number(row[name]) for name in ("n_truth", "n_hit", "false_positives"))
        below = objects + hit + false
        return math.nan if math.isnan(below) else 2 * hit / below if below else 1.0
    return math.nan


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


class Explains(Protocol):
    """What drawing needs of a model."""

    @property
    def task(self) -> Question:
        """The question it answers."""
        ...

    def predict_many(self, cases: Sequence[Case]) -> Iterator[Prediction | Failure]:
        """A prediction or a failure for each case."""
        ...


def draw_cases(
    evidence: Evidence,
    model: Explains,
    dataset: Dataset,
    *,
    each: int = 3,
    maps: Callable[[Case, Prediction], Sequence[MapPicture]] | None = None,
) -> list[CasePicture]:
    """Pictures of the chosen cases, with explanation maps where `maps` makes them.

    A case that cannot be drawn any more is left out; the report does not fail for a picture.
    """
    cases = {case.id: case for case in dataset}
    out = []
    for group, names in choose_cases(evidence, each=each).items():
        there = [cases[name] for name in names if name in cases]
        answers = {answer.case: answer for answer in model.predict_many(there)}
        for case in there:
            answer = answers.get(case.id)
            if answer is None or isinstance(answer, Failure):
                continue
            try:
                pixels = model.task.figure(answer, case)
            except SagittalError:
                continue
            row = evidence.rows[evidence.rows["case"] == case.id].iloc[0]
            drawn = _drawn_maps(maps, case, answer)
            out.append(CasePicture(case.id, group, shown_bytes(pixels), describe(row.to_dict()), drawn))
    return out


def _drawn_maps(
    maps: Callable[[Case, Prediction], Sequence[MapPicture]] | None, case: Case, answer: Prediction
) -> tuple[MapPicture, ...]:
    if maps is None:
        return ()
    try:
        return tuple(maps(case, answer))
    except SagittalError:  # the picture is worth showing without its maps
        return ()


def describe(row: Mapping[Any, Any]) -> str:
    """Truth and answer of an evidence row in words."""
    if isinstance(row.get("n_hit"), (int, float)) and not math.isnan(float(row["n_hit"])):
        return (
            f"{int(row['n_hit'])} of {int(row['n_truth'])} objects found, {int(row['false_positives'])} false "
            f"{'box' if row['false_positives'] == 1 else 'boxes'}"
        )
    if isinstance(row.get("mean_dice"), float) and math.isfinite(row["mean_dice"]):
        return f"mean Dice {row['mean_dice']:.2f}"
    truth = row["truth"] if isinstance(row["truth"], str) else "unknown"
    answer = row["decision"] if isinstance(row["decision"], str) else "none given"
    return f"truth: {truth or 'none of the labels'}; answer: {answer or 'none of the labels'}"


def shown_bytes(pixels: Array) -> bytes:
    """(H, W, 3) uint8 for a page: a PNG, of large pictures a JPEG of high quality with a quarter of its size."""
    from PIL import Image as Pillow

    if pixels.shape[0] * pixels.shape[1] < LARGE:
        return png_bytes(pixels)
    stream = io.BytesIO()
    Pillow.fromarray(np.ascontiguousarray(pixels)).save(stream, format="jpeg", quality=90, subsampling=0)
    return stream.getvalue()


def png_bytes(pixels: Array) -> bytes:
    """(H, W, 3) uint8 as a PNG."""
    from PIL import Image as Pillow

    stream = io.BytesIO()
    Pillow.fromarray(np.ascontiguousarray(pixels)).save(stream, format="png", optimize=True)
    return stream.getvalue()
