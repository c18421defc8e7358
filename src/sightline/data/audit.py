"""What is wrong with this data, before it costs you a week; and the list of what is not."""

import csv
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from ..errors import DataError
from ..files import atomic_replace
from ..types import Dataset, Findings, Remark
from .dataset import FACT_COLUMNS
from .duplicates import find_near_duplicates
from .geometry import geometry_losses
from .splits import SPLIT_NAMES, find_leaks

_MAX_EXAMPLES = 5
TINY_CLASS_IMAGES = 10
"""Classes with fewer images are called tiny."""
IMBALANCE_RATIO = 3.0
"""Ratio of the largest to the smallest class from which imbalance is remarked."""


def audit(dataset: Dataset) -> Findings:
    """Unreadable files, exact and near duplicates, leaks, imbalance, sizes, and what the geometry loses.

    Load with ``max_bad=1`` to see every unreadable file instead of an error.
    """
    values: dict[str, Any] = {
        "images": len(dataset),
        "classes": len(dataset.classes),
        "per_class": _count_per_class(dataset),
        "unreadable": [{"file": each.file, "reason": each.reason} for each in dataset.skipped],
    }
    remarks = [*_audit_unreadable(dataset)]
    leader = find_near_duplicates(dataset)
    seen = [look(dataset) for look in (_audit_duplicates, _audit_balance, _audit_sizes, _audit_geometry)]
    for found, said in (*seen, _audit_near_duplicates(dataset, leader), _audit_leaks(dataset, leader)):
        values |= found
        remarks += said
    remarks += [Remark("note", note) for note in dataset.notes if not note.startswith("Skipped")]
    order = {"problem": 0, "warning": 1, "note": 2}
    return Findings("data", values, tuple(sorted(remarks, key=lambda remark: order[remark.level])))


def _count_per_class(dataset: Dataset) -> dict[str, Any]:
    """Images of each class, by part where parts are given."""
    given = dataset.columns.get("split")
    if given is None:
        return {name: int(count) for name, count in zip(dataset.classes, dataset.counts, strict=True)}
    size = len(dataset.classes)
    table = {part: np.bincount(dataset.labels[given == part], minlength=size) for part in SPLIT_NAMES}
    return {
        name: {part: int(counts[label]) for part, counts in table.items() if counts.any()}
        for label, name in enumerate(dataset.classes)
    }


def _audit_unreadable(dataset: Dataset) -> list[Remark]:
    if not dataset.skipped:
        return []
    count, total = len(dataset.skipped), len(dataset.skipped) + len(dataset)
    examples = tuple(f"{each.file}: {each.reason}" for each in dataset.skipped[:_MAX_EXAMPLES])
    level = "problem" if count > 0.05 * total else "warning"
    return [Remark(level, f"{_count_images(count)} of {total:,} cannot be read: repair or remove.", examples)]


def _count_images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def find_exact_duplicates(dataset: Dataset) -> list[Int64[ndarray, " n"]]:
    """The sets of images that are byte for byte the same, each as positions in the dataset."""
    order = np.argsort(dataset.digests, kind="stable")
    borders = np.flatnonzero(np.diff(dataset.digests[order])) + 1
    sizes = np.diff(np.concatenate([[0], borders, [len(order)]]))
    if not (sizes > 1).any():
        return []
    return [group for group in np.split(order, borders) if len(group) > 1]


def _audit_duplicates(dataset: Dataset) -> tuple[dict[str, Any], list[Remark]]:
    groups = find_exact_duplicates(dataset)
    disputed = [group for group in groups if len(np.unique(dataset.labels[group])) > 1]
    extra = sum(len(group) - 1 for group in groups)
    values = {"duplicates": extra, "duplicate_sets": len(groups), "conflicting_sets": len(disputed)}
    remarks = []
    if groups:
        text = (
            f"{_count_images(extra)} repeat another one exactly: remove the copies "
            "(a split drawn here keeps copies together)."
        )
        remarks.append(Remark("warning", text, _example_groups(dataset, groups, labels=False)))
    if disputed:
        count = "1 picture lies" if len(disputed) == 1 else f"{len(disputed):,} pictures lie"
        text = f"{count} in two classes at once: decide which label is right."
        remarks.append(Remark("problem", text, _example_groups(dataset, disputed, labels=True)))
    return values, remarks


