"""What is wrong with a dataset before training on it, and a list of the images without these faults."""

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from ..errors import DataError
from ..files import write_csv
from ..types import UNLABELLED, Dataset, Findings, Remark
from .dataset import FACT_COLUMNS
from .geometry import geometry_losses
from .label_audit import audit_class_names, audit_group_columns
from .splits import SPLIT_NAMES, find_leaks, find_near_leaks

_MAX_EXAMPLES = 5
"""Files or classes named under a remark."""
TINY_CLASS_IMAGES = 10
"""Classes with fewer images get a warning."""
_CONTRAST_IMAGES, _LEAST_DEVIATION, _MAX_FLAT_SHARE = 256, 3.0, 0.2
"""Images looked at for contrast; the standard deviation (of 255 levels) below which one is flat; and the share of flat
ones from which there is a warning."""
IMBALANCE_RATIO = 3.0
"""Ratio of the largest to the smallest class from which imbalance gets a warning."""

_Found = tuple[dict[str, Any], list[Remark]]


def audit(dataset: Dataset) -> Findings:
    """Unreadable files, exact and near duplicates, leaks between splits, imbalance, sizes, geometry losses and labels.

    Load the dataset with ``max_bad=1`` to list every unreadable file instead of raising an error.
    """
    total, given = len(dataset.skipped) + len(dataset), dataset.columns.get("split")
    per_class: dict[str, Any] = dict(zip(dataset.classes, dataset.counts.tolist(), strict=True))
    if given is not None:
        table = {name: dataset.subset(given == name).counts for name in SPLIT_NAMES}
        per_class = {
            name: {split: int(counts[label]) for split, counts in table.items() if counts.any()}
            for label, name in enumerate(dataset.classes)
        }
    values: dict[str, Any] = {
        "images": len(dataset),
        "classes": len(dataset.classes),
        "per_class": per_class,
        "unreadable": [{"file": each.file, "reason": each.reason} for each in dataset.skipped],
    }
    if unlabelled := int((~dataset.is_labelled).sum()):
        values["unlabelled"] = unlabelled
    remarks = []
    if dataset.skipped:
        examples = tuple(f"{each.file}: {each.reason}" for each in dataset.skipped[:_MAX_EXAMPLES])
        text = f"{_count_images(len(dataset.skipped))} of {total:,} cannot be read: repair or remove."
        remarks.append(Remark("problem" if len(dataset.skipped) > 0.05 * total else "warning", text, examples))
    from .duplicates import find_near_duplicates  # here: it imports torch

    leader = find_near_duplicates(dataset)
    for found, more in (
        _audit_duplicates(dataset, leader),
        _audit_leaks(dataset, leader),
        _audit_balance(dataset),
        _audit_sizes(dataset),
        _audit_geometry(dataset),
        _audit_contrast(dataset),
    ):
        values |= found
        remarks += more
    remarks += [*audit_class_names(dataset), *audit_group_columns(dataset)]
    remarks += [Remark("note", note) for note in dataset.notes if not note.startswith("Skipped")]
    order = {"problem": 0, "warning": 1, "note": 2}
    return Findings("data", values, tuple(sorted(remarks, key=lambda remark: order[remark.level])))


def _count_images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def find_exact_duplicates(dataset: Dataset) -> list[Int64[ndarray, " n"]]:
    """The sets of two or more images with the same bytes, each as positions in the dataset."""
    order = np.argsort(dataset.digests, kind="stable")
    borders = np.flatnonzero(np.diff(dataset.digests[order])) + 1
    return [group for group in np.split(order, borders) if len(group) > 1]


def _have_several_labels(dataset: Dataset, group: ndarray) -> bool:
    """Whether images of the group have different labels; unlabelled images have none."""
    return len(np.setdiff1d(dataset.labels[group], UNLABELLED)) > 1


