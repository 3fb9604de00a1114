"""What Sagittal is built from: floors, pins, licences, and what its own code must never do."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src" / "sagittal").rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = {name: parts for name, parts in PROJECT["optional-dependencies"].items() if name != "all"}

requirements = pytest.importorskip("packaging.requirements")
utils = pytest.importorskip("packaging.utils")


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {
        str(utils.canonicalize_name(name)): version
        for name, _, version in (line.partition("==") for line in lines if line and not line.startswith("#"))
    }


def roots_of(extra: str) -> list[str]:
    """What an extra asks for beside Sagittal's other extras, which are looked at by themselves."""
    lines = PROJECT["dependencies"] if not extra else EXTRAS[extra]
    return [line for line in lines if requirements.Requirement(line).name != "sagittal"]


def closure(roots: list[str]) -> dict[str, Distribution]:
    """Everything that these requirements bring with them in this environment."""
    todo = [requirements.Requirement(root) for root in roots]
    found: dict[str, Distribution] = {}
    done: set[tuple[str, frozenset[str]]] = set()
    while todo:
        wanted = todo.pop()
        name, extras = str(utils.canonicalize_name(wanted.name)), frozenset(wanted.extras)
        if (name, extras) in done:
            continue
        done.add((name, extras))
        found[name] = distribution(name)
        for line in found[name].requires or []:
            needed = requirements.Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras or {""}):
                todo.append(needed)
    return found


@pytest.mark.parametrize(
    ("package", "floor", "why"),
    [("pydicom", "3.0.2", "CVE-2026-32711"), ("torch", "2.10", "CVE-2025-32434 and CVE-2026-24747")],
)
def test_floor_closes_a_known_hole(package: str, floor: str, why: str) -> None:
    wanted = next(r for r in map(requirements.Requirement, PROJECT["dependencies"]) if r.name == package)
    versions = importlib.import_module("packaging.version")
    lowest = next(spec.version for spec in wanted.specifier if spec.operator == ">=")
    assert versions.Version(lowest) >= versions.Version(floor), why
    assert versions.Version(pins()[package]) >= versions.Version(floor), why


def test_ranges_leave_room() -> None:
    """A user's own torch, CUDA or not, stays: pins stand in constraints.txt and nowhere else."""
    for line in PROJECT["dependencies"]:
        operators = {spec.operator for spec in requirements.Requirement(line).specifier}
        assert operators == {">="}, f"{line}: the package declares a floor and no ceiling"


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_every_requirement_is_pinned_and_its_pin_fits(extra: str) -> None:
    pinned = pins()
    for line in roots_of(extra):
        wanted = requirements.Requirement(line)
        version = pinned.get(str(utils.canonicalize_name(wanted.name)))
        assert version is not None, f"constraints.txt lacks {wanted.name}"
        assert wanted.specifier.contains(version), f"{line}: pinned to {version}"


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_everything_that_comes_along_is_pinned(extra: str) -> None:
    roots = roots_of(extra)
    try:
        found = closure(roots)
    except PackageNotFoundError as error:
        pytest.skip(f"the extra '{extra}' is not installed whole: {error}")
    assert sorted(set(found) - set(pins())) == []


def test_torchvision_does_not_come_along() -> None:
    """Its only build for some systems needs CUDA libraries, and its mere presence breaks other packages there."""
    assert "torchvision" not in pins()
    try:
        found = closure([part for extra in ("", *EXTRAS) for part in roots_of(extra)])
    except PackageNotFoundError as error:
        pytest.skip(f"not every extra is installed: {error}")
    assert "torchvision" not in found


COPYLEFT = re.compile(r"\b(A?GPL|GNU (Affero )?General Public)", re.IGNORECASE)
PERMISSIVE = re.compile(
    r"MIT|BSD|Apache|PSF|Python Software Foundation|ISC|HPND|MPL|Mozilla|Unlicense|Zlib|Public Domain|CNRI|0BSD|CC0",
    re.IGNORECASE,
)


def licence(package: Distribution) -> str:
    """What the package says of its licence, in its shortest form."""
    meta = package.metadata
    expression = meta.get("License-Expression")
    if expression:
        return str(expression)
    classifiers = [c.rpartition("::")[2].strip() for c in meta.get_all("Classifier") or [] if c.startswith("License")]
    named = [c for c in classifiers if c != "OSI Approved"]
    said = "; ".join(named) or (meta.get("License") or "").strip().split("\n")[0]
    if said and said != "UNKNOWN":
        return said
    # No word in the metadata: the title of the licence file that the package ships.
    texts = [file.read_text() for file in package.files or [] if file.name.upper().startswith(("LICENSE", "COPYING"))]
    return " ".join(texts[0].split()[:12]) if texts else ""


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_licences_are_permissive(extra: str) -> None:
    roots = roots_of(extra)
    try:
        found = closure(roots)
    except PackageNotFoundError as error:
        pytest.skip(f"the extra '{extra}' is not installed whole: {error}")
    said = {name: licence(package) for name, package in found.items()}
    assert {name: text for name, text in said.items() if COPYLEFT.search(text)} == {}
    assert {name: text for name, text in said.items() if text and not PERMISSIVE.search(text)} == {}
    assert [name for name, text in said.items() if not text] == []


def test_gpl_decoder_is_no_dependency() -> None:
    """pylibjpeg-libjpeg is GPL-3; python-gdcm has an open hole in its header parser (CVE-2026-3650)."""
    assert not {"pylibjpeg-libjpeg", "python-gdcm", "gdcm"} & set(pins())


FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle", "telnetlib"}
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "torch.load",
    "yaml.load",
    "torch.hub.load",
    "os.system",
    "pickle.load",
    "joblib.load",
}


def calls_and_imports(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (f"import {alias.name.split('.')[0]}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield f"import {node.module.split('.')[0]}"
            yield from (f"call {node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call):
            yield f"call {ast.unparse(node.func)}"
            for keyword in node.keywords:
                if keyword.arg in ("allow_pickle", "shell", "trust_remote_code") and not (
                    isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                ):
                    yield f"call with {keyword.arg}={ast.unparse(keyword.value)}"


def forbidden(text: str) -> list[str]:
    wrong = {f"import {name}" for name in FORBIDDEN_MODULES} | {f"call {name}" for name in FORBIDDEN_CALLS}
    return [found for found in calls_and_imports(text) if found in wrong or found.startswith("call with ")]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT / "src").as_posix())
def test_code_opens_no_door(path: Path) -> None:
    assert forbidden(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "bad",
    [
        "import pickle",
        "from joblib import load",
        "import torch\ntorch.load('x', weights_only=True)",
        "from torch import load",
        "eval('1')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import yaml\nyaml.load('x')",
        "AutoModel.from_pretrained('x', trust_remote_code=True)",
    ],
)
def test_the_door_test_notices(bad: str) -> None:
    assert forbidden(bad)


SECRET = re.compile(
    r"""(password|passwd|passphrase|secret|token|api_?key)["']?\s*[:=]\s*(str\s*=\s*)?["'][^"'\s{}]{3,}["']""",
    re.IGNORECASE,
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT / "src").as_posix())
def test_no_default_password(path: Path) -> None:
    assert SECRET.findall(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("line", ['password = "orthanc"', "PASSWORD: str = 'changeme'", '{"api_key": "abcdef"}'])
def test_the_password_test_notices(line: str) -> None:
    assert SECRET.search(line)
