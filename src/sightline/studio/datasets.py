"""The datasets of a studio: images that are never changed, and the corrections that people make of them.

A dataset is a folder with a file of corrections (``.edits``) and, where it was uploaded, the archive. Every verb reads
the corrections file as it reads any data, so that what is corrected here is what is trained on.
"""

import re
import secrets
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from ..errors import DataError
from ..files import read_csv_rows
from ..sources import (
    EDITS_SUFFIX,
    MAX_CLASS_NAME_LENGTH,
    Edit,
    EditFile,
    LabelRule,
    Source,
    append_edit,
    apply_edits,
    file_stamp,
    find,
    normalise_names,
    read_edit_file,
    resolve_edited_place,
    stratified_subset,
    write_edit_file,
)

MAX_OPEN_DATASETS = 2
"""Datasets whose names and labels a process holds, about 20 MB for 100,000 images."""
SPLIT_CHOICES = ("train", "val", "test")
DRAWN_SHARE = 0.15
"""Share of each class that validates, and that tests, where the studio draws a split."""
MIN_IMAGES_TO_SPLIT = 3
"""Images of each class: one for each split."""
_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{6}")


class EditConflict(DataError):
    """An edit of images that somebody else changed meanwhile; ``can_repeat`` if it may be made nevertheless."""

    def __init__(self, text: str, *, can_repeat: bool):
        super().__init__(text)
        self.can_repeat = can_repeat


@dataclass(frozen=True, eq=False)
class UneditedImages:
    """The images as they lie, without corrections."""

    source: Source

    @cached_property
    def times(self) -> Float64[ndarray, " N"] | None:
        """When each image was written, in seconds since 1970 or NaN; None where that is never known."""
        look = getattr(self.source.reader, "modified_times", None)
        return None if look is None else look(self.source.keys)


@dataclass(frozen=True, eq=False)
class OpenDataset:
    """The current state of a dataset: its images, labels and corrections."""

    id: str
    path: Path
    """The file of corrections, which every verb takes for data."""
    images: UneditedImages
    file: EditFile
    now: Source
    """The images with the corrections."""

    @property
    def name(self) -> str:
        """What people, runs and commands call it."""
        return self.path.stem

    @property
    def base(self) -> Source:
        """The images without corrections."""
        return self.images.source

    @property
    def version(self) -> int:
        """The number of edits, which tells a page whether it is up to date."""
        return len(self.file.edits)

    @property
    def stamp(self) -> str:
        """Changes when the images do, not when their labels do: part of the address of a thumbnail."""
        return self.base.fingerprint[:12]

    @property
    def check_folder(self) -> Path:
        """Where ``check`` writes what it finds."""
        return self.path.parent / "check"

    @cached_property
    def rows(self) -> Int64[ndarray, " n"]:
        """The position of each image of ``now`` in ``base``: the number by which pages know it."""
        return np.flatnonzero(np.isin(self.base.keys, self.now.keys))

    @cached_property
    def splits(self) -> ndarray:
        """The split of each image of ``now``; empty text where the data gives none."""
        given = self.now.columns.get("split")
        return np.full(len(self.now), "", object) if given is None else given.astype(object)

    def read_found(self, name: str) -> list[dict[str, str]]:
        """The rows of a table that ``check`` wrote: ``suspects`` or ``duplicates``; none before it ran."""
        with suppress(OSError, UnicodeDecodeError):
            return read_csv_rows(self.check_folder / f"{name}.csv")
        return []


