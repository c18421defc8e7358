"""Names become labels: which folder is a class, which is a split, and which files are images."""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from ..errors import DataError
from .source import Listing, Source, is_junk, list_folder, make_printable, normalise_names

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
IMAGE_SUFFIXES = frozenset(
    "jpg jpeg jpe jfif png apng bmp dib gif tif tiff webp pbm pgm ppm pnm heic heif avif".split()  # noqa: SIM905
)
"""Suffixes of image files; the content decides whether a file is one."""
_BRACES = re.compile(r"\{([^{}]*,[^{}]*)\}")


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
        notes=(*layout.notes, *notes),
    )


def sort_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Class names in label order: by number where all are numbers, otherwise alphabetical.

    >>> sort_classes(["10", "9", "1"]), sort_classes(["b", "a"])
    (('1', '9', '10'), ('a', 'b'))
    """
    names = set(names)
    if all(name.isascii() and name.isdigit() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def infer_layout(listing: Listing, place: str) -> Layout:
    """Labels and splits of a listing's images, from its folders.

    Raises DataError, naming ``place``, where the folders do not show what the classes are.
    """
    images, strays = _select_images(listing.names)
    groups: dict[str, list[int]] = {}  # the images directly in each folder
    for i in images:
        name = listing.names[i]
        groups.setdefault(name[: max(0, name.rfind("/"))], []).append(i)
    groups = {folder: rows for folder, rows in groups.items() if not _is_in_junk(folder)}
    folders = {folder for folder in {*listing.folders, *groups} if folder and not _is_in_junk(folder)}
    root = _find_class_root(folders, groups, place)
    inside = {name[len(root) :]: rows for name, rows in groups.items() if name.startswith(root) and name}
    below = sorted({name[len(root) :] for name in folders if name.startswith(root)} | set(inside))
    split_folders = _find_split_folders(inside, place)
    plain, renamed = normalise_names({name for folder in below for name in folder.split("/")[:2]})
    depth = 2 if split_folders else 1
    labelled: dict[
        str, tuple[str, str]
    ] = {}  # (split, class) of a folder; what is nested below a class belongs to it
    for folder in inside:
        parts = folder.split("/")
        labelled[folder] = (split_folders[parts[0]], plain[parts[1]]) if split_folders else ("", plain[parts[0]])
    classes = sort_classes(label for _, label in labelled.values())
    where = place + ("/" + root).rstrip("/")
    check_train_covers_classes(labelled.values(), classes, where)
    filled = set(classes)
    for folder in below:
        parts = folder.split("/")
        is_class = len(parts) == depth and (not split_folders or parts[0] in split_folders)
        if is_class and plain[parts[-1]] not in filled:
            raise DataError(
                f"The class folder '{folder}' of '{where}' has no images: add some or remove the folder."
            )
    check_has_classes(classes, where)
    notes = []
    if strays:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in strays.most_common(5))
        what = "1 file" if (total := sum(strays.values())) == 1 else f"{total:,} files"
        notes.append(f"Ignored {what} not named like images ({kinds}).")
    if loose := len(groups.get(root.rstrip("/"), ())):
        what = "1 image that lies" if loose == 1 else f"{loose:,} images that lie"
        notes.append(f"Ignored {what} outside of any {'split' if split_folders else 'class'} folder.")
    number = {name: i for i, name in enumerate(classes)}
    lengths = [len(rows) for rows in inside.values()]
    keys = np.concatenate([np.array(rows, np.int64) for rows in inside.values()])
    labels = np.repeat(np.array([number[labelled[folder][1]] for folder in inside], np.int64), lengths)
    order = np.array(sorted(range(len(keys)), key=[listing.names[i] for i in keys].__getitem__), np.int64)
    splits = None
    if split_folders:
        splits = np.repeat(np.array([labelled[folder][0] for folder in inside]), lengths)[order]
    return Layout(keys[order], labels[order], classes, splits, (*notes, *renamed))


def _select_images(names: Sequence[str]) -> tuple[list[int], Counter[str]]:
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


def list_images(word: str) -> list[str]:
    """The image files of a word: a file itself (even if absent), a folder's images, or those of a pattern.

    A pattern is what a shell makes of it, braces and ~ included; matches that are folders stand for their images.
    Matches that are not named like images are left out where others are.
    """
    if not Path(word).exists() and (glob.has_magic(word) or _BRACES.search(word)):
        patterns = map(os.path.expanduser, _expand_braces(word))
        matches = [found for each in patterns for found in sorted(glob.glob(each, recursive=True))]  # noqa: PTH207 a Path cannot start at the root
        named = set(_select_images(matches)[0])
        images = [m for i, m in enumerate(matches) if i in named or Path(m).is_dir()] or matches
        return list(dict.fromkeys(file for match in images for file in _list_place(match)))
    return _list_place(word)


def _list_place(place: str) -> list[str]:
    if not Path(place).is_dir():
        return [place]
    listing = list_folder(Path(place))
    return [str(Path(place, name)) for name in sorted(listing.names[i] for i in _select_images(listing.names)[0])]


def _expand_braces(word: str) -> list[str]:
    """The words of a shell's braces: ``*.{jpg,png}`` becomes ``*.jpg`` and ``*.png``."""
    if (found := _BRACES.search(word)) is None:
        return [word]
    choices = found[1].split(",")
    return [
        each for choice in choices for each in _expand_braces(word[: found.start()] + choice + word[found.end() :])
    ]


def _is_in_junk(folder: str) -> bool:
    return bool(folder) and any(is_junk(part) for part in folder.split("/") if part)


def _find_class_root(folders: set[str], groups: dict[str, list[int]], place: str) -> str:
    """The prefix of the folder that holds the classes or splits: a folder that only wraps another is entered."""
    if not groups:
        raise DataError(f"'{place}' holds no images: give a folder with one sub-folder of images for each class.")
    root = ""
    while True:
        tops = {name[len(root) :].split("/")[0] for name in folders if name.startswith(root)}
        if len(tops) != 1:
            break
        (top,) = tops
        inner = root + top
        if top.lower() in SPLIT_WORDS or inner in groups or not any(f.startswith(inner + "/") for f in folders):
            break
        root = inner + "/"
    if not any(name and name.startswith(root) for name in groups):
        raise DataError(
            f"'{place}' has images but no class folders: put the images of each class in a folder of its own, "
            "or list them in a CSV with the columns 'path' and 'label'."
        )
    return root


def _find_split_folders(inside: dict[str, list[int]], place: str) -> dict[str, str]:
    """Top folders that are splits (they hold folders), with the split of each."""
    tops = {name.split("/")[0] for name in inside}
    nested = {name.split("/")[0] for name in inside if "/" in name}
    named = {top for top in tops if top.lower() in SPLIT_WORDS}
    if named and named == tops and (direct := sorted(top for top in named if top in inside)):
        raise DataError(
            f"The folder '{direct[0]}' of '{place}' holds images directly: inside {', '.join(sorted(named))}, "
            "put the images of each class in a folder of its own."
        )
    splits = {top for top in named if top in nested and top not in inside}
    if splits and splits != tops:
        raise DataError(
            f"'{place}' mixes split folders ({', '.join(sorted(splits))}) with others "
            f"({', '.join(sorted(tops - splits)[:5])}): move the others away or into the splits."
        )
    return {top: SPLIT_WORDS[top.lower()] for top in splits}


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
