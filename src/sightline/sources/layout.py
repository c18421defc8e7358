"""Labelled files: which files are images, which word means which split, and what every layout must satisfy."""

import glob
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from jaxtyping import Int64
from numpy import ndarray

from ..errors import DataError
from .remote import fetch_address, is_address
from .source import Listing, Reader, Source, is_junk, list_folder, make_printable

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_SPLIT_TOKENS = {
    **SPLIT_WORDS,
    "dev": "val",
    "holdout": "test",
    **{f"{word}{end}": split for word, split in SPLIT_WORDS.items() for end in ("s", "set", "data", "images")},
}
IMAGE_SUFFIXES = frozenset(
    "jpg jpeg jpe jfif png apng bmp dib gif tif tiff webp pbm pgm ppm pnm heic heif avif".split()  # noqa: SIM905
)
"""Suffixes of image files; the content decides whether a file is one."""
_BRACES = re.compile(r"\{(?:([^{}]*,[^{}]*)|(\d{1,9})\.\.(\d{1,9}))\}")
MAX_BRACE_WORDS = 100_000
"""Files that one pattern of braces may name."""


_PLACEHOLDERS = {
    "{label}": "(?P<label>[^/]+)",
    "{split}": "(?P<split>[^/]+)",
    "{number}": r"\d+",
    "*": ".*",
    "?": "[^/]",
}


@dataclass(frozen=True)
class LabelRule:
    """Where the labels stand, as far as the usual names do not tell.

    Raises DataError for a pattern that cannot be used.
    """

    path_column: str | None = None
    """Column of the paths in a table."""
    label_column: str | None = None
    """Column of the labels in a table."""
    label_pattern: str | None = None
    """``{label}_{number}.jpg`` (``*`` is anything), or a regular expression with one group, or groups ``label`` and
    ``split``; of the file's name, or with a slash of its path."""

    def __post_init__(self) -> None:
        if self.label_pattern is not None:
            groups = self._regex.groupindex
            if self._regex.groups != 1 and "label" not in groups:
                raise DataError(
                    f"The label pattern '{self.label_pattern}' does not say where the label is: write {{label}} in "
                    "its place, as in '{label}_{number}.jpg', or a regular expression with one group."
                )

    @property
    def given(self) -> bool:
        """Whether anything is named."""
        return self != LabelRule()

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        text = self.label_pattern or ""
        if "{label}" in text:
            parts = re.split(r"(\{label\}|\{split\}|\{number\}|[*?])", text)
            return re.compile("^" + "".join(_PLACEHOLDERS.get(part) or re.escape(part) for part in parts) + "$")
        try:
            return re.compile(text)
        except re.error as error:
            raise DataError(f"The label pattern '{text}' is no regular expression ({error}).") from error

    def match(self, path: str) -> tuple[str, str] | None:
        r"""The split word (or nothing) and the label in a path; None where the pattern does not fit.

        >>> LabelRule(label_pattern="{label}_{number}.jpg").match("a/tabby_cat_12.jpg")
        ('', 'tabby_cat')
        >>> LabelRule(label_pattern=r"^(train|test)/(?P<label>\w+)/").match("test/dog/1.png")
        ('', 'dog')
        """
        found = self._regex.search(path if "/" in (self.label_pattern or "") else path.rpartition("/")[2])
        groups = {} if found is None else found.groupdict()
        label = groups.get("label") or (found and found[1])
        return (groups.get("split") or "", label) if label else None


USUAL_LABELS = LabelRule()
"""Labels where they usually are: in the names of folders, or in columns of usual names."""


@dataclass(frozen=True, eq=False)
class Layout:
    """The labelled files of a listing."""

    keys: Int64[ndarray, " N"]
    """Position of each file in the listing; sorted by name."""
    labels: Int64[ndarray, " N"]
    classes: tuple[str, ...]
    splits: ndarray | None
    """``train``, ``val`` or ``test`` of each file, where the folders or the table give it."""
    notes: tuple[str, ...] = ()
    columns: Mapping[str, ndarray] = field(default_factory=dict)
    """The other columns of a table."""


def source_from_files(name: str, listing: Listing, layout: Layout) -> Source:
    """The labelled files of a listing."""
    files, notes = make_printable([listing.names[i] for i in layout.keys])
    given = {} if layout.splits is None else {"split": layout.splits}
    return Source(
        name=name,
        reader=listing.reader,
        keys=layout.keys,
        files=files,
        labels=layout.labels,
        classes=layout.classes,
        fingerprint=listing.fingerprint(layout.keys),
        columns={**given, **layout.columns},
        notes=(*layout.notes, *listing.notes, *notes),
    )


def parse_split(name: str) -> str | None:
    """The split that the words of a name mean; None where it has no such word, or of two splits.

    >>> [parse_split(name) for name in ("seg_train", "PublicTest", "val2017", "train_val", "contest")]
    ['train', 'test', 'val', None, None]
    """
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)
    splits = {_SPLIT_TOKENS[word.lower()] for word in words if word.lower() in _SPLIT_TOKENS}
    return splits.pop() if len(splits) == 1 else None


