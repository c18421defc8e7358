"""An attack that sees only answers, neither logits nor gradients, as over a network."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..checks import check_int
from ..classifier import Classifier
from .base import Attack, is_correct

RADIUS_TOLERANCE = 1e-3
"""Precision of the searched radius, in pixels of [0, 1]."""


@dataclass(frozen=True)
class RayS(Attack):
    """Searches the nearest wrong answer along directions of +1 and -1 (Chen and Gu 2020, arXiv 2006.12792).

    A direction's signs are flipped block by block, from the whole image to single pixels; a flip stays where it
    fools at the radius reached, and the radius is then searched. L-inf only. ``queries`` is the most answers it
    asks for per image. ``early_stop`` ends the search within eps; False searches on and then goes to eps where
    that still fools. It works on classifiers without gradients.
    """

    needs_gradient: ClassVar[bool] = False
    kind: ClassVar = "decision"
    queries: int = 1000
    norm: str = field(default="linf", init=False, repr=False)
    early_stop: bool = True

    def __post_init__(self) -> None:
        """Raise ValueError for an impossible field."""
        check_int("queries", self.queries, 1)

    @torch.no_grad()
    def run(
        self, classifier: Classifier, images: Float[Tensor, "B C H W"], labels: Int[Tensor, " B"], eps: float
    ) -> Float[Tensor, "B C H W"]:
        """The images as far along the best direction as is needed, or allowed."""
        found = images.clone()
        rows = torch.arange(len(images), device=images.device)
        if self.early_stop:
            rows = is_correct(classifier, images, labels).nonzero().squeeze(1)
        if not len(rows):
            return found
        search = _RaySearch(classifier, images[rows], labels[rows], eps, early_stop=self.early_stop)
        search.flip_block(slice(0, 0))
        while len(search.rows) and search.within_budget(self.queries):
            search.flip_block(search.next_block())
        found[rows] = search.answer
        return found


class _RaySearch:
    """Directions and radii of a batch of images, all at the same block; finished images leave."""

    def __init__(
        self, classifier: Classifier, images: Tensor, labels: Tensor, eps: float, *, early_stop: bool
    ) -> None:
        self.classifier, self.eps, self.early_stop = classifier, eps, early_stop
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
        """Flip a block where that fools at the radius reached (at first: at any), then search the smallest radius."""
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
        if self.early_stop:
            self._finish(self.radius <= self.eps)

    def within_budget(self, queries: int) -> bool:
        """Whether any image has queries left; the others leave with what they have."""
        self._finish(self.asked >= queries)
        return bool(len(self.rows))

    def _images_at(self, signs: Tensor, radius: Tensor, which: Tensor) -> Tensor:
        shift = signs[which] * radius[which].unsqueeze(1)
        return (self.images[which] + shift.view_as(self.images[which])).clamp_(0, 1)

    def _is_fooled(self, signs: Tensor, radius: Tensor, asked: Bool[Tensor, " B"]) -> Bool[Tensor, " B"]:
        """Which of the images ``asked`` about are misclassified at this radius along these directions."""
        found = torch.zeros_like(asked)
        found[asked] = ~is_correct(self.classifier, self._images_at(signs, radius, asked), self.labels[asked])
        self.asked += asked
        return found

    def _finish(self, done: Bool[Tensor, " B"]) -> None:
        if not done.any():
            return
        found = self._images_at(self.signs, self.radius.clamp(max=self.eps), done)
        if not self.early_stop:
            far = self._images_at(self.signs, torch.full_like(self.radius, self.eps), done)
            found = torch.where(is_correct(self.classifier, far, self.labels[done]).view(-1, 1, 1, 1), found, far)
        self.answer[self.rows[done]] = found
        on = ~done
        self.images, self.labels, self.rows = self.images[on], self.labels[on], self.rows[on]
        self.signs, self.radius, self.asked = self.signs[on], self.radius[on], self.asked[on]
