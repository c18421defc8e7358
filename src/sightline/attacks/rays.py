"""An attack that sees nothing but answers: no logits, no gradients, as over a network."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..checks import check_int
from ..classifier import Classifier, frozen_eval
from .base import check_eps
from .losses import is_correct

RADIUS_TOLERANCE = 1e-3
"""Pixels to which a radius is known."""


@dataclass(frozen=True)
class RayS:
    """Answers alone, no gradients: looks for the nearest wrong answer along directions of +1 and -1 (RayS).

    Chen and Gu 2020 (arXiv 2006.12792): a direction's signs are flipped block by block, from the whole image to
    single pixels; a flip stays where it fools at the radius reached, and the radius is then searched. L-inf only.
    ``queries`` is the most it may ask about one image. It works on classifiers without gradients.
    """

    needs_gradient: ClassVar[bool] = False
    queries: int = 1000

    def __post_init__(self) -> None:
        """Raise ValueError for no queries."""
        check_int("queries", self.queries, 1)

    @property
    def norm(self) -> str:
        """Every pixel moves by the same amount."""
        return "linf"

    def __call__(
        self,
        classifier: Classifier,
        images: Float[Tensor, "B C H W"],
        labels: Int[Tensor, " B"],
        eps: float,
    ) -> Float[Tensor, "B C H W"]:
        """The images as far along the best direction as was needed, or as is allowed."""
        check_eps(eps, images, self.norm)
        if not eps:
            return images
        with frozen_eval(classifier), torch.no_grad():
            found = images.clone()
            rows = is_correct(classifier, images, labels).nonzero().squeeze(1)
            if not len(rows):
                return found
            search = _RaySearch(classifier, images[rows], labels[rows], eps)
            search.flip_block(slice(0, 0))
            while len(search.rows) and search.within_budget(self.queries):
                search.flip_block(search.next_block())
            found[rows] = search.answer
        return found


class _RaySearch:
    """The directions and radii of a batch of images, all at the same block; what is near enough leaves."""

    def __init__(self, classifier: Classifier, images: Tensor, labels: Tensor, eps: float) -> None:
        self.classifier, self.eps = classifier, eps
        self.images, self.labels = images, labels
        self.rows = torch.arange(len(images), device=images.device)
        self.answer = images.clone()
        self.signs = torch.ones(len(images), images[:1].numel(), device=images.device)  # (B, CHW)
        self.radius = torch.full((len(images),), float("inf"), device=images.device)
        self.asked = torch.zeros(len(images), device=images.device)
        self.level, self.number = 0, 0

    def next_block(self) -> slice:
        """The next block of pixels to flip: halves of halves, and from the start again after single pixels."""
        pixels = self.signs.shape[1]
        size = -(-pixels // 2**self.level)
        start = self.number * size
        self.number += 1
        if start + size >= pixels:
            self.level, self.number = (0 if size == 1 else self.level + 1), 0
        return slice(start, start + size)

    def flip_block(self, block: slice) -> None:
        """Flip a block where that fools at the radius reached (at first: any); search how near it still does."""
        tried = self.signs.clone()
        tried[:, block] *= -1
        good = self._is_fooled(tried, self.radius.clamp(max=1.0), torch.ones_like(self.rows, dtype=torch.bool))
        low, high = torch.zeros_like(self.radius), self.radius.clamp(max=1.0)
        while (open_ := good & (high - low > RADIUS_TOLERANCE)).any():
            middle = (low + high) / 2
            nearer = self._is_fooled(tried, middle, open_)
            high = torch.where(nearer, middle, high)
            low = torch.where(open_ & ~nearer, middle, low)
        self.signs[good] = tried[good]
        self.radius = torch.where(good, high, self.radius)
        self._finish(self.radius <= self.eps)

    def within_budget(self, queries: int) -> bool:
        """Whether any image may still be asked about; those that may not leave with what they have."""
        self._finish(self.asked >= queries)
        return bool(len(self.rows))

    def _images_at(self, signs: Tensor, radius: Tensor, which: Tensor) -> Tensor:
        shift = signs[which] * radius[which].unsqueeze(1)
        return (self.images[which] + shift.view_as(self.images[which])).clamp_(0, 1)

    def _is_fooled(self, signs: Tensor, radius: Tensor, asked: Bool[Tensor, " B"]) -> Bool[Tensor, " B"]:
        """Of the images asked about, those that are answered wrongly so far along these directions."""
        found = torch.zeros_like(asked)
        found[asked] = ~is_correct(self.classifier, self._images_at(signs, radius, asked), self.labels[asked])
        self.asked += asked
        return found

    def _finish(self, done: Bool[Tensor, " B"]) -> None:
        if not done.any():
            return
        self.answer[self.rows[done]] = self._images_at(self.signs, self.radius.clamp(max=self.eps), done)
        on = ~done
        self.images, self.labels, self.rows = self.images[on], self.labels[on], self.rows[on]
        self.signs, self.radius, self.asked = self.signs[on], self.radius[on], self.asked[on]