def sort_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Class names in label order: by number where all are numbers, otherwise alphabetical.

    >>> sort_classes(["10", "9", "1"]), sort_classes(["b", "a"])
    (('1', '9', '10'), ('a', 'b'))
    """
    names = set(names)
    if all(name.isascii() and name.isdigit() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def select_images(names: Sequence[str]) -> tuple[list[int], Counter[str]]:
    """Positions of files named like images, and the other suffixes with their number."""
    chosen: list[int] = []
    strays: Counter[str] = Counter()
    for i, name in enumerate(names):
        base = name[name.rfind("/") + 1 :]
        if base[:1] in ("", ".") or is_junk(base):
            continue
        suffix = base[base.rfind(".") + 1 :].lower() if "." in base else ""
        if suffix in IMAGE_SUFFIXES:
            chosen.append(i)
        else:
            strays["." + suffix if suffix else "without a suffix"] += 1
    return chosen, strays


def is_pattern(word: str) -> bool:
    """Whether a word has a shell's ``*``, ``?``, ``[`` or braces."""
    return glob.has_magic(word) or _BRACES.search(word) is not None


def list_images(word: str) -> list[str]:
    """The image files of a word: a file itself (even if absent), a folder's images, or those of a pattern or address.

    A pattern is what a shell makes of it, braces and ~ included; matches that are folders stand for their images.
    Matches that are not named like images are left out where others are.
    """
    if is_address(word):
        return _list_place(str(fetch_address(word)))
    if not Path(word).exists() and is_pattern(word):
        patterns = map(os.path.expanduser, expand_braces(word))
        matches = [found for each in patterns for found in sorted(glob.glob(each, recursive=True))]  # noqa: PTH207 a Path cannot start at the root
        named = set(select_images(matches)[0])
        images = [m for i, m in enumerate(matches) if i in named or Path(m).is_dir()] or matches
        return list(dict.fromkeys(file for match in images for file in _list_place(match)))
    return _list_place(word)


@dataclass(frozen=True, eq=False)
class MemberFile:
    """An image inside of an archive or at an address, read when it is needed."""

    name: str
    """Where it lies, for people."""
    reader: Reader
    key: int

    def read(self) -> bytes:
        """Its bytes; raises ImageError where they cannot be read."""
        return self.reader.read(self.key)


def list_member_files(name: str, listing: Listing) -> list[MemberFile]:
    """The images of a listing in the order of their names, which follow ``name``."""
    rows = sorted(select_images(listing.names)[0], key=listing.names.__getitem__)
    shown, _ = make_printable([f"{name.rstrip('/')}/{listing.names[row]}" for row in rows])
    return [MemberFile(each, listing.reader, row) for each, row in zip(shown, rows, strict=True)]


def _list_place(place: str) -> list[str]:
    if not Path(place).is_dir():
        return [place]
    listing = list_folder(Path(place))
    return [str(Path(place, name)) for name in sorted(listing.names[i] for i in select_images(listing.names)[0])]


def expand_braces(word: str) -> list[str]:
    """The words of a shell's braces; raises DataError where they are none or too many.

    >>> expand_braces("*.{jpg,png}"), expand_braces("x-{08..10}.tar")
    (['*.jpg', '*.png'], ['x-08.tar', 'x-09.tar', 'x-10.tar'])
    """
    if (found := _BRACES.search(word)) is None:
        return [word]
    count = math.prod(
        max(0, int(last) - int(first) + 1) if first else listed.count(",") + 1
        for listed, first, last in _BRACES.findall(word)
    )
    if not 0 < count <= MAX_BRACE_WORDS:
        raise DataError(f"The braces of '{word}' name {count:,} files: name 1 to {MAX_BRACE_WORDS:,}.")
    if found[1]:
        choices = found[1].split(",")
    else:
        choices = [f"{number:0{len(found[2])}}" for number in range(int(found[2]), int(found[3]) + 1)]
    return [
        each for choice in choices for each in expand_braces(word[: found.start()] + choice + word[found.end() :])
    ]


def check_has_classes(classes: Sequence[str], place: str) -> None:
    """Raise DataError where there is no class; one is enough to test a classifier on."""
    if not classes:
        raise DataError(f"'{place}' has no class: a classifier needs at least two.")


def check_train_covers_classes(pairs: Iterable[tuple[str, str]], classes: Sequence[str], place: str) -> None:
    """Raise DataError where val or test has a class that a given train split lacks; pairs are (split, class)."""
    seen: dict[str, set[str]] = {}
    for split, label in pairs:
        seen.setdefault(split, set()).add(label)
    if "train" not in seen:
        return
    for split in ("test", "val"):
        if missing := [name for name in classes if name in seen.get(split, ()) and name not in seen["train"]]:
            names = ", ".join(f"'{name}'" for name in missing[:5])
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise DataError(
                f"The {split} split of '{place}' has classes that are not in train ({names}{more}): "
                f"add training images for them or remove them from {split}."
            )
