"""The list of commands and flags in the documentation is that of the command line."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def drawer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("commands", ROOT / "docs" / "commands.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_lists_the_commands_and_flags(drawer: ModuleType) -> None:
    page = drawer.PAGE.read_text(encoding="utf-8")
    assert page == drawer.with_commands(page, drawer.commands()), (
        "the command line has changed: python docs/commands.py"
    )


def test_exit_codes_are_those_of_the_command_line(drawer: ModuleType) -> None:
    from sagittal.cli.exits import Exit

    page = drawer.PAGE.read_text(encoding="utf-8")
    table = page.partition("## Exit codes")[2].partition("## Commands")[0]
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.M)} == {int(code) for code in Exit}
