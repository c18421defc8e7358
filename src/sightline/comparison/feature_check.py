"""What features show of a dataset: images that look alike, and images least like the others."""

from typing import Any

import numpy as np
from numpy import ndarray

from .. import runtime
from ..data import find_near_duplicates
from ..features import embed_cached, find_lookalikes, rank_outliers
from ..training import build_published_start
from ..types import Dataset, Findings, Remark, RemarkLevel

MAX_LISTED_PAIRS, MAX_LISTED_OUTLIERS = 200, 20
"""Pairs and outliers in the result; five of each are shown."""

MAX_PAIRED_IMAGES = 50_000
"""Images of which all pairs are compared, in minutes: the time grows with the square."""


def check_features(dataset: Dataset, device: str = "auto") -> Findings:
    """Pairs that look alike but are no near duplicates by their pixels, and the images least like the others.

    Features are those of the published network, from the store where they are there. A pair of two labels, or of
    two splits, is a question about a label or a leak.
    """
    if len(dataset) > MAX_PAIRED_IMAGES:
        text = f"More than {MAX_PAIRED_IMAGES:,} images: they are not compared with one another by their features."
        return Findings("features", {"lookalikes": [], "outliers": []}, (Remark("note", text),))
    features = embed_cached(build_published_start(dataset, runtime.resolve_device(device)), dataset)
    leader = find_near_duplicates(dataset)
    pairs, cosines = find_lookalikes(features)
    new = leader[pairs[:, 0]] != leader[pairs[:, 1]]
    pairs, cosines = pairs[new], cosines[new]
    order, similarity = rank_outliers(features)
    order = order[:MAX_LISTED_OUTLIERS]
    splits = dataset.columns.get("split", np.full(len(dataset), ""))
    files = dataset.files.astype(str)
    disputed = dataset.labels[pairs[:, 0]] != dataset.labels[pairs[:, 1]]
    crossing = splits[pairs[:, 0]] != splits[pairs[:, 1]]
    values: dict[str, Any] = {
        "lookalike_pairs": len(pairs),
        "lookalike_pairs_of_two_labels": int(disputed.sum()),
        "lookalike_pairs_of_two_splits": int(crossing.sum()),
        "lookalikes": [
            {"files": [files[a], files[b]], "similarity": round(float(cosine), 4)}
            for (a, b), cosine in zip(pairs[:MAX_LISTED_PAIRS], cosines, strict=False)
        ],
        "outliers": [{"file": files[i], "similarity": round(float(similarity[i]), 4)} for i in order],
    }
    remarks = []
    kinds: tuple[tuple[ndarray, RemarkLevel, str], ...] = (
        (disputed, "warning", "look alike and have two labels: decide which is right"),
        (crossing & ~disputed, "warning", "look alike and lie in two splits: the test may be too easy"),
        (~disputed & ~crossing, "note", "look alike: mirrored, cropped, or of one series"),
    )
    for which, level, text in kinds:
        if count := int(which.sum()):
            shown = tuple(f"{files[a]} ~ {files[b]}" for a, b in pairs[which][:5])
            what = "1 pair of images" if count == 1 else f"{count:,} pairs of images"
            remarks.append(Remark(level, f"{what} {text}.", shown))
    least = tuple(str(files[i]) for i in order[:5])
    remarks.append(Remark("note", "Least like any other image, and worth a look:", least))
    return Findings("features", values, tuple(remarks))