def _audit_near_duplicates(dataset: Dataset, leader: ndarray) -> tuple[dict[str, Any], list[Remark]]:
    """Near duplicates, exact copies not counted again."""
    members = np.flatnonzero(dataset.digests != dataset.digests[leader])
    members = members[np.unique(dataset.digests[members], return_index=True)[1]]
    values = {"near_duplicates": len(members)}
    if not len(members):
        return values, []
    groups = [np.array([leader[i], i]) for i in np.sort(members)]
    disputed = [pair for pair in groups if len(np.unique(dataset.labels[pair])) > 1]
    text = (
        f"{_count_images(len(members))} nearly repeat another one (resized, encoded again or cropped a little): "
    )
    text += "look at them, and remove what is the same picture."
    remarks = [Remark("warning", text, _example_groups(dataset, groups, labels=False, sign=" ~ "))]
    if disputed:
        text = f"Near duplicates with two labels: {len(disputed):,}. Decide which label is right."
        remarks.append(Remark("warning", text, _example_groups(dataset, disputed, labels=True, sign=" ~ ")))
    return values, remarks


def _example_groups(
    dataset: Dataset, groups: list[ndarray], *, labels: bool, sign: str = " = "
) -> tuple[str, ...]:
    def name(i: int) -> str:
        return f"{dataset.files[i]} ({dataset.classes[dataset.labels[i]]})" if labels else str(dataset.files[i])

    return tuple(sign.join(name(int(i)) for i in group[:3]) for group in groups[:_MAX_EXAMPLES])


def _audit_leaks(dataset: Dataset, leader: ndarray) -> tuple[dict[str, Any], list[Remark]]:
    exact, near = find_leaks(dataset), find_leaks(dataset, leader)
    known = {(leak.held_out, leak.other): leak.indices for leak in exact}
    values: dict[str, dict[str, int]] = {"leaks": {}, "near_leaks": {}}
    remarks = []
    for kind, word, found in (("leaks", "also", exact), ("near_leaks", "nearly the same", near)):
        for leak in found:
            here = leak.indices
            if kind == "near_leaks":
                here = np.setdiff1d(here, known.get((leak.held_out, leak.other), []))
            if not len(here):
                continue
            values[kind][f"{leak.held_out} in {leak.other}"] = count = len(here)
            text = (
                f"{_count_images(count)} of {leak.held_out} {'is' if count == 1 else 'are'} {word} in {leak.other}: "
                f"remove them from one, or the result on {leak.held_out} flatters."
            )
            remarks.append(Remark("problem", text, tuple(str(f) for f in dataset.files[here[:_MAX_EXAMPLES]])))
    return values, remarks


def _audit_balance(dataset: Dataset) -> tuple[dict[str, Any], list[Remark]]:
    counts = dataset.counts
    ratio = float(counts.max() / max(1, counts.min()))
    tiny = [dataset.classes[label] for label in np.flatnonzero(counts < TINY_CLASS_IMAGES)]
    remarks = []
    if ratio >= IMBALANCE_RATIO:
        most, least = dataset.classes[int(counts.argmax())], dataset.classes[int(counts.argmin())]
        text = (
            f"The largest class, '{most}', has {ratio:.1f} times the images of the smallest, '{least}': "
            "look at balanced accuracy, not accuracy."
        )
        remarks.append(Remark("warning", text))
    if tiny:
        what = "1 class has" if len(tiny) == 1 else f"{len(tiny):,} classes have"
        text = f"{what} fewer than {TINY_CLASS_IMAGES} images: too few to learn from and to measure."
        remarks.append(Remark("warning", text, tuple(tiny[:_MAX_EXAMPLES])))
    return {"imbalance": round(ratio, 4), "tiny_classes": tiny}, remarks


def _audit_sizes(dataset: Dataset) -> tuple[dict[str, Any], list[Remark]]:
    width, height = dataset.columns["width"], dataset.columns["height"]
    short = np.minimum(width, height)
    bounds = [0, 16, 32, 64, 128, 256, 512, 1024, 2**31]
    histogram = np.histogram(short, bounds)[0]
    names = [f"{low}-{high - 1}" for low, high in pairwise(bounds[:-1])] + ["1024+"]
    grey, rotated = float((dataset.columns["channels"] == 1).mean()), int(dataset.columns["rotated"].sum())
    values = {
        "width": _length_range(width),
        "height": _length_range(height),
        "short_side": _length_range(short)
        | {"histogram": {name: int(n) for name, n in zip(names, histogram, strict=True) if n}},
        "grey_share": round(grey, 4),
        "rotated": rotated,
    }
    remarks = []
    if 0 < grey < 1:
        text = f"{grey:.1%} of the images are grey and the others are in colour: "
        text += "if one class has more of them, a network may learn that instead."
        remarks.append(Remark("note", text))
    return values, remarks