class Datasets:
    """The datasets in a folder. Safe to use from several threads and processes: the truth is on the disk."""

    def __init__(self, folder: Path):
        """``folder`` holds a folder for each dataset; it is made with the first one."""
        self.folder = folder
        self._open: OrderedDict[str, tuple[str, OpenDataset]] = OrderedDict()
        self._lock = threading.Lock()

    def list(self) -> list[tuple[str, str]]:
        """Id and name of each dataset, the newest first."""
        files = sorted(self.folder.glob(f"*/*{EDITS_SUFFIX}"), key=lambda path: path.parent.name, reverse=True)
        return [(path.parent.name, path.stem) for path in files if _ID.fullmatch(path.parent.name)]

    def reserve(self) -> Path:
        """The folder of a dataset to be made; its name is the dataset's id, and ids sort by time."""
        return self.folder / f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"

    def add(self, place: Path | str, name: str, folder: Path | None = None, rule: LabelRule | None = None) -> str:
        """Make a dataset of the images at ``place``, and return its id.

        ``folder`` is one that ``reserve`` gave, where the images lie in it already. Raises DataError where there are
        no labelled images; one class is enough to begin with.
        """
        find(place, several=False, rule=rule or LabelRule())
        folder = folder or self.reserve()
        if Path(place).exists():
            place = Path(place).resolve()
            if place.is_relative_to(folder.resolve()):
                place = place.relative_to(folder.resolve())  # a site may be moved
        name = re.sub(r"[^\w.-]+", "_", name).strip("._")[:60] or "images"  # runs and commands are called so too
        write_edit_file(folder / f"{name}{EDITS_SUFFIX}", place, rule)
        return folder.name

    def path(self, id: str) -> Path:
        """The file of corrections of a dataset; raises DataError where there is none of this id."""
        if _ID.fullmatch(id) and (files := sorted((self.folder / id).glob(f"*{EDITS_SUFFIX}"))):
            return files[0]
        raise DataError("There is no dataset of this name: it may have been removed.")

    def open(self, id: str, *, again: bool = False) -> OpenDataset:
        """The dataset that is on the disk; ``again`` looks for new images too.

        Raises DataError where the images or the corrections cannot be read any more.
        """
        path = self.path(id)
        with self._lock:
            stamp, known = self._open.get(id, ("", None))
            if known is not None and not again and stamp == file_stamp(path):
                self._open.move_to_end(id)
                return known
            stamp, file = file_stamp(path), read_edit_file(path)
            if known is None or again:
                place = resolve_edited_place(path, file.place)
                images = UneditedImages(find(place, several=False, rule=file.rule))
            else:
                images = known.images
            found = OpenDataset(id, path, images, file, apply_edits(images.source, file.active))
            self._open[id] = stamp, found
            self._open.move_to_end(id)
            while len(self._open) > MAX_OPEN_DATASETS:
                self._open.popitem(last=False)
            return found

    def edit(self, id: str, edit: Edit, *, seen: int, new_class: bool = False, anyway: bool = False) -> Edit:
        """Add a correction by somebody whose page shows version ``seen``; returns it with its number.

        Args:
            new_class: whether the edit may name a class that does not exist yet.
            anyway: make it though others changed the same images meanwhile.

        Raises EditConflict, and changes nothing, where others changed the same images or removed the class, DataError
        for what cannot be done.
        """
        if edit.kind in ("label", "merge"):
            edit = Edit(kind=edit.kind, names=edit.names, by=edit.by, value=clean_class_name(edit.value))
        elif edit.kind == "split" and edit.value not in SPLIT_CHOICES:
            raise DataError(f"'{edit.value[:40]}' is no split: choose train, val or test.")
        if not edit.names:
            raise DataError("No image is selected: choose some first.")
        base = self.open(id).base

        def check(file: EditFile) -> None:
            check_edit(base, file, edit, seen=seen, new_class=new_class, anyway=anyway)

        return append_edit(self.path(id), edit, check)

    def draw_split(self, id: str, *, seed: int = 0, by: str = "") -> tuple[Edit, ...]:
        """Draw images to validate and to test on where the data has no splits; returns the edits, which may be undone.

        Each class gives its share. Copies that ``check`` found stay in one split: they follow the first of them.
        Raises DataError where there are splits already, and where a class has too few images.
        """
        found = self.open(id)
        if found.splits.any():
            raise DataError("There are splits already: move single images from one to another instead.")
        now, order = found.now, np.random.default_rng(seed).permutation(len(found.now))
        smallest = np.bincount(now.labels[now.labels >= 0], minlength=len(now.classes))
        if (smallest < MIN_IMAGES_TO_SPLIT).any():
            name = now.classes[int(smallest.argmin())]
            raise DataError(
                f"'{name}' has {smallest.min()} images: {MIN_IMAGES_TO_SPLIT} are the fewest of which some can test."
            )
        leaders: dict[str, str] = {}
        firsts: dict[str, str] = {}
        for row in found.read_found("duplicates"):
            leaders[row["file"]] = firsts.setdefault(row["group"], row["file"])
        codes, taken = np.full(len(now), "train", object), np.zeros(len(now), bool)
        for word in ("test", "val"):
            left = order[~taken[order] & (now.labels[order] >= 0)]
            share = DRAWN_SHARE * len(now) / len(left)
            chosen = left[stratified_subset(now.labels[left], np.arange(len(left)), share=share)]
            codes[chosen], taken[chosen] = word, True
        place = {str(name): i for i, name in enumerate(now.files)}
        for name, first in leaders.items():
            if name in place and first in place:
                codes[place[name]] = codes[place[first]]
        return tuple(
            self.edit(
                id, Edit(kind="split", names=tuple(map(str, now.files[codes == word])), value=word, by=by),
                seen=found.version, anyway=True,
            )
            for word in ("val", "test")
        )  # fmt: skip

    def undo(self, id: str, number: int, *, by: str = "") -> Edit:
        """Take back edit ``number``; raises DataError where that is not possible."""

        def check(file: EditFile) -> None:
            if number not in {one.number for one in file.active}:
                raise DataError("This change was taken back already: the page shows the labels as they are now.")

        return append_edit(self.path(id), Edit(kind="undo", names=(str(number),), by=by), check)


