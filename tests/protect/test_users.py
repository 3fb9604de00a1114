"""Users, their sessions, tokens and links: who comes in, who does not any more, and what is kept of it."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy")

from sagittal.database.connect import Database
from sagittal.errors import ConfigError
from sagittal.protect import links, sessions, tokens
from sagittal.protect.known_tokens import KNOWN_S, KnownTokens
from sagittal.protect.roles import PERMISSIONS, ROLES, check_role, permissions
from sagittal.protect.users import User, add_user, administrators, change_user, find_name, list_users, log_in

GOOD, OTHER = "bone window at dusk", "seven grey herons sleep"
DAY = 86400.0


@pytest.fixture
def ada(db: Database) -> User:
    return add_user(db, "Ada", "reader", password=GOOD)


def everything(tmp_path: Path) -> bytes:
    """All bytes of the database, with those that are only in its log."""
    with sqlite3.connect(tmp_path / "sagittal.db") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return (tmp_path / "sagittal.db").read_bytes()


def test_only_the_right_password_of_a_user_in_use_comes_in(db: Database, ada: User) -> None:
    assert log_in(db, "ada", GOOD) == ada
    assert log_in(db, " ADA ", GOOD) == ada
    assert log_in(db, "ada", OTHER) is None
    assert log_in(db, "eve", GOOD) is None
    change_user(db, ada.id, active=False)
    assert log_in(db, "ada", GOOD) is None


def test_user_without_password_cannot_log_in(db: Database) -> None:
    add_user(db, "node", "machine")
    assert log_in(db, "node", "") is None
    assert log_in(db, "node", "nobody's") is None


def test_old_hash_is_renewed_at_login(db: Database, ada: User, monkeypatch: pytest.MonkeyPatch) -> None:
    from argon2 import PasswordHasher

    from sagittal.database.schema import users

    cheap = PasswordHasher(time_cost=1, memory_cost=8192, parallelism=1).hash(GOOD)
    with db.write() as c:
        c.execute(users.update().values(password=cheap))
    assert log_in(db, "ada", GOOD) is not None
    with db.read() as c:
        assert "m=65536,t=3,p=1" in c.execute(users.select()).one().password


@pytest.mark.parametrize("name", ["", " ", "-ada", "ada\x00", "x" * 129, "<script>", "a/b"])
def test_odd_names_are_refused(db: Database, name: str) -> None:
    with pytest.raises(ConfigError, match="user's name"):
        add_user(db, name, "reader")


def test_name_is_taken_once_in_whichever_case(db: Database, ada: User) -> None:
    with pytest.raises(ConfigError, match="already"):
        add_user(db, "ADA", "reader")
    assert find_name(db, "aDa") == ada
    assert [user.name for user in list_users(db)] == ["ada"]


def test_names_of_other_scripts_are_taken(db: Database) -> None:
    assert add_user(db, "王 医生", "reader").name == "王 医生"


def test_unknown_role_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'reader'"):
        check_role("raeder")


def test_roles_are_those_of_the_documented_table() -> None:
    from sagittal.protect import roles

    assert roles.__doc__ is not None
    lines = [line.split() for line in roles.__doc__.splitlines() if line.strip().split(" ")[0] in PERMISSIONS]
    documented = {words[0]: words[1:].count("yes") for words in lines}
    assert documented == {one: sum(one in permissions(role) for role in ROLES) for one in PERMISSIONS}
    assert permissions("administrator") == frozenset(PERMISSIONS)
    assert "review" not in permissions("engineer")
    assert permissions("reader").isdisjoint({"send", "operate", "export", "delete", "users", "audit"})
    assert permissions("machine").isdisjoint({"review", "steer", "operate", "export", "delete", "users", "audit"})


def test_last_administrator_stays(db: Database, ada: User) -> None:
    first = add_user(db, "root", "administrator")
    for change in ({"active": False}, {"role": "reader"}):
        with pytest.raises(ConfigError, match="last administrator"):
            change_user(db, first.id, **change)  # type: ignore[arg-type]
    change_user(db, ada.id, role="administrator")
    change_user(db, first.id, active=False)
    assert administrators(db) == 1


# Sessions


def test_session_is_found_by_its_secret_only(db: Database, ada: User, tmp_path: Path) -> None:
    secret, csrf = sessions.start_session(db, ada.id, most_s=DAY)
    found = sessions.find_session(db, secret, idle_s=3600)
    assert found is not None
    assert found.user == ada
    assert found.csrf == csrf
    assert sessions.find_session(db, secret[:-1] + "x", idle_s=3600) is None
    assert sessions.find_session(db, "", idle_s=3600) is None
    assert sessions.find_session(db, "x" * 10**6, idle_s=3600) is None
    assert secret.encode() not in everything(tmp_path)


def test_session_ends_when_idle_and_when_old(db: Database, ada: User, clock: list[float]) -> None:
    idle, _ = sessions.start_session(db, ada.id, most_s=DAY)
    clock[0] += 3599
    assert sessions.find_session(db, idle, idle_s=3600) is not None  # and is seen now
    clock[0] += 3599
    assert sessions.find_session(db, idle, idle_s=3600) is not None
    clock[0] += 3601
    assert sessions.find_session(db, idle, idle_s=3600) is None
    busy, _ = sessions.start_session(db, ada.id, most_s=7200)
    for _ in range(3):
        clock[0] += 1900
        assert sessions.find_session(db, busy, idle_s=3600) is not None
    clock[0] += 1900
    assert sessions.find_session(db, busy, idle_s=3600) is None
    assert sessions.sweep_sessions(db, idle_s=3600) == 2


def test_login_ends_the_session_that_the_browser_came_with(db: Database, ada: User) -> None:
    first, _ = sessions.start_session(db, ada.id, most_s=DAY)
    second, _ = sessions.start_session(db, ada.id, most_s=DAY, previous=first)
    assert sessions.find_session(db, first, idle_s=3600) is None
    assert sessions.find_session(db, second, idle_s=3600) is not None
    sessions.end_session(db, second)
    assert sessions.find_session(db, second, idle_s=3600) is None


@pytest.mark.parametrize("change", [{"role": "engineer"}, {"password": OTHER}, {"active": False}])
def test_sessions_end_with_role_password_and_use(db: Database, ada: User, change: dict[str, object]) -> None:
    secret, _ = sessions.start_session(db, ada.id, most_s=DAY)
    change_user(db, ada.id, language="zh")
    assert sessions.find_session(db, secret, idle_s=3600) is not None
    change_user(db, ada.id, **change)  # type: ignore[arg-type]
    assert sessions.find_session(db, secret, idle_s=3600) is None


# Tokens


def test_token_is_told_once_and_only_its_hash_is_kept(db: Database, ada: User, tmp_path: Path) -> None:
    secret, token = tokens.make_token(db, ada.id, "script")
    assert secret.startswith("sg_")
    assert tokens.find_token(db, secret) == (ada, token.id)
    assert secret.encode() not in everything(tmp_path)
    assert tokens.find_token(db, secret + "x") is None
    assert tokens.find_token(db, secret.removeprefix("sg_")) is None


def test_token_ends_by_time_revocation_and_with_its_user(db: Database, ada: User, clock: list[float]) -> None:
    brief, _ = tokens.make_token(db, ada.id, "brief", lasts_s=60)
    mine, token = tokens.make_token(db, ada.id, "mine")
    last, _ = tokens.make_token(db, ada.id, "last")
    clock[0] += 61
    assert tokens.find_token(db, brief) is None
    assert not tokens.revoke_token(db, token.id, user_id=ada.id + 1)
    assert tokens.find_token(db, mine) is not None
    assert tokens.revoke_token(db, token.id, user_id=ada.id)
    assert not tokens.revoke_token(db, token.id)
    assert tokens.find_token(db, mine) is None
    change_user(db, ada.id, active=False)
    change_user(db, ada.id, active=True)
    assert tokens.find_token(db, last) is None


def test_token_needs_a_name_and_a_time_that_is_one(db: Database, ada: User, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="name"):
        tokens.make_token(db, ada.id, "  ")
    with pytest.raises(ConfigError, match="above 0"):
        tokens.make_token(db, ada.id, "x", lasts_s=-1)
    monkeypatch.setattr(tokens, "MOST", 1)
    tokens.make_token(db, ada.id, "x")
    with pytest.raises(ConfigError, match="revoke one"):
        tokens.make_token(db, ada.id, "y")


def test_a_token_is_remembered_for_a_second_and_no_longer_than_it_holds(db: Database, ada: User) -> None:
    at = [100.0]
    known = KnownTokens(db, clock=lambda: at[0])
    secret, token = tokens.make_token(db, ada.id, "script")
    assert known.recall(secret) is None
    assert known.find(secret) == known.recall(secret) == (ada, token.id)
    assert known.recall(secret + "x") is None
    at[0] += KNOWN_S + 0.01
    assert known.recall(secret) is None
    known.find(secret)
    change_user(db, ada.id, role="engineer")
    assert known.recall(secret) is None, "a role that is taken away holds at once"
    found = known.find(secret)
    assert found is not None
    assert found[0].role == "engineer"
    tokens.revoke_token(db, token.id)
    assert known.recall(secret) is None
    assert known.find(secret) is None
    assert known.recall(secret) is None


# Links


def test_link_makes_the_first_administrator_once(db: Database, tmp_path: Path) -> None:
    secret = links.make_link(db)
    assert secret.encode() not in everything(tmp_path)
    assert links.find_link(db, secret) == links.Link("first-administrator")
    with pytest.raises(ConfigError, match="at least 12"):
        links.use_link(db, secret, "short", "root")
    with pytest.raises(ConfigError, match="user's name"):
        links.use_link(db, secret, GOOD, "<root>")
    user = links.use_link(db, secret, GOOD, "root")  # a link that failed still works
    assert user.role == "administrator"
    assert log_in(db, "root", GOOD) == user
    with pytest.raises(ConfigError, match="was used"):
        links.use_link(db, secret, GOOD, "again")


def test_first_link_is_worthless_once_there_is_an_administrator(db: Database) -> None:
    secret = links.make_link(db)
    add_user(db, "root", "administrator", password=GOOD)
    assert links.find_link(db, secret) is None


def test_link_sets_a_password_until_it_is_over_or_replaced(db: Database, ada: User, clock: list[float]) -> None:
    old, new = links.make_link(db, ada.id), links.make_link(db, ada.id)
    assert links.find_link(db, old) is None
    assert links.use_link(db, new, OTHER).id == ada.id
    assert log_in(db, "ada", OTHER) is not None
    late = links.make_link(db, ada.id)
    clock[0] += 7 * DAY + 1
    assert links.find_link(db, late) is None
    idle = links.make_link(db, ada.id)
    change_user(db, ada.id, active=False)
    assert links.find_link(db, idle) is None


def test_of_two_that_use_a_link_at_once_one_comes_in(db: Database) -> None:
    secret = links.make_link(db)
    outcomes: list[str] = []

    def use(name: str) -> None:
        try:
            outcomes.append(links.use_link(db, secret, GOOD, name).name)
        except ConfigError:
            outcomes.append("")

    threads = [threading.Thread(target=use, args=(f"root {n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes)[:3] == ["", "", ""]
    assert administrators(db) == 1
