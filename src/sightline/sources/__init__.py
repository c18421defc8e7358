"""Where labelled images lie: folders, archives, tables, arrays and names become a ``Source``."""

import difflib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..choose import choose
from ..errors import DataError
from .archives import list_tar, list_zip
from .arrays import ImageArrays, digits, shapes, source_from_arrays
from .cache import PUBLISHED_DATASETS, download_dataset, load_or_build, verify_checksums
from .edits import (
    EDIT_KINDS,
    EDITS_SUFFIX,
    MAX_CLASS_NAME_LENGTH,
    Edit,
    EditFile,
    append_edit,
    apply_edits,
    read_edit_file,
    read_edited,
    resolve_edited_place,
    write_edit_file,
)
from .exemplars import (
    EXEMPLARS_FILE,
    EXEMPLARS_FOLDER,
    erase_exemplars,
    read_exemplar_table,
    store_exemplar,
    write_exemplar_table,
)
from .glyphs import glyphs
from .joined import JOINED_SUFFIX, read_joined, read_places, write_joined
from .layout import (
    USUAL_LABELS,
    LabelRule,
    Layout,
    MemberFile,
    is_pattern,
    list_images,
    list_member_files,
    parse_split,
    select_images,
    sort_classes,
    source_from_files,
)
from .readers import (
    archive_reader,
    detect_kind,
    read_folder,
    read_idx_pair,
    read_npz_file,
    read_table_file,
    refuse_remote_pointer,
    refuse_rule,
    single_class_error,
)
from .remote import absolute_place, fetch_address, hide_query, is_address, open_address
from .shards import list_shards, match_shards, read_shards, select_shards
from .source import (
    MAX_FILE_BYTES,
    FolderReader,
    Listing,
    Reader,
    Source,
    file_stamp,
    is_junk,
    limit_source,
    limit_training,
    list_folder,
    make_printable,
    normalise_names,
    read_image_file,
    stratified_subset,
)

BUILTIN_DATASETS: dict[str, Callable[..., ImageArrays]] = {"digits": digits, "glyphs": glyphs, "shapes": shapes}
"""Datasets that need no download; arguments may follow the name: ``shapes:600``, ``glyphs:novel``."""

READERS: dict[str, Callable[[Path, LabelRule], Source]] = {
    "folder": read_folder,
    "zip": archive_reader(list_zip),
    "tar": archive_reader(list_tar),
    "table": read_table_file,
    "idx": read_idx_pair,
    "npz": read_npz_file,
    "joined": lambda path, rule: read_joined(
        path, lambda place, own: find(place, several=False, rule=own if own.given else rule)
    ),
    "edited": lambda path, rule: read_edited(
        path, lambda place, own: find(place, several=False, rule=own if own.given else rule)
    ),
}
"""What a path may be; a folder or archive may hold class folders, IDX or CIFAR files."""

LISTERS: dict[str, Callable[[Path], Listing]] = {"folder": list_folder, "zip": list_zip, "tar": list_tar}
"""Kinds of places that hold files, with or without labels."""


