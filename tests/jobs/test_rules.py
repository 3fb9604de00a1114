"""Rules: each condition, why a series is not used, and the limits of what a model was made for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sagittal.errors import ConfigError
from sagittal.jobs import rules
from sagittal.jobs.rules import ModelEntry, SeriesFacts, SeriesRule, Use, rank, same_part, usable
from sagittal.model import gate

CT = SeriesFacts(
    7,
    modality="CT",
    body_part="CHEST",
    description="Lung 1.0 B60f",
    manufacturer="ACME Imaging",
    thickness_mm=1.0,
    contrast=False,
    images=300,
    size=(300.0, 512.0, 512.0),
    spacing_mm=(1.0, 0.7, 0.7),
)


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ({"modality": ("MR",)}, "modality CT, the rule asks for MR"),
        ({"modality": "mr"}, "modality CT, the rule asks for mr"),
        ({"body_part": ("HEAD", "NECK")}, "body part another, the rule asks for HEAD or NECK"),
        ({"description": r"\bliver\b"}, "its description does not fit the rule's pattern"),
        ({"exclude": "lung"}, "its description fits the pattern that the rule excludes"),
        ({"manufacturer": "^siemens"}, "its manufacturer does not fit the rule's pattern"),
        ({"thickness_mm": (2, 5)}, "slice thickness 1 mm, the rule asks for 2 to 5 mm"),
        ({"contrast": True}, "contrast agent not given, the rule asks for one"),
        ({"images_least": 400}, "300 images, the rule asks for at least 400"),
        ({"images_most": 100}, "300 images, the rule asks for at most 100"),
    ],
)
def test_each_condition_says_why_it_is_not_met(rule: dict[str, Any], reason: str) -> None:
    assert SeriesRule(**rule).match(CT) == (False, reason)


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"modality": ("ct", "PT")},
        {"body_part": ("chest",)},
        {"description": "LUNG"},
        {"manufacturer": "acme"},
        {"thickness_mm": (1, 1)},
        {"contrast": False},
        {"images_least": 300, "images_most": 300},
    ],
)
def test_what_a_rule_asks_for_fits(rule: dict[str, Any]) -> None:
    assert SeriesRule(**rule).match(CT).fits


def test_what_a_header_does_not_say_does_not_fit_a_rule_that_asks() -> None:
    silent = SeriesFacts(1, modality="CT")
    assert "states no slice thickness" in SeriesRule(thickness_mm=(0, 3)).match(silent).reason
    assert "not stated" in SeriesRule(contrast=False).match(silent).reason
    assert "body part not stated" in SeriesRule(body_part=("CHEST",)).match(silent).reason


def test_reasons_never_repeat_header_text() -> None:
    odd = replace(CT, modality="Smith^John 1960", description="Smith^John", body_part="Smith", manufacturer="Smith")
    for rule in (
        SeriesRule(modality=("CT",)),
        SeriesRule(body_part=("CHEST",)),
        SeriesRule(description="liver"),
        SeriesRule(manufacturer="ACME"),
    ):
        assert "Smith" not in rule.match(odd).reason
    assert "Smith" not in Use("CT", "CHEST").match(odd).reason
    assert "Smith" not in usable(replace(odd, sop_classes=frozenset({"1.2.840.10008.5.1.4.1.1.88.33"}))).reason


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"description": "("}, "description = '\\(' is no regular expression"),
        ({"prefer": "thinest"}, "Did you mean 'thinnest'"),
        ({"thickness_mm": (3, 1)}, "two numbers were expected"),
        ({"images_least": 9, "images_most": 3}, "the least is above the most"),
    ],
)
def test_rules_that_make_no_sense_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SeriesRule(**bad)


def test_entries_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'watches'"):
        ModelEntry("m", role="watch")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="limit_s"):
        ModelEntry("m", limit_s=0)


@pytest.mark.parametrize("modality", ["SEG", "SR", "KO", "PR", "RTSTRUCT", "sr "])
def test_objects_that_are_no_images_are_never_inputs(modality: str) -> None:
    assert not usable(replace(CT, modality=modality)).fits


@pytest.mark.parametrize(
    "kind",
    [
        "1.2.840.10008.5.1.4.1.1.66.4",
        "1.2.840.10008.5.1.4.1.1.88.59",
        "1.2.840.10008.5.1.4.1.1.11.1",
        "1.2.840.10008.5.1.4.1.1.104.1",
        "1.2.840.10008.5.1.4.1.1.7",
        "1.2.840.10008.5.1.4.1.1.7.4",
    ],
)
def test_objects_under_a_false_modality_are_no_inputs_either(kind: str) -> None:
    assert not usable(replace(CT, sop_classes=frozenset({kind}))).fits


def test_enhanced_images_are_inputs() -> None:
    assert usable(replace(CT, sop_classes=frozenset({"1.2.840.10008.5.1.4.1.1.2.1"}))).fits


def test_captures_are_inputs_only_where_a_rule_asks() -> None:
    capture = replace(CT, sop_classes=frozenset({"1.2.840.10008.5.1.4.1.1.7"}))
    assert not usable(capture).fits
    assert usable(capture, captures=True).fits


@pytest.mark.parametrize("mine", [{"own": True}, {"manufacturer": "Sagittal"}])
def test_our_own_results_are_never_inputs(mine: dict[str, Any]) -> None:
    assert "result of Sagittal" in usable(replace(CT, **mine), captures=True).reason


def test_a_series_with_a_problem_is_never_used() -> None:
    assert usable(replace(CT, problem="mixed patients")).reason == "has a problem: mixed patients"


MADE_FOR = Use("CT", "CHEST", 3, ((40, 400), (512, 512), (512, 512)), ((0.6, 2.5), (0.5, 0.9), (0.5, 0.9)))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"modality": "MR"}, "modality MR, the model was made for CT"),
        ({"body_part": "ABDOMEN"}, "another body part than CHEST"),
        ({"images": 1}, "a single image"),
        ({"spacing_mm": (5.0, 0.7, 0.7)}, "voxels of 5 x 0.7 x 0.7 mm"),
        ({"size": (300.0, 64.0, 64.0)}, "300 x 64 x 64 voxels"),
    ],
)
def test_a_model_is_not_used_beyond_what_it_was_made_for(change: dict[str, Any], reason: str) -> None:
    verdict = MADE_FOR.match(replace(CT, **change))
    assert not verdict.fits
    assert reason in verdict.reason


@pytest.mark.parametrize(
    "change",
    [{}, {"body_part": ""}, {"spacing_mm": ()}, {"size": ()}, {"spacing_mm": (0.7, 1.0, 0.7)}, {"modality": ""}],
)
def test_what_a_header_does_not_say_is_left_to_the_images(change: dict[str, Any]) -> None:
    assert MADE_FOR.match(replace(CT, **change)).fits


def test_kinds_of_picture_that_are_alike_are_those_of_the_gate() -> None:
    assert rules.SAME_KIND == gate.SAME_KIND
    assert Use("DX").match(SeriesFacts(1, modality="CR")).fits


def test_preferences() -> None:
    thin = replace(CT, id=1, thickness_mm=1.0, images=100, newest=1.0)
    many = replace(CT, id=2, thickness_mm=2.0, images=300, newest=2.0)
    late = replace(CT, id=3, thickness_mm=None, images=200, newest=3.0)
    for prefer, best in (("thinnest", 1), ("most", 2), ("newest", 3)):
        rule = SeriesRule(prefer=prefer)  # type: ignore[arg-type]
        assert min((thin, many, late), key=lambda facts: rank(rule, facts)).id == best


def test_body_parts() -> None:
    assert same_part("Chest ", "CHEST")
    assert same_part("HEADNECK", "HEAD")
    assert not same_part("", "")
    assert not same_part("KNEE", "HEAD")
