"""Every example in the documentation and the READMEs runs and says what the page says that it says.

- ``python`` blocks of a page run in order and share their names; ``pycon`` blocks are doctests.
- ``console`` blocks run each line that starts with ``$``; lines below it are the expected output, in which digits may
  differ and ``...`` stands for anything.
- ``<!-- not run: REASON -->`` before a block leaves it out, ``<!-- ends in 3 -->`` expects that exit code.

They run in a folder that holds what the pages speak of: ``pictures/`` (two classes of small images), ``chest/`` (synthetic
CT as DICOM with ``labels.csv``) and ``runs/pictures`` (a model of the former). Where a page trains with a budget of ten
minutes, a plan of a few steps stands for it here, so that a busy machine changes nothing.
"""

from __future__ import annotations

import doctest
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("README*.md"), ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
)
BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>not run: .+?|ends in \d+) -->\n+)?^```(?P<kind>\w*).*\n(?P<text>(?:.*\n)*?)^```$", re.M
)
SHORT = "sagittal.TrainOptions(plan='nodule-plan.json')"
RUN = ("python", "pycon", "console")
#: Kinds that are pictures of files or output, not examples.
SHOWN = ("text", "json", "csv", "toml", "bibtex", "")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    kind: str
    mark: str
    text: str

    @property
    def runs(self) -> bool:
        return self.kind in RUN and not self.mark.startswith("not run")


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, m.start("kind")) + 1, m["kind"], m["mark"] or "", m["text"])
        for m in BLOCK.finditer(text)
    ]


def draw_pictures(folder: Path) -> None:
    """Round and ragged spots, 32 x 32: what the pages call benign and malignant."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32]
    for n in range(120):
        ragged = n % 2
        down, right = rng.uniform(10, 22, 2)
        angle = np.arctan2(y - down, x - right)
        edge = rng.uniform(4, 6) * (1 + ragged * 0.45 * np.sin(7 * angle + rng.uniform(0, 6)))
        values = rng.normal(110, 18, (32, 32)) + 70 * (np.hypot(y - down, x - right) < edge)
        place = folder / ("benign", "malignant")[ragged]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).save(place / f"{n:03d}.png")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of which every page gets a copy."""
    from sagittal.phantom import make_chest_ct

    folder = tmp_path_factory.mktemp("world")
    draw_pictures(folder / "pictures")
    make_chest_ct(folder / "chest", studies=6)
    write_plan("pictures", None, folder / "pictures-plan.json")
    write_plan("chest", "nodule", folder / "nodule-plan.json")
    result = run_shell("sagittal train pictures --plan pictures-plan.json -o runs/pictures --quiet", folder)
    assert result.returncode == 0, result.stderr
    return folder


def write_plan(source: str, target: str | None, path: Path) -> None:
    """A plan that trains for a few seconds, whatever the machine."""
    from sagittal.prepare.fingerprint import measure_dataset
    from sagittal.prepare.planner import Wishes, make_plans
    from sagittal.read.open_dataset import open_dataset

    fingerprint = measure_dataset(open_dataset(path.parent / source, target=target), seed=0)
    plan = make_plans(fingerprint, budget_s=600.0, task="classify", wishes=Wishes(preset="fast", folds=1))[-1]
    changes = {"network.width": "8", "train.epochs": "6", "train.batch": "16", "split.folds": "1", "split.repeats": "1"}
    if plan.input.dimensions == 3:
        changes["prepare.size"] = "[8, 24, 24]"
    replace(plan.override(changes), companions=(), budget_s=None).save(path)


def run_shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "NO_COLOR": "1",
        "COLUMNS": "120",
    }
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True, timeout=420, check=False
    )


def pattern(expected: str) -> re.Pattern[str]:
    """Digits may differ, runs of blanks too, and ``...`` stands for anything."""
    lines = [re.sub(r"[ \t]+", " ", line).strip() for line in expected.strip().splitlines()]
    text = re.escape("\n".join(lines))
    text = text.replace(r"\.\.\.", "(?:.|\n)*?").replace(r"\ ", " ")
    text = re.sub(r"\d+(?:\\\.\d+)?", r"\\d+(?:\\.\\d+)?", text)
    return re.compile(text)


def tidy(output: str) -> str:
    return "\n".join(re.sub(r"[ \t]+", " ", line).strip() for line in output.strip().splitlines())


def run_console(block: Block, folder: Path) -> None:
    wanted = int(block.mark.removeprefix("ends in ")) if block.mark.startswith("ends in") else 0
    commands = re.split(r"^\$ ", block.text.replace("\\\n", " "), flags=re.M)[1:]
    assert commands, f"{block.page.name}:{block.line}: no line starts with $"
    for entry in commands:
        command, _, expected = entry.partition("\n")
        command = re.sub(r"(sagittal train (\w+)\b.*) --budget 10m", r"\1 --plan \2-plan.json", command)
        result = run_shell(command, folder)
        place = f"{block.page.name}:{block.line}: {command}"
        assert result.returncode == wanted, f"{place}\n{result.stdout}\n{result.stderr}"
        said = tidy(result.stdout + "\n" + result.stderr)
        if expected.strip():
            assert pattern(expected).search(said), f"{place}\nexpected:\n{expected}\nfound:\n{said}"


def run_page(page: Path, folder: Path) -> None:
    names: dict[str, Any] = {"__name__": "__example__"}
    for block in blocks(page):
        if not block.runs:
            continue
        if block.kind == "console":
            run_console(block, folder)
        elif block.kind == "pycon":
            test = doctest.DocTestParser().get_doctest(block.text, names, page.name, str(page), block.line)
            runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
            said: list[str] = []
            runner.run(test, out=said.append, clear_globs=False)
            assert not runner.failures, "".join(said)
            names |= test.globs
        else:
            text = block.text.replace('budget="10m", output', f"options={SHORT}, output")
            code = compile("\n" * block.line + text, str(page), "exec")
            exec(code, names)


def with_examples() -> list[Path]:
    return [page for page in PAGES if any(block.runs for block in blocks(page))]


@pytest.mark.parametrize("page", with_examples(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_examples_of_page(page: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "page"
    shutil.copytree(world, folder)
    monkeypatch.chdir(folder)
    run_page(page, folder)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_block_has_a_kind_that_is_known(page: Path) -> None:
    for block in blocks(page):
        assert block.kind in (*RUN, *SHOWN), f"{page.name}:{block.line}: a block of kind '{block.kind}' would never run"


def test_the_journey_is_among_the_examples() -> None:
    said = "\n".join(block.text for page in PAGES for block in blocks(page) if block.runs)
    for verb in ("check", "plan", "train", "evaluate", "predict", "explain", "info"):
        assert re.search(rf"^\$ sagittal {verb} ", said, re.M), f"no page runs sagittal {verb}"
    assert "sagittal.train(" in said


def test_a_wrong_example_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nassert 1 == 2\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError):
        run_page(page, tmp_path)
    page.write_text("```console\n$ echo one 12\none 345\ntwo\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="expected"):
        run_page(page, tmp_path)
    page.write_text("```console\n$ echo one 12; echo and more; echo two\none 345\n...\ntwo\n```\n", encoding="utf-8")
    run_page(page, tmp_path)
    page.write_text("<!-- ends in 3 -->\n```console\n$ false\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError):
        run_page(page, tmp_path)


def test_internal_links_lead_somewhere() -> None:
    lost = []
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if "://" in target or target.startswith(("#", "mailto:")):
                continue
            if not (page.parent / target.partition("#")[0]).exists():
                lost.append(f"{page.name}: {target}")
    assert lost == []
