"""What is public is listed, exists, has a docstring and stands in the documentation."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import pytest

import sagittal

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(module.name for module in pkgutil.walk_packages(sagittal.__path__, "sagittal."))


def documentation() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").rglob("*.md")))


def test_all_is_exactly_the_public_names() -> None:
    assert sorted(sagittal.__all__) == list(sagittal.__all__)
    things = {name: getattr(sagittal, name) for name in {*dir(sagittal), *sagittal.__all__} if not name.startswith("_")}
    own = {name for name, thing in things.items() if getattr(thing, "__module__", "").startswith("sagittal")}
    # Rooms that share a verb's name are callable modules: public too.
    own |= {name for name, thing in things.items() if inspect.ismodule(thing) and callable(thing)}
    assert own == set(sagittal.__all__)


@pytest.mark.parametrize("name", sagittal.__all__)
def test_public_name_exists_and_says_what_it_is(name: str) -> None:
    thing = getattr(sagittal, name)
    assert callable(thing)
    text = inspect.getdoc(thing)
    assert text
    assert len(text.split()) > 2


@pytest.mark.parametrize("name", sagittal.__all__)
def test_public_name_stands_in_the_documentation(name: str) -> None:
    assert re.search(rf"`(sagittal\.)?{name}\b|sagittal\.{name}\b", documentation()), (
        f"document {name} in docs/python.md"
    )


def test_a_name_that_is_not_there_is_refused() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = sagittal.no_such_name


@pytest.mark.parametrize("name", MODULES)
def test_module_lists_only_what_it_has(name: str) -> None:
    module = importlib.import_module(name)
    listed = getattr(module, "__all__", None)
    if listed is None:
        return
    assert list(listed) == sorted(listed), f"sort __all__ of {name}"
    assert all(hasattr(module, entry) for entry in listed)


def public_things() -> list[tuple[str, str, ModuleType]]:
    """Every public function and class that a module defines itself."""
    found = []
    for name in MODULES:
        module = importlib.import_module(name)
        for entry, thing in vars(module).items():
            own = getattr(thing, "__module__", None) == name
            if own and not entry.startswith("_") and (inspect.isclass(thing) or inspect.isfunction(thing)):
                found.append((name, entry, thing))
    return found


def test_every_public_function_and_class_has_a_docstring() -> None:
    bare = [f"{module}.{entry}" for module, entry, thing in public_things() if not inspect.getdoc(thing)]
    assert bare == []


def test_every_module_says_what_it_is() -> None:
    bare = [name for name in MODULES if not (importlib.import_module(name).__doc__ or "").strip()]
    assert bare == []


def test_print_stands_in_the_command_line_only() -> None:
    calls = []
    for path in sorted((ROOT / "src" / "sagittal").rglob("*.py")):
        if path.parent.name == "cli":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                calls.append(f"{path.name}:{node.lineno}")
    assert calls == []
