"""The command ``sagittal``: reads the command line, calls one verb, ends in a documented exit code."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from sagittal import __version__
from sagittal.cli import (  # each registers its command
    audit,
    backup,
    check,
    compare,
    demo,
    doctor,
    evaluate,
    explain,
    info,
    ingest,
    plan,
    predict,
    report,
    serve,
    train,
    users,
    viewer,
)
from sagittal.cli.command import app, close_pipe, finish
from sagittal.cli.exits import Exit
from sagittal.cli.terminal import prepare_streams

#: Help lists the commands in the order of the journey.
_JOURNEY = (
    ingest,
    check,
    plan,
    train,
    evaluate,
    predict,
    explain,
    compare,
    report,
    serve,
    users,
    audit,
    backup,
    viewer,
    info,
    doctor,
    demo,
)
_ORDER = [module.__name__ for module in _JOURNEY]
app.registered_commands.sort(key=lambda known: _ORDER.index(known.callback.__module__) if known.callback else 0)


def _version(asked: bool) -> None:
    if asked:
        print(f"sagittal {__version__}")
        raise typer.Exit


@app.callback(
    epilog="""\b
Start with:
  sagittal demo                        the whole journey on synthetic studies
  sagittal train medmnist:breastmnist  a classifier from a public set
  sagittal train studies/ --labels labels.csv --target diagnosis
\b
Exit codes: 0 done, 1 failed, 2 usage, 3 bad input data, 4 environment
(memory, disk, device, package), 5 quality gate missed, 130 interrupted.

Sagittal is research software, not a medical device.
"""
)
def _sagittal(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version, and stop.")
    ] = False,
) -> None:
    """From raw medical studies to a model that a hospital can run and trust."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code."""
    prepare_streams()
    # Threads that wait for each other sleep instead of spinning. On 2 busy cores a training step of 64 pictures took
    # 1.0 s so, and more than 4 s with spinning, which is the default of OpenMP.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGTERM, _interrupt)  # a scheduler's stop is a Ctrl-C: training leaves a checkpoint
    usage_error: type[Exception] = typer.BadParameter.__mro__[2]
    try:
        return int(app(arguments, prog_name="sagittal", standalone_mode=False) or Exit.DONE)
    except usage_error as error:  # a mistyped command or option
        error.show()  # type: ignore[attr-defined]
        return Exit.USAGE
    except (KeyboardInterrupt, typer.Abort) as error:
        return finish(KeyboardInterrupt(), "") if isinstance(error, KeyboardInterrupt) else Exit.INTERRUPTED
    except Exception as error:  # parsing itself went wrong
        return finish(error, "sagittal")


def run() -> NoReturn:
    """The entry point of the console script."""
    code = main()
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read stdout has gone
        close_pipe()
    sys.exit(code)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    run()