def find(
    path: str | Path,
    *,
    limit: int | None = None,
    seed: int = 0,
    several: bool = True,
    rule: LabelRule = USUAL_LABELS,
) -> Source:
    """Labelled images at ``path``: a kind of ``READERS``, or the name of a built-in or published dataset.

    Args:
        path: a folder, an archive, a table, a file of arrays, or a name such as ``digits`` or ``mnist``; a pattern of
            tars (``shard-{000..009}.tar``); or the address of one of these (https, s3, ...). What lies in the current
            folder goes before a dataset of the same name.
        limit: about how many images to keep, with each class of each split in its share and at least once.
        seed: seed of that sample.
        several: whether two classes are required; images of one class are enough to test on, not to train on.
        rule: the columns or the pattern that give the labels, where the usual names do not.

    Raises DataError, with the remedy, where the data cannot be used.
    """
    name, path = str(path), Path(path)
    if is_address(name):
        with open_address(name) as (shown, copy):
            refuse_remote_pointer(copy)
            return replace(find(copy, limit=limit, seed=seed, several=several, rule=rule), name=shown)
    if not path.exists() and (shards := match_shards(name)):
        source = read_shards(name, shards, rule)
    elif path.exists():
        source = READERS[detect_kind(path)](path, rule)
    elif name.partition(":")[0] in BUILTIN_DATASETS:
        refuse_rule(name, rule)
        source = source_from_arrays(name, choose(BUILTIN_DATASETS, name, "built-in dataset"))
    elif name in PUBLISHED_DATASETS:
        refuse_rule(name, rule)
        files = download_dataset(name)

        def build() -> Source:
            verify_checksums(name, files)
            return source_from_arrays(name, PUBLISHED_DATASETS[name].read(files))

        source = replace(load_or_build(files[0], file_stamp(*files), build), name=name)
    else:
        try:
            siblings = [entry.name for entry in path.parent.iterdir()]
            near = difflib.get_close_matches(path.name, siblings, n=1)
            hint = f" Did you mean '{path.parent / near[0]}'?" if near else ""
        except OSError:
            hint = f" Not even the folder '{path.parent}' is there."
        known = ", ".join((*BUILTIN_DATASETS, *PUBLISHED_DATASETS))
        raise DataError(f"There is nothing at '{path}'.{hint} Datasets known by name: {known}.")
    if several and len(source.classes) == 1:
        raise single_class_error(name, source.classes[0], unlabelled=bool((source.labels < 0).any()))
    return source if limit is None else limit_source(source, limit, seed)


def find_unlabelled(path: str | Path) -> Source:
    """Every image at ``path``, without a label, however a folder or archive is laid out; or what ``find`` takes.

    Raises DataError where there is none.
    """
    if is_address(path):
        with open_address(str(path)) as (shown, copy):
            refuse_remote_pointer(copy)
            return replace(find_unlabelled(copy), name=shown)
    place = Path(path)
    kind = detect_kind(place) if place.exists() else "name"
    if (listing := _list_members(str(path), kind)) is not None:
        chosen = sorted(select_images(listing.names)[0], key=listing.names.__getitem__)
        if not chosen:
            raise DataError(f"There is no image in '{path}': name a folder or archive of photos.")
        keys = np.array(chosen, np.int64)
        return source_from_files(str(path), listing, Layout(keys, np.full(len(keys), -1), (), None))
    found = find(path, several=False)
    return replace(found, labels=np.full(len(found), -1), classes=(), columns={})


def _list_members(word: str, kind: str) -> Listing | None:
    """The files of a folder, an archive or a set of tars; None for a place of another kind."""
    if kind not in LISTERS:
        shards = [] if Path(word).exists() else match_shards(word)
        return list_shards(shards) if shards else None
    listing = LISTERS[kind](Path(word))
    shards = [Path(word, name) for name in select_shards(listing.names)] if kind == "folder" else []
    return list_shards(shards) if shards else listing


def names_images(word: str) -> bool:
    """Whether a word is an image file or a pattern of files, rather than a place that holds images."""
    if select_images([Path(word).name])[0]:
        return not Path(word).is_dir()
    return is_pattern(word) and not (is_address(word) or Path(word).exists() or match_shards(word))


def find_images(word: str) -> list[str | MemberFile]:
    """The images of a word, to classify: as ``list_images``, and those in an archive or at an address.

    Raises DataError where an archive or address cannot be opened.
    """
    if is_address(word):
        with open_address(word) as (shown, copy):
            if copy.is_file() and select_images([copy.name])[0]:
                return [MemberFile(shown, FolderReader(copy.parent, [copy.name]), 0)]
            return [*list_member_files(shown, _list_members(str(copy), detect_kind(copy)) or LISTERS["tar"](copy))]
    place = Path(word)
    if place.is_file() and not select_images([place.name])[0]:
        with suppress(DataError):  # an image of another name; or what is no image, which is shown as an error
            if (listing := _list_members(word, detect_kind(place))) is not None:
                return [*list_member_files(word, listing)]
    elif not place.exists() and (shards := match_shards(word)):
        return [*list_member_files(str(place.parent), list_shards(shards))]
    found = list_images(word)
    if not found and place.is_dir() and (listing := _list_members(word, "folder")) is not None:
        return [*list_member_files(word, listing)]
    return [*found]
