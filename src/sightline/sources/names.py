"""Names of files and classes as they can be shown and written anywhere."""

import unicodedata
from collections.abc import Iterable, Mapping

import numpy as np
from numpy import ndarray


def normalise_names(names: Iterable[str]) -> dict[str, str]:
    r"""Each name as it will be shown: Unicode composed (NFC, as macOS does not), other bytes as ``\xe9``.

    >>> tidy_names(["cafe\u0301"]) == {"cafe\u0301": "caf\u00e9"}
    True
    """
    return {name: unicodedata.normalize("NFC", _escape_non_utf8(name)) for name in names}


def normalised_names_note(plain: Mapping[str, str]) -> tuple[str, ...]:
    """A note where names had to be changed."""
    changed = sorted({new for old, new in plain.items() if new != old})
    if not changed:
        return ()
    shown = ", ".join(f"'{name}'" for name in changed[:5])
    return (f"Wrote {len(changed)} class name{'s'[: len(changed) != 1]} in standard Unicode (NFC): {shown}.",)


def make_printable(names: list[str]) -> tuple[ndarray, tuple[str, ...]]:
    """The names as an array of strings that can be written anywhere, with a note if some had to be changed."""
    files = np.empty(len(names), object)
    try:
        "\0".join(names).encode()
    except UnicodeEncodeError:
        files[:] = [_escape_non_utf8(name) for name in names]
        count = sum(new != old for new, old in zip(files, names, strict=True))
        return files, (f"The names of {count:,} files are not UTF-8: other bytes are shown as \\xe9.",)
    files[:] = names
    return files, ()


def _escape_non_utf8(name: str) -> str:
    """The name with bytes that are no UTF-8, which Python keeps as lone surrogates, written out."""
    if name.isascii():
        return name
    try:
        raw = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raw = name.encode("utf-8", "backslashreplace")
    return raw.decode("utf-8", "backslashreplace")
