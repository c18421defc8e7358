"""Folders become labels: which folder is a class, which a split, which only wraps others, and which is neither."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ..errors import DataError
from ..types import UNLABELLED
from .layout import (
    SPLIT_WORDS,
    USUAL_LABELS,
    LabelRule,
    Layout,
    check_has_classes,
    check_train_covers_classes,
    parse_split,
    select_images,
    sort_classes,
)
from .source import Listing, is_junk, normalise_names
from .unlabelled import list_prefixes, name_some, note_unlabelled, take_unlabelled

IMAGE_FOLDERS = frozenset("image images img imgs jpegimages pictures photos".split())  # noqa: SIM905
"""Names of folders that hold images and name no class, in lower case."""
_ANNOTATION_FOLDERS = frozenset(
    (
        *"annotation annotations mask masks trimap trimaps segmentation segmentations label labels".split(),  # noqa: SIM905
        *"groundtruth ground_truth attributes segmentationclass segmentationobject".split(),  # noqa: SIM905
    )
)
MAX_PARTS = 12
"""Folders that may be parts of one set; more with the same sub-folders (people seen in sessions) are classes."""
_UNLABELLED_WORDS = frozenset("pred predict prediction unlabelled unlabeled unknown submission".split())  # noqa: SIM905
_RUN_FILES = ("recipe.toml", "model.safetensors", "suspects.csv")
_LABEL_IN_NAME = re.compile(r"([^\W\d][\w -]*)\.\d+\.\w+")
"""``cat.0.jpg``: the label, a number and the suffix, with dots between them."""
_HINTS = {
    ".dcm": "Convert DICOM files to PNG",
    ".jp2": "Convert them to PNG or TIFF",
    ".npy": "Convert arrays to PNG, or save them in one .npz file with images and labels",
    "without a suffix": "Give each file the suffix of its kind, such as .jpg or .png",
    ".xlsx": "Save the table as CSV",
    ".xls": "Save the table as CSV",
    **dict.fromkeys((".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".zst"), "Unpack the archives"),
}

_Groups = dict[str, list[int]]
"""The images that lie directly in each folder, as positions in the listing."""


def infer_layout(
    listing: Listing, place: str, rule: LabelRule = USUAL_LABELS, known: Mapping[int, tuple[str, str]] = {}
) -> Layout:
    """Labels and splits of a listing's images, from its folders, or by the pattern of the rule.

    ``known`` has the (split, class) of images that lie in no class folder, by their position.
    What is not part of the answer (folders without images, annotations, runs, unlabelled test images) is left out
    with a note. Raises DataError, naming ``place``, where the folders do not show what the classes are.
    """
    images, strays = select_images(listing.names)
    groups = _group_by_folder(listing.names, images)
    notes: list[str] = []
    runs, annotations = find_run_folders(listing.names), _find_annotation_folders(listing.folders)
    filled = {prefix for name in groups for prefix in list_prefixes(name)}
    groups = {name: rest for name, rows in groups.items() if (rest := [i for i in rows if i not in known])}
    _leave_out(groups, runs, "were written by Sightline (runs)", notes)
    _leave_out(groups, annotations, "lie in folders of annotations", notes)
    if not groups:
        raise DataError(describe_no_images(place, strays, listing.names))
    hidden = take_unlabelled(groups, rule, notes)
    root = _enter_wrappers(groups)
    inside = {name[len(root) :]: rows for name, rows in groups.items() if name.startswith(root) and name}
    if rule.label_pattern:
        labelled = _labels_by_pattern(listing.names, groups, rule, place, notes)
    elif named := _labels_from_file_names(listing.names, inside or groups, notes):
        labelled = named
    else:
        if not inside or (len(inside) == 1 and next(iter(inside)).lower() in IMAGE_FOLDERS):
            stems = [name.rpartition("/")[2].rpartition(".")[0] for name in listing.names]
            words = {match[1] for stem in stems if (match := re.fullmatch(r"([^\W\d][\w ]*?)[_ -]*\d+", stem))}
            likely = 1 < len(words) <= len(stems) / 2
            raise DataError(
                f"'{place}' has images but no class folders: put the images of each class in a folder of its own, "
                "list them in a CSV with the columns 'path' and 'label', or say where the label stands in their names, "
                "such as --label-pattern '{label}_{number}.*'."
                + (f" The file names look like labels ({name_some(words)})." if likely else "")
            )
        folders, bare = _label_folders(inside, place, notes)
        labelled = {i: pair for folder, pair in folders.items() for i in inside[folder]}
        loose = len(groups.get(root.rstrip("/"), ())) + bare
        if loose:
            what = "1 image that lies" if loose == 1 else f"{loose:,} images that lie"
            has_splits = any(split for split, _ in folders.values())
            notes.append(f"Ignored {what} outside of any {'split' if has_splits else 'class'} folder.")
        labelled |= known
    plain, renamed = normalise_names({label for _, label in labelled.values()})
    classes = sort_classes(plain.values())
    where = place + ("/" + root).rstrip("/")
    check_train_covers_classes({(split, plain[label]) for split, label in labelled.values()}, classes, where)
    check_has_classes(classes, where)
    if strays:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in strays.most_common(5))
        what = "1 file" if (total := sum(strays.values())) == 1 else f"{total:,} files"
        notes.insert(0, f"Ignored {what} not named like images ({kinds}).")
    empty = [
        folder
        for folder in listing.folders - filled
        if (folder[len(root) :].count("/") < 2 if folder.startswith(root) else "/" not in folder)
        and not any(is_junk(part) for part in folder.split("/"))
        and not any(f"{folder}/".startswith(f"{run}/") for run in runs)
    ]
    if empty:
        notes.append(f"Left out folders without images: {name_some(empty)}.")
    order = sorted([*labelled, *hidden], key=listing.names.__getitem__)
    number = {name: i for i, name in enumerate(classes)}
    codes = (number[plain[labelled[i][1]]] if i in labelled else UNLABELLED for i in order)
    labels = np.fromiter(codes, np.int64, len(order))
    has_splits = any(split for split, _ in labelled.values())
    splits = np.array([labelled[i][0] if i in labelled else "train" for i in order]) if has_splits else None
    return Layout(np.array(order, np.int64), labels, classes, splits, (*notes, *renamed))


def _group_by_folder(names: Sequence[str], images: Iterable[int]) -> _Groups:
    groups: _Groups = {}
    for i in images:
        folder = names[i][: max(0, names[i].rfind("/"))]
        if not any(is_junk(part) for part in folder.split("/") if part):
            groups.setdefault(folder, []).append(i)
    return groups


def _leave_out(groups: _Groups, folders: Iterable[str], what: str, notes: list[str]) -> None:
    """Remove these folders and those below them, with a note."""
    chosen = set(folders)
    gone = {name: chosen.intersection(list_prefixes(name)) for name in groups}
    count = sum(len(groups.pop(name)) for name in gone if gone[name])
    if count:
        subject = "1 image" if count == 1 else f"{count:,} images"
        notes.append(f"Left out {subject} that {what}: {name_some(set.union(*gone.values()))}.")


def find_run_folders(names: Sequence[str]) -> set[str]:
    """Folders that Sightline wrote: runs, bundles, lists of suspects; a folder ``runs`` around them as a whole."""
    found = set()
    for name in names:
        folder, _, file = name.rpartition("/")
        if folder and file in _RUN_FILES:
            parts = folder.split("/")
            found.add("/".join(parts[: parts.index("runs") + 1]) if "runs" in parts else folder)
    return found


def _find_annotation_folders(folders: Iterable[str]) -> set[str]:
    """Folders called masks, annotations or the like, next to a folder called images."""
    known = {(folder.rpartition("/")[0], folder.rpartition("/")[2].lower()) for folder in folders}
    beside = {parent for parent, name in known if name in IMAGE_FOLDERS}
    return {
        folder
        for folder in folders
        if folder.rpartition("/")[0] in beside and folder.rpartition("/")[2].lower() in _ANNOTATION_FOLDERS
    }


def describe_no_images(place: str, strays: Mapping[str, int], names: Sequence[str]) -> str:
    """The message for a place without images: what it has instead, and what to do with that."""
    if not strays:
        return f"'{place}' holds no images: give a folder with one sub-folder of images for each class."
    kinds = Counter(strays).most_common(5)
    found = ", ".join(f"{count:,} file{'s'[: count != 1]} {suffix}" for suffix, count in kinds)
    hints = []
    for suffix, _ in kinds:
        if hint := _HINTS.get(suffix):
            example = next((name for name in names if name.lower().endswith(suffix)), "")
            hints.append(f"{hint} ('{example}')." if example else f"{hint}.")
    advice = " ".join(dict.fromkeys(hints)) or "Give a folder with one sub-folder of images for each class."
    return f"'{place}' holds no images, but {found}. {advice}"


def _labels_from_file_names(
    names: Sequence[str], groups: _Groups, notes: list[str]
) -> dict[int, tuple[str, str]] | None:
    """Labels of images called like ``cat.0.jpg`` in one folder, or in the folder of a split; None for others."""
    named = {}
    for folder, rows in groups.items():
        matches = [_LABEL_IN_NAME.fullmatch(names[i].rpartition("/")[2]) for i in rows]
        if all(matches):
            named[folder] = [match[1] for match in matches if match]
    others = set(groups) - set(named)
    if any("/" in folder for folder in groups) and len(groups) > 1:
        return None
    labels = {label for found in named.values() for label in found}
    if not 1 < len(labels) <= sum(map(len, named.values())) / 2:
        return None
    if (len(named) > 1 or others) and not all(parse_split(folder) for folder in groups):
        return None
    if any(parse_split(folder) == "train" for folder in others):
        return None
    splits = (
        {folder: parse_split(folder) or "" for folder in named} if len(named) > 1 else dict.fromkeys(named, "")
    )
    notes.append(f"The labels are in the file names ('cat.0.jpg' is 'cat'): {name_some(labels)}.")
    if others:
        note_unlabelled(sum(len(groups[folder]) for folder in others), others, notes)
    return {
        i: (splits[folder], label)
        for folder, found in named.items()
        for i, label in zip(groups[folder], found, strict=True)
    }


def _labels_by_pattern(
    names: Sequence[str], groups: _Groups, rule: LabelRule, place: str, notes: list[str]
) -> dict[int, tuple[str, str]]:
    """(split, label) of the images whose names fit the rule's pattern; others are left out with a note.

    The split is that of the pattern, or where the pattern is for names alone, of the folders. Raises DataError where
    no name fits, or a split is no word for one.
    """
    labelled, others = {}, []
    for folder, rows in groups.items():
        splits = () if "/" in (rule.label_pattern or "") else map(parse_split, folder.split("/"))
        known = next(filter(None, splits), "")
        for i in rows:
            if (found := rule.match(names[i])) is None:
                others.append(names[i])
                continue
            split = parse_split(found[0]) or known
            if found[0] and not split:
                raise DataError(
                    f"The split of '{names[i]}' in '{place}' is '{found[0]}' by the label pattern: it must mean train, "
                    "val or test."
                )
            labelled[i] = split, found[1]
    if not labelled:
        raise DataError(
            f"No image of '{place}' fits the label pattern '{rule.label_pattern}' (the first is '{min(others)}')."
        )
    some = {label for _, label in labelled.values()}
    notes.append(f"The labels are where '{rule.label_pattern}' has them in the names: {name_some(some)}.")
    if others:
        subject = "1 image whose name does" if len(others) == 1 else f"{len(others):,} images whose names do"
        notes.append(f"Left out {subject} not fit the label pattern: {name_some(others)}.")
    return labelled


def _enter_wrappers(names: Iterable[str]) -> str:
    """The prefix that holds the classes or splits: a folder that only wraps another is entered."""
    root = ""
    while True:
        tops = {name[len(root) :].split("/")[0] for name in names if name.startswith(root) and name}
        if len(tops) != 1:
            return root
        (top,) = tops
        if top.lower() in SPLIT_WORDS or root + top in names:
            return root
        root += top + "/"


def _enter_part(names: set[str], top: str) -> str:
    """The prefix of the class folders in a split; ``train/train``, ``x/X`` and ``train/images`` are entered."""
    root = top + "/"
    while top not in names:
        tops = {name[len(root) :].split("/")[0] for name in names if name.startswith(root)}
        inner = tops.pop()
        names_none = parse_split(inner) or inner.lower() in {top.lower(), *IMAGE_FOLDERS}
        if tops or not names_none or root + inner in names:
            break
        root += inner + "/"
    return root


def _label_folders(inside: _Groups, place: str, notes: list[str]) -> tuple[dict[str, tuple[str, str]], int]:
    """(split, class) of each folder; what is nested below a class belongs to it. And how many images lie in none."""
    tops = sorted({name.split("/")[0] for name in inside})
    names: dict[str, set[str]] = {top: set() for top in tops}
    for folder in inside:
        names[folder.split("/")[0]].add(folder)
    prefixes = {top: _enter_part(names[top], top) for top in tops}
    below: dict[str, set[str]] = {top: set() for top in tops}
    for folder in inside:
        prefix = prefixes[folder.split("/")[0]]
        if len(folder) > len(prefix):
            below[folder.split("/")[0]].add(folder[len(prefix) :].split("/")[0])
    opposites = _find_opposites(tops)
    if opposites:
        notes.append(f"The folders {name_some(opposites)} are opposites: they are classes, not parts of a set.")
    splits = {} if opposites else _find_splits(inside, below, place, notes)
    if not splits:
        turned = not opposites and not inside.keys() & below.keys() and _check_not_parts(below, place)
        parts = {name: [*name.split("/"), ""] for name in inside}
        return {n: (parse_split(below) or "" if turned else "", top) for n, (top, below, *_) in parts.items()}, 0
    found: dict[str, tuple[str, str]] = {}
    bare = 0
    for folder, rows in inside.items():
        top = folder.split("/")[0]
        if top not in splits:
            continue
        prefix = prefixes[top]
        if len(folder) <= len(prefix):
            bare += len(rows)
        else:
            found[folder] = (splits[top], folder[len(prefix) :].split("/")[0])
    return found, bare


def _find_opposites(tops: Iterable[str]) -> list[str]:
    """Folders such as ``valid`` and ``invalid``, ``tested`` and ``not_tested``, where none is called train."""
    known = {top.lower(): top for top in tops}
    if any(parse_split(top) == "train" for top in known.values()):
        return []
    matches = {name: re.fullmatch(r"(?:in|im|un|non|not|no)[_ -]*(.+)", name) for name in known}
    pairs = [{name, match[1]} for name, match in matches.items() if match and match[1] in known]
    return sorted(known[name] for name in set().union(*pairs))


def _find_splits(inside: _Groups, below: Mapping[str, set[str]], place: str, notes: list[str]) -> dict[str, str]:
    """The top folders that are splits (they hold class folders), with the split of each; none where they are classes.

    ``below`` has the class folders in each top folder. Flat val or test folders next to a train folder have no
    labels, and are left out with a note.
    """
    named = {top: split for top in below if (split := parse_split(top))}
    exact = {top for top in named if top.lower() in SPLIT_WORDS}
    others = {top for top in below if top not in named}
    trained = {label for top in named if named[top] == "train" for label in below[top]}
    flat = {
        top
        for top in named
        if not below[top]
        or (trained and named[top] != "train" and len(below[top]) == 1 and not below[top] & trained)
    }
    holders = sorted(set(named) - flat)
    unlabelled = flat | {
        top for top in others if any(w in _UNLABELLED_WORDS for w in re.split(r"\W|_", top.lower()))
    }
    others -= unlabelled
    if not exact and (
        len(set(named.values())) < 2 or (others and not _share_folders(below[top] for top in holders))
    ):
        return {}
    if not holders and others:
        return {}
    if not holders or any(named[top] == "train" for top in flat):
        raise DataError(
            f"The folder '{min(flat)}' of '{place}' holds images directly: inside {', '.join(sorted(named))}, "
            "put the images of each class in a folder of its own."
        )
    if others:
        raise DataError(
            f"'{place}' mixes split folders ({', '.join(holders)}) with others "
            f"({', '.join(sorted(others)[:5])}): move the others away or into the splits; or, if these folders are the "
            "classes, say so: --label-pattern '{label}/*'."
        )
    if unlabelled:
        count = sum(len(rows) for folder, rows in inside.items() if folder.split("/")[0] in unlabelled)
        note_unlabelled(count, unlabelled, notes)
    return {top: named[top] for top in holders}


def _share_folders(below: Iterable[set[str]]) -> bool:
    """Whether these folders hold the same sub-folders, two or more, but for a few."""
    sets = list(below)
    if len(sets) < 2:
        return False
    common = set.intersection(*sets)
    return len(common) >= max(2, len(set.union(*sets)) / 2)


def _check_not_parts(below: Mapping[str, set[str]], place: str) -> bool:
    """Raise DataError where the top folders hold the same sub-folders: then they are parts of one set, not classes.

    Returns True where the sub-folders are splits, of classes that lie above them: ``cat/train``, ``cat/test``.
    """
    if not _share_folders(below.values()):
        return False
    names = set.union(*below.values())
    if {parse_split(name) for name in names} >= {"train", "test"} and all(map(parse_split, names)):
        return True
    if len(below) > MAX_PARTS:
        return False
    raise DataError(
        f"The folders {name_some(below)} of '{place}' hold the same sub-folders ({name_some(names)}): they are "
        "parts of one set, not classes. Name them train, val and test, or give one of them; if they are the "
        "classes, say so: --label-pattern '{label}/*'."
    )
