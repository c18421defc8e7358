"""The corruption benchmark: a classifier's accuracy under every corruption at every severity."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from .. import progress, runtime
from ..classifier import Classifier
from ..data import iterate_batches, to_tensor
from ..inference import match_labels
from ..metrics import score_bounds, wilson
from ..pictures import contact_sheet
from ..preprocessing import to_uint8
from ..types import Dataset, Interval
from .corruption_kernels import SEVERITIES, Corruption

if TYPE_CHECKING:
    from PIL.Image import Image

CORRUPTION_BATCH_PIXELS = 1 << 18
"""Pixels per corrupted batch, 256 images of 32 x 32; fixed, because the random draws depend on it."""


@dataclass(frozen=True, eq=False)
class CorruptionResult:
    """Which of n images are classified correctly, clean and under each corruption at each severity."""

    clean: Bool[ndarray, " n"]
    """Without a corruption."""
    correct: Mapping[str, Bool[ndarray, "n 5"]]
    """Under each corruption, severity 1 to 5."""
    sample: str
    """Which images these are, in a sentence."""
    seconds: float

    @property
    def accuracy(self) -> Interval:
        """On the clean images."""
        return wilson(int(self.clean.sum()), len(self.clean))

    @property
    def accuracies(self) -> dict[str, tuple[Interval, ...]]:
        """Under each corruption, severity 1 to 5."""
        n = len(self.clean)
        return {name: tuple(wilson(int(c), n) for c in right.sum(0)) for name, right in self.correct.items()}

    @property
    def mean_corruption_error(self) -> Interval:
        """The mean error over all corruptions and severities, unweighted, as is usual for CIFAR-10-C.

        The interval is over images: each counts once, with the share of its 75 forms that are misclassified.
        """
        shares = np.stack([1.0 - right.mean(1) for right in self.correct.values()]).mean(0)
        n, value, spread = len(shares), float(shares.mean()), float(shares.var())
        effective = (
            n * value * (1 - value) / spread if spread > 0 else n
        )  # the sample size that the variance implies
        return Interval(value, *score_bounds(value, effective, 0.95), n)

    @property
    def sentence(self) -> str:
        """The result in words."""
        worst = min(self.accuracies, key=lambda name: sum(one.value for one in self.accuracies[name]))
        mean = sum(one.value for one in self.accuracies[worst]) / len(SEVERITIES)
        return (
            f"Of {len(self.clean):,} images {self.accuracy.value:.1%} are classified correctly when clean and "
            f"{1 - self.mean_corruption_error.value:.1%} on average under {len(self.correct)} corruptions at "
            f"{len(SEVERITIES)} severities; the worst is {worst} with {mean:.1%}."
        )

    def as_json(self) -> dict[str, Any]:
        """Accuracies and errors with intervals, JSON-ready; not the single answers."""
        return {
            "n": len(self.clean),
            "sample": self.sample,
            "clean": self.accuracy.as_json(),
            "mean_corruption_error": self.mean_corruption_error.as_json(),
            "corruptions": {
                name: [{"severity": s, **one.as_json()} for s, one in zip(SEVERITIES, row, strict=True)]
                for name, row in self.accuracies.items()
            },
            "sentence": self.sentence,
            "seconds": round(self.seconds, 1),
        }


def measure_corruptions(
    classifier: Classifier,
    dataset: Dataset,
    corruptions: Mapping[str, Corruption],
    *,
    sample: str = "",
    seed: int = 0,
) -> CorruptionResult:
    """Classify every image clean and under each corruption at each severity; see ``evaluate_corruptions``."""
    labels, forms = match_labels(classifier, dataset), len(corruptions) * len(SEVERITIES)
    progress.notify(f"{len(dataset):,} images, each clean and in {forms} corrupted forms.")
    classifier.eval()
    started, clean = time.perf_counter(), []
    found: dict[str, list[list[ndarray]]] = {name: [[] for _ in SEVERITIES] for name in corruptions}
    height, width, _ = dataset.geometry.shape
    size = max(1, CORRUPTION_BATCH_PIXELS // (height * width))
    steps = -(-len(dataset) // size)
    with progress.progress_bar("Corrupting", forms * steps) as advance:
        for step, batch in enumerate(iterate_batches(dataset, size, device=classifier.device)):
            clean.append(_predict(classifier, batch.pixels))
            for name, severity, images in iterate_corruptions(batch.pixels, corruptions, seed, step):
                found[name][severity - 1].append(_predict(classifier, images))
                advance(note=name)
    right = {name: np.stack([np.concatenate(s) == labels for s in row], 1) for name, row in found.items()}
    sample = sample or f"All {len(dataset):,} images."
    return CorruptionResult(np.concatenate(clean) == labels, right, sample, time.perf_counter() - started)


def iterate_corruptions(
    images: Float[Tensor, "B C H W"], corruptions: Mapping[str, Corruption], seed: int, step: int = 0
) -> Iterator[tuple[str, int, Float[Tensor, "B C H W"]]]:
    """(name, severity, images) of every corruption at every severity."""
    for number, (name, member) in enumerate(corruptions.items()):
        for severity in SEVERITIES:
            yield name, severity, member(images, severity, runtime.make_generator(seed, number, severity, step))


@torch.inference_mode()
def _predict(classifier: Classifier, images: Float[Tensor, "B C H W"]) -> Int[ndarray, " B"]:
    return classifier(images).argmax(1).cpu().numpy()


def draw_forms(
    image: ndarray,
    corruptions: Mapping[str, Corruption],
    result: CorruptionResult | None = None,
    *,
    seed: int = 0,
    cell: int = 112,
) -> "Image":
    """One image (H W C, uint8) in all its forms; see ``draw_corruptions``."""
    shown, captions = [], []
    for name, severity, form in iterate_corruptions(to_tensor(np.array(image)[None]), corruptions, seed):
        if severity == 1:
            shown.append(image)
            captions.append(name)
        shown.append(to_uint8(form)[0])
        captions.append(
            f"{severity}: {result.accuracies[name][severity - 1].value:.0%}" if result else f"{severity}"
        )
    return contact_sheet(shown, captions, columns=1 + len(SEVERITIES), cell=cell)
