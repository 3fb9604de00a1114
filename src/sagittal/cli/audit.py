"""``sagittal audit``: whether the trail is whole, and what stands in it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from sagittal.cli.command import Desk, command
from sagittal.cli.exits import Exit
from sagittal.cli.serve import Data, ServeConfig, read
from sagittal.errors import ConfigError, nearest, require

ACTIONS = ("verify", "export")


@command(
    brief="Check the audit trail of the service.",
    settings=False,
    examples="""
    sagittal audit verify
    sagittal audit verify --expect 812:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    sagittal audit export -o trail.jsonl
    """,
)
def audit(
    desk: Desk,
    action: Annotated[str, typer.Argument(metavar="ACTION", help="verify or export.")] = "verify",
    expect: Annotated[
        str, typer.Option("--expect", metavar="NUMBER:HASH", help="A head that was printed before and kept elsewhere.")
    ] = "",
    after: Annotated[int, typer.Option("--after", metavar="N", help="Export the records after this number.")] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where records are written; stdout.")
    ] = None,
    config: ServeConfig = None,
    data: Data = None,
) -> None:
    """Walk the chain of the trail, or write its records as lines of JSON; works while the service runs.

    Ends in 5 if the chain is broken.
    """
    if action not in ACTIONS:
        raise ConfigError(f"unknown action '{action}'. {nearest(action, ACTIONS)}")
    number, _, digest = expect.partition(":")
    if expect and not (number.isdigit() and len(digest) == 64):
        raise ConfigError("--expect: expected NUMBER:HASH as 'sagittal audit verify' prints it")
    require("sqlalchemy", feature="sagittal audit", extra="serve")
    given = read(config, {"server.data": data})
    from sagittal.database.connect import Database
    from sagittal.protect.audit import Audit, read_records, verify

    db = Database.open(given.server.database_url, create=False)
    try:
        if action == "export":
            lines = (json.dumps(_readable(row), ensure_ascii=False) for row in read_records(db, after))
            if output is None:
                for line in lines:
                    print(line)
            else:
                with output.open("x", encoding="utf-8") as file:
                    file.writelines(f"{line}\n" for line in lines)
            Audit(db).record("sagittal", "audit-read", details={"by": "command line", "after": after})
            return
        verdict = verify(db, expect)
    finally:
        db.close()
    values = {"sound": verdict.sound, "records": verdict.records, "head": verdict.head, "problem": verdict.problem}
    said = f"sound: {verdict.records} records" if verdict.sound else f"BROKEN: {verdict.problem}"
    desk.answer(values, f"{said}\nhead {verdict.head}")
    if not verdict.sound:
        raise typer.Exit(Exit.GATE)


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "time": datetime.fromtimestamp(row["at"], UTC).isoformat()}
