"""Characters drawn in the typefaces that matplotlib brings along: an Omniglot that needs no network and no licence."""

import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from .arrays import ImageArrays

_FAMILIES = ("DejaVuSans", "DejaVuSansMono", "DejaVuSerif", "STIXGeneral")
_STYLES = ("", "-Bold", "-Oblique", "-BoldOblique", "-Italic", "-BoldItalic", "Bol", "Italic", "BolIta")
_HELD_OUT_FACES = {"DejaVuSansMono-Oblique": "test", "DejaVuSerif-BoldItalic": "test", "DejaVuSans-Oblique": "val"}
"""Typefaces whose pictures are not trained on."""
_MIN_FACES = 12
"""Typefaces that must have a character."""
_NOVEL_SHARE = 5
"""Every fifth character, in a shuffled order, is novel."""
_SIDE, _FINE = 28, 56
"""Pixels of a picture, and of the square in which it is drawn."""


def glyphs(part: Literal["base", "novel"] = "base", variants: int = 2) -> ImageArrays:
    """Letters and digits of many scripts, 28x28 grey, white on black: ``variants`` of each character in each typeface.

    A class is a character (``U+0041``), a picture one of up to 16 typefaces under a random affine map. Characters are
    either ``base``, to train on, or ``novel``, for episodes of classes never seen. Pictures of three typefaces are
    for validation and test. Everything is seeded; another release of matplotlib may draw other pixels. A character
    that some typeface draws like an earlier one is left out. Raises ValueError for another part or no variants.
    """
    from PIL import Image

    if part not in ("base", "novel") or variants < 1:
        raise ValueError("glyphs is of the part base or novel, and has at least 1 variant of each glyph")
    drawn = _draw_characters()
    novel = np.random.default_rng(20).permutation(len(drawn)) % _NOVEL_SHARE == 0
    codes = [code for code, is_novel in zip(drawn, novel.tolist(), strict=True) if is_novel == (part == "novel")]
    glyph = [
        (label, code, face) for label, code in enumerate(codes) for face in drawn[code] for _ in range(variants)
    ]
    # each picture's affine map from its pixels to where they come from: turn, shear, scale and shift
    rng = np.random.default_rng([20, variants, part == "novel"])
    turn, shear = rng.uniform(-0.17, 0.17, (2, len(glyph)))
    wide, high = rng.uniform(0.9, 1.15, (2, len(glyph)))
    shift = rng.uniform(-2.5, 2.5, (len(glyph), 2, 1))
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]).transpose(2, 0, 1)
    back = turned @ np.array([[wide, shear], [0 * high, high]]).transpose(2, 0, 1)
    middle = np.full((2, 1), _FINE / 2)
    maps = np.concatenate([back, middle - back @ (middle + shift)], 2).reshape(-1, 6).tolist()
    size, affine, bilinear = (_FINE, _FINE), Image.Transform.AFFINE, Image.Resampling.BILINEAR
    images = []
    for (_, code, face), each in zip(glyph, maps, strict=True):
        moved = Image.fromarray(drawn[code][face]).transform(size, affine, each, bilinear)
        images.append(np.asarray(moved.reduce(_FINE // _SIDE)))
    files = [f"glyphs/U+{code:04X}/{face}-{i % variants}.png" for i, (_, code, face) in enumerate(glyph)]
    return ImageArrays(
        np.stack(images),
        np.array([label for label, _, _ in glyph], np.int64),
        tuple(f"U+{code:04X}" for code in codes),
        np.array(files, object),
        splits=np.array([_HELD_OUT_FACES.get(face, "train") for _, _, face in glyph]),
    )


@lru_cache(maxsize=1)
def _draw_characters() -> dict[int, dict[str, UInt8[ndarray, "56 56"]]]:
    """Each character's picture in each typeface, in the order of their codes."""
    from matplotlib import get_data_path
    from matplotlib.ft2font import FT2Font

    folder = Path(get_data_path(), "fonts", "ttf")
    faces: dict[str, FT2Font] = {}
    for name in (family + style for family in _FAMILIES for style in _STYLES):
        if (folder / f"{name}.ttf").is_file():
            faces[name] = FT2Font(str(folder / f"{name}.ttf"))
            faces[name].set_size(_FINE * 0.62, 72)
    known = {name: face.get_charmap() for name, face in faces.items()}
    codes = sorted(
        {code for each in known.values() for code in each if unicodedata.category(chr(code))[0] in "LN"}
    )
    drawn: dict[int, dict[str, UInt8[ndarray, "56 56"]]] = {}
    seen: dict[str, set[bytes]] = {name: set() for name in faces}
    for code in codes:
        if sum(code in each for each in known.values()) < _MIN_FACES:
            continue
        pictures = {name: _draw(faces[name], code) for name in faces if code in known[name]}
        pictures = {name: picture for name, picture in pictures.items() if picture is not None}
        alike = any(picture.tobytes() in seen[name] for name, picture in pictures.items())
        for name, picture in pictures.items():
            seen[name].add(picture.tobytes())
        if len(pictures) >= _MIN_FACES and not alike:
            drawn[code] = pictures
    return drawn


def _draw(face, code: int) -> UInt8[ndarray, "56 56"] | None:
    """A character on its line, centred between left and right; None where it is blank or does not fit."""
    from matplotlib.ft2font import LoadFlags

    face.set_text(chr(code), 0.0, flags=LoadFlags.NO_HINTING)
    top = round(0.72 * _FINE - face.load_char(code, flags=LoadFlags.NO_HINTING).bbox[3] / 64)
    face.draw_glyphs_to_bitmap(antialiased=True)
    found = np.asarray(face.get_image())
    rows, columns = np.flatnonzero(found.any(1)), np.flatnonzero(found.any(0))
    if not len(rows):
        return None
    found = found[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    left = (_FINE - found.shape[1]) // 2
    if top < 0 or left < 0 or top + len(found) > _FINE:
        return None
    picture = np.zeros((_FINE, _FINE), np.uint8)
    picture[top : top + found.shape[0], left : left + found.shape[1]] = found
    return picture
