"""Migrations: they make what the schema says, and bring older databases up to it."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from sagittal.database import migrate
from sagittal.database.connect import Database, _engines
from sagittal.database.migrate import MIGRATIONS, VERSIONS, upgrade, version_of
from sagittal.database.schema import metadata
from sagittal.errors import ServeError


def bare(tmp_path: Path) -> Database:
    """A database without tables."""
    return Database(*_engines(f"sqlite:///{tmp_path / 'bare.db'}", create=True))


def described(db: Database) -> dict[str, Any]:
    """Everything that the database says of its tables."""
    with db.read() as c:
        look = sa.inspect(c)
        return {
            name: {
                "columns": {
                    column["name"]: (str(column["type"]), column["nullable"], column["primary_key"])
                    for column in look.get_columns(name)
                },
                "indexes": sorted((i["name"], tuple(i["column_names"]), i["unique"]) for i in look.get_indexes(name)),
                "unique": sorted((u["name"], tuple(u["column_names"])) for u in look.get_unique_constraints(name)),
                "foreign": sorted(
                    (f["name"], tuple(f["constrained_columns"]), f["referred_table"])
                    for f in look.get_foreign_keys(name)
                ),
            }
            for name in sorted(look.get_table_names())
        }


def test_the_migrations_make_what_the_schema_says(tmp_path: Path) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    made = bare(tmp_path)
    upgrade(made)
    straight = Database.open(f"sqlite:///{tmp_path / 'straight.db'}")
    assert described(made) == described(straight)
    assert version_of(made) == version_of(straight) == VERSIONS[-1]
    with made.read() as c:
        context = MigrationContext.configure(c, opts={"compare_type": True, "render_as_batch": True})
        assert compare_metadata(context, metadata) == []
    made.close()
    straight.close()


def test_every_version_has_its_script_and_follows_the_one_before() -> None:
    from alembic.script import ScriptDirectory

    scripts = list(ScriptDirectory(str(MIGRATIONS)).walk_revisions())
    assert [script.revision for script in reversed(scripts)] == list(VERSIONS)


def test_an_older_database_is_upgraded_when_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "migrations"
    (folder / "versions").mkdir(parents=True)
    for path in (MIGRATIONS / "versions").glob("*.py"):
        (folder / "versions" / path.name).write_bytes(path.read_bytes())
    (folder / "versions" / "v9999.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\nrevision = '9999'\n"
        f"down_revision = '{VERSIONS[-1]}'\nbranch_labels = None\ndepends_on = None\n\n"
        "def upgrade():\n    op.add_column('studies', sa.Column('later', sa.Text))\n",
        encoding="utf-8",
    )
    url = f"sqlite:///{tmp_path / 'sagittal.db'}"
    Database.open(url).close()
    monkeypatch.setattr(migrate, "MIGRATIONS", folder)
    monkeypatch.setattr(migrate, "VERSIONS", (*VERSIONS, "9999"))
    with pytest.raises(ServeError, match="this program needs 9999: start the service once"):
        Database.open(url, create=False)
    db = Database.open(url)
    assert version_of(db) == "9999"
    assert "later" in described(db)["studies"]["columns"]
    db.close()


def test_a_migration_that_fails_leaves_the_database_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "migrations"
    (folder / "versions").mkdir(parents=True)
    (folder / "versions" / "v1.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\nrevision = '1'\ndown_revision = None\n\n"
        "def upgrade():\n    op.create_table('half', sa.Column('id', sa.Integer))\n    op.execute('nonsense')\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(migrate, "MIGRATIONS", folder)
    db = bare(tmp_path)
    with pytest.raises(ServeError, match="could not be upgraded"):
        upgrade(db)
    assert "half" not in described(db)
    db.close()


def test_a_database_of_a_newer_program_is_left_alone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'sagittal.db'}"
    db = Database.open(url)
    with db.write() as c:
        c.exec_driver_sql("UPDATE alembic_version SET version_num='8888'")
    db.close()
    with pytest.raises(ServeError, match="made by a newer version of Sagittal .its tables are 8888"):
        Database.open(url)


def test_tables_of_something_else_are_left_alone(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE studies (id INTEGER)")
    other.close()
    with pytest.raises(ServeError, match="tables that Sagittal did not make"):
        Database.open(f"sqlite:///{tmp_path / 'other.db'}")


def test_two_that_open_an_empty_database_at_once_make_its_tables_once(tmp_path: Path) -> None:
    first, second = bare(tmp_path), bare(tmp_path)
    migrate.make_tables(first)
    migrate.make_tables(second)  # it had seen no tables either
    assert version_of(second) == VERSIONS[-1]
    first.close()
    second.close()
