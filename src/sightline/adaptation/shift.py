"""What differs between two worlds, before anyone adapts: framing, size, ink, colour, features; and what to do."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from .. import runtime
from ..comparison import are_photos
from ..data import to_tensor
from ..features import embed_cached
from ..metrics import ood_metrics
from ..training import build_published_start
from ..types import Dataset, Findings, Interval, Remark

MAX_SHIFT_IMAGES = 500
"""Images of each world that are compared, spread over its order: a shift of use shows in a hundred."""

MIN_SHIFT_IMAGES = 10
"""Images of each world below which nothing can be said."""

SHIFTED_AUC = 0.6
"""Share of pairs of a target and a source image in which one is larger, from which a property counts as shifted: the
interval must lie beyond it, or below 1 minus it. 0.6 is a difference of a third of a standard deviation."""

CONTENT_SHARE = 0.25
"""Content is what differs from the border's colour by this share of the largest difference in the image."""

FEATURE_SIDE, FEATURE_FOLDS, FEATURE_PENALTY = 8, 5, 0.01
"""Pixels of a side to which small images are reduced as features; folds, and inverse strength, of the classifier that
tells the worlds apart."""


@dataclass(frozen=True)
class PropertyShift:
    """A property of single images in both worlds."""

    group: str
    """``framing``, ``size``, ``ink``, ``colour`` or ``features``."""
    name: str
    source: float | None
    """Its median; None for the features, which have none."""
    target: float | None
    larger: Interval
    """Share of the pairs in which the target's image has the larger value: 0.5 where nothing shifted."""

    @property
    def shifted(self) -> bool:
        """Whether it differs beyond noise, and by enough to matter.

        A classifier that tells worlds apart worse than chance has found none: copies in both do that.
        """
        return self.larger.low > SHIFTED_AUC or (self.source is not None and self.larger.high < 1 - SHIFTED_AUC)

    @property
    def size(self) -> float:
        """How far the share is from a half."""
        return abs(self.larger.value - 0.5)

    def as_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**vars(self), "larger": self.larger.as_json(), "shifted": self.shifted}


REMEDIES = {
    "framing": "The content is framed in another way: crop both worlds to their content by the same rule "
    "(docs/adaptation.md has one) and train again. No loss and no statistic repairs framing, so do this first.",
    "size": "The files have another size or shape: give both the same camera crop, or choose one --resize-mode (crop "
    "or pad keeps the aspect ratio) and train with it.",
    "ink": "Light or stroke differ: sightline adapt RUN TARGET is worth a try, and so is training with more of it "
    "(--augment brightness contrast).",
    "colour": "Colours differ: train with other colours (--augment hue saturation, or grey), or sightline adapt RUN "
    "TARGET.",
    "features": "The images can be told apart by what is on them: label 20 target images of each class and use "
    "sightline learn; without labels try sightline adapt RUN TARGET, or sightline train SOURCE --adapt mcc --target "
    "TARGET.",
}
"""Group -> what to do, most urgent first: a shift of framing also shows in ink and features."""


def compare_worlds(source: Dataset, target: Dataset, device: str = "auto") -> Findings:
    """Compare up to ``MAX_SHIFT_IMAGES`` images of each, read with the same geometry; labels are not needed.

    The values are ``shifts``, a list of properties with their medians and the share of pairs in which the target's is
    larger, and ``copies``. The remarks name what shifted, most urgent first. Labels, where both have them, are compared
    by class name only.
    """
    one, other = spread_sample(source), spread_sample(target)
    shifts, remarks = [], []
    if min(len(one), len(other)) < MIN_SHIFT_IMAGES:
        count = min(len(source), len(target))
        few = f"{count} images are too few to compare two worlds by: give {MIN_SHIFT_IMAGES}."
        return Findings("worlds", {"shifts": [], "copies": 0}, (Remark("warning", few),))
    described = describe_images(other)
    for group, properties in describe_images(one).items():
        theirs = described[group]
        shifts += [
            PropertyShift(
                group,
                name,
                float(np.median(mine)),
                float(np.median(theirs[name])),
                share_larger(theirs[name], mine),
            )
            for name, mine in properties.items()
        ]
    shifts.append(
        PropertyShift("features", "features", None, None, tell_apart(*world_features(one, other, device)))
    )
    for group, remedy in REMEDIES.items():
        found = sorted((one for one in shifts if one.group == group and one.shifted), key=lambda one: -one.size)
        if found:
            remarks.append(Remark("warning", f"{describe_shift(found[0])} {remedy}"))
    if not remarks:
        text = "Nothing that is measured here shifted: a classifier may be right in both (sightline evaluate)."
        remarks.append(Remark("note", text))
    copies = np.isin(target.digests, source.digests)
    if copies.any():
        text = f"{copies.sum():,} target images are copies of source images: a test on them proves nothing."
        remarks.insert(0, Remark("problem", text, tuple(map(str, target.files[np.flatnonzero(copies)[:5]]))))
    if len(target.classes) and (new := [name for name in target.classes if name not in source.classes]):
        text = f"The target has classes that the source lacks: {', '.join(new[:5])}. They cannot be adapted to."
        remarks.insert(0, Remark("warning", f"{text} Rename its folders, or use sightline learn."))
    values = {
        "shifts": [each.as_json() for each in shifts],
        "copies": int(copies.sum()),
        "n": [len(one), len(other)],
    }
    return Findings("worlds", values, tuple(remarks))


