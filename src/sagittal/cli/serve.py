"""``sagittal serve``: a model at work beside the PACS."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sagittal.cli.command import Desk, command
from sagittal.cli.exits import Exit
from sagittal.errors import ServeError

if TYPE_CHECKING:
    from sagittal.serve.config import Config

#: Seconds between looks at whether everything still lives.
_LOOK_S = 2.0

ServeConfig = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", envvar="SAGITTAL_SERVE_CONFIG", show_envvar=False, help="TOML file of the service."
    ),
]
Data = Annotated[
    Path | None, typer.Option("--data", metavar="FOLDER", help="Where studies, results and the database are kept.")
]


@command(
    brief="Serve models beside a PACS.",
    settings=False,
    examples="""
    sagittal serve runs/chest
    sagittal serve --config sagittal.toml --check
    sagittal serve --config sagittal.toml
    sagittal serve model/ --port 8080 --dicom-port 0 --data /srv/sagittal
    """,
)
def serve(
    desk: Desk,
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL]...", help="Models beside those of the file.", show_default=False),
    ] = None,
    config: ServeConfig = None,
    host: Annotated[
        str | None, typer.Option("--host", metavar="ADDRESS", help="Address of pages and programs; 127.0.0.1.")
    ] = None,
    port: Annotated[int | None, typer.Option("--port", metavar="N", help="Port of pages and programs; 8042.")] = None,
    dicom_port: Annotated[
        int | None, typer.Option("--dicom-port", metavar="N", help="Port of the DICOM node, 0 for none; 11112.")
    ] = None,
    data: Data = None,
    worker: Annotated[
        bool, typer.Option("--worker", help="Only answer studies, for a service on the same database and folder.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Say what is wrong or unwise, and stop.")] = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the configuration as it was resolved, and stop.")
    ] = False,
    log_level: Annotated[
        str, typer.Option("--log-level", metavar="LEVEL", help="debug, info, warning or error.")
    ] = "info",
) -> None:
    """Take studies by DICOM, web and folder, let models answer them, and send results where they belong.

    Listens on this machine only unless the configuration says otherwise. The first start prints a link by which the first
    administrator comes in.
    """
    given = read(
        config, {"server.host": host, "server.port": port, "dicom.port": dicom_port, "server.data": data}, models
    )
    if print_config:
        from sagittal.serve.config import to_values

        desk.answer(to_values(given), _toml(to_values(given)))
    elif check:
        _check(desk, given)
    else:
        stop = threading.Event()
        _stop_on_signals(stop)
        with _logs("error" if desk.reporter.quiet else log_level):
            (_work if worker else _serve)(desk, given, stop)


def read(config: Path | None, flags: dict[str, Any], models: list[str] | None = None) -> Config:
    """The configuration of the service from file, environment and flags."""
    import os

    from sagittal.errors import require

    require("fastapi", feature="sagittal serve", extra="serve")
    from sagittal.serve.config import read_config

    plain = {name: str(value.absolute()) if isinstance(value, Path) else value for name, value in flags.items()}
    return read_config(config, environment=os.environ, flags=plain, models=models or ())


def _check(desk: Desk, config: Config) -> None:
    from sagittal.serve.check import check_config

    found = check_config(config)
    wrong = sum(one.level == "error" for one in found)
    lines = [str(one) for one in found]
    lines.append(f"{wrong} errors, {len(found) - wrong} warnings" if found else "nothing is wrong")
    values = [{"level": one.level, "where": one.where, "text": one.text} for one in found]
    desk.answer({"findings": values, "errors": wrong}, "\n".join(lines))
    if wrong:
        raise typer.Exit(Exit.USAGE)


def _serve(desk: Desk, config: Config, stop: threading.Event) -> None:
    from sagittal.protect.users import administrators
    from sagittal.serve.check import refuse_exposure
    from sagittal.serve.service import first_link, open_service, start_service

    service = open_service(config)
    try:
        refuse_exposure(config, administrators(service.db))
        listener = start_service(service)
        dicom = service.node.port if service.node is not None else None
        link = first_link(service, config.server.public_url or listener.address)
        told = [f"serving at {listener.address}"]
        told += [f"DICOM node {config.dicom.ae_title} at port {dicom}"] if dicom else []
        desk.answer({"address": listener.address, "dicom_port": dicom}, "\n".join(told))
        sys.stdout.flush()
        if link:
            desk.complain(f"The first administrator comes in here, once, within a day: {link}")
        while not stop.wait(_LOOK_S):
            if not listener.alive:  # whoever watches the process starts it again
                raise ServeError("the pages ended by themselves; the log says why")
    finally:
        service.stop()


def _work(desk: Desk, config: Config, stop: threading.Event) -> None:
    from sagittal.serve.work import Helper

    helper = Helper(config)
    try:
        helper.start()
        desk.answer({"working": True}, "answering studies")
        sys.stdout.flush()
        stop.wait()
    finally:
        helper.stop()


@contextmanager
def _logs(level: str) -> Iterator[None]:
    from sagittal.serve.logs import start_logs, stop_logs

    handler = start_logs(level, sys.stderr)
    try:
        yield
    finally:
        stop_logs(handler)


def _stop_on_signals(stop: threading.Event) -> None:
    """End in order at the first signal, at once at the second Ctrl-C; a scheduler may ask as often as it likes."""

    def end(number: int, frame: object) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def _toml(values: dict[str, Any]) -> str:
    """Resolved settings as a person reads them, as TOML writes them."""
    import json

    lines: list[str] = []
    for table, content in values.items():
        for one in content if isinstance(content, list) else [content]:
            lines.append(f"[[{table}]]" if isinstance(content, list) else f"[{table}]")
            lines += [
                f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in one.items() if value is not None
            ]
            lines.append("")
    return "\n".join(lines).rstrip()