def _audit_duplicates(dataset: Dataset, leader: ndarray) -> _Found:
    """Exact duplicates, and near duplicates that are not exact ones."""
    exact = find_exact_duplicates(dataset)
    disputed = [group for group in exact if _have_several_labels(dataset, group)]
    extra = sum(len(group) - 1 for group in exact)
    remarks = []
    if exact:
        text = (
            f"{_count_images(extra)} repeat another one exactly: remove the copies "
            "(a split drawn here keeps copies together)."
        )
        remarks.append(Remark("warning", text, _name_groups(dataset, exact, " = ")))
    if disputed:
        count = "1 picture lies" if len(disputed) == 1 else f"{len(disputed):,} pictures lie"
        text = f"{count} in two classes at once: decide which label is right."
        remarks.append(Remark("problem", text, _name_groups(dataset, disputed, " = ", labels=True)))
    members = np.flatnonzero(dataset.digests != dataset.digests[leader])
    members = members[np.unique(dataset.digests[members], return_index=True)[1]]  # copies are counted once
    near = [np.array([leader[i], i]) for i in np.sort(members)]
    disputed_near = [pair for pair in near if _have_several_labels(dataset, pair)]
    if near:
        text = (
            f"{_count_images(len(near))} nearly repeat another one (resized, encoded again or cropped a little): "
        )
        text += "look at them, and remove what is the same picture."
        remarks.append(Remark("warning", text, _name_groups(dataset, near, " ~ ")))
    if disputed_near:
        text = f"Near duplicates with two labels: {len(disputed_near):,}. Decide which label is right."
        remarks.append(Remark("warning", text, _name_groups(dataset, disputed_near, " ~ ", labels=True)))
    counts = {"duplicates": extra, "duplicate_sets": len(exact), "conflicting_sets": len(disputed)}
    return counts | {"near_duplicates": len(near)}, remarks


def _name_groups(dataset: Dataset, groups: list[ndarray], sign: str, *, labels: bool = False) -> tuple[str, ...]:
    """The first files of the first few groups, joined by the sign; with ``labels`` the class of each file."""

    def name(i: int) -> str:
        return f"{dataset.files[i]} ({dataset.classes[dataset.labels[i]]})" if labels else str(dataset.files[i])

    known = [group[dataset.is_labelled[group]] for group in groups] if labels else groups
    return tuple(sign.join(name(int(i)) for i in group[:3]) for group in known[:_MAX_EXAMPLES])


def _audit_leaks(dataset: Dataset, leader: ndarray) -> _Found:
    exact, near = find_leaks(dataset), find_near_leaks(dataset, leader)
    values: dict[str, dict[str, int]] = {"leaks": {}, "near_leaks": {}}
    remarks = []
    for kind, word, leaks in (("leaks", "also", exact), ("near_leaks", "nearly the same", near)):
        for leak in leaks:
            values[kind][f"{leak.held_out} in {leak.other}"] = count = len(leak.indices)
            text = (
                f"{_count_images(count)} of {leak.held_out} {'is' if count == 1 else 'are'} {word} in "
                f"{leak.other}: remove them from one, or the result on {leak.held_out} is too optimistic."
            )
            remarks.append(Remark("problem", text, tuple(map(str, dataset.files[leak.indices[:_MAX_EXAMPLES]]))))
    return values, remarks


def _audit_balance(dataset: Dataset) -> _Found:
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


def _audit_sizes(dataset: Dataset) -> _Found:
    width, height = dataset.columns["width"], dataset.columns["height"]
    short = np.minimum(width, height)
    bounds = [0, 16, 32, 64, 128, 256, 512, 1024, 2**31]
    histogram = np.histogram(short, bounds)[0]
    names = [f"{low}-{high - 1}" for low, high in pairwise(bounds[:-1])] + ["1024+"]
    grey, rotated = float((dataset.columns["channels"] == 1).mean()), int(dataset.columns["rotated"].sum())
    values: dict[str, Any] = {
        name: {"min": int(sides.min()), "median": float(np.median(sides)), "max": int(sides.max())}
        for name, sides in (("width", width), ("height", height), ("short_side", short))
    }
    values["short_side"]["histogram"] = {name: int(n) for name, n in zip(names, histogram, strict=True) if n}
    remarks = []
    if 0 < grey < 1:
        text = f"{grey:.1%} of the images are grey and the others are in colour: "
        text += "if one class has more of them, a network may learn that instead."
        remarks.append(Remark("note", text))
    return values | {"grey_share": round(grey, 4), "rotated": rotated}, remarks


