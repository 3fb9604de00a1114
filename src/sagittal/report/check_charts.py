"""Small charts of a data set as inline SVG: bars of counts, histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

#: Bars of splits and of what has no split; told apart in print and with any colour vision.
COLOURS = {"": "#4b5563", "train": "#0072b2", "val": "#e69f00", "test": "#009e73"}
_ROW, _LABEL, _BAR = 22, 190, 330


def bars(counts: Mapping[str, Mapping[str, int]]) -> Markup:
    """One bar a name, made of one part a split; the number behind it.

    Parameters
    ----------
    counts : mapping of name to (mapping of split to count)
        A split is ``""``, ``"train"``, ``"val"`` or ``"test"``.
    """
    most = max((sum(parts.values()) for parts in counts.values()), default=0) or 1
    height = _ROW * len(counts) + 4
    drawn = []
    for n, (name, parts) in enumerate(counts.items()):
        y, x = n * _ROW + 2, float(_LABEL)
        shown = name if len(name) <= 26 else name[:25] + "…"
        drawn.append(Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(_LABEL - 8, y + 15, shown))
        for split, count in parts.items():
            width = _BAR * count / most
            drawn.append(
                Markup('<rect x="{:.1f}" y="{}" width="{:.1f}" height="{}" fill="{}"><title>{}</title></rect>').format(
                    x, y + 2, width, _ROW - 6, COLOURS[split], f"{name}{', ' + split if split else ''}: {count:,}"
                )
            )
            x += width
        drawn.append(Markup('<text x="{:.1f}" y="{}">{:,}</text>').format(x + 6, y + 15, sum(parts.values())))
    return _svg(_LABEL + _BAR + 70, height, drawn, "counts of " + ", ".join(counts))


def histogram(values: Sequence[float], what: str, unit: str = "") -> Markup:
    """How a number is spread over the images; bars are counts, the axis ends at the extremes.

    A few far values would squeeze the rest into one bar: beyond ten times the range of the middle 98 % the axis is cut,
    and the end says how many lie beyond. Positive values over more than two orders of magnitude stand on a log scale.
    """
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    if not known.size:
        return Markup("")
    least, most = float(known.min()), float(known.max())
    logarithmic = least > 0 and np.percentile(known, 95) > 100 * np.percentile(known, 5)
    if logarithmic:
        known = np.log10(known)
    low, high = float(known.min()), float(known.max())
    inner = np.percentile(known, [1, 99])
    span = float(inner[1] - inner[0])
    if span > 0:
        low, high = max(low, float(inner[0]) - 5 * span), min(high, float(inner[1]) + 5 * span)
    beyond = int(((known < low) | (known > high)).sum())
    if low == high:
        text = f"all {known.size:,} {'is' if known.size == 1 else 'are'} {low:.4g} {unit}".rstrip()
        return _svg(300, 40, [Markup('<text x="4" y="24">{}</text>').format(text)], f"{what}: {text}")
    counts, _ = np.histogram(np.clip(known, low, high), bins=24, range=(low, high))
    tall, wide = 74, 290 / 24
    drawn = [
        Markup(
            '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill="#0072b2"><title>{}</title></rect>'
        ).format(
            4 + n * wide, 6 + tall * (1 - count / counts.max()), wide - 1, tall * count / counts.max(), f"{count:,}"
        )
        for n, count in enumerate(counts.tolist())
    ]
    drawn.append(Markup('<line x1="4" x2="294" y1="80.5" y2="80.5" stroke="#6b7280"/>'))
    left, right = (10**low, 10**high) if logarithmic else (low, high)
    drawn.append(Markup('<text x="4" y="97">{}</text>').format(f"{left:.4g}"))
    drawn.append(Markup('<text x="294" y="97" text-anchor="end">{}</text>').format(f"{right:.4g} {unit}".rstrip()))
    middle = ", ".join(filter(None, ("log scale" if logarithmic else "", f"{beyond:,} beyond" if beyond else "")))
    drawn.append(Markup('<text x="149" y="97" text-anchor="middle">{}</text>').format(middle))
    return _svg(298, 102, drawn, f"{what}: {known.size:,} images from {least:.4g} to {most:.4g} {unit}".rstrip())


def _svg(width: int, height: int, parts: Sequence[Markup], title: str) -> Markup:
    head = Markup('<svg viewBox="0 0 {} {}" width="{}" height="{}" role="img" aria-label="{}">').format(
        width, height, width, height, title
    )
    return head + Markup("").join(parts) + Markup("</svg>")


__all__ = ["COLOURS", "bars", "histogram"]
