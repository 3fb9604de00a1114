"""Write the list of commands and flags into ``docs/cli.md`` from the command line itself: ``python docs/commands.py``.

A test writes it again and compares.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().with_name("cli.md")
START, END = "<!-- commands: start -->", "<!-- commands: end -->"


def commands() -> str:
    """One section a command: what it does, how it is called, its flags."""
    import typer

    from sagittal.cli import main

    group: Any = typer.main.get_command(main.app)
    return "\n\n".join(section(name, command) for name, command in group.commands.items() if not command.hidden)


def section(name: str, command: Any) -> str:
    """The section of one command."""
    parts = [p for p in command.params if p.param_type_name == "argument"]
    flags = [p for p in command.params if p.param_type_name == "option" and not getattr(p, "hidden", False)]
    call = " ".join(["sagittal", name, *(part.make_metavar_text() for part in map(Argument, parts))])
    lines = [
        f"### {name}",
        "",
        first_sentence(command.help or ""),
        "",
        f"`{call}`",
        "",
        "| flag | meaning |",
        "|---|---|",
    ]
    for one in flags:
        names = ", ".join(f"`{text}`" for text in sorted(one.opts, key=len))
        lines.append(f"| {names} | {escape(getattr(one, 'help', '') or '')} |")
    return "\n".join(lines)


class Argument:
    """How a positional argument is written."""

    def __init__(self, parameter: Any) -> None:
        self.parameter = parameter

    def make_metavar_text(self) -> str:
        """``MODEL``, or ``[SOURCE]`` where it may be left out."""
        text = str(self.parameter.metavar or self.parameter.name.upper())
        return text if self.parameter.required or text.startswith("[") else f"[{text}]"


def first_sentence(text: str) -> str:
    """A command's help without its examples."""
    return re.sub(r"\s+", " ", text.replace("\b", "").split("\f")[0].split("Examples:")[0]).strip()


def escape(text: str) -> str:
    """Text inside a cell of a table."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("*", "\\*").strip()


def with_commands(page: str, drawn: str) -> str:
    """The page with the list between its marks."""
    before, _, rest = page.partition(START)
    return f"{before}{START}\n\n{drawn}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(with_commands(PAGE.read_text(encoding="utf-8"), commands()), encoding="utf-8")
