"""What a result says, in a few sentences: the finding, how sure, or why there is none.

Every object of a result (page, report, HL7, FHIR, JSON, worklist) says the same, for it takes its sentences from here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sagittal.errors import ConfigError, nearest
from sagittal.labels import ClassScores
from sagittal.prediction import Detections, Failure, Mask, Prediction
from sagittal.write.equipment import ModelFacts
from sagittal.write.measurements import Measured
from sagittal.write.names import one_line
from sagittal.write.statement_words import WORDS

State = Literal["answered", "abstained", "refused"]
#: Confidence from here on, and what it is called.
_LEVELS = ((0.95, "very high"), (0.8, "high"), (0.6, "moderate"), (0.0, "low"))
_MOST_NAMED = 6
_NOT_STATED = "not stated"


@dataclass(frozen=True)
class Line:
    """What was found of one class, structure or kind of object.

    Parameters
    ----------
    name : str
    held : bool
        Whether the answer says that it is there.
    probability : float
        Calibrated, of a class; of objects that of the surest one; nan of structures.
    count : int
        Objects that were chosen; of a structure its connected parts.
    size : float
        Of a structure, in `unit`; nan elsewhere.
    unit : str
        ``"ml"``, ``"mm2"``, ``"px2"`` or ``"voxels"``.
    words : str
        All of it for a reader.
    """

    name: str
    held: bool
    probability: float = math.nan
    count: int = 0
    size: float = math.nan
    unit: str = ""
    words: str = ""


@dataclass(frozen=True)
class Statement:
    """What a result says.

    Parameters
    ----------
    state : {"answered", "abstained", "refused"}
        Abstained: the study was read, but the model makes no decision about it. Refused: it was not read.
    summary : str
        The finding in one line, without identifiers.
    confidence : float
        0 to 1; nan where there is none.
    confidence_words : str
    lines : tuple of Line
        One a class, structure or kind of object; none where there is no answer.
    not_excluded : str
        Which classes cannot be excluded, as a sentence; empty where not known.
    reason : str
        Why there is no answer; or, of an answer, what speaks against relying on it.
    purpose, limits : tuple of (str, str)
        What the model is for and what it is not for: a label and its text.
    notice : str
        That an algorithm made this.
    language : str
    """

    state: State
    summary: str
    confidence: float
    confidence_words: str
    lines: tuple[Line, ...]
    not_excluded: str
    reason: str
    purpose: tuple[tuple[str, str], ...]
    limits: tuple[tuple[str, str], ...]
    notice: str
    language: str

    @property
    def text(self) -> str:
        """All of it as plain sentences, a line each."""
        parts = [self.summary, self.confidence_words, self.not_excluded, self.reason, self.notice]
        return "\n".join(part for part in parts if part)


def state_of(answer: Prediction | Failure, facts: ModelFacts | None = None) -> State:
    """Whether there is an answer.

    A prediction that its gate did not accept and that decides nothing is an abstention. Of several labels, masks and boxes
    an empty decision may also mean that nothing was found: where the model's gate only warns (`facts`), it does; where that
    is not known, it is taken for an abstention, which claims less.

    >>> from sagittal.prediction import Failure
    >>> state_of(Failure("7", "case 7: is a study of modality MR, the model was made for CT", "ScopeError"))
    'refused'
    """
    if isinstance(answer, Failure):
        return "refused"
    if answer.verdict.accepted or answer.decision:
        return "answered"
    return "abstained" if facts is None or facts.abstains or answer.scheme.exclusive else "answered"


def make_statement(
    answer: Prediction | Failure,
    facts: ModelFacts | None = None,
    *,
    measured: Sequence[Measured] = (),
    language: str = "en",
) -> Statement:
    """What a prediction, an abstention or a refusal says.

    Parameters
    ----------
    answer : Prediction or Failure
        A failure is a refusal: the study is not what the model was made for, or could not be read.
    facts : ModelFacts, optional
    measured : sequence of Measured
        Of a mask, its structures' measurements.
    language : {"en", "zh"}

    Raises
    ------
    ConfigError
        If the language is not known.
    """
    if language not in WORDS:
        raise ConfigError(f"unknown language '{language}'. {nearest(language, WORDS)}")
    words = WORDS[language]
    facts = facts or ModelFacts.of(answer)
    state = state_of(answer, facts)
    purpose, limits = _purpose(facts, words), _limits(facts, words)
    if isinstance(answer, Failure) or state == "abstained":
        reason = answer.error if isinstance(answer, Failure) else answer.verdict.reason
        reason = reason.removeprefix(f"case {answer.case}: ")
        return Statement(
            state, words[state], math.nan, words["no confidence"], (), "", words["reason"].format(reason=_short(reason)),
            purpose, limits, words["notice"], language,
        )  # fmt: skip
    lines, confidence, kind = _lines(answer, measured, words)
    reason = ""
    if not answer.verdict.accepted:
        reason = words["unlike"].format(reason=_short(answer.verdict.reason))
    return Statement(
        "answered",
        _summary(answer, lines, words),
        confidence,
        _confidence(confidence, kind, words),
        tuple(lines),
        _not_excluded(answer, facts, words),
        reason,
        purpose,
        limits,
        words["notice"],
        language,
    )


def _lines(answer: Prediction, measured: Sequence[Measured], words: Mapping[str, str]) -> tuple[list[Line], float, str]:
    """Lines, confidence and what the confidence is."""
    found = answer.finding
    if isinstance(found, ClassScores):
        return _class_lines(answer, found, words)
    if isinstance(found, Detections):
        return _box_lines(answer, found, words)
    return _mask_lines(answer, found, measured, words)


def _class_lines(answer: Prediction, found: ClassScores, words: Mapping[str, str]) -> tuple[list[Line], float, str]:
    lines = []
    for name, value in zip(answer.scheme.classes, found.values.tolist(), strict=True):
        held = name in answer.decision
        lines.append(Line(name, held, value, words=f"{one_line(name)}: {percent(value)}"))
    held_values = [one.probability for one in lines if one.held]
    if answer.scheme.exclusive:
        confidence = held_values[0] if held_values else math.nan
    else:
        confidence = min(one.probability if one.held else 1 - one.probability for one in lines)
    return lines, confidence, "calibrated"


def _box_lines(answer: Prediction, found: Detections, words: Mapping[str, str]) -> tuple[list[Line], float, str]:
    lines = []
    for n, name in enumerate(answer.scheme.classes):
        scores = found.scores[(found.boxes.classes == n) & found.chosen]
        best = float(scores.max()) if len(scores) else math.nan
        text = f"{one_line(name)}: {len(scores)}" + (
            words["surest"].format(percent=percent(best)) if len(scores) else ""
        )
        lines.append(Line(name, bool(len(scores)), best, len(scores), words=text))
    best = max((one.probability for one in lines if one.held), default=math.nan)
    return lines, best, "objects"


def _mask_lines(
    answer: Prediction, found: Mask, measured: Sequence[Measured], words: Mapping[str, str]
) -> tuple[list[Line], float, str]:
    lines = []
    by_name = {one.name: one for one in measured}
    expected = []
    for one in found.segmentation.structures:
        size = by_name.get(one.name)
        if size is None:
            there = one.name in answer.decision
            name = one_line(one.name)
            lines.append(Line(one.name, there, words=name if there else words["not found"].format(name=name)))
            continue
        value, unit = _size(size)
        there = size.shape.voxels > 0
        name = one_line(one.name)
        text = f"{name}: {amount(value)} {words.get(unit, unit)}" if there else words["not found"].format(name=name)
        lines.append(Line(one.name, there, math.nan, size.shape.components, value, unit, text))
        dice = float(found.expected_dice.get(one.name, math.nan))
        if there and math.isfinite(dice):
            expected.append(dice)
    return lines, float(np.mean(expected)) if expected else math.nan, "expected dice"


def _size(one: Measured) -> tuple[float, str]:
    shape = one.shape
    if math.isfinite(shape.volume_ml):
        return shape.volume_ml, "ml"
    if math.isfinite(shape.area):
        return shape.area, f"{shape.unit}2"
    return float(shape.voxels), "voxels"


def _summary(answer: Prediction, lines: Sequence[Line], words: Mapping[str, str]) -> str:
    held = [one for one in lines if one.held]
    if isinstance(answer.finding, ClassScores):
        if not held:
            return words["none of"].format(names=_named([one.name for one in lines], words))
        return _named([f"{one_line(one.name)} ({percent(one.probability)})" for one in held], words)
    if not held:
        return words["nothing found"].format(names=_named([one.name for one in lines], words))
    return _named([one.words for one in held], words)


def _named(names: Sequence[str], words: Mapping[str, str]) -> str:
    shown = words["and"].join(one_line(name, 200) for name in names[:_MOST_NAMED])
    more = len(names) - _MOST_NAMED
    return shown if more <= 0 else shown + words["more"].format(count=more)


def _confidence(value: float, kind: str, words: Mapping[str, str]) -> str:
    if not math.isfinite(value):
        return words["no confidence"]
    level = next(name for least, name in _LEVELS if value >= least)
    return words[kind].format(
        level=words[level], percent=percent(value), share=f"{value:.2f}", of_100=round(100 * value)
    )


def _not_excluded(answer: Prediction, facts: ModelFacts, words: Mapping[str, str]) -> str:
    if not answer.conformal:
        return ""
    names = _named(answer.conformal, words)
    if facts.coverage is None:
        return words["not excluded"].format(names=names)
    return words["not excluded at"].format(names=names, percent=percent(facts.coverage))


def _purpose(facts: ModelFacts, words: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    use = facts.intended_use
    rows = [(words["question"], facts.question or str(use.get("question") or ""))]
    images = " ".join(str(use.get(key) or "") for key in ("modality", "body_part") if _stated(use.get(key)))
    rows.append((words["images"], images))
    rows += [(words[key], str(use.get(key) or "")) for key in ("population", "indication", "user")]
    return tuple((label, _short(text)) for label, text in rows if _stated(text))


def _limits(facts: ModelFacts, words: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    use = facts.intended_use
    rows = [(words["exclusions"], str(use.get("exclusions") or ""))]
    rows += [(words["worth"], one) for one in facts.evidence]
    rows.append((words["not shown"], words["only this question"]))
    return tuple((label, _short(text)) for label, text in rows if _stated(text))


def _stated(value: Any) -> bool:
    return str(value or "").strip() not in {"", _NOT_STATED, "OT"}


def _short(text: str) -> str:
    plain = " ".join(str(text).split())
    return plain if len(plain) <= 600 else plain[:597] + "..."


def percent(value: float) -> str:
    """A share of one as whole per cent; never 0 or 100 of what is neither.

    >>> percent(0.934), percent(0.998), percent(0.002), percent(1.0)
    ('93 %', '> 99 %', '< 1 %', '100 %')
    """
    if not math.isfinite(value):
        return "-"
    if 0 < value < 0.005:
        return "< 1 %"
    if 0.995 <= value < 1:
        return "> 99 %"
    return f"{round(100 * value)} %"


def amount(value: float) -> str:
    """A number with three digits that matter, without an exponent.

    >>> amount(1234.5), amount(0.01234), amount(12.0)
    ('1,234', '0.0123', '12.0')
    """
    if not math.isfinite(value):
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 2 - math.floor(math.log10(abs(value))) if value else 1
    return f"{value:.{min(max(digits, 1), 6)}f}"
