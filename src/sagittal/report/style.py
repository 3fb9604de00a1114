"""The style that every figure of a report shares, and how a figure becomes a file; drawn without a display."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagittal.metrics.intervals import Estimate
from sagittal.tasks.picture import wide_font

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito's colours without yellow: told apart by colour-blind readers, dark enough on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#7A5C00", "#000000", "#E69F00")
GREY = "#6B7280"

_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#9CA3AF",
    "axes.labelcolor": "#111827",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E5E7EB",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": "#374151",
    "ytick.color": "#374151",
    "text.color": "#111827",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "text.parse_math": False,  # a class called "$x$" is a name
    "savefig.facecolor": "white",
}


def _use_wide_font(figure: Figure) -> None:
    """Write Chinese, Japanese and Korean names in a font that has their signs, where one is installed."""
    from matplotlib.text import Text

    other = wide_font()
    if other is None:
        return
    for text in figure.findobj(Text):
        if isinstance(text, Text) and any(ord(sign) >= 0x2E80 for sign in text.get_text()):
            text.set_fontfamily(["DejaVu Sans", other[0]])
            text.set_fontweight("normal")  # these fonts often have no bold


@contextmanager
def sheet(width: float = 5.4, height: float = 4.8) -> Iterator[Figure]:
    """A new figure in the style of the report."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def to_png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG; the same figure gives the same bytes."""
    from matplotlib import rc_context

    stream = io.BytesIO()
    _use_wide_font(figure)
    with rc_context(_STYLE), warnings.catch_warnings():
        # A name in a script that no installed font has: boxes in the picture, the tables have it right.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def short(name: str, length: int = 24) -> str:
    """A name that fits a legend.

    >>> short("actinic keratoses and intraepithelial carcinoma")
    'actinic keratoses and i…'
    """
    shown = f" {name}" if name.startswith("_") else name  # matplotlib hides what begins with an underscore
    return shown if len(shown) <= length else shown[: length - 1] + "\u2026"


def with_interval(estimate: Estimate | None) -> str:
    """Two digits and the limits, as a legend shows them."""
    if estimate is None or not math.isfinite(estimate.value):
        return "not defined"
    if not math.isfinite(estimate.low):
        return f"{estimate.value:.2f}"
    return f"{estimate.value:.2f} ({estimate.low:.2f}\u2013{estimate.high:.2f})"


def square(axes: Axes) -> None:
    """Both axes from 0 to 1, equally long."""
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.set_aspect("equal")


def legend_below(figure: Figure, axes: Axes) -> None:
    """A legend under the axes, for which the layout makes room."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=1, handlelength=1.8)


def save_figures(figures: Mapping[str, Figure], folder: Path) -> dict[str, bytes]:
    """Write figures under their names; gives their bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    out = {}
    for name, figure in figures.items():
        out[name] = to_png(figure)
        (folder / name).write_bytes(out[name])
    return out
