"""The page of ``sagittal check``: what was found in a data set, with the pictures that it is about, in one file."""

from __future__ import annotations

import base64
import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from sagittal.case import Case
from sagittal.check.check_dataset import Checked
from sagittal.check.facts import CaseFacts, ImageFacts
from sagittal.check.findings import SEVERITIES, Finding
from sagittal.check.objects import object_counts
from sagittal.check.picture import OUTLINES, in_picture
from sagittal.check.structures import structure_rows
from sagittal.errors import ConfigError
from sagittal.labels import PLACE_KINDS, ClassScores
from sagittal.read.sources import patient_key
from sagittal.report.check_charts import COLOURS, bars, histogram
from sagittal.truth import Boxes
from sagittal.types import Array

#: Pictures that one finding shows: pairs, or cases.
MOST_PAIRS, MOST_CASES = 12, 18
#: Pictures of the contact sheet.
SHEET = 48
#: Bytes of pictures on the page; what does not fit is named without one.
MOST_BYTES = 3_500_000
#: Ids that are listed of one finding, beside those with a picture.
MOST_NAMED = 200
#: Characters of one text from the data that are shown.
_LONGEST = 600
_SUFFIXES = (".html", ".htm", ".json")


@dataclass(frozen=True)
class Box:
    """A box in a picture, as shares of its size."""

    left: float
    top: float
    width: float
    height: float
    colour: str
    name: str
    wrong: bool


@dataclass(frozen=True)
class Shown:
    """One picture with what stands under it."""

    case: str
    picture: bytes | None
    lines: tuple[str, ...]
    detail: str = ""
    boxes: tuple[Box, ...] = ()


@dataclass
class _Room:
    """What is left of the bytes for pictures."""

    left: int = MOST_BYTES
    turned_away: int = field(default=0)

    def take(self, picture: Array | None) -> bytes | None:
        if picture is None:
            return None
        size = 4 * (len(picture) + 2) // 3
        if size > self.left:
            self.turned_away += 1
            return None
        self.left -= size
        return picture.tobytes()


