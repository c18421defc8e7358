"""Pictures worth showing: heat over an image, signed maps, and sheets of them with what was measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from ..pictures import PALETTE, font_of, shortened

if TYPE_CHECKING:
    from PIL.Image import Image

CELL, GAP, TITLE, LINE = 168, 12, 26, 18
"""Pixels: the side of a picture, what lies between two, the height of a title and of a line of text."""

PER_ROW = 6
"""Pictures beside each other, at most."""


def shown(image: UInt8[ndarray, "H W C"], cell: int = CELL) -> "Image":
    """An image of about ``cell`` pixels: small ones enlarged by whole factors, so that their pixels show."""
    from PIL import Image

    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("RGB")
    width, height = _sides(picture.size, cell)
    return picture.resize((width, height), Image.Resampling.NEAREST if width >= picture.width else _lanczos())


def overlay(image: UInt8[ndarray, "H W C"], heat: Float[ndarray, "H W"], cell: int = CELL) -> "Image":
    """The image in grey under its heat: dark red to pale yellow, brighter and denser as it gets hotter.

    The colours are matplotlib's inferno: equal steps of heat are equal steps to the eye, in grey as well.
    """
    from PIL import Image

    below = np.asarray(shown(image, cell).convert("L").convert("RGB"), np.float32)
    warmth = _enlarged(heat, (below.shape[1], below.shape[0]))
    colours = _colours("inferno")[np.rint(warmth * 255).astype(int)] * 255
    dense = 0.82 * np.sqrt(warmth)[..., None]
    return Image.fromarray(np.rint(below * 0.85 * (1 - dense) + colours * dense).astype(np.uint8))


def signed(found: Float[ndarray, "H W"], cell: int = CELL) -> "Image":
    """Evidence for (orange) and against (blue) on white; full colour at the 99.5 % quantile of both."""
    from PIL import Image

    most = max(float(np.quantile(np.abs(found), 0.995)), 1e-30)
    size = _sides((found.shape[1], found.shape[0]), cell)
    share = _enlarged(np.clip(found / most, -1, 1), size, least=-1)
    places = np.rint((share + 1) / 2 * 255).astype(int)
    return Image.fromarray(np.rint(_colours("signed")[places] * 255).astype(np.uint8))


def _sides(size: tuple[int, int], cell: int) -> tuple[int, int]:
    """Width and height in the cell: a whole multiple of a small image, a large one shrunk."""
    longest = max(size)
    factor = cell // longest if longest <= cell else cell / longest
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _lanczos() -> Any:
    from PIL import Image

    return Image.Resampling.LANCZOS


def _enlarged(values: Float[ndarray, "h w"], size: tuple[int, int], least: float = 0) -> Float[ndarray, "H W"]:
    """A map at the size of the picture (width, height), smoothly."""
    from PIL import Image

    picture = Image.fromarray(values.astype(np.float32))
    return np.clip(np.asarray(picture.resize(size, Image.Resampling.BILINEAR)), least, 1)


@cache
def _colours(name: str) -> Float[ndarray, "256 3"]:
    """256 colours of a map, in [0, 1]."""
    import matplotlib
    from matplotlib.colors import LinearSegmentedColormap

    if name == "signed":  # both arms fall equally in lightness, so that neither side looks stronger
        arms = ["#003c66", PALETTE["blue"], "#8cc1e2", PALETTE["paper"], "#f5b48a", PALETTE["orange"], "#7a2f00"]
        made = LinearSegmentedColormap.from_list(name, arms)
    else:
        made = matplotlib.colormaps[name]
    return made(np.linspace(0, 1, 256))[:, :3]


@dataclass(frozen=True, eq=False)
class Panel:
    """One picture of a sheet."""

    picture: "Image"
    title: str
    note: str = ""
    """A line below it."""


@dataclass(frozen=True, eq=False)
class Strip:
    """The pictures about one image, side by side, and a sentence."""

    panels: tuple[Panel, ...]
    sentence: str = ""


def sheet(strips: Sequence[Strip], *, legend: str = "") -> "Image":
    """Strips one below the other, at most six pictures wide; titles above, notes and sentences below them."""
    from PIL import Image, ImageDraw

    most = max(len(strip.panels) for strip in strips)
    across = -(-most // -(-most // PER_ROW))
    width = across * (CELL + GAP) + GAP
    written = [_wrapped(strip.sentence, width - 2 * GAP) for strip in strips]
    rows = [-(-len(strip.panels) // across) for strip in strips]
    tall = CELL + TITLE + LINE
    heights = [count * tall + len(text) * LINE + 2 * GAP for count, text in zip(rows, written, strict=True)]
    picture = Image.new("RGB", (width, sum(heights) + (LINE + GAP if legend else 0)), PALETTE["paper"])
    draw = ImageDraw.Draw(picture)
    top = 0
    for strip, text, height in zip(strips, written, heights, strict=True):
        if top:
            draw.line([(GAP, top), (width - GAP, top)], fill=PALETTE["line"])
        for number, panel in enumerate(strip.panels):
            left = GAP + number % across * (CELL + GAP)
            _place(picture, draw, panel, left, top + number // across * tall)
        for number, line in enumerate(text):
            below = top + height - GAP - (len(text) - number) * LINE
            draw.text((GAP, below), line, fill=PALETTE["ink"], font=font_of(13))
        top += height
    if legend:
        draw.text((GAP, top + 2), legend, fill=PALETTE["faint"], font=font_of(12))
    return picture


def _place(picture: "Image", draw: Any, panel: Panel, left: int, top: int) -> None:
    image, middle = panel.picture, left + CELL / 2
    title = shortened(panel.title, font_of(13), CELL)
    draw.text((middle, top + TITLE - 6), title, fill=PALETTE["ink"], font=font_of(13), anchor="ms")
    corner = (left + (CELL - image.width) // 2, top + TITLE + (CELL - image.height) // 2)
    picture.paste(image, corner)
    edge = [corner[0] - 1, corner[1] - 1, corner[0] + image.width, corner[1] + image.height]
    draw.rectangle(edge, outline=PALETTE["line"])
    note = shortened(panel.note, font_of(11), CELL)
    draw.text((middle, top + TITLE + CELL + 4), note, fill=PALETTE["faint"], font=font_of(11), anchor="ma")


def _wrapped(text: str, width: float) -> list[str]:
    """The text in lines that fit."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font_of(13).getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
