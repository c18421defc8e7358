"""Batch norm in another world: statistics of target images, interpolated or alone, and TENT. No label is used."""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ..checks import check_int, check_number, check_positive
from ..classifier import Classifier
from ..data import Shuffle, iterate_batches
from ..ensembles import update_bn
from ..errors import DataError
from ..types import Dataset

MIN_UNLABELLED_IMAGES = 10
"""Fewer images say too little of a mean and a variance to move a network."""

NORM_BATCH = 100
"""Images of a batch, at least, from which statistics are taken, where there are as many."""

PRIOR_IMAGES, MAX_TARGET_SHARE = 50, 0.5
"""Images that the source's statistics count as, and the largest share that the target's get by default. Statistics of
the target alone cost a network 1 to 4 points where noise and blur were not what changed (docs/adaptation.md)."""

MAX_ONE_CLASS_SHARE = 0.9
"""Share of a batch's answers that may be one class: TENT makes a batch of one class into a classifier of one class."""


def find_batch_norms(classifier: Classifier) -> list[_BatchNorm]:
    """The batch norms that keep running statistics. Raises DataError, naming the network, where there are none."""
    found = [m for m in classifier.network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not found:
        raise DataError(
            f"The network {classifier.architecture.arguments.get('word') or classifier.architecture.name} has no batch "
            "norm, so it has no statistics to adapt: label 20 target images and use sightline learn, or train with "
            "--adapt mcc --target FOLDER."
        )
    return found


@dataclass(frozen=True)
class AdaBN:
    """Batch norm's statistics are those of the target images (Li et al. 2016, arXiv 1603.04779).

    The cumulative average over batches of at least ``NORM_BATCH`` images, each normalised by itself.
    """

    def __call__(self, classifier: Classifier, images: Dataset) -> Classifier:
        """An adapted copy. Raises DataError for a network without batch norm and for too few images."""
        find_batch_norms(classifier)
        if len(images) < MIN_UNLABELLED_IMAGES:
            raise DataError(
                f"{len(images)} unlabelled images are too few to adapt to: give at least {MIN_UNLABELLED_IMAGES}, "
                "better 100."
            )
        adapted = copy.deepcopy(classifier).eval()
        update_bn(adapted, images, batch_size=len(images) // max(1, len(images) // NORM_BATCH))
        return adapted.eval()


@dataclass(frozen=True)
class Interpolate:
    """(1 - a) times the source's statistics + a times those of the target images (``AdaBN``).

    ``share`` is a, in [0, 1]. By default n / (n + 50) for n images, and at most 1/2: Schneider et al. 2020 (arXiv
    2006.16971) with N0 = 50, capped because the target's statistics alone can hurt.
    """

    share: float | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for a share outside [0, 1]."""
        if self.share is not None:
            check_number("share", self.share, 0, 1)

    def target_share(self, count: int) -> float:
        """The weight of the target's statistics, from ``count`` images.

        >>> Interpolate().target_share(20), Interpolate().target_share(100), Interpolate(0.7).target_share(20)
        (0.2857142857142857, 0.5, 0.7)
        """
        return min(MAX_TARGET_SHARE, count / (count + PRIOR_IMAGES)) if self.share is None else self.share

    @torch.no_grad()
    def __call__(self, classifier: Classifier, images: Dataset) -> Classifier:
        """An adapted copy. Raises as ``AdaBN`` does."""
        adapted, share = AdaBN()(classifier, images), self.target_share(len(images))
        for own, source in zip(find_batch_norms(adapted), find_batch_norms(classifier), strict=True):
            for mine, theirs in ((own.running_mean, source.running_mean), (own.running_var, source.running_var)):
                assert mine is not None
                assert theirs is not None
                mine.copy_((1 - share) * theirs + share * mine)
        return adapted


@dataclass(frozen=True)
class Tent:
    """Test-time entropy minimisation (Wang et al. 2021, arXiv 2006.10726).

    Scales and shifts of batch norms learn, by Adam, to make answers on target batches certain; the statistics are
    those of each batch. It collapses on a stream that is not mixed.
    """

    lr: float = 1e-3
    batch_size: int = 200

    def __post_init__(self) -> None:
        """Raise ValueError for a rate that is not above 0, or a batch below 50 images."""
        check_positive("lr", self.lr)
        check_int("batch_size", self.batch_size, 50, 10_000)

    def __call__(self, classifier: Classifier, images: Dataset) -> Classifier:
        """A copy after one pass over the images in random order, with their statistics as ``AdaBN`` takes them.

        Raises DataError as ``AdaBN`` and ``stream`` do, and where the images are fewer than a batch.
        """
        if len(images) < self.batch_size:
            raise DataError(
                f"TENT needs a whole batch of {self.batch_size} target images, but there are {len(images)}: use --by "
                "interpolate, which needs fewer, or a smaller batch of 50 or more (tent:batch_size=50)."
            )
        adapted = copy.deepcopy(classifier)
        batches = iterate_batches(
            images, self.batch_size, order=Shuffle(0), drop_last=True, device=classifier.device
        )
        for _ in self.stream(adapted, (batch.pixels for batch in batches)):
            pass
        return AdaBN()(adapted, images)

    def stream(
        self, classifier: Classifier, batches: Iterable[Float[Tensor, "B C H W"]]
    ) -> Iterator[Float[Tensor, "B K"]]:
        """The logits of each batch, given before the step on the same batch; changes ``classifier``.

        Raises DataError for a network without batch norm and for a batch whose answers are nearly one class.
        """
        norms = find_batch_norms(classifier)
        learnt = [p for norm in norms for p in (norm.weight, norm.bias) if p is not None]
        if not learnt:
            raise DataError("The batch norms have no scale and shift for TENT to learn: use --by interpolate.")
        frozen = [(p, p.requires_grad) for p in classifier.parameters()]
        for parameter, _ in frozen:
            parameter.requires_grad_(False)
        for parameter in learnt:
            parameter.requires_grad_(True)
        optimizer = torch.optim.Adam(learnt, lr=self.lr)
        classifier.eval()
        try:
            for number, pixels in enumerate(batches, 1):
                for norm in norms:
                    norm.train()
                with torch.enable_grad():
                    logits = classifier(pixels).float()
                    check_mixed(logits, number)
                    mean_entropy(logits).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                yield logits.detach()
        finally:
            classifier.eval()
            for parameter, learns in frozen:
                parameter.requires_grad_(learns)


def mean_entropy(logits: Float[Tensor, "B K"]) -> Float[Tensor, ""]:
    """The mean over images of the entropy of softmax(logits), in nats."""
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()


def check_mixed(logits: Float[Tensor, "B K"], number: int) -> None:
    """Raise DataError where nearly all answers of batch ``number`` are one class."""
    share = logits.argmax(1).bincount(minlength=logits.shape[1]).max().item() / len(logits)
    if share > MAX_ONE_CLASS_SHARE:
        raise DataError(
            f"{share:.0%} of the answers to batch {number} are one class, and TENT collapses on images of one class: "
            "mix the images of all classes, or use --by interpolate."
        )
