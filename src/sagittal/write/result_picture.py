"""The picture of a result: the study with its mask, boxes or heat map, or the study alone."""

from __future__ import annotations

from dataclasses import dataclass

from sagittal.case import Case
from sagittal.errors import SagittalError
from sagittal.image import Image
from sagittal.prediction import Detections, Failure, Mask, Prediction
from sagittal.write.key_objects import HeatMap
from sagittal.write.measurements import image_on
from sagittal.write.overlay import draw_boxes, draw_heat, draw_mask
from sagittal.write.statement import Statement
from sagittal.write.statement_words import WORDS
from sagittal.write.terminology import Terminology


@dataclass(frozen=True)
class Drawn:
    """A picture of a result.

    Parameters
    ----------
    png : bytes, optional
        ``None`` where no image could be drawn.
    caption : str
    burned_in : bool, optional
        Whether the image in it holds names, as far as its file says.
    """

    png: bytes | None
    caption: str = ""
    burned_in: bool | None = None


def draw_result(
    answer: Prediction | Failure,
    statement: Statement,
    *,
    case: Case | None = None,
    image: Image | None = None,
    heat: HeatMap | None = None,
    terminology: Terminology | None = None,
) -> Drawn:
    """The study with what was found in it; of an abstention or a refusal the study alone, as far as it can be read.

    Parameters
    ----------
    answer : Prediction or Failure
    statement : Statement
    case : Case, optional
        Its image is read unless `image` is given.
    image : Image, optional
    heat : HeatMap, optional
    terminology : Terminology, optional
    """
    language = statement.language
    words = WORDS[language]
    answered = isinstance(answer, Prediction) and statement.state == "answered"
    image = image if image is not None else _read(answer, case)
    if image is None:
        return Drawn(None)
    if answered and isinstance(answer, Prediction):
        found = answer.finding
        if isinstance(found, Mask) and image.grid.same_place(found.grid, 1e-2):
            return Drawn(
                draw_mask(answer, image, terminology=terminology, tall=True, language=language), "", image.burned_in
            )
        if isinstance(found, Detections) and image.grid.same_place(found.grid, 1e-2):
            return Drawn(draw_boxes(answer, image, terminology=terminology, language=language), "", image.burned_in)
        if heat is not None and heat.heat.shape == image.grid.shape:
            return Drawn(
                draw_heat(image, heat.heat, tall=True, language=language),
                words["heat"].format(method=heat.method),
                image.burned_in,
            )
    return Drawn(
        draw_heat(image, None, tall=True, language=language), words["no place"] if answered else "", image.burned_in
    )


def _read(answer: Prediction | Failure, case: Case | None) -> Image | None:
    """The image on which the answer lies, or the first of the case that can be read."""
    if case is None:
        return None
    if isinstance(answer, Prediction) and getattr(answer.finding, "grid", None) is not None:
        return image_on(case, answer)
    for name in case.images:
        try:
            return case.image(name)
        except (SagittalError, OSError, MemoryError):
            continue  # it may have been refused for this
    return None
