"""A font that has the characters of a text: DejaVu Sans, which matplotlib ships, or one of the system."""

from collections.abc import Sequence
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from .. import progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.ImageFont import FreeTypeFont, ImageFont

FIRST_UNSURE_CHARACTER = 0x250
"""Code point below which DejaVu Sans has every character: its table is then not read."""

_absent: set[int] = set()
"""Characters that no font here has; the user is notified of the first ones only."""


@cache
def load_font(size: int, text: str = "") -> "FreeTypeFont | ImageFont":
    """A font of ``size`` points for ``text``: DejaVu Sans where it has the characters, or no font has them."""
    from PIL import ImageFont

    return ImageFont.truetype(_find_font(text) or _default_font(), size)


def make_legible(text: str) -> str:
    r"""The text, with characters that no font here has as codes such as ``\u732b``."""
    if _find_font(text) is not None:
        return text
    known = _read_characters(_default_font())
    return "".join(c if ord(c) in known or c.isspace() else f"\\u{ord(c):04x}" for c in text)


def use_fonts(figure: "Figure") -> None:
    """Give texts of a figure a system font where DejaVu Sans lacks their characters."""
    from matplotlib import font_manager
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        path = _find_font(text.get_text())
        if path is not None and path != _default_font():
            font_manager.fontManager.addfont(path)
            text.set_fontfamily([font_manager.FontProperties(fname=path).get_name(), "DejaVu Sans"])


@cache
def _default_font() -> Path:
    matplotlib = find_spec("matplotlib")  # located, not imported: the import takes longer than drawing
    assert matplotlib is not None
    assert matplotlib.origin is not None
    return Path(matplotlib.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"


@cache
def _find_font(text: str) -> Path | None:
    """The first font that has every character of the text; None where there is none."""
    wanted = {ord(c) for c in text if c.isprintable() and not c.isspace()}
    if max(wanted, default=0) < FIRST_UNSURE_CHARACTER:
        return _default_font()
    if wanted & _absent:
        return None
    missing = set(wanted)
    for path in (_default_font(), *_system_fonts()):
        characters = _read_characters(path)
        if wanted <= characters:
            return path
        missing -= characters
    if not _absent:
        progress.notify(
            f"No font of this system has all characters of '{text}': pictures show such characters as codes. "
            "Install a font of that script, such as Noto Sans."
        )
    _absent.update(missing)
    return None


@cache
def _system_fonts() -> Sequence[Path]:
    """Upright fonts for many scripts first."""
    from matplotlib.font_manager import findSystemFonts

    paths = [Path(name) for name in findSystemFonts() if "lastresort" not in name.lower()]
    return sorted(paths, key=lambda p: ("Noto" not in p.name, "Regular" not in p.name, "Sans" not in p.name, p))


@lru_cache(maxsize=32)
def _read_characters(path: Path) -> frozenset[int]:
    """Code points of a font; none for one that is damaged or only of bitmaps, as of coloured emoji."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(str(path))
    except (OSError, RuntimeError):
        return frozenset()
    return frozenset(font.get_charmap()) if font.scalable else frozenset()