def claim_page(path: Path, *, overwrite: bool = False) -> Path:
    """The place of a page, if it may be written.

    Raises
    ------
    ConfigError
        If it is neither .html nor .json, or is there already.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise ConfigError(f"{path}: a page of findings ends in .html or .json, such as -o check.html")
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} exists already and is kept. To replace it: --overwrite; else another -o.")
    return path


def write_check(checked: Checked, path: Path) -> None:
    """Write the findings as a page or, where the name ends in .json, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".json":
        text = json.dumps(checked.findings.to_json(), indent=1, ensure_ascii=False) + "\n"
    else:
        text = render_check(checked)
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def render_check(checked: Checked) -> str:
    """The page as HTML. Every text is escaped, and nothing is loaded from outside."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sagittal", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["jpeg_uri"] = lambda data: "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")
    dataset, findings = checked.dataset, checked.findings
    room = _Room()
    sections = [_section(checked, n, finding, room) for n, finding in enumerate(findings) if finding.code != "guess"]
    return environment.get_template("check.html.j2").render(
        name=_short(dataset.name),
        may_train=findings.may_train,
        tally=[(severity, len([s for s in sections if s["severity"] == severity])) for severity in SEVERITIES],
        facts=_facts(checked),
        sections=sections,
        chart=_chart(checked),
        colours=_key(checked),
        structures=_structures(checked),
        spreads=_spreads(checked),
        sheet=_sheet(checked, room),
        read=len(checked.facts),
        cases=len(dataset),
        guesses=[_short(finding.message) for finding in findings if finding.code == "guess"],
        turned_away=room.turned_away,
        version=metadata.version("sagittal"),
    )


# Findings -------------------------------------------------------------------------------------------------------------


def _section(checked: Checked, number: int, finding: Finding, room: _Room) -> dict[str, Any]:
    cases = {case.id: case for case in checked.dataset}
    pairs: list[tuple[Shown, Shown]] = []
    singles: list[Shown] = []
    if finding.pairs:
        for first, second in finding.pairs[:MOST_PAIRS]:
            # What makes it a pair stands under the second one.
            detail = finding.details.get(f"{first} = {second}", "")
            pairs.append((_show(checked, cases[first], room), _show(checked, cases[second], room, detail)))
    elif checked.facts and finding.code not in {"unknown-labels"}:
        known = [name for name in finding.cases if name in cases and name in checked.facts]
        singles = [_show(checked, cases[name], room, finding.details.get(name, "")) for name in known[:MOST_CASES]]
    with_picture = {shown.case for shown in singles} | {shown.case for pair in pairs for shown in pair}
    rest = [name for name in finding.cases if name not in with_picture]
    return {
        "anchor": f"f{number}",
        "severity": finding.severity,
        "code": finding.code,
        "message": _short(finding.message, 1200),
        "count": len(finding.pairs) or len(finding.cases),
        "counted": ("pair" if finding.pairs else "case") + "s" * ((len(finding.pairs) or len(finding.cases)) != 1),
        "pairs": pairs,
        "singles": singles,
        "rest": [(_short(name, 80), _short(finding.details.get(name, ""), 160)) for name in rest[:MOST_NAMED]],
        "more": max(0, len(rest) - MOST_NAMED),
    }


def _show(checked: Checked, case: Case, room: _Room, detail: str = "") -> Shown:
    facts = checked.facts.get(case.id)
    image = _first(facts)
    picture = facts.mask.picture if facts is not None and facts.mask is not None else None
    picture = picture if picture is not None else None if image is None else image.picture
    boxes: tuple[Box, ...] = ()
    if isinstance(case.truth, Boxes) and image is not None:
        boxes = _boxes(checked, case.truth, image, detail)
    return Shown(_short(case.id, 60), room.take(picture), _lines(checked, case), _short(detail, 240), boxes)


def _lines(checked: Checked, case: Case) -> tuple[str, ...]:
    """Split, label and patient of a case, as far as they are known."""
    label = _label(checked, case)
    patient = "" if case.patient == case.id else f"patient {patient_key(case.patient)[:10]}"
    return tuple(_short(text, 90) for text in (case.split or "", label, patient) if text)


def _label(checked: Checked, case: Case) -> str:
    classes = checked.dataset.scheme.classes if checked.dataset.scheme is not None else ()
    if isinstance(case.truth, ClassScores):
        if not case.truth.known:
            return "label unknown"
        return ", ".join(name for name, v in zip(classes, case.truth.values, strict=False) if v == 1) or "none of them"
    if isinstance(case.truth, Boxes):
        counts = Counter(classes[n] if 0 <= n < len(classes) else "?" for n in case.truth.classes)
        return ", ".join(f"{n} {name}" for name, n in counts.most_common()) or "no box"
    return "" if case.truth is not None else "no label"


def _boxes(checked: Checked, truth: Boxes, image: ImageFacts, detail: str) -> tuple[Box, ...]:
    """The boxes as the picture shows them; those that the finding names are marked."""
    wrong = {int(number) for number in re.findall(r"\bbox (\d+)", detail)}
    classes = checked.dataset.scheme.classes if checked.dataset.scheme is not None else ()
    if truth.frame == "mm" and not image.grid.has_position:
        return ()
    truth = truth.on(image.grid)
    drawn = []
    for n, (corners, index) in enumerate(zip(truth.corners[:400], truth.classes, strict=False)):
        place = in_picture(image.grid, corners)
        if place is not None:
            known = 0 <= index < len(classes)
            colour = "#{:02x}{:02x}{:02x}".format(*OUTLINES[int(index) % len(OUTLINES)]) if known else "#ffffff"
            drawn.append(Box(*place, colour, _short(classes[index], 40) if known else "?", n + 1 in wrong))
    return tuple(sorted(drawn, key=lambda box: box.wrong))


def _first(facts: CaseFacts | None) -> ImageFacts | None:
    return None if facts is None else next(iter(facts.images.values()), None)


# The data set ---------------------------------------------------------------------------------------------------------


def _facts(checked: Checked) -> list[tuple[str, str]]:
    dataset = checked.dataset
    counted = Counter(case.split or "" for case in dataset)
    splits = {name or "no split": counted[name] for name in ("train", "val", "test", "") if counted[name]}
    rows = [
        ("cases", f"{len(dataset):,}"),
        ("patients", f"{len(dataset.patients):,}"),
        ("read", f"{len(checked.facts):,} of {len(dataset):,}"),
        ("splits", ", ".join(f"{name} {n:,}" for name, n in splits.items())),
        ("question", f"{dataset.scheme.kind}: {', '.join(dataset.scheme.classes)}" if dataset.scheme else "no labels"),
        ("layout", dataset.layout or "not stated"),
    ]
    names = dict.fromkeys(name for case in dataset for name in case.images)
    if len(names) > 1:
        rows.append(("images of a case", ", ".join(names)))
    return [(name, _short(text)) for name, text in rows]


def _key(checked: Checked) -> dict[str, str]:
    """Split -> colour of the chart; only counts of classes are told by split."""
    if checked.dataset.scheme is None or checked.dataset.scheme.kind in PLACE_KINDS:
        return {}
    splits = {case.split or "" for case in checked.dataset}
    return {split or "no split": colour for split, colour in COLOURS.items() if split in splits}


def _chart(checked: Checked) -> Markup | None:
    scheme = checked.dataset.scheme
    if scheme is None:
        return None
    if scheme.kind == "objects":
        return bars({_short(name, 60): {"": boxes} for name, (boxes, _) in object_counts(checked.dataset).items()})
    counts: dict[str, Counter[str]] = {_short(name, 60): Counter() for name in scheme.classes[:40]}
    unknown: Counter[str] = Counter()
    if scheme.kind == "structures":
        return bars({_short(name, 60): {"": n} for name, n, _ in structure_rows(checked.dataset, checked.facts)[:40]})
    for case in checked.dataset:
        if case.scores is None or not case.scores.known:
            unknown[case.split or ""] += 1
            continue
        for name, value in zip(counts, case.scores.values, strict=False):
            counts[name][case.split or ""] += bool(value == 1)
    ordered = {name: {s: parts[s] for s in COLOURS if parts[s]} for name, parts in counts.items()}
    return bars({**ordered, **({"unknown": dict(unknown)} if unknown else {})})


def _structures(checked: Checked) -> list[tuple[str, str, str, str]]:
    scheme = checked.dataset.scheme
    if scheme is None or scheme.kind not in PLACE_KINDS:
        return []
    if scheme.kind == "objects":
        counted = object_counts(checked.dataset).items()
        return [(_short(name, 60), f"{boxes:,} boxes", f"{cases:,} images", "") for name, (boxes, cases) in counted]
    rows = structure_rows(checked.dataset, checked.facts)
    colours = ["#{:02x}{:02x}{:02x}".format(*OUTLINES[n % len(OUTLINES)]) for n in range(len(rows))]
    return [(_short(name, 60), f"in {n:,} masks", size, c) for (name, n, size), c in zip(rows, colours, strict=True)]


def _spreads(checked: Checked) -> list[tuple[str, list[tuple[str, Markup]]]]:
    """For each kind of image: histograms of its sizes, spacings and intensities."""
    kinds: dict[str, list[ImageFacts]] = defaultdict(list)
    for found in checked.facts.values():
        for name, image in found.images.items():
            flat = "pictures" if image.shape[2] == 1 else "volumes"
            colour = "colour " if image.channels == 3 else ""
            unit = f" in {image.unit}" if image.unit != "1" else ""
            kinds[f"{name}: {image.modality}, {colour}{flat}{unit}"].append(image)
    spreads = []
    for kind, images in sorted(kinds.items(), key=lambda item: -len(item[1]))[:6]:
        unit = "" if images[0].unit == "1" else images[0].unit
        axes = ("width", "height") if images[0].shape[2] == 1 else ("columns", "rows", "slices")
        dots = "pixels" if images[0].shape[2] == 1 else "voxels"
        charts = [(axis, histogram([i.shape[n] for i in images], axis, dots)) for n, axis in enumerate(axes)]
        for n, axis in enumerate(axes):
            lengths = [i.spacing[n] for i in images if i.spacing is not None]
            if lengths and np.isfinite(lengths).any():
                charts.append((f"spacing along {axis}", histogram(lengths, f"spacing along {axis}", "mm")))
        charts.append(("median value", histogram([i.percentiles[2] for i in images], "median value", unit)))
        charts.append(("99th percentile", histogram([i.percentiles[4] for i in images], "99th percentile", unit)))
        charts.append(("standard deviation", histogram([i.sd for i in images], "standard deviation", unit)))
        spreads.append((f"{_short(kind, 80)} ({len(images):,})", charts))
    return spreads


def _sheet(checked: Checked, room: _Room) -> list[Shown]:
    """Cases spread evenly over the data set."""
    cases = [case for case in checked.dataset if _first(checked.facts.get(case.id)) is not None]
    chosen: Sequence[Case] = cases
    if len(cases) > SHEET:
        chosen = [cases[round(n * (len(cases) - 1) / (SHEET - 1))] for n in range(SHEET)]
    return [_show(checked, case, room) for case in chosen]


def _short(text: str, most: int = _LONGEST) -> str:
    """A text from the data: one line, no control characters, not endless."""
    line = "".join(sign if sign.isprintable() else " " for sign in text)
    return line if len(line) <= most else line[: most - 1] + "…"