def _audit_geometry(dataset: Dataset) -> _Found:
    """What the working size and the resize mode lose of the pictures, by class where classes differ strongly."""
    values: dict[str, Any] = {"size": list(dataset.geometry.size), "fit": dataset.geometry.resize_mode}
    remarks = []
    own = dataset.is_labelled
    for name, loss in geometry_losses(
        dataset.columns["height"], dataset.columns["width"], dataset.geometry
    ).items():
        mean = float(loss.amounts.mean())
        values[name] = {"mean": round(mean, 4), "max": round(float(loss.amounts.max()), 4)}
        sums = np.bincount(dataset.labels[own], loss.amounts[own], len(dataset.classes))
        by_class = sums / np.maximum(1, dataset.counts)
        if float(by_class.max() - by_class.min()) > loss.class_gap:
            values[name]["per_class"] = {
                label: round(float(v), 4) for label, v in zip(dataset.classes, by_class, strict=True)
            }
            most, least = dataset.classes[int(by_class.argmax())], dataset.classes[int(by_class.argmin())]
            text = (
                f"{loss.describe(by_class.max())} in class '{most}' but {loss.format_amount(by_class.min())} in "
                f"'{least}': a network may learn that difference instead of the picture."
            )
            remarks.append(Remark("warning", text))
        elif mean > loss.note_above:
            remarks.append(Remark("note", loss.describe(mean) + loss.remedy))
    return {"geometry": values}, remarks


def _audit_contrast(dataset: Dataset) -> _Found:
    """Pictures of a sample that have nearly no contrast at the working size."""
    rows = np.unique(np.linspace(0, len(dataset) - 1, min(len(dataset), _CONTRAST_IMAGES)).astype(np.int64))
    flat = rows[dataset[rows].reshape(len(rows), -1).std(1) < _LEAST_DEVIATION]
    values = {"without_contrast": round(len(flat) / len(rows), 4)}
    if len(flat) < _MAX_FLAT_SHARE * len(rows):
        return values, []
    text = (
        f"{len(flat) / len(rows):.0%} of the images are nearly one tone as the network sees them: look at some (--out "
        "sheet.png); where their values have another range, name it by --window LOW:HIGH."
    )
    return values, [Remark("warning", text, tuple(map(str, dataset.files[flat[:_MAX_EXAMPLES]])))]


def format_audit(findings: Findings) -> str:
    """The findings of ``audit`` as text: the numbers in a few lines, then the remarks, worst first."""
    v = findings.values
    lines = [f"{v['images']:,} images of {v['classes']:,} classes"]
    for name, counts in list(v["per_class"].items())[:20]:
        one = isinstance(counts, int)
        cells = f"{counts:,}" if one else ", ".join(f"{split} {count:,}" for split, count in counts.items())
        lines.append(f"  {name}: {cells}")
    if v["classes"] > 20:
        lines.append(f"  ... and {v['classes'] - 20} more")
    if "unlabelled" in v:
        lines.append(f"  unlabelled: {v['unlabelled']:,}")
    width, height = v["width"], v["height"]
    lines += [
        f"width {width['min']} to {width['max']} pixels (median {width['median']:g}), "
        f"height {height['min']} to {height['max']} (median {height['median']:g})",
        f"working size {v['geometry']['size'][0]} x {v['geometry']['size'][1]}, fit by {v['geometry']['fit']}",
        "",
    ]
    lines += filter(None, [format_remarks(findings)])
    if not any(remark.level != "note" for remark in findings.remarks):
        lines.append("No problems found.")
    return "\n".join(lines)


