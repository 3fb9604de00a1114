"""Passwords: refused when weak, kept as Argon2id, told apart, renewed when the costs grow."""

from __future__ import annotations

import pytest

pytest.importorskip("argon2")

from argon2 import PasswordHasher
from argon2.low_level import Type

from sagittal.errors import ConfigError
from sagittal.protect.passwords import check_password, hash_password, match_password

GOOD = "bone window at dusk"


def test_right_password_matches_and_another_does_not() -> None:
    kept = hash_password(GOOD)
    assert match_password(kept, GOOD).right
    assert not match_password(kept, GOOD + "!").right
    assert not match_password(kept, "").right


def test_nothing_of_the_password_is_kept_and_salts_differ() -> None:
    first, second = hash_password(GOOD), hash_password(GOOD)
    assert GOOD not in first
    assert first != second
    assert first.startswith("$argon2id$v=19$m=65536,t=3,p=1$")


def test_same_signs_of_two_keyboards_are_one_password() -> None:
    assert match_password(hash_password("Prüfung im Märchenwald"), "Prüfung im Märchenwald").right


def test_empty_hash_matches_nothing() -> None:
    assert not match_password("", "nobody's").right
    assert not match_password("", "").right


def test_damaged_hash_matches_nothing() -> None:
    assert not match_password("$argon2id$v=19$m=65536", GOOD).right


def test_hash_of_lower_costs_is_outdated() -> None:
    cheap = PasswordHasher(time_cost=1, memory_cost=8192, parallelism=1, type=Type.ID).hash(GOOD)
    match = match_password(cheap, GOOD)
    assert match.right
    assert match.outdated
    assert not match_password(hash_password(GOOD), GOOD).outdated


def test_endless_password_is_not_hashed() -> None:
    assert not match_password(hash_password(GOOD), "x" * 10**6).right


@pytest.mark.parametrize(
    ("password", "name", "why"),
    [
        ("short", "ada", "at least 12"),
        ("x" * 1025, "ada", "at most 1024"),
        ("aaaaaaaaaaaaaa", "ada", "repeated"),
        ("password123456", "ada", "common"),
        ("Radiology2026!", "ada", "common"),
        ("qwertyuiop1234", "ada", "rows of keys"),
        ("ada.lovelace12", "Ada Lovelace", "user's name"),
        ("administrator", "administrator", "user's name"),
        ("abcdefghijklmnop", "ada", "rows of keys"),
        ("987654321098765", "ada", "rows of keys"),
        ("SummerWinter2025", "ada", "common"),
    ],
)
def test_weak_password_is_refused_without_being_repeated(password: str, name: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as refused:
        check_password(password, name)
    assert password not in str(refused.value)


@pytest.mark.parametrize(
    "password", [GOOD, "correct horse battery staple", "放射科的窗外有三棵枣树和一口井", "k7#Vd!q02mZx"]
)
def test_good_password_is_taken(password: str) -> None:
    check_password(password, "ada")
