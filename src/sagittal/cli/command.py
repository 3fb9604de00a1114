"""What every command shares: options, settings from a file, talk on stderr, the result on stdout, exit codes."""

from __future__ import annotations

import functools
import inspect
import json
import logging
import math
import os
import sys
import typing
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from sagittal.cli.exits import Exit, exit_code, explain_error, is_expected, write_bug_report
from sagittal.cli.flags import READING, read_options
from sagittal.cli.terminal import Terminal
from sagittal.errors import ConfigError, nearest

app = typer.Typer(
    name="sagittal",
    help="From raw medical studies to a model that a hospital can run and trust.",
    rich_markup_mode=None,  # plain help: the same in every locale, and rich is not imported for it
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

_NOT_SETTINGS = ("config", "print_config", "debug")


@dataclass(frozen=True)
class Desk:
    """What a command works with beside its own options.

    Parameters
    ----------
    name : str
        The command.
    reporter : Terminal
        For talk, on stderr.
    json : bool
        Whether the result is wanted for a machine.
    file : mapping
        What the file of ``--config`` says, checked.
    """

    name: str
    reporter: Terminal
    json: bool
    file: Mapping[str, Any]

    def answer(self, values: Any, text: str) -> None:
        """Print the result on stdout: `values` as JSON where asked for, else `text`."""
        print(to_json(values) if self.json else text)

    def complain(self, text: str) -> None:
        """Tell one line of bad news, also where only errors are told."""
        print(text, file=sys.stderr)

    def next(self, *commands: str) -> None:
        """Say which commands may follow."""
        for command in commands:
            self.reporter.say(f"next: {command}")


def to_json(values: Any) -> str:
    """Indented JSON, plain ASCII where stdout is; nan becomes null."""
    unicode = "utf" in (sys.stdout.encoding or "").lower()
    return json.dumps(plain(values), indent=1, ensure_ascii=not unicode, allow_nan=False)


def plain(value: Any) -> Any:
    """A value as JSON can hold it."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def command(
    *, brief: str, examples: str, reads: bool = False, alias: str | None = None, settings: bool = True
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function of this package as a command of its name.

    The function takes a :class:`Desk` first, then its options. The common options are added here, and its exceptions
    end in the documented exit codes. Where it `reads` a source, the options of reading are added too, and reach it as
    one :class:`ReadOptions` named ``read``. Without `settings` it has a ``--config`` of its own kind, or none.
    """
    common_options = [one for one in _common if settings or one.name not in ("config", "print_config")]
    added = (*(READING if reads else ()), *common_options)

    def register(body: Callable[..., None]) -> Callable[..., None]:
        name = body.__name__.removesuffix("_")
        hints = typing.get_type_hints(body, include_extras=True)
        _, *own = inspect.signature(body).parameters.values()
        own = [parameter.replace(annotation=hints[parameter.name]) for parameter in own if parameter.name != "read"]
        parameters = [_context, *own, *added]

        @functools.wraps(body)
        def guarded(ctx: typer.Context, **options: Any) -> None:
            common = {one.name: options.pop(one.name) for one in common_options}
            if reads:
                options["read"] = read_options(options)
            reporter = Terminal(quiet=common["quiet"])
            desk = Desk(name, reporter, common["json_"], _file(ctx))
            with _quiet_libraries(reporter, debug=common["debug"]):
                try:
                    if common.get("print_config"):
                        print(to_json(_settings(ctx)))
                    else:
                        body(desk, **options)
                except (typer.Exit, typer.Abort, _UsageError):
                    raise
                except BaseException as error:
                    code = finish(error, name, debug=common["debug"])
                    raise typer.Exit(code) from error

        guarded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        guarded.__annotations__ = {p.name: p.annotation for p in parameters}
        epilog = f"Examples:\n\n\b\n{inspect.cleandoc(examples)}"
        app.command(name, epilog=epilog, short_help=brief)(guarded)
        if alias:
            app.command(alias, epilog=epilog, hidden=True)(guarded)
        return guarded

    return register


def finish(error: BaseException, name: str, *, debug: bool = False) -> Exit:
    """Tell a person why a command ended, and give the exit code."""
    code = exit_code(error)
    stream = sys.stderr
    if debug and not isinstance(error, KeyboardInterrupt):
        import traceback

        traceback.print_exception(error, file=stream)
    if isinstance(error, BrokenPipeError):
        close_pipe()
        return Exit.DONE
    if isinstance(error, KeyboardInterrupt):
        print(f"sagittal {name}: interrupted. {error}".rstrip(), file=stream)
        return code
    if not is_expected(error):
        path = write_bug_report(error, name)
        where = f" A report that can be sent was written to {path}." if path else ""
        print(f"sagittal {name}: {explain_error(error)}.{where} Run again with --debug to see more.", file=stream)
        return code
    print(f"sagittal {name}: {explain_error(error)}", file=stream)
    return code


def close_pipe() -> None:
    """Whoever read stdout went away: nothing more is written there, and Python does not complain at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _quiet_libraries:  # noqa: N801  (used like a function)
    """Other libraries neither warn nor log on the terminal; Sagittal's own warnings are told in one line."""

    def __init__(self, reporter: Terminal, *, debug: bool) -> None:
        self._reporter, self._debug = reporter, debug

    def __enter__(self) -> None:
        self._caught = warnings.catch_warnings()
        self._caught.__enter__()
        self._last_resort = logging.lastResort
        if self._debug:
            return
        logging.lastResort = None
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        warnings.simplefilter("default")
        warnings.showwarning = self._show

    def __exit__(self, *exception: object) -> None:
        logging.lastResort = self._last_resort
        self._caught.__exit__(*exception)  # type: ignore[arg-type]

    def _show(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: object = None,
        line: str | None = None,
    ) -> None:
        package = str(Path(__file__).resolve().parents[1]) + os.sep
        if str(Path(filename).resolve()).startswith(package) and not issubclass(category, DeprecationWarning):
            self._reporter.say(f"note: {message}")
        else:
            logging.getLogger("sagittal").debug("%s: %s (%s:%d)", category.__name__, message, filename, lineno)


# Settings from a file -------------------------------------------------------------------------------------------------


def read_settings(path: Path) -> dict[str, Any]:
    """What a TOML or JSON file of options says."""
    import tomllib

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: cannot be read: {error}") from error
    try:
        values = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except ValueError as error:
        raise ConfigError(f"--config {path}: is not {'JSON' if path.suffix == '.json' else 'TOML'}: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"--config {path}: expected options and their values, found {type(values).__name__}")
    return values


def _use_file(ctx: typer.Context, path: Path | None) -> Path | None:
    """Make a file's values the defaults of a command's options; flags and the environment stand above them."""
    if path is None or ctx.resilient_parsing:
        return path
    try:
        values = read_settings(path)
        commands = {info.name for info in app.registered_commands}
        mine = values.pop(ctx.info_name or "", {})
        values = {key: value for key, value in values.items() if not (key in commands and isinstance(value, dict))}
        values = {key.replace("-", "_"): value for key, value in {**values, **mine}.items()}
        names = _names(ctx)
        for key in values:
            if key not in names and key not in ("source", "plan_fields"):
                raise ConfigError(f"--config {path}: unknown option '{key}'. {nearest(key, [*names, 'source'])}")
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error
    if values.get("plan") and (path.parent / values["plan"]).is_file():  # a run's own plan lies beside its options
        values["plan"] = str(path.parent / values["plan"])
    # Positional arguments are merged by the command, which knows what they mean.
    ctx.default_map = {names[key]: value for key, value in values.items() if key in names and value is not None}
    ctx.obj = {"file": values}
    return path


def _names(ctx: typer.Context) -> dict[str, str]:
    """Flags as a file writes them, and the parameters behind them."""
    names = {}
    for parameter in ctx.command.params:
        for flag in parameter.opts:
            if flag.startswith("--") and parameter.name and parameter.name not in (*_NOT_SETTINGS, "help"):
                names[flag[2:].replace("-", "_")] = parameter.name
    return names


def _file(ctx: typer.Context) -> Mapping[str, Any]:
    return ctx.obj["file"] if isinstance(ctx.obj, dict) and "file" in ctx.obj else {}


def _settings(ctx: typer.Context) -> dict[str, Any]:
    """The settings of a command as they were resolved, under the names that a file may use."""
    settings: dict[str, Any] = {flag: ctx.params[name] for flag, name in _names(ctx).items()}
    file, positional = _file(ctx), list(ctx.params.get("items") or ())
    if "items" in ctx.params:
        source, changes = split_items(positional, file)
        settings = {"source": source, **settings, "plan_fields": changes}
    elif "source" in ctx.params:
        settings = {"source": ctx.params["source"] or file.get("source"), **settings}
    return settings


def split_items(items: list[str], file: Mapping[str, Any]) -> tuple[str | None, dict[str, str]]:
    """Source and plan changes from positional arguments, above those of a file.

    >>> split_items(["data/", "network.width=48"], {})
    ('data/', {'network.width': '48'})
    """
    changes = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in file.get("plan_fields", {}).items()
    }
    sources = []
    for item in items:
        key, sign, value = item.partition("=")
        if sign and key.replace(".", "").replace("_", "").isalnum() and not Path(item).exists():
            changes[key] = value
        else:
            sources.append(item)
    if len(sources) > 1:
        raise ConfigError(
            f"expected one source, found {len(sources)}: {', '.join(sources)}. Put the folders under one, or "
            "name them in one table."
        )
    return (sources[0] if sources else file.get("source")), changes


def source_of(source: str | None, desk: Desk) -> str:
    """The source from the command line or the file of options.

    Raises
    ------
    ConfigError
        If there is none.
    """
    source = source or desk.file.get("source")
    if source is None:
        raise ConfigError(f"no source given. Name a folder, a table or medmnist:NAME: sagittal {desk.name} SOURCE")
    return source


_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

_context = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)


def _option(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


_common = (
    _option("json_", Annotated[bool, typer.Option("--json", help="Print the result as JSON.")], False),
    _option(
        "quiet",
        Annotated[
            bool, typer.Option("--quiet", "-q", envvar="SAGITTAL_QUIET", show_envvar=False, help="Tell only errors.")
        ],
        False,
    ),
    _option(
        "config",
        Annotated[
            Path | None,
            typer.Option(
                "--config",
                metavar="FILE",
                envvar="SAGITTAL_CONFIG",
                show_envvar=False,
                is_eager=True,
                callback=_use_file,
                help="TOML or JSON file of options; SAGITTAL_* variables and flags stand above it.",
            ),
        ],
        None,
    ),
    _option(
        "print_config",
        Annotated[bool, typer.Option("--print-config", help="Print the options as they were resolved, and stop.")],
        False,
    ),
    _option(
        "debug",
        Annotated[
            bool,
            typer.Option(
                "--debug", envvar="SAGITTAL_DEBUG", show_envvar=False, help="Show tracebacks and all warnings."
            ),
        ],
        False,
    ),
)
