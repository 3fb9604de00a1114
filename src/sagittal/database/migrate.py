"""Tables of an empty database made, those of an older one upgraded, those of a newer program left alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from sagittal.database.schema import metadata
from sagittal.errors import ServeError

if TYPE_CHECKING:
    from sagittal.database.connect import Database

#: The newest version of the tables, and those before it, the first one first: files of ``migrations/versions``.
VERSIONS = ("0001",)
#: Where Alembic finds its scripts; they are part of the package.
MIGRATIONS = Path(__file__).parent / "migrations"
_version = sa.table("alembic_version", sa.column("version_num", sa.String))


def version_of(db: Database) -> str:
    """The version of the database's tables; empty if there are none yet.

    Raises
    ------
    ServeError
        If it holds tables of something else.
    """
    with db.read() as c:
        names = set(sa.inspect(c).get_table_names())
        if "alembic_version" not in names:
            if names & set(metadata.tables):
                raise ServeError("the database holds tables that Sagittal did not make: name an empty database")
            return ""
        return str(c.execute(sa.select(_version.c.version_num)).scalar() or "")


def prepare_tables(db: Database, *, create: bool) -> None:
    """Make or upgrade the tables where `create` allows it.

    Raises
    ------
    ServeError
        If the tables are of a newer program, or missing or older and `create` is false.
    """
    version = version_of(db)
    if version == VERSIONS[-1]:
        return
    if version and version not in VERSIONS:
        raise ServeError(
            f"the database was made by a newer version of Sagittal (its tables are {version}, this program knows "
            f"{VERSIONS[-1]}). Install that version, or restore a backup that was made before."
        )
    if not create:
        raise ServeError(
            "the database is empty: start the service once"
            if not version
            else f"the database's tables are {version}, this program needs {VERSIONS[-1]}: start the service once to upgrade"
        )
    if version:
        upgrade(db)
        return
    make_tables(db)


def make_tables(db: Database) -> None:
    """Make the tables as the migrations would, which a test compares, in a hundredth of their time."""
    name = sa.Column("version_num", sa.String(32), nullable=False)
    stamp = sa.Table("alembic_version", sa.MetaData(), name, sa.PrimaryKeyConstraint(name, name="alembic_version_pkc"))
    with db.write() as c:
        if sa.inspect(c).has_table("alembic_version"):  # another process was faster
            return
        metadata.create_all(c)
        stamp.create(c)
        c.execute(sa.insert(_version).values(version_num=VERSIONS[-1]))


def upgrade(db: Database, version: str = "head") -> None:
    """Run the migrations up to a version, in one transaction.

    Raises
    ------
    ServeError
        If one fails; the database is then as it was.
    """
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    script = ScriptDirectory(str(MIGRATIONS))

    def steps(revision: Any, _context: Any) -> Any:
        return script._upgrade_revs(version, revision)

    try:
        with db.write() as c, EnvironmentContext(Config(), script, fn=steps) as environment:
            environment.configure(connection=c, target_metadata=metadata, render_as_batch=True, transactional_ddl=False)
            environment.run_migrations()
    except (CommandError, sa.exc.SQLAlchemyError) as error:
        raise ServeError(
            f"the database could not be upgraded ({type(error).__name__}); it is as it was. Restore a backup or report this."
        ) from error
