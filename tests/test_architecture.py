"""The one-page picture of the architecture is what the folders and their imports are."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "sagittal"


@pytest.fixture(scope="module")
def picture() -> ModuleType:
    spec = importlib.util.spec_from_file_location("picture", ROOT / "docs" / "picture.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["picture"] = module
    spec.loader.exec_module(module)
    return module


def test_table_shows_the_folders_and_their_imports(picture: ModuleType) -> None:
    page = picture.PAGE.read_text(encoding="utf-8")
    drawn = picture.with_table(page, picture.table(picture.rooms()))
    assert page == drawn, "the architecture has changed: python docs/picture.py"


def test_drawing_shows_the_folders_and_their_imports(picture: ModuleType) -> None:
    drawn = picture.svg(picture.rooms())
    assert picture.SVG.read_text(encoding="utf-8") == drawn, "the architecture has changed: python docs/picture.py"


def test_drawing_is_well_formed_and_names_every_folder(picture: ModuleType) -> None:
    root = ElementTree.fromstring(picture.SVG.read_text(encoding="utf-8"))
    said = " ".join(text for text in root.itertext())
    for folder in folders():
        assert folder in said


def folders() -> list[str]:
    return sorted(path.parent.name for path in SOURCE.glob("*/__init__.py"))


def test_every_part_of_the_package_has_a_place_in_the_order(picture: ModuleType) -> None:
    ranked = {name for layer in picture.order() for name in layer}
    modules = {path.stem for path in SOURCE.glob("*.py")} - {"__init__"}
    assert {*folders(), *modules} <= ranked


def test_imports_point_upward(picture: ModuleType) -> None:
    """Drawn from the source itself, independently of import-linter."""
    rank = {name: n for n, layer in enumerate(picture.order()) for name in layer}
    wrong = [(room.name, used) for room in picture.rooms() for used in room.uses if rank[used] > rank[room.name]]
    assert wrong == []


def test_the_contract_holds() -> None:
    result = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout


def test_a_room_that_imports_downward_is_noticed(picture: ModuleType, tmp_path: Path) -> None:
    room = tmp_path / "read"
    room.mkdir()
    (room / "__init__.py").write_text('"""Files to cases."""\n')
    (room / "bad.py").write_text(
        "def f():\n    from sagittal.train.run import train_model\n    import sagittal.model\n"
    )
    (tmp_path / "errors.py").write_text('"""Errors."""\n')
    found = {part.name: part.uses for part in picture.rooms(tmp_path)}
    assert set(found["read"]) == {"train", "model"}
    assert picture.table(picture.rooms(tmp_path)) not in picture.PAGE.read_text(encoding="utf-8")


def test_folders_are_two_levels_deep_at_most() -> None:
    deep = [path for path in SOURCE.glob("*/*/*.py") if "viewer" not in path.parts]
    assert deep == []


def test_no_module_is_named_after_nothing() -> None:
    assert [path for path in SOURCE.rglob("*.py") if path.stem in ("utils", "helpers", "misc", "common")] == []
