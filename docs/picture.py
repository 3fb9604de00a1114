"""Draw the architecture on one page, from the folders and their imports: ``python docs/picture.py``.

Writes ``docs/assets/architecture.svg`` and the table in ``docs/architecture.md``. A test draws both again and compares,
so that neither can grow old.
"""

from __future__ import annotations

import ast
import textwrap
import tomllib
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "sagittal"
PAGE = ROOT / "docs" / "architecture.md"
SVG = ROOT / "docs" / "assets" / "architecture.svg"
START, END = "<!-- picture: start -->", "<!-- picture: end -->"

#: What flows through the journey's rooms, from the design.
FLOWS = {
    "guard": "bytes → checked bytes",
    "formats": "files → Image",
    "read": "source → Dataset",
    "check": "Dataset → Findings",
    "prepare": "Case, Plan → arrays",
    "networks": "arrays → features, logits",
    "metrics": "prediction, truth → number",
    "tasks": "the question",
    "model": "Case → Prediction",
    "train": "arrays, Plan → Model",
    "evaluate": "Model, truth → Evidence",
    "explain": "Model, Case → maps",
    "report": "Evidence → page",
    "write": "Prediction → files",
    "database": "rows",
    "protect": "across",
    "archive": "object → receipt",
    "node": "associations → objects",
    "deliver": "objects → elsewhere",
    "jobs": "study → result",
    "serve": "the service",
    "cli": "a file a command",
}


@dataclass(frozen=True)
class Room:
    """One folder, or a module of the top level that stands alone in the order."""

    name: str
    purpose: str
    files: tuple[str, ...]
    uses: tuple[str, ...]


def order(pyproject: Path = ROOT / "pyproject.toml") -> list[list[str]]:
    """The layers of the import contract, each with its members, the first room of the journey first."""
    contracts = tomllib.loads(pyproject.read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [[part.strip(" ()") for part in layer.replace("|", ":").split(":")] for layer in reversed(layers)]


def first_line(path: Path) -> str:
    """The first line of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.split("\n", maxsplit=1)[0]


def imported(path: Path) -> set[str]:
    """The parts of the package that a file imports, at its top or inside functions."""
    parts: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        parts |= {name.split(".")[1] for name in names if name.startswith("sagittal.")}
    return parts - {"__version__"}


def rooms(source: Path = SOURCE) -> list[Room]:
    """Every part of the package in the order of the contract, with what it imports."""
    found = []
    ranked = [name for layer in order() for name in layer]
    for name in ranked:
        folder, module = source / name, source / f"{name}.py"
        paths = sorted(folder.rglob("*.py")) if folder.is_dir() else [module] if module.is_file() else []
        if not paths:
            continue  # a room that the contract allows and that is not built yet
        uses = set().union(*(imported(path) for path in paths)) - {name}
        main = folder / "__init__.py" if folder.is_dir() else module
        files = tuple(path.stem for path in paths if path.stem != "__init__") if folder.is_dir() else ()
        found.append(Room(name, first_line(main), files, tuple(sorted(uses, key=ranked.index))))
    return found


def table(parts: list[Room]) -> str:
    """The rooms as a Markdown table."""
    tops = top_level(parts)
    lines = ["| room | takes → gives | files | imports from |", "|---|---|---|---|"]
    shown = ", ".join(f"`{name}`" for name in tops)
    lines.append(f"| top level | the types that flow between rooms | {shown} | - |")
    for room in parts:
        if room.name in tops:
            continue
        files = ", ".join(f"`{name}`" for name in room.files) or "-"
        uses = ", ".join(f"`{name}`" for name in room.uses if name not in tops) or "-"
        lines.append(f"| **`{room.name}`** {room.purpose} | {FLOWS.get(room.name, '')} | {files} | {uses} |")
    return "\n".join(lines)


def top_level(parts: list[Room]) -> list[str]:
    """The modules beside the rooms that stand before the first of them, and those that only they use."""
    first = next(n for n, room in enumerate(parts) if room.files)
    return [room.name for room in parts[:first]]


def svg(parts: list[Room]) -> str:
    """The rooms as one drawing, the first of the journey at the top; arcs show who imports whom."""
    tops = top_level(parts)
    shown = [room for room in parts if room.name not in tops]
    width, row, left, box, head = 1180, 62, 250, 690, 104
    height = head + row * (len(shown) + 1) + 24
    middle = {"top level": head + row / 2}
    middle |= {room.name: head + row * (n + 1.5) for n, room in enumerate(shown)}
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif" role="img">',
        "<title>Sagittal on one page: rooms in the order in which data flows, and what each imports</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        '<text x="24" y="38" font-size="22" font-weight="600" fill="#102a43">Sagittal on one page</text>',
        '<text x="24" y="64" font-size="13" fill="#486581">Data flows from top to bottom. A room imports only from rooms '
        "above it: an arc on the right runs from a room to one that it uses.</text>",
        '<text x="24" y="84" font-size="13" fill="#486581">What rooms hand to each other are the types of the top level; '
        "every room may use those.</text>",
    ]

    def draw(name: str, flow: str, lines: list[str], fill: str) -> None:
        y = middle[name] - row / 2 + 5
        out.append(
            f'<text x="{left - 16}" y="{y + 31:g}" text-anchor="end" font-size="12" fill="#486581">{escape(flow)}</text>'
        )
        out.append(
            f'<rect x="{left}" y="{y:g}" width="{box}" height="{row - 10}" rx="6" fill="{fill}" stroke="#829ab1"/>'
        )
        out.append(
            f'<text x="{left + 14}" y="{y + 31:g}" font-size="16" font-weight="600" fill="#102a43">{escape(name)}</text>'
        )
        for n, line in enumerate(lines):
            base = y + 31 - 8 * (len(lines) - 1) + 16 * n
            out.append(f'<text x="{left + 120}" y="{base:g}" font-size="12" fill="#243b53">{escape(line)}</text>')

    draw("top level", "types that flow", textwrap.wrap(" ".join(tops), 96)[:3], "#fff3c4")
    for room in shown:
        lines = textwrap.wrap(" ".join(room.files) or room.purpose, 96)
        draw(room.name, FLOWS.get(room.name, ""), lines[:3], "#e3f8ff" if room.files else "#f0f4f8")
    right = left + box
    for room in shown:
        for used in room.uses:
            if used in tops:
                continue
            low, high = middle[room.name] - 5, middle[used] + 5
            bend = right + 26 + 15 * abs(low - high) / row
            out.append(
                f'<path d="M{right} {low:g} C{bend:g} {low:g} {bend:g} {high:g} {right + 5} {high:g}" fill="none" '
                'stroke="#486581" stroke-opacity=".45"/>'
                f'<circle cx="{right + 3}" cy="{high:g}" r="2.5" fill="#486581"/>'
            )
    out.append("</svg>")
    return "\n".join(out) + "\n"


def with_table(page: str, drawn: str) -> str:
    """The page with the drawn table between its marks."""
    before, _, rest = page.partition(START)
    return f"{before}{START}\n\n{drawn}\n\n{END}{rest.partition(END)[2]}"


def main() -> None:
    """Draw both."""
    parts = rooms()
    SVG.write_text(svg(parts), encoding="utf-8")
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), table(parts)), encoding="utf-8")


if __name__ == "__main__":
    main()
