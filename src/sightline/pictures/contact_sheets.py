"""Images in a grid with captions, and images as PNG bytes and data URLs."""

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxtyping import UInt8
from numpy import ndarray

from .fonts import load_font, make_legible
from .style import PALETTE

if TYPE_CHECKING:
    from PIL.Image import Image


def contact_sheet(
    images: Sequence[UInt8[ndarray, "H W C"]],
    captions: Sequence[str],
    *,
    columns: int = 8,
    cell: int = 112,
    notes: Sequence[str] | None = None,
) -> "Image":
    """A grid of images with a caption under each.

    Args:
        images: uint8 (H W C) of any size. Small ones are enlarged by whole factors without smoothing, large ones
            shrunk, to ``cell`` pixels.
        captions: one for each image.
        columns: images in a row, at most.
        notes: second lines, in orange, such as the predicted class.

    Raises ValueError where the numbers of images, captions and notes differ.
    """
    from PIL import Image, ImageDraw

    if len(captions) != len(images) or (notes is not None and len(notes) != len(images)):
        raise ValueError("a contact sheet needs one caption, and one note if any, for each image")
    gap = 10
    line = 20 if notes is None else 37
    across = max(1, min(columns, len(images)))
    down = -(-len(images) // across)
    size = (across * (cell + gap) + gap, down * (cell + line + gap) + gap)
    sheet = Image.new("RGB", size, PALETTE["paper"])
    draw = ImageDraw.Draw(sheet)
    lines = ((captions, "ink", 5),) if notes is None else ((captions, "ink", 5), (notes, "orange", 22))
    for i, image in enumerate(images):
        left, top = gap + i % across * (cell + gap), gap + i // across * (cell + line + gap)
        tile = _fit_cell(image, cell)
        sheet.paste(tile, (left + (cell - tile.width) // 2, top + (cell - tile.height) // 2))
        for words, colour, below in lines:
            place, text = (left + cell / 2, top + cell + below), make_legible(words[i])
            font = load_font(13, text)
            draw.text(place, shorten_text(text, font, cell), fill=PALETTE[colour], font=font, anchor="ma")
    return sheet


def thumbnail(image: UInt8[ndarray, "H W C"], *, most: int = 128) -> "Image":
    """The image, shrunk to a longer side of ``most`` pixels where it is larger."""
    return _fit_cell(image, min(most, max(image.shape[:2])))


def _fit_cell(image: ndarray, cell: int) -> "Image":
    """The image within a square of ``cell`` pixels: enlarged by a whole factor, or shrunk with antialiasing."""
    from PIL import Image

    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("RGB")
    longest = max(picture.size)
    if longest > cell:
        width, height = (max(1, round(side * cell / longest)) for side in picture.size)
        return picture.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3)
    factor = cell // longest
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def shorten_text(text: str, font: Any, width: float) -> str:
    """The text on one line, cut with an ellipsis to ``width`` pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def encode_png(image: "Image") -> bytes:
    """The image as a PNG file's bytes."""
    stream = io.BytesIO()
    image.save(stream, "png", optimize=True)
    return stream.getvalue()


def data_url(image: "Image | bytes") -> str:
    """An image, or the bytes of a PNG file, as a ``data:`` URL."""
    content = image if isinstance(image, bytes) else encode_png(image)
    return f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"