def spread_sample(images: Dataset) -> Dataset:
    """At most ``MAX_SHIFT_IMAGES`` images, evenly over their order."""
    return images.subset(np.unique(np.linspace(0, len(images) - 1, MAX_SHIFT_IMAGES).astype(np.int64)))


def describe_images(images: Dataset) -> dict[str, dict[str, Float[ndarray, " N"]]]:
    """Group -> property -> its value in each image; shares and intensities are in [0, 1], sizes in pixels."""
    pixels = images[:]
    grey = pixels.mean(3) / 255
    width, height, x, y, share = measure_content(pixels).T
    found = {
        "framing": {"width of the content": width, "height of the content": height,
                    "horizontal place of the content": x, "vertical place of the content": y},
        "ink": {"brightness": grey.mean((1, 2)), "contrast": grey.std((1, 2)), "share of ink": share},
    }  # fmt: skip
    if {"width", "height"} <= images.columns.keys():
        wide, high = (images.columns[name].astype(float) for name in ("width", "height"))
        found["size"] = {"width of the file": wide, "height of the file": high, "aspect ratio": wide / high}
    if pixels.shape[3] == 3:
        red, green, blue = (pixels[..., channel].mean((1, 2)) / 255 for channel in range(3))
        spread = (pixels.max(3).astype(float) - pixels.min(3)).mean((1, 2)) / 255
        found["colour"] = {"saturation": spread, "red minus blue": red - blue, "green": green - (red + blue) / 2}
    return found


def measure_content(pixels: UInt8[ndarray, "N H W C"]) -> Float[ndarray, "N 5"]:
    """Width, height, horizontal and vertical centre of the content of each image, and its pixels, as shares."""
    images = pixels.astype(np.float64)
    border = np.concatenate(
        [images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], axis=1
    )  # (N, 2 W + 2 H, C)
    distance = np.abs(images - np.median(border, axis=1)[:, None, None]).max(3)
    content = distance > CONTENT_SHARE * distance.max((1, 2), keepdims=True)
    found = []
    for axis in (2, 1):
        hit = content.any(3 - axis)
        side = hit.shape[1]
        first, last = hit.argmax(1), side - hit[:, ::-1].argmax(1)
        empty = ~hit.any(1)
        found.append((np.where(empty, 0, last - first) / side, np.where(empty, side, first + last) / (2 * side)))
    (width, x), (height, y) = found
    return np.stack([width, height, x, y, content.mean((1, 2))], axis=1)


def world_features(source: Dataset, target: Dataset, device: str) -> tuple[ndarray, ndarray]:
    """Features of both: of the published network for photos, else the images reduced to 8 x 8 pixels."""
    if are_photos(source):
        network = build_published_start(source, runtime.resolve_device(device))
        return embed_cached(network, source), embed_cached(network, target)
    import torch.nn.functional as F

    def reduce(images: Dataset) -> ndarray:
        small = F.interpolate(to_tensor(images[:]), (FEATURE_SIDE, FEATURE_SIDE), mode="bilinear", antialias=True)
        return small.flatten(1).numpy()

    return reduce(source), reduce(target)


def tell_apart(source: Float[ndarray, "N D"], target: Float[ndarray, "M D"]) -> Interval:
    """How often a classifier, cross-validated, finds a target image more target-like than a source image."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    worlds = np.repeat([0, 1], [len(source), len(target)])
    folds = StratifiedKFold(FEATURE_FOLDS, shuffle=True, random_state=0)
    made = make_pipeline(StandardScaler(), LogisticRegression(C=FEATURE_PENALTY, max_iter=1000))
    images = np.concatenate([source, target])
    scores = np.asarray(cross_val_predict(made, images, worlds, cv=folds, method="decision_function"))
    return share_larger(scores[worlds == 1], scores[worlds == 0])


def share_larger(target: Float[ndarray, " N"], source: Float[ndarray, " M"]) -> Interval:
    """Share of the pairs in which the target's value is larger, ties counting half; DeLong's interval."""
    return ood_metrics(target, source).auroc


def describe_shift(shift: PropertyShift) -> str:
    """The shift as a sentence."""
    share = f"{shift.larger.value:.0%} [{shift.larger.low:.0%}, {shift.larger.high:.0%}]"
    if shift.source is None or shift.target is None:
        return f"Features: a classifier tells the worlds apart in {share} of pairs."
    return (
        f"{shift.group.capitalize()}: the {shift.name} is {shift.source:.3g} in the source and {shift.target:.3g} in "
        f"the target (medians; the target's is larger in {share} of pairs)."
    )
