"""What all figures share: size and style of a method, titles, legends, and how a figure becomes bytes.

Colours are Okabe and Ito's eight and a few of Paul Tol's, told apart by the colour-blind; methods differ in marker and
line style as well. The `_mt` row of a method has its colour.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Style = tuple[str, str, Any]
"""Colour, marker and line style."""

GREY = "#666666"
_DPI = 150
_STYLES: Mapping[str, Style] = {
    "finetune": ("#000000", "s", (0, (1, 1))),
    "adapter": ("#7F7F7F", "X", ":"),
    "bitfit": ("#8C6D31", "<", "-."),
    "lora": ("#56B4E9", "h", "--"),
    "prompt_tuning": ("#E69F00", "^", "--"),
    "spot": ("#009E73", "D", "-."),
    "spot_similar": ("#CC79A7", "v", (0, (3, 1, 1, 1, 1, 1))),
    "spot_generic": ("#44AA99", "d", ":"),
    "spot_targeted": ("#117733", ">", "-."),
    "attempt": ("#0072B2", "o", "-"),
    "attempt_mt": ("#D55E00", "P", "-"),
    "mpt": ("#882255", "*", "-"),
    "dept": ("#AA4499", "p", "-"),
}
_SPARE = (("#56B4E9", "X", "--"), ("#8C6D31", "<", "-."), ("#7F7F7F", ">", ":"))


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, sizes in inches, laid out so that nothing is cut off."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def write_title(figure: Figure, title: str, explanation: str) -> None:
    """Write what is shown, and below it what it rests on, broken to the figure's width."""
    lines = textwrap.wrap(explanation, width=int(figure.get_figwidth() * 13))
    text = "\n".join(lines)
    figure.suptitle(f"{title}\n{text}", fontsize=9.5, linespacing=1.4)


def write_legend(figure: Figure, axes: Axes) -> None:
    """Write the names of what `axes` shows below the figure, where there are any."""
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(6, max(1, len(labels))),
        frameon=False,
        fontsize=9,
    )


def strip(axes: Axes) -> None:
    """Take the frame off that axes have at the top and on the right."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_axisbelow(True)


def style_of(label: str, among: Iterable[str]) -> Style:
    """Return colour, marker and line style of a method; unknown ones take the spare styles in order."""
    if label in _STYLES:
        return _STYLES[label]
    if label.endswith("_mt") and (single := label.removesuffix("_mt")) in _STYLES:
        return _STYLES[single][0], "P", ":"
    others = [name for name in among if name not in _STYLES]
    return _SPARE[others.index(label) % len(_SPARE)]


def png(figure: Figure) -> bytes:
    """Return the figure as PNG, without a word on when and by what it was made."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def svg(figure: Figure) -> bytes:
    """Return the figure as SVG: the same bytes for the same figure."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "attempt"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
