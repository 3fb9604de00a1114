"""What a result says in words: the same everywhere, in two languages, never more than is known."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sagittal.errors import ConfigError
from sagittal.grid import Grid
from sagittal.labels import ClassScores
from sagittal.prediction import Failure, Verdict
from sagittal.write.equipment import ModelFacts
from sagittal.write.measurements import measure_mask
from sagittal.write.statement import make_statement, state_of
from sagittal.write.statement_words import WORDS

GRID = Grid((30, 30, 9), np.diag([1.0, 1.0, 2.0, 1.0]))
UNLIKE = Verdict(False, "unlike the cases", 1.0)


def test_every_sentence_exists_in_each_language_with_the_same_gaps() -> None:
    first = WORDS["en"]
    for words in WORDS.values():
        assert set(words) == set(first)
        for key, text in words.items():
            gaps = set(re.findall(r"\{(\w+)\}", text))
            assert gaps <= set(re.findall(r"\{(\w+)\}", first[key])), key
            assert key not in {"calibrated", "objects"} or {"percent", "level", "of_100"} <= gaps


def test_classes(found_classes: Any, facts: ModelFacts) -> None:
    said = make_statement(found_classes("x"), facts)
    assert (said.state, said.summary, said.confidence) == ("answered", "nodule (82 %)", 0.82)
    assert said.confidence_words == "Confidence high: 82 %. Of 100 answers given with it, about 82 were right."
    assert said.not_excluded == "Cannot be excluded (with 90 % coverage): nodule; mass."
    assert [one.held for one in said.lines] == [False, True, False]
    assert said.reason == ""


def test_of_several_labels_the_least_sure_counts(found_classes: Any, facts: ModelFacts) -> None:
    said = make_statement(found_classes("x", "multilabel"), facts)
    assert said.summary == "effusion (90 %); mass (70 %)"
    assert said.confidence == pytest.approx(0.7)
    none = make_statement(
        found_classes("x", "multilabel", decision=(), finding=ClassScores(np.array([0.1, 0.2, 0.01]))), facts
    )
    assert none.summary == "None of: effusion; nodule; mass"
    assert none.confidence == pytest.approx(0.8)


def test_masks(found_mask: Any, facts: ModelFacts) -> None:
    answer = found_mask("x", GRID)
    said = make_statement(answer, facts, measured=measure_mask(answer))
    assert said.summary.startswith("Liver: ")
    assert said.lines[3].words == "spleen: not found"
    assert said.confidence == pytest.approx(0.91)  # of those found of which an expectation is known
    assert "Dice 0.91" in said.confidence_words
    volume = next(one for one in said.lines if one.name == "kidney_left")
    assert (volume.unit, volume.size) == ("ml", pytest.approx(3 * 2 * 8 * 2 / 1000))


def test_boxes(found_boxes: Any, facts: ModelFacts) -> None:
    said = make_statement(found_boxes("x", GRID), facts)
    assert said.summary == "lung nodule: 1; surest 93 %; gizmo: 1; surest 61 %"
    assert said.confidence == pytest.approx(0.93)
    assert [one.count for one in said.lines] == [1, 1, 0]
    empty = replace(found_boxes("x", GRID), decision=())
    found = replace(empty.finding, chosen=np.zeros(3, bool))
    none = make_statement(replace(empty, finding=found), facts)
    assert none.summary == "Nothing found. Looked for: lung nodule; gizmo; mass"
    assert math.isnan(none.confidence)


def test_when_it_is_an_abstention(found_classes: Any, found_boxes: Any, facts: ModelFacts) -> None:
    warns = replace(facts, abstains=False)
    # One class must hold: none means that the model abstains, whatever is known of its gate.
    unknown = found_classes("x", decision=(), verdict=UNLIKE)
    assert state_of(unknown) == state_of(unknown, facts) == state_of(unknown, warns) == "abstained"
    # Of boxes nothing may have been found: a gate that only warns leaves that an answer.
    nothing = replace(found_boxes("x", GRID), decision=(), verdict=UNLIKE)
    assert state_of(nothing, facts) == state_of(nothing) == "abstained"
    assert state_of(nothing, warns) == "answered"
    assert state_of(replace(nothing, verdict=Verdict()), facts) == "answered"
    # A decision in spite of the gate is an answer with a warning.
    flagged = make_statement(found_classes("x", verdict=UNLIKE), warns)
    assert flagged.state == "answered"
    assert flagged.reason.startswith("Caution: unlike the cases.")


def test_no_answer_claims_nothing(found_classes: Any, facts: ModelFacts) -> None:
    for answer in (
        found_classes("x", decision=(), verdict=UNLIKE),
        Failure("x", "case x: is a study of modality MR", "ScopeError"),
    ):
        for language in WORDS:
            said = make_statement(answer, facts, language=language)
            assert (said.lines, said.not_excluded) == ((), "")
            assert math.isnan(said.confidence)
            assert said.reason
            assert "case x" not in said.text
            assert not re.search(r"\d+ %", said.text)


def test_every_statement_says_that_it_is_an_algorithms(found_classes: Any, facts: ModelFacts) -> None:
    assert "Made by an algorithm" in make_statement(found_classes("x"), facts).text
    assert "由算法生成" in make_statement(found_classes("x"), facts, language="zh").text
    with pytest.raises(ConfigError, match="unknown language 'fr'"):
        make_statement(found_classes("x"), facts, language="fr")


def test_facts_travel_as_plain_values(facts: ModelFacts) -> None:
    assert ModelFacts.from_json(facts.to_json()) == facts
    with pytest.raises(ConfigError, match="unknown key 'nam'. Did you mean 'name'"):
        ModelFacts.from_json({"nam": "x"})