def _length_range(lengths: ndarray) -> dict[str, Any]:
    return {"min": int(lengths.min()), "median": float(np.median(lengths)), "max": int(lengths.max())}


def _audit_geometry(dataset: Dataset) -> tuple[dict[str, Any], list[Remark]]:
    """What the working size and fit do to the pictures, by class where classes differ strongly."""
    found = geometry_losses(dataset.columns["height"], dataset.columns["width"], dataset.geometry)
    size = len(dataset.classes)
    values: dict[str, Any] = {"size": list(dataset.geometry.size), "fit": dataset.geometry.fit}
    remarks = []
    for name, loss in found.items():
        mean = float(loss.amounts.mean())
        values[name] = {"mean": round(mean, 4), "max": round(float(loss.amounts.max()), 4)}
        by_class = np.bincount(dataset.labels, loss.amounts, size) / np.maximum(1, dataset.counts)
        apart = float(by_class.max() - by_class.min())
        if apart > loss.class_gap:
            values[name]["per_class"] = {
                label: round(float(v), 4) for label, v in zip(dataset.classes, by_class, strict=True)
            }
            most, least = dataset.classes[int(by_class.argmax())], dataset.classes[int(by_class.argmin())]
            text = f"{loss.describe(by_class.max())} in class '{most}' but {loss.format_amount(by_class.min())} in '{least}': "
            text += "a network may learn that difference instead of the picture."
            remarks.append(Remark("warning", text))
        elif mean > loss.note_above:
            remarks.append(Remark("note", loss.describe(mean) + loss.remedy))
    return {"geometry": values}, remarks


def format_audit(findings: Findings) -> str:
    """Findings for people: the numbers in a few lines, then the remarks, worst first."""
    v = findings.values
    lines = [
        f"{v['images']:,} images of {v['classes']:,} classes",
        *(f"  {name}: {_format_counts(counts)}" for name, counts in list(v["per_class"].items())[:20]),
    ]
    if v["classes"] > 20:
        lines.append(f"  ... and {v['classes'] - 20} more")
    width, height = v["width"], v["height"]
    lines += [
        f"width {width['min']} to {width['max']} pixels (median {width['median']:g}), "
        f"height {height['min']} to {height['max']} (median {height['median']:g})",
        f"working size {v['geometry']['size'][0]} x {v['geometry']['size'][1]}, fit by {v['geometry']['fit']}",
        "",
    ]
    for remark in findings.remarks:
        lines.append(f"{remark.level.upper()}: {remark.text}")
        lines += [f"    {example}" for example in remark.examples]
    if not any(remark.level != "note" for remark in findings.remarks):
        lines.append("No problems found.")
    return "\n".join(lines)


def _format_counts(counts: int | Mapping[str, int]) -> str:
    if isinstance(counts, int):
        return f"{counts:,}"
    return ", ".join(f"{part} {count:,}" for part, count in counts.items())


def draw_sample_sheet(dataset: Dataset, *, per_class: int = 8, classes: int = 12, seed: int = 0) -> Any:
    """A contact sheet (PIL image) of a few images of each class, exactly as a network sees them."""
    from ..pictures import contact_sheet

    rng = np.random.default_rng([seed, 3])
    chosen: list[ndarray] = []
    for label in range(min(classes, len(dataset.classes))):
        members = np.flatnonzero(dataset.labels == label)
        chosen.append(np.sort(rng.permutation(members)[:per_class]))
    rows = np.concatenate(chosen)
    captions = [dataset.classes[label] for label in dataset.labels[rows]]
    return contact_sheet(list(dataset[rows]), captions, columns=per_class)


# a clean list

_COPY = "an exact copy of"
_DISPUTED = "the same picture under another label as"
_LEAK = "nearly the same picture as"


