"""Images without a label: which folders hold them, and what is said of them."""

from collections.abc import Iterable

from .layout import SPLIT_WORDS, LabelRule

UNLABELLED_FOLDERS = frozenset({"unlabelled", "unlabeled"})
"""Names, in lower case, of a folder beside the classes whose images have no label."""

ITS_USE = "training by --semi-supervised learns from them, and nothing else does"
"""What images without a label are good for."""


def take_unlabelled(groups: dict[str, list[int]], rule: LabelRule, notes: list[str]) -> list[int]:
    """Take the images without a label out of ``groups`` (folder -> its images), with a note; returns them.

    They lie in a folder called unlabelled beside the classes, or in the train split, however deep below it. It is a
    class beside one called labelled, and where the rule's pattern is for whole paths.
    """
    if "/" in (rule.label_pattern or ""):
        return []
    inside = {name: prefix for name in groups if (prefix := _find_prefix(name)) is not None}
    others = [name for name in groups if name not in inside]
    beside = {name.lower() for other in others for name in list_prefixes(other)}
    taken: dict[str, list[str]] = {}
    for name, prefix in inside.items():
        parent, _, word = prefix.rpartition("/")
        top = f"{parent}/" if parent else ""
        holds_all = bool(others) and all(other.startswith(top) for other in others)
        in_train = SPLIT_WORDS.get(parent.rpartition("/")[2].lower()) == "train"
        is_class = (top + word.lower().removeprefix("un")).lower() in beside
        if (holds_all or in_train) and not is_class:
            taken.setdefault(prefix, []).append(name)
    rows = [row for names in taken.values() for name in names for row in groups.pop(name)]
    if rows:
        subject = "1 image has" if len(rows) == 1 else f"{len(rows):,} images have"
        notes.append(f"{subject} no label, in {name_some(taken)}: {ITS_USE}.")
    return rows


def _find_prefix(folder: str) -> str | None:
    """The path up to a part that is called unlabelled."""
    return next((p for p in list_prefixes(folder) if p.rpartition("/")[2].lower() in UNLABELLED_FOLDERS), None)


def list_prefixes(folder: str) -> list[str]:
    """A folder and those it lies in: ``a``, ``a/b`` for ``a/b``."""
    parts = folder.split("/")
    return ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]


def note_unlabelled(count: int, folders: Iterable[str], notes: list[str]) -> None:
    """Append a note of images that are left out, because they have no label and are none to learn from."""
    subject = "1 image has" if count == 1 else f"{count:,} images have"
    notes.append(f"Left out: {subject} no label, in {name_some(folders)}: they lie in no class folder.")


def name_some(names: Iterable[str]) -> str:
    """The first five names in quotes, in order."""
    ordered = sorted(names)
    return ", ".join(f"'{name}'" for name in ordered[:5]) + (", ..." if len(ordered) > 5 else "")
