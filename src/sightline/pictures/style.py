"""The style of every diagram: colours, panels, and the rendering of a figure to an image.

Colours are Okabe and Ito's (2008), which colour-blind readers can distinguish; colour is never the only sign of a
difference.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from .fonts import make_legible, use_fonts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

PALETTE = {
    "ink": "#1f2a37",
    "faint": "#6b7684",
    "line": "#d9dee5",
    "paper": "#ffffff",
    "blue": "#0072b2",
    "orange": "#d55e00",
    "green": "#00876c",
}
"""Name -> colour: blue for training and counts, orange for validation and errors, green for correct."""


_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": PALETTE["line"],
    "axes.labelcolor": PALETTE["faint"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": PALETTE["ink"],
    "xtick.color": PALETTE["faint"],
    "ytick.color": PALETTE["faint"],
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.8,
}


@contextmanager
def house_style() -> Iterator[None]:
    """Apply the style within a block or a decorated function; matplotlib's settings are restored afterwards."""
    from matplotlib import rc_context

    with rc_context(_STYLE):
        yield


def make_panels(
    count: int, size: tuple[float, float], *, rows: int = 1, heights: Sequence[float] | None = None
) -> "tuple[Figure, list[Axes]]":
    """A figure unknown to pyplot, with ``count`` panels in ``rows`` rows; ``size`` is in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", facecolor=PALETTE["paper"])
    ratios = list(heights) if heights else None
    grid = figure.subplots(rows, count // rows, squeeze=False, height_ratios=ratios)
    return figure, list(grid.ravel())


def render_figure(figure: "Figure", *, dpi: int = 144) -> "Image":
    """The figure as an image; the default resolution is twice that of a page, for sharp screens."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    use_fonts(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def shorten_label(name: str, most: int = 18) -> str:
    """A name cut to ``most`` characters for an axis, with $ escaped and characters without a font as codes."""
    name = make_legible(name)
    # matplotlib renders text between two dollar signs as mathematics
    return (name if len(name) <= most else f"{name[: most - 1]}…").replace("$", r"\$")
