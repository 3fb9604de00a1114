"""``sagittal backup`` and ``sagittal restore``: everything that the service keeps, while it runs, and back again."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sagittal.cli.command import Desk, command
from sagittal.cli.exits import Exit
from sagittal.cli.serve import Data, ServeConfig, read

if TYPE_CHECKING:
    from sagittal.archive.backup import BackupCheck

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Of the backup.", show_default=False)]


@command(
    brief="Back up the service while it runs.",
    settings=False,
    examples="""
    sagittal backup /backups/2026-11-21 --config sagittal.toml
    sagittal backup /backups/2026-11-22 --previous /backups/2026-11-21
    sagittal backup /backups/2026-11-22 --check
    """,
)
def backup(
    desk: Desk,
    folder: Folder,
    previous: Annotated[
        Path | None,
        typer.Option(
            "--previous", metavar="FOLDER", help="Earlier backup on the same disk; its files are linked, not copied."
        ),
    ] = None,
    link: Annotated[
        bool, typer.Option("--link", help="Link files of the same disk: at once, but what damages it damages both.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Compare every file of a backup with its hash instead.")
    ] = False,
    config: ServeConfig = None,
    data: Data = None,
) -> None:
    """Copy database, studies and results as they were at one moment; the service goes on meanwhile.

    Models and the configuration are not in it. With --check, ends in 5 if a file of the backup is missing or altered.
    """
    from sagittal.errors import require

    require("sqlalchemy", feature="sagittal backup", extra="serve")
    if check:
        from sagittal.archive.backup import check_backup

        _judge(desk, check_backup(folder), "whole")
        return
    given = read(config, {"server.data": data})
    from sagittal.archive.archive import Archive
    from sagittal.archive.backup import make_backup
    from sagittal.database.connect import Database
    from sagittal.protect.audit import Audit

    db = Database.open(given.server.database_url, create=False)
    try:
        Audit(db).record("sagittal", "backup", details={"by": "command line"})
        made = make_backup(Archive(db, given.server.data / "archive"), folder, link=link, previous=previous)
    finally:
        db.close()
    said = f"{made.files} files, {made.bytes / 2**30:.2f} GiB, {made.linked} of them linked"
    desk.answer(asdict(made), said + (f"; {made.missing} files were missing" if made.missing else ""))
    if made.missing:
        raise typer.Exit(Exit.GATE)


@command(
    brief="Put a backup of the service back.",
    settings=False,
    examples="""
    sagittal restore /backups/2026-11-21 --data /srv/sagittal
    sagittal restore /backups/2026-11-21 --config sagittal.toml
    """,
)
def restore(desk: Desk, folder: Folder, config: ServeConfig = None, data: Data = None) -> None:
    """Put a backup into an empty place, every hash compared on the way; who was logged in must log in again.

    Ends in 5 if a file of the backup was missing or altered: the rest is restored, and the archive knows which.
    """
    given = read(config, {"server.data": data})
    from sagittal.archive.backup import restore_backup
    from sagittal.database.connect import Database
    from sagittal.database.schema import sessions
    from sagittal.protect.audit import Audit

    given.server.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    url = given.server.database_url
    done = restore_backup(folder, given.server.data / "archive", url)
    db = Database.open(url, create=False)
    try:
        with db.write() as c:
            c.execute(sessions.delete())
        details = {"by": "command line", "files": done.files, "damaged": len(done.damaged)}
        Audit(db).record("sagittal", "restore", details=details)
    finally:
        db.close()
    _judge(desk, done, "restored")


def _judge(desk: Desk, found: BackupCheck, word: str) -> None:
    """Tell what was found; a damaged backup ends in 5."""
    damaged = len(found.damaged)
    text = f"{word}: {found.files} files" if not damaged else f"DAMAGED: {damaged} of {found.files} files"
    desk.answer({"files": found.files, "damaged": damaged}, text)
    if damaged:
        raise typer.Exit(Exit.GATE)
