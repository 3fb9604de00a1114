"""A result as one page that a person reads: the finding, how sure, a picture, what the model is for, its limits.

The page holds nothing that identifies the patient: neither name, number nor date. It goes by the header of its file.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sagittal.types import Array
from sagittal.write.equipment import MANUFACTURER, ModelFacts
from sagittal.write.lettering import fitted, text_length, wrapped, write_line
from sagittal.write.statement import Line, Statement, percent
from sagittal.write.statement_words import WORDS

if TYPE_CHECKING:
    from PIL.Image import Image as Sheet

WIDTH, HEIGHT = 1024, 1448
_MARGIN = 44
_INK, _SOFT, _RULE = (23, 28, 33), (82, 92, 102), (205, 211, 217)
#: Of the band and the side bar, by state; told apart in grey too, and each has its words.
_BANDS = {"answered": (20, 60, 92), "abstained": (138, 84, 0), "refused": (110, 32, 32)}
_TINTS = {"answered": (236, 242, 247), "abstained": (253, 243, 224), "refused": (250, 235, 235)}
_NOTICE = (255, 209, 92)
_BAR = (64, 122, 168)
_MOST_LINES = 9


def draw_page(statement: Statement, facts: ModelFacts, *, picture: bytes | None = None, caption: str = "") -> Array:
    """The page, (1448, 1024, 3) uint8.

    Parameters
    ----------
    statement : Statement
        In Chinese only where :func:`sagittal.write.lettering.find_chinese_font` finds a font.
    facts : ModelFacts
    picture : bytes, optional
        PNG of the study with what was found in it.
    caption : str
        Under the picture.
    """
    from PIL import Image as Pillow

    sheet = Pillow.new("RGB", (WIDTH, HEIGHT), "white")
    page = _Page(sheet, statement, facts)
    page.head()
    page.finding()
    foot = page.foot_height()
    page.picture(picture, caption, HEIGHT - foot)
    page.foot(HEIGHT - foot)
    return np.asarray(sheet)


@dataclass
class _Page:
    """A page that is filled from the top; `y` is where the next part begins."""

    sheet: Sheet
    statement: Statement
    facts: ModelFacts
    y: int = 0

    def __post_init__(self) -> None:
        self.words = WORDS[self.statement.language]
        self.wide = WIDTH - 2 * _MARGIN

    def head(self) -> None:
        """Band with what this is, and the notice that nobody may overlook."""
        self._box(0, 0, WIDTH, 74, _BANDS[self.statement.state])
        title = self.words[f"{self.statement.state} title"]
        write_line(self.sheet, (_MARGIN, 21), title, 28, "white", bold=True)
        name = fitted(f"{MANUFACTURER} · {self.facts.name}", 22, self.wide - text_length(title, 28, bold=True) - 40)
        write_line(self.sheet, (WIDTH - _MARGIN - text_length(name, 22), 25), name, 22, "white")
        self._box(0, 74, WIDTH, 122, _NOTICE)
        write_line(self.sheet, (_MARGIN, 85), self.statement.notice, 22, _INK, bold=True)
        self.y = 142

    def finding(self) -> None:
        """The finding or the reason for none in large letters, and how sure."""
        said = self.statement
        size = 38 if len(said.summary) < 90 else 28
        lines = wrapped(said.summary, size, self.wide - 40, bold=True)[:4]
        under = [part for part in (said.confidence_words, said.not_excluded, said.reason) if part]
        if said.state != "answered":
            under = [said.reason]
        small = [line for part in under for line in wrapped(part, 22, self.wide - 40)][:9]
        high = 18 + len(lines) * round(size * 1.3) + 8 + len(small) * 31 + 14
        self._box(_MARGIN, self.y, WIDTH - _MARGIN, self.y + high, _TINTS[said.state])
        self._box(_MARGIN, self.y, _MARGIN + 10, self.y + high, _BANDS[said.state])
        y = self.y + 18
        for line in lines:
            write_line(self.sheet, (_MARGIN + 26, y), line, size, _INK, bold=True)
            y += round(size * 1.3)
        y += 8
        for line in small:
            write_line(self.sheet, (_MARGIN + 26, y), line, 22, _INK)
            y += 31
        self.y += high + 18
        self._detail(said.lines)

    def _detail(self, lines: Sequence[Line]) -> None:
        """A row for each class, structure or kind of object: bars where there is a probability."""
        if not lines or [one.words for one in lines] == [self.statement.summary]:
            return  # all of it stands above
        order = sorted(lines, key=lambda one: (not one.held, -one.probability if math.isfinite(one.probability) else 0))
        shown = order[:_MOST_LINES]
        for one in shown:
            mark = "●" if one.held else "○"
            write_line(self.sheet, (_MARGIN, self.y), mark, 20, _INK if one.held else _SOFT)
            if math.isfinite(one.probability) and not one.count:
                name = fitted(one.name, 21, 420)
                write_line(self.sheet, (_MARGIN + 30, self.y), name, 21, _INK, bold=one.held)
                left, right = _MARGIN + 470, WIDTH - _MARGIN - 110
                self._box(left, self.y + 5, right, self.y + 21, (232, 236, 240))
                end = left + round((right - left) * min(max(one.probability, 0.0), 1.0))
                if end > left:
                    self._box(left, self.y + 5, end, self.y + 21, _BAR if one.held else (158, 178, 194))
                write_line(self.sheet, (right + 16, self.y), percent(one.probability), 21, _INK, bold=one.held)
            else:
                text = fitted(one.words, 21, self.wide - 30)
                write_line(self.sheet, (_MARGIN + 30, self.y), text, 21, _INK if one.held else _SOFT, bold=one.held)
            self.y += 30
        if len(order) > len(shown):
            text = self.words["more"].format(count=len(order) - len(shown)).lstrip("; ；")
            write_line(self.sheet, (_MARGIN + 30, self.y), text, 19, _SOFT)
            self.y += 28
        self.y += 10

    def picture(self, picture: bytes | None, caption: str, bottom: int) -> None:
        """The picture as large as the room between the finding and the foot allows."""
        from PIL import Image as Pillow

        text = caption if picture is not None else self.words["no picture"]
        lines = wrapped(text, 18, self.wide)[:2] if text else []
        room = bottom - self.y - 18 - len(lines) * 25
        y = self.y
        if picture is not None and room >= 80:
            drawn = Pillow.open(io.BytesIO(picture)).convert("RGB")
            scale = min(self.wide / drawn.width, room / drawn.height, 3.0)
            size = (max(1, round(drawn.width * scale)), max(1, round(drawn.height * scale)))
            how = Pillow.Resampling.LANCZOS if scale < 1 else Pillow.Resampling.BICUBIC
            self.sheet.paste(drawn.resize(size, how), (_MARGIN + (self.wide - size[0]) // 2, y))
            y += size[1] + 8
        for line in lines:
            write_line(self.sheet, (_MARGIN, y), line, 18, _SOFT)
            y += 25
        self.y = y

    def foot_height(self) -> int:
        """Height of the lower part, pixels."""
        return sum(25 * len(lines) + 38 for _, lines in self._blocks()) + 78

    def foot(self, top: int) -> None:
        """What the model is for, its limits, which model it was."""
        y = top
        for title, lines in self._blocks():
            self._box(_MARGIN, y, WIDTH - _MARGIN, y + 1, _RULE)
            write_line(self.sheet, (_MARGIN, y + 8), title, 17, _SOFT, bold=True)
            y += 34
            for line in lines:
                write_line(self.sheet, (_MARGIN, y), line, 18, _INK)
                y += 25
            y += 4
        self._box(_MARGIN, y, WIDTH - _MARGIN, y + 1, _RULE)
        facts = self.facts
        seal = f" · sha256 {facts.checksum[:32]}" if facts.checksum else ""
        text = f"{self.words['model']}: {facts.name} · {facts.version or '-'}{seal}"
        for n, line in enumerate(wrapped(text, 17, self.wide)[:2]):
            write_line(self.sheet, (_MARGIN, y + 12 + 24 * n), line, 17, _SOFT)

    def _blocks(self) -> list[tuple[str, list[str]]]:
        blocks = []
        for key, rows in (("purpose title", self.statement.purpose), ("limits title", self.statement.limits)):
            lines = [line for label, text in rows for line in wrapped(f"{label}: {text}", 18, self.wide)[:3]]
            if lines:
                blocks.append((self.words[key], lines[:8]))
        return blocks

    def _box(self, left: int, top: int, right: int, bottom: int, colour: tuple[int, int, int]) -> None:
        self.sheet.paste(colour, (left, top, right, bottom))
