"""Figures of explanations: heat over an image, signed maps, and sheets of them with captions."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from ..pictures import PALETTE, load_font, make_legible, shorten_text

if TYPE_CHECKING:
    from PIL.Image import Image

PANEL_SIDE, PANEL_GAP, TITLE_HEIGHT, LINE_HEIGHT = 168, 12, 26, 18
"""Pixels: side of a panel, gap between panels, height of a title and of a line of text."""

MAX_STRIP_PANELS = 6
"""Panels per row, at most."""


def enlarge_image(image: UInt8[ndarray, "H W C"], cell: int = PANEL_SIDE) -> "Image":
    """An image of about ``cell`` pixels: small images are enlarged by whole factors, so that their pixels show."""
    from PIL import Image

    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("RGB")
    width, height = _fit_sides(picture.size, cell)
    sampling = Image.Resampling.NEAREST if width >= picture.width else Image.Resampling.LANCZOS
    return picture.resize((width, height), sampling)


def overlay_heat(image: UInt8[ndarray, "H W C"], heat: Float[ndarray, "H W"], cell: int = PANEL_SIDE) -> "Image":
    """The image in grey under its heat in [0, 1]: matplotlib's inferno, denser where it is hotter."""
    from PIL import Image

    below = np.asarray(enlarge_image(image, cell).convert("L").convert("RGB"), np.float32)
    warmth = _resize_map(heat, (below.shape[1], below.shape[0]))
    colours = _colour_table("inferno")[np.rint(warmth * 255).astype(int)] * 255
    dense = 0.82 * np.sqrt(warmth)[..., None]
    return Image.fromarray(np.rint(below * 0.85 * (1 - dense) + colours * dense).astype(np.uint8))


def draw_signed_map(found: Float[ndarray, "H W"], cell: int = PANEL_SIDE) -> "Image":
    """Evidence for (orange) and against (blue) on white; full colour at the 99.5 % quantile of both."""
    from PIL import Image

    most = max(float(np.quantile(np.abs(found), 0.995)), 1e-30)
    size = _fit_sides((found.shape[1], found.shape[0]), cell)
    share = _resize_map(np.clip(found / most, -1, 1), size, least=-1)
    places = np.rint((share + 1) / 2 * 255).astype(int)
    return Image.fromarray(np.rint(_colour_table("signed")[places] * 255).astype(np.uint8))


def _fit_sides(size: tuple[int, int], cell: int) -> tuple[int, int]:
    """Width and height that fit the cell: small images by a whole factor, large ones shrunk."""
    longest = max(size)
    factor = cell // longest if longest <= cell else cell / longest
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _resize_map(values: Float[ndarray, "h w"], size: tuple[int, int], least: float = 0) -> Float[ndarray, "H W"]:
    """A map resized to (width, height), bilinear, and clipped to [least, 1]."""
    from PIL import Image

    picture = Image.fromarray(values.astype(np.float32))
    return np.clip(np.asarray(picture.resize(size, Image.Resampling.BILINEAR)), least, 1)


@cache
def _colour_table(name: str) -> Float[ndarray, "256 3"]:
    """256 colours of a colour map, in [0, 1]."""
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


def draw_strips(strips: Sequence[Strip], *, legend: str = "") -> "Image":
    """Strips one below the other, at most six pictures wide; titles above, notes and sentences below them."""
    from PIL import Image, ImageDraw

    most = max(len(strip.panels) for strip in strips)
    across = -(-most // -(-most // MAX_STRIP_PANELS))
    width = across * (PANEL_SIDE + PANEL_GAP) + PANEL_GAP
    written = [_wrap(make_legible(strip.sentence), width - 2 * PANEL_GAP) for strip in strips]
    rows = [-(-len(strip.panels) // across) for strip in strips]
    tall = PANEL_SIDE + TITLE_HEIGHT + LINE_HEIGHT
    heights = [
        count * tall + len(text) * LINE_HEIGHT + 2 * PANEL_GAP for count, text in zip(rows, written, strict=True)
    ]
    picture = Image.new(
        "RGB", (width, sum(heights) + (LINE_HEIGHT + PANEL_GAP if legend else 0)), PALETTE["paper"]
    )
    draw = ImageDraw.Draw(picture)
    top = 0
    for strip, text, height in zip(strips, written, heights, strict=True):
        if top:
            draw.line([(PANEL_GAP, top), (width - PANEL_GAP, top)], fill=PALETTE["line"])
        for number, panel in enumerate(strip.panels):
            left, upper = PANEL_GAP + number % across * (PANEL_SIDE + PANEL_GAP), top + number // across * tall
            image, middle, below = panel.picture, left + PANEL_SIDE / 2, upper + TITLE_HEIGHT + PANEL_SIDE + 4
            words = make_legible(panel.title)
            title, place = (
                shorten_text(words, load_font(13, words), PANEL_SIDE),
                (middle, upper + TITLE_HEIGHT - 6),
            )
            draw.text(place, title, fill=PALETTE["ink"], font=load_font(13, words), anchor="ms")
            corner = (
                left + (PANEL_SIDE - image.width) // 2,
                upper + TITLE_HEIGHT + (PANEL_SIDE - image.height) // 2,
            )
            picture.paste(image, corner)
            edge = [corner[0] - 1, corner[1] - 1, corner[0] + image.width, corner[1] + image.height]
            draw.rectangle(edge, outline=PALETTE["line"])
            words = make_legible(panel.note)
            note = shorten_text(words, load_font(11, words), PANEL_SIDE)
            draw.text((middle, below), note, fill=PALETTE["faint"], font=load_font(11, words), anchor="ma")
        for number, line in enumerate(text):
            below = top + height - PANEL_GAP - (len(text) - number) * LINE_HEIGHT
            draw.text((PANEL_GAP, below), line, fill=PALETTE["ink"], font=load_font(13, line))
        top += height
    if legend:
        draw.text((PANEL_GAP, top + 2), legend, fill=PALETTE["faint"], font=load_font(12))
    return picture


def _wrap(text: str, width: float) -> list[str]:
    """The text in lines that fit."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and load_font(13).getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
