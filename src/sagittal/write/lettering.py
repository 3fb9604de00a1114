"""Letters in pictures: lines in Latin and Chinese signs, cut or broken where they are too long."""

from __future__ import annotations

import math
import os
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image as Sheet
    from PIL.ImageFont import FreeTypeFont

#: Fonts that hold Chinese, the better ones first, and where systems keep fonts.
_CJK = (
    "NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "NotoSansSC-Regular.otf", "NotoSansSC-Regular.ttf",
    "NotoSansSC[wght].ttf", "SourceHanSansSC-Regular.otf", "SourceHanSansCN-Regular.otf", "wqy-microhei.ttc",
    "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf", "DroidSansFallback.ttf", "msyh.ttc", "simhei.ttf", "PingFang.ttc",
    "STHeiti Light.ttc", "uming.ttc",
)  # fmt: skip
_FOLDERS = (
    "/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts", "/System/Library/Fonts",
    "/Library/Fonts", "C:/Windows/Fonts",
)  # fmt: skip


@cache
def find_chinese_font() -> Path | None:
    """A font file with Chinese signs that this machine has; ``None`` where there is none."""
    found: dict[str, Path] = {}
    for folder in _FOLDERS:
        for place, _, names in os.walk(Path(folder).expanduser()):
            for name in names:
                if name in _CJK:
                    found.setdefault(name, Path(place) / name)
    return next((found[name] for name in _CJK if name in found), None)


@cache
def _font(size: int, chinese: bool, bold: bool) -> FreeTypeFont:
    import matplotlib
    from PIL import ImageFont

    path = find_chinese_font() if chinese else None
    if path is None:
        name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
        path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    return ImageFont.truetype(path, size)


def _is_chinese(sign: str) -> bool:
    """Whether DejaVu lacks it and a Chinese font has it: ideographs, their punctuation, kana, hangul, wide forms."""
    return (
        "\u2e80" <= sign <= "\ud7af" or "\uf900" <= sign <= "\ufaff" or "\uff00" <= sign <= "\uffef" or sign > "\uffff"
    )


def _runs(text: str) -> list[tuple[bool, str]]:
    plain = "".join(sign if sign.isprintable() else " " for sign in text)
    return [(chinese, "".join(signs)) for chinese, signs in groupby(plain, _is_chinese)]


def text_length(text: str, size: int, *, bold: bool = False) -> int:
    """How long a line is, pixels."""
    return math.ceil(sum(_font(size, chinese, bold).getlength(run) for chinese, run in _runs(text)))


def write_line(
    sheet: Sheet,
    place: tuple[int, int],
    text: str,
    size: int,
    colour: tuple[int, int, int] | str,
    *,
    bold: bool = False,
) -> None:
    """One line; each run in the font that has its signs, all on one base line."""
    from PIL import ImageDraw

    draw = ImageDraw.Draw(sheet)
    x, base = float(place[0]), place[1] + size
    for chinese, run in _runs(text):
        font = _font(size, chinese, bold)
        # The fonts for Chinese come in one weight: a thin outline in the same colour makes it bold.
        stroke = 1 if bold and chinese and size > 18 else 0
        draw.text((x, base), run, fill=colour, font=font, anchor="ls", stroke_width=stroke, stroke_fill=colour)
        x += font.getlength(run)


def fitted(text: str, size: int, wide: int) -> str:
    """The text, cut with an ellipsis where it is too long."""
    if text_length(text, size) <= wide:
        return text
    while text and text_length(text + "…", size) > wide:
        text = text[:-1]
    return text + "…"


def wrapped(text: str, size: int, wide: int, *, bold: bool = False) -> list[str]:
    """Lines no longer than that many pixels: broken at spaces, Chinese anywhere, words that are too long within.

    >>> wrapped("one two three", 20, 100)
    ['one two', 'three']
    """
    lines, line = [], ""
    for piece in _pieces(text):
        if text_length(line + piece.rstrip(), size, bold=bold) <= wide:
            line += piece
            continue
        if line.strip():
            lines.append(line.rstrip())
        line = piece.lstrip()
        while text_length(line, size, bold=bold) > wide:
            cut = max(
                1, next(n for n in range(len(line), 0, -1) if n == 1 or text_length(line[:n], size, bold=bold) <= wide)
            )
            lines.append(line[:cut])
            line = line[cut:]
    return [*lines, line.rstrip()] if line.strip() else lines


def _pieces(text: str) -> list[str]:
    """Words with the space after them; ideographs one by one, with the punctuation that closes after them."""
    pieces: list[str] = []
    whole = True  # whether the last piece is complete
    for sign in text:
        if pieces and sign in "，。；：、）？！":
            pieces[-1] += sign
            whole = True
        elif _is_chinese(sign):
            pieces.append(sign)
            whole = True
        else:
            if whole:
                pieces.append("")
            pieces[-1] += sign
            whole = sign == " "
    return pieces
