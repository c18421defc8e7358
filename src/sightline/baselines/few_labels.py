"""What the labels alone are worth: logistic regression and label spreading, the two to beat with few labels.

On the features of the embedded backbone, or on raw pixels where images are small and grey (characters), of which it
knows nothing.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from numpy import ndarray

from .. import runtime
from ..features import embed_cached
from ..metrics import wilson
from ..training import PHOTO_SIDE, build_published_start
from ..types import Dataset, Interval, Pixels, Splits

EMBEDDED_SIDE = 112
"""Pixels to which smaller colour images are enlarged for the backbone; fewer cost accuracy, more cost time."""

MAX_SPREAD_IMAGES = 3000
"""Unlabelled images over which labels are spread; a graph of more takes minutes."""

MAX_TESTED_IMAGES = 2000
"""Test images, evenly spaced: an accuracy within 2 points, at 95 %."""

NEIGHBOURS, CLAMPING = 10, 0.2
"""Of label spreading: neighbours of an image in the graph, and the share of its label that its neighbours decide."""

FEATURE_LENGTH = 10.0
"""Length that features get, so that a penalty of 1 suits the regression."""


def measure_few_label_baselines(splits: Splits, *, seed: int = 0) -> dict[str, Interval]:
    """Test accuracy of logistic regression, and of label spreading where there are unlabelled training images.

    Of more than 2,000 test images and 3,000 unlabelled ones a sample is used. The names say what the methods see:
    ``logistic regression on pixels`` or ``on embedded features``.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.semi_supervised import LabelSpreading

    train, pool, test = splits.train.labelled, splits.train.unlabelled, splits.test.labelled
    pool = pool.subset(np.sort(runtime.permutation(len(pool), seed)[:MAX_SPREAD_IMAGES]))
    rows = np.linspace(0, len(test) - 1, min(len(test), MAX_TESTED_IMAGES)).round().astype(np.int64)
    test = test.subset(np.unique(rows))
    on_pixels = train.geometry.channels == 1 and max(train.geometry.size) < PHOTO_SIDE
    read = _read_pixels if on_pixels else embed_published
    what = "pixels" if on_pixels else "embedded features"
    known, asked = read(train), read(test)
    found = {f"logistic regression on {what}": LogisticRegression(C=0.1 if on_pixels else 1.0, max_iter=1000)}
    fitted: dict[str, Any] = {name: model.fit(known, train.labels) for name, model in found.items()}
    if len(pool):
        every, labels = np.concatenate([known, read(pool)]), np.concatenate([train.labels, pool.labels])
        count = min(NEIGHBOURS, len(every) - 1)
        spreading = LabelSpreading(kernel="knn", n_neighbors=count, alpha=CLAMPING, max_iter=100)
        fitted[f"label spreading on {what}"] = spreading.fit(every, labels)
    hits = {name: int((model.predict(asked) == test.labels).sum()) for name, model in fitted.items()}
    return {name: wilson(count, len(test)) for name, count in hits.items()}


def _read_pixels(dataset: Dataset) -> Float[ndarray, "N D"]:
    return (dataset[np.arange(len(dataset))].reshape(len(dataset), -1) / 255).astype(np.float32)


def embed_published(dataset: Dataset) -> Float[ndarray, "N D"]:
    """Features of the embedded backbone, all of the same length; images below 112 pixels are enlarged for it."""
    side = max(dataset.geometry.size)
    if side < EMBEDDED_SIDE:
        size = (EMBEDDED_SIDE, EMBEDDED_SIDE)
        pixels = EnlargedPixels(dataset.pixels, EMBEDDED_SIDE)
        fingerprint = f"{dataset.fingerprint} enlarged"  # features of images decoded at that size are others
        geometry = replace(dataset.geometry, size=size)
        dataset = replace(dataset, pixels=pixels, geometry=geometry, fingerprint=fingerprint)
    features = embed_cached(build_published_start(dataset, runtime.resolve_device("auto")), dataset)
    return FEATURE_LENGTH * features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-9)


class EnlargedPixels:
    """Another store's images, enlarged to ``side`` x ``side`` as they are read (bicubic)."""

    decodes_on_read = True

    def __init__(self, pixels: Pixels, side: int) -> None:
        self.pixels, self.side = pixels, side

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, side, side, C)."""
        return (self.pixels.shape[0], self.side, self.side, self.pixels.shape[-1])

    def __getitem__(self, rows: Any, /) -> UInt8[ndarray, "B H W C"]:
        """The images of these rows."""
        stored = torch.from_numpy(np.ascontiguousarray(self.pixels[rows])).permute(0, 3, 1, 2).float()
        large = F.interpolate(stored, (self.side, self.side), mode="bicubic").clamp_(0, 255)
        return large.round_().byte().permute(0, 2, 3, 1).contiguous().numpy()
