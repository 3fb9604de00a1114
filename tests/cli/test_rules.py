"""Quality gates of ``evaluate --require``."""

from __future__ import annotations

from typing import Any

import pytest

from sagittal.cli.rules import Rule, miss, parse_rule
from sagittal.errors import ConfigError

EVIDENCE: dict[str, Any] = {
    "overall": {
        "auc": {"value": 0.912, "low": 0.87, "high": 0.954, "n": 100},
        "mcc": {"value": None, "low": None, "high": None, "n": 100},
    },
    "classes": {"malignant": {"sensitivity": {"value": 0.8, "low": 0.7, "high": 0.9, "n": 40}}},
}


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("auc>=0.9", Rule("auc", ">=", 0.9)),
        (" auc.low > .85 ", Rule("auc.low", ">", 0.85)),
        ("ece<=5e-2", Rule("ece", "<=", 0.05)),
        ("malignant.sensitivity<1", Rule("malignant.sensitivity", "<", 1.0)),
        ("grade 3.f1>=0.5", Rule("grade 3.f1", ">=", 0.5)),
    ],
)
def test_rules_are_read(text: str, rule: Rule) -> None:
    assert parse_rule(text) == rule


@pytest.mark.parametrize("text", ["auc", "auc=0.9", "auc>=", ">=0.9", "auc>=high", "auc>=1.2.3", ""])
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a measure, a sign and a number, such as 'auc>=0.9'"):
        parse_rule(text)


@pytest.mark.parametrize(
    ("text", "missed"),
    [
        ("auc>=0.9", ""),
        ("auc>=0.912", ""),
        ("auc>0.912", "auc>0.912 but it is 0.912"),
        ("auc.low>=0.9", "auc.low>=0.9 but it is 0.87"),
        ("auc.n>=100", ""),
        ("malignant.sensitivity>=0.9", "malignant.sensitivity>=0.9 but it is 0.8"),
        ("malignant.sensitivity.high>=0.9", ""),
        ("mcc>=-1", "mcc>=-1 but it is undefined"),
    ],
)
def test_rules_hold_or_say_what_is_missing(text: str, missed: str) -> None:
    assert miss(parse_rule(text), EVIDENCE) == missed


def test_a_mistyped_measure_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="there is no measure 'aucc'. Did you mean 'auc'"):
        miss(parse_rule("aucc>=0.9"), EVIDENCE)
