"""Attacked images to look at: as they were, what was changed, what came of it; and the curve."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from ..attacks import format_eps
from ..pictures import PALETTE, contact_sheet
from .robust_accuracy import AttackExample, RobustCurve

if TYPE_CHECKING:
    from PIL.Image import Image

EXAMPLE_CELL = 112


def draw_robustness(curve: RobustCurve) -> "Image":
    """The robust accuracy over eps and, below, fooled images: before, the change enlarged, after."""
    from PIL import Image

    above = draw_robust_curve(curve)
    if not curve.examples:
        return above
    below = draw_examples(curve.examples)
    width = max(above.width, below.width)
    whole = Image.new("RGB", (width, above.height + below.height), PALETTE["paper"])
    whole.paste(above, (0, 0))
    whole.paste(below, (0, above.height))
    return whole


def draw_examples(examples: tuple[AttackExample, ...]) -> "Image":
    """Three rows: the images, their change (mid-grey is none, black and white the largest), the results."""
    shown = list(examples)
    enlarged = [_enlarge_change(one) for one in shown]
    after = [(one.attacked * 255).round().astype(np.uint8) for one in shown]
    captions = [one.label for one in shown]
    captions += [f"eps {format_eps(one.eps)}" for one in shown]
    captions += [one.label for one in shown]
    notes = ["" for _ in range(2 * len(shown))] + [f"→ {one.answer} ({one.confidence:.0%})" for one in shown]
    images = [*(one.original for one in shown), *enlarged, *after]
    return contact_sheet(images, captions, columns=len(shown), cell=EXAMPLE_CELL, notes=notes)


def _enlarge_change(one: AttackExample) -> UInt8[ndarray, "H W C"]:
    change: Float[ndarray, "H W C"] = one.attacked - one.original.astype(np.float32) / 255
    most = max(float(np.abs(change).max()), 1e-6)
    return ((change / most + 1) / 2 * 255).round().astype(np.uint8)


def draw_robust_curve(curve: RobustCurve) -> "Image":
    """Robust accuracy over eps with its 95 % intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(6.2, 3.0), dpi=144, layout="constrained", facecolor=PALETTE["paper"])
    panel = figure.subplots()
    radii = [one.eps for one in curve.points]
    values = [one.accuracy.value for one in curve.points]
    low = [one.accuracy.low for one in curve.points]
    high = [one.accuracy.high for one in curve.points]
    panel.fill_between(radii, low, high, color=PALETTE["blue"], alpha=0.18, linewidth=0, label="95 % interval")
    panel.plot(radii, values, color=PALETTE["blue"], marker="o", markersize=5, label="answered rightly")
    panel.set_xticks(radii, [format_eps(one) for one in radii])
    panel.yaxis.set_major_formatter(lambda value, _: f"{value * 100:.4g} %")
    what = "largest change of a pixel" if curve.attack.norm == "linf" else "length of the change"
    panel.set(xlabel=f"{what} (eps)", ylim=(0, 1.02))
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    panel.grid(axis="y", color=PALETTE["line"], linewidth=0.7)
    panel.legend(frameon=False, fontsize=8)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