def find_faulty_images(dataset: Dataset) -> dict[int, tuple[str, int]]:
    """Images that a clean list leaves out: position -> (what is wrong, with which image).

    Of exact copies one stays, in the test rather than in val or train; of copies under two labels none.
    A near duplicate is left out only where it leaks: it is in train and its like in val or test, say.
    """
    given = dataset.columns.get("split", np.full(len(dataset), "train"))
    rank = np.select([given == "test", given == "val"], [0, 1], 2)
    wrong: dict[int, tuple[str, int]] = {}
    for group in find_exact_duplicates(dataset):
        ordered = group[np.argsort(rank[group], kind="stable")]
        if len(np.unique(dataset.labels[group])) > 1:
            other = {int(i): next(j for j in group if dataset.labels[j] != dataset.labels[i]) for i in group}
            wrong |= {i: (_DISPUTED, int(j)) for i, j in other.items()}
        else:
            wrong |= {int(i): (_COPY, int(ordered[0])) for i in ordered[1:]}
    leader = find_near_duplicates(dataset)
    left = np.array([i for i in range(len(dataset)) if i not in wrong], np.int64)
    order = left[np.argsort(rank[left], kind="stable")]
    best: dict[int, int] = {}
    for i in map(int, order):
        first = best.setdefault(int(leader[i]), i)
        if rank[first] < rank[i]:
            wrong[i] = (_LEAK, first)
    return wrong


def write_clean_manifest(dataset: Dataset, data: str | Path, out: Path) -> dict[str, int]:
    """Write a manifest of the images to keep, and beside it why the others were left out; returns their counts.

    ``sightline train`` reads it. Nothing of the data is changed. Raises DataError where the images lie in an
    archive, which a table cannot point into.
    """
    root, wrong = _find_root(dataset, Path(data)), find_faulty_images(dataset)
    extra = [name for name in dataset.columns if name not in FACT_COLUMNS]
    kept = [i for i in range(len(dataset)) if i not in wrong]
    rows = (
        [_manifest_path(root, dataset.files[i], out), dataset.classes[dataset.labels[i]]]
        + [str(dataset.columns[name][i]) for name in extra]
        for i in kept
    )
    _write_table(out, ["path", "label", *extra], rows)
    removed = [[each.file, "", f"unreadable: {each.reason}"] for each in dataset.skipped]
    removed += [
        [str(dataset.files[i]), dataset.classes[dataset.labels[i]], f"{what} {dataset.files[other]}"]
        for i, (what, other) in sorted(wrong.items())
    ]
    _write_table(out.with_suffix(f".removed{out.suffix}"), ["path", "label", "reason"], removed)
    counts = Counter(what for what, _ in wrong.values())
    names = {"copies": _COPY, "disputed": _DISPUTED, "leaks": _LEAK}
    return {
        "kept": len(kept),
        "unreadable": len(dataset.skipped),
        **{name: counts[what] for name, what in names.items()},
    }


def format_clean_summary(counts: Mapping[str, int], out: Path) -> str:
    """What ``write_clean_manifest`` did, for people."""
    left = ", ".join(
        f"{counts[name]:,} {words}"
        for name, words in (
            ("unreadable", "unreadable"),
            ("copies", "exact copies"),
            ("disputed", "under two labels"),
            ("leaks", "nearly the same as a held-out one"),
        )
        if counts[name]
    )
    return (
        f"{out} lists {_count_images(counts['kept'])} to keep; left out: {left or 'none'}. "
        f"Nothing was changed or deleted. Then: sightline train {out}"
    )


def _find_root(dataset: Dataset, data: Path) -> Path:
    """The folder that the names of the images begin in."""
    for root in (data, data.parent):
        if root.is_dir() and all((root / str(file)).is_file() for file in dataset.files[[0, -1]]):
            return root.resolve()
    raise DataError(
        f"The images of '{data}' are not files of their own, which a table could name: unpack it, "
        "and check the folder."
    )


def _manifest_path(root: Path, file: str, out: Path) -> str:
    """The path of an image as the manifest's reader understands it: from the manifest's folder, or in full."""
    path, here = root / str(file), out.resolve().parent
    return path.relative_to(here).as_posix() if path.is_relative_to(here) else str(path)


def _write_table(out: Path, header: list[str], rows: Iterable[list[str]]) -> None:
    mark = "\t" if out.suffix.lower() == ".tsv" else ","
    with atomic_replace(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter=mark)
        writer.writerow(header)
        writer.writerows(rows)