@cache
def find_datasets(folder: Path) -> Datasets:
    """The datasets of the studio in ``folder``: one object for each process, which holds the open ones."""
    return Datasets(folder / "data")


def clean_class_name(name: str) -> str:
    """A class name as a person typed it, without spaces around, in standard Unicode; raises DataError."""
    name = next(iter(normalise_names([" ".join(name.split())])[0].values()))
    if not 0 < len(name) <= MAX_CLASS_NAME_LENGTH or not name.isprintable():
        raise DataError(f"A class needs a name of 1 to {MAX_CLASS_NAME_LENGTH} printable characters.")
    return name


def check_edit(base: Source, file: EditFile, edit: Edit, *, seen: int, new_class: bool, anyway: bool) -> None:
    """Raise EditConflict where an edit does not fit what others did since version ``seen``."""
    now = apply_edits(base, file.active)
    since = [one for one in file.active if one.number > seen]
    for name in (edit.value, *edit.names) if edit.kind == "merge" else (edit.value,):
        if edit.kind in ("label", "merge") and name not in now.classes and not (new_class and name == edit.value):
            raise EditConflict(
                f"There is no class '{name}' any more: {describe_removal(name, file)}. Nothing was changed: choose "
                "another class, or type the name as a new one.",
                can_repeat=False,
            )
    touched = {name: one for one in since if one.kind != "merge" for name in one.names}
    common = [name for name in edit.names if name in touched] if edit.kind != "merge" else []
    if common and not anyway:
        other = touched[common[0]]
        count = "1 of these images" if len(common) == 1 else f"{len(common):,} of these images"
        raise EditConflict(
            f"{other.by or 'Somebody'} changed {count} while you were looking ({describe_edit(other)}), so "
            "yours was not made yet: look at them as they are now, and repeat it if it is still right.",
            can_repeat=True,
        )


def describe_removal(name: str, file: EditFile) -> str:
    """Why a class is gone: the last edit that names it."""
    for one in reversed(file.active):
        if one.kind == "merge" and name in one.names:
            return f"{one.by or 'somebody'} merged it into '{one.value}'"
    return "its last image got another class"


def describe_edit(edit: Edit) -> str:
    """What an edit does, in words.

    >>> describe_edit(Edit(kind="label", names=("a.png", "b.png"), value="cat"))
    "2 images are now 'cat'"
    """
    count = f"{len(edit.names):,} image{'s'[: len(edit.names) != 1]}"
    verb = "is" if len(edit.names) == 1 else "are"
    if edit.kind == "merge":
        return f"{' and '.join(repr(name) for name in edit.names)} became '{edit.value}'"
    if edit.kind == "remove":
        return f"{count} {verb} left out"
    return f"{count} {verb} now in {edit.value}" if edit.kind == "split" else f"{count} {verb} now '{edit.value}'"
