"""What is wrong with this data, before it costs you a week."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from ..types import Dataset, Findings, Remark
from .geometry import losses
from .parts import PARTS, leaks

_SHOWN = 5
TINY = 10
"""Classes with fewer images are called tiny."""
LOPSIDED = 3.0
"""Ratio of the largest to the smallest class from which imbalance is remarked."""


def audit(dataset: Dataset) -> Findings:
    """Unreadable files, duplicates, leaks, imbalance, sizes, and what the geometry loses.

    Load with ``max_bad=1`` to see every unreadable file instead of an error.
    """
    values: dict[str, Any] = {
        "images": len(dataset),
        "classes": len(dataset.classes),
        "per_class": _per_class(dataset),
        "unreadable": [{"file": each.file, "reason": each.reason} for each in dataset.skipped],
    }
    remarks = [*_unreadable(dataset)]
    for look in (_duplicates, _leaks, _balance, _sizes, _geometry):
        found, said = look(dataset)
        values |= found
        remarks += said
    remarks += [Remark("note", note) for note in dataset.notes if not note.startswith("Skipped")]
    order = {"problem": 0, "warning": 1, "note": 2}
    return Findings("data", values, tuple(sorted(remarks, key=lambda remark: order[remark.level])))


def _per_class(dataset: Dataset) -> dict[str, Any]:
    """Images of each class, by part where parts are given."""
    given = dataset.columns.get("split")
    if given is None:
        return {name: int(count) for name, count in zip(dataset.classes, dataset.counts, strict=True)}
    size = len(dataset.classes)
    table = {part: np.bincount(dataset.labels[given == part], minlength=size) for part in PARTS}
    return {
        name: {part: int(counts[label]) for part, counts in table.items() if counts.any()}
        for label, name in enumerate(dataset.classes)
    }


def _unreadable(dataset: Dataset) -> list[Remark]:
    if not dataset.skipped:
        return []
    count, total = len(dataset.skipped), len(dataset.skipped) + len(dataset)
    examples = tuple(f"{each.file}: {each.reason}" for each in dataset.skipped[:_SHOWN])
    level = "problem" if count > 0.05 * total else "warning"
    return [Remark(level, f"{_images(count)} of {total:,} cannot be read: repair or remove.", examples)]


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def twins(dataset: Dataset) -> list[Int64[ndarray, " n"]]:
    """The sets of images that are byte for byte the same, each as positions in the dataset."""
    order = np.argsort(dataset.digests, kind="stable")
    borders = np.flatnonzero(np.diff(dataset.digests[order])) + 1
    sizes = np.diff(np.concatenate([[0], borders, [len(order)]]))
    if not (sizes > 1).any():
        return []
    return [group for group in np.split(order, borders) if len(group) > 1]


def _duplicates(dataset: Dataset) -> tuple[dict[str, Any], list[Remark]]:
    groups = twins(dataset)
    disputed = [group for group in groups if len(np.unique(dataset.labels[group])) > 1]
    extra = sum(len(group) - 1 for group in groups)
    values = {"duplicates": extra, "duplicate_sets": len(groups), "conflicting_sets": len(disputed)}
    remarks = []
    if groups:
        text = (
            f"{_images(extra)} repeat another one exactly: remove the copies "
            "(a split drawn here keeps copies together)."
        )
        remarks.append(Remark("warning", text, _named(dataset, groups, labels=False)))
    if disputed:
        count = "1 picture lies" if len(disputed) == 1 else f"{len(disputed):,} pictures lie"
        text = f"{count} in two classes at once: decide which label is right."
        remarks.append(Remark("problem", text, _named(dataset, disputed, labels=True)))
    return values, remarks


def _named(dataset: Dataset, groups: list[ndarray], *, labels: bool) -> tuple[str, ...]:
    def name(i: int) -> str:
        return f"{dataset.files[i]} ({dataset.classes[dataset.labels[i]]})" if labels else str(dataset.files[i])

    return tuple(" = ".join(name(int(i)) for i in group[:3]) for group in groups[:_SHOWN])


def _leaks(dataset: Dataset) -> tuple[dict[str, Any], list[Remark]]:
    values: dict[str, int] = {}
    remarks = []
    for leak in leaks(dataset):
        values[f"{leak.held_out} in {leak.other}"] = count = len(leak.indices)
        text = (
            f"{_images(count)} of {leak.held_out} {'is' if count == 1 else 'are'} also in {leak.other}: "
            f"remove them from one, or the result on {leak.held_out} flatters."
        )
        remarks.append(Remark("problem", text, tuple(str(f) for f in dataset.files[leak.indices[:_SHOWN]])))
    return {"leaks": values}, remarks


def _balance(dataset: Dataset) -> tuple[dict[str, Any], list[Remark]]:
    counts = dataset.counts
    ratio = float(counts.max() / max(1, counts.min()))
    tiny = [dataset.classes[label] for label in np.flatnonzero(counts < TINY)]
    remarks = []
    if ratio >= LOPSIDED:
        most, least = dataset.classes[int(counts.argmax())], dataset.classes[int(counts.argmin())]
        text = (
            f"The largest class, '{most}', has {ratio:.1f} times the images of the smallest, '{least}': "
            "look at balanced accuracy, not accuracy."
        )
        remarks.append(Remark("warning", text))
    if tiny:
        what = "1 class has" if len(tiny) == 1 else f"{len(tiny):,} classes have"
        text = f"{what} fewer than {TINY} images: too few to learn from and to measure."
        remarks.append(Remark("warning", text, tuple(tiny[:_SHOWN])))
    return {"imbalance": round(ratio, 4), "tiny_classes": tiny}, remarks


def _sizes(dataset: Dataset) -> tuple[dict[str, Any], list[Remark]]:
    width, height = dataset.columns["width"], dataset.columns["height"]
    short = np.minimum(width, height)
    bounds = [0, 16, 32, 64, 128, 256, 512, 1024, 2**31]
    histogram = np.histogram(short, bounds)[0]
    names = [f"{low}-{high - 1}" for low, high in pairwise(bounds[:-1])] + ["1024+"]
    grey, rotated = float((dataset.columns["channels"] == 1).mean()), int(dataset.columns["rotated"].sum())
    values = {
        "width": _spread(width),
        "height": _spread(height),
        "short_side": _spread(short)
        | {"histogram": {name: int(n) for name, n in zip(names, histogram, strict=True) if n}},
        "grey_share": round(grey, 4),
        "rotated": rotated,
    }
    remarks = []
    if 0 < grey < 1:
        text = f"{grey:.1%} of the images are grey and the others are in colour: "
        text += "if one class has more of them, a network may learn that instead."
        remarks.append(Remark("note", text))
    if rotated:
        what = "turned upright" if dataset.geometry.exif else "left as stored"
        remarks.append(Remark("note", f"{_images(rotated)} with an EXIF rotation: {what}."))
    return values, remarks


def _spread(lengths: ndarray) -> dict[str, Any]:
    return {"min": int(lengths.min()), "median": float(np.median(lengths)), "max": int(lengths.max())}


def _geometry(dataset: Dataset) -> tuple[dict[str, Any], list[Remark]]:
    """What the working size and fit do to the pictures, by class where classes differ strongly."""
    found = losses(dataset.columns["height"], dataset.columns["width"], dataset.geometry)
    size = len(dataset.classes)
    values: dict[str, Any] = {"size": list(dataset.geometry.size), "fit": dataset.geometry.fit}
    remarks = []
    for name, loss in found.items():
        mean = float(loss.amounts.mean())
        values[name] = {"mean": round(mean, 4), "max": round(float(loss.amounts.max()), 4)}
        by_class = np.bincount(dataset.labels, loss.amounts, size) / np.maximum(1, dataset.counts)
        apart = float(by_class.max() - by_class.min())
        if apart > loss.apart:
            values[name]["per_class"] = {
                label: round(float(v), 4) for label, v in zip(dataset.classes, by_class, strict=True)
            }
            most, least = dataset.classes[int(by_class.argmax())], dataset.classes[int(by_class.argmin())]
            text = (
                f"{loss.tells(by_class.max())} in class '{most}' but {loss.shows(by_class.min())} in '{least}': "
            )
            text += "a network may learn that difference instead of the picture."
            remarks.append(Remark("warning", text))
        elif mean > loss.worth:
            remarks.append(Remark("note", loss.tells(mean) + loss.remedy))
    return {"geometry": values}, remarks


def as_text(findings: Findings) -> str:
    """Findings for people: the numbers in a few lines, then the remarks, worst first."""
    v = findings.values
    lines = [
        f"{v['images']:,} images of {v['classes']:,} classes",
        *(f"  {name}: {_counts(counts)}" for name, counts in list(v["per_class"].items())[:20]),
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


def _counts(counts: int | Mapping[str, int]) -> str:
    if isinstance(counts, int):
        return f"{counts:,}"
    return ", ".join(f"{part} {count:,}" for part, count in counts.items())


def sample_sheet(dataset: Dataset, *, per_class: int = 8, classes: int = 12, seed: int = 0) -> Any:
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