def format_remarks(findings: Findings) -> str:
    """The remarks as text, each with its examples."""
    lines = []
    for remark in findings.remarks:
        lines += [f"{remark.level.upper()}: {remark.text}", *(f"    {example}" for example in remark.examples)]
    return "\n".join(lines)


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
    """Images that a clean list leaves out: position -> (what is wrong, position of the other image).

    Of exact copies one stays, in test rather than val, in val rather than train, and a labelled one rather than an
    unlabelled one; of copies under two labels none stays. A near duplicate is left out only where it leaks: it is
    in train and its like in val or test, for example.
    """
    given = dataset.columns.get("split", np.full(len(dataset), "train"))
    rank = np.select([given == "test", given == "val"], [0, 1], 2)
    preference = rank + 3 * ~dataset.is_labelled
    wrong: dict[int, tuple[str, int]] = {}
    for group in find_exact_duplicates(dataset):
        ordered = group[np.argsort(preference[group], kind="stable")]
        if _have_several_labels(dataset, group):
            for i in group:
                wrong[int(i)] = _DISPUTED, int(next(j for j in ordered if dataset.labels[j] != dataset.labels[i]))
        else:
            wrong |= {int(i): (_COPY, int(ordered[0])) for i in ordered[1:]}
    from .duplicates import find_near_duplicates  # here: it imports torch

    leader = find_near_duplicates(dataset)
    left = np.array([i for i in range(len(dataset)) if i not in wrong], np.int64)
    best: dict[int, int] = {}
    for i in map(int, left[np.argsort(rank[left], kind="stable")]):
        first = best.setdefault(int(leader[i]), i)
        if rank[first] < rank[i]:
            wrong[i] = (_LEAK, first)
    return wrong


def write_clean_manifest(dataset: Dataset, data: str | Path, out: Path) -> dict[str, int]:
    """Write a table of the images to keep, which ``sightline train`` reads, and a table of those left out and why.

    ``data`` is where the dataset was found, ``out`` the table to write; the other is ``<out>.removed``. Returns
    their counts. The data is not changed. Raises DataError where the images are not files of their own.
    """
    wrong = find_faulty_images(dataset)
    for root in (Path(data), Path(data).parent):
        if root.is_dir() and all((root / str(file)).is_file() for file in dataset.files[[0, -1]]):
            root = root.resolve()  # noqa: PLW2901
            break
    else:
        raise DataError(
            f"The images of '{data}' are not files of their own, which a table could name: unpack it, "
            "and check the folder."
        )

    def path_of(i: int) -> str:  # as the reader of manifests takes it: from the table's folder, or in full
        path, here = root / str(dataset.files[i]), out.resolve().parent
        return path.relative_to(here).as_posix() if path.is_relative_to(here) else str(path)

    def label_of(i: int) -> str:
        return dataset.classes[dataset.labels[i]] if dataset.labels[i] != UNLABELLED else ""

    extra = [name for name in dataset.columns if name not in FACT_COLUMNS]
    kept = [i for i in range(len(dataset)) if i not in wrong]
    rows = ([path_of(i), label_of(i), *(str(dataset.columns[name][i]) for name in extra)] for i in kept)
    _write_table(out, ["path", "label", *extra], rows)
    removed = [[each.file, "", f"unreadable: {each.reason}"] for each in dataset.skipped]
    for i, (what, other) in sorted(wrong.items()):
        removed.append([str(dataset.files[i]), label_of(i), f"{what} {dataset.files[other]}"])
    _write_table(out.with_suffix(f".removed{out.suffix}"), ["path", "label", "reason"], removed)
    counts = Counter(what for what, _ in wrong.values())
    names = {"copies": _COPY, "disputed": _DISPUTED, "leaks": _LEAK}
    return {
        "kept": len(kept),
        "unreadable": len(dataset.skipped),
        **{name: counts[what] for name, what in names.items()},
    }


def _write_table(out: Path, header: list[str], rows: Iterable[list[str]]) -> None:
    write_csv(out, chain([header], rows), "\t" if out.suffix.lower() == ".tsv" else ",")


def format_clean_summary(counts: Mapping[str, int], out: Path) -> str:
    """The counts of ``write_clean_manifest`` as a sentence."""
    words = {
        "unreadable": "unreadable",
        "copies": "exact copies",
        "disputed": "under two labels",
        "leaks": "nearly the same as a held-out one",
    }
    left = ", ".join(f"{counts[name]:,} {text}" for name, text in words.items() if counts[name])
    return (
        f"{out} lists {_count_images(counts['kept'])} to keep; left out: {left or 'none'}. "
        f"Your data was not changed. Train with: sightline train {out}"
    )
