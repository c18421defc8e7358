"""Erasing boxes of images, and mixing images together with their labels (mixup, cutmix)."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.nn import functional as F

from ..batches import Batch
from ..checks import check_choice, check_number
from .kernels import as_dense, draw_bernoulli, draw_boxes, gather_images, match_layout, per_image

EraseContent = Literal["noise", "grey", "black"]
"""The content of an erased box."""


@dataclass(frozen=True)
class Erase:
    """Replace a random box of each image, with probability ``p``, by noise, grey or black.

    The box has from ``least`` to ``most`` of the area and an aspect up to ``aspect`` either way (log-uniform);
    after ten boxes that do not fit the image is unchanged. Zhong et al. 2017, arXiv 1708.04896, algorithm 1.
    """

    p: float = 0.5
    least: float = 0.02
    most: float = 0.4
    aspect: float = 10 / 3
    content: EraseContent = "noise"

    def __post_init__(self):
        check_number("p", self.p, 0, 1)
        check_number("most", self.most, 0, 1)
        check_number("least", self.least, 0, self.most)
        check_number("aspect", self.aspect, 1, 10)
        check_choice("content", self.content, get_args(EraseContent))

    def __call__(self, batch: Batch, generator: Generator) -> Batch:
        """The batch with boxes erased."""
        pixels = batch.pixels
        boxes = self._boxes(len(batch), pixels.shape[-2:], generator)
        content = torch.full((), 0.5 if self.content == "grey" else 0.0)
        if self.content == "noise":
            content = torch.rand(pixels.shape, generator=generator)
        content = content.to(pixels.device, non_blocking=True).expand(pixels.shape)
        return replace(batch, pixels=paste_boxes(content, pixels, boxes))

    def _boxes(self, count: int, shape: torch.Size, generator: Generator) -> Int[Tensor, "B 4"]:
        size = torch.tensor(shape)
        shares = torch.stack(draw_boxes(count, self.least, self.most, self.aspect, generator), 2)  # (B T 2)
        lengths = (shares * size).round().long()
        fits = (lengths < size).all(2)
        first = fits.int().argmax(1)
        chosen = (
            lengths[torch.arange(count), first] * (fits.any(1) & draw_bernoulli(count, self.p, generator))[:, None]
        )
        starts = (torch.rand(count, 2, generator=generator, dtype=torch.float64) * (size - chosen + 1)).long()
        return torch.cat([starts, starts + chosen], 1)


@dataclass(frozen=True)
class Mixup:
    """Blend each image and its label with another of the batch: a share lambda of the one, the rest of the other.

    lambda is drawn for each image from Beta(``alpha``, ``alpha``); a share ``p`` of the images is blended.
    Labels become soft. Zhang et al. 2017, arXiv 1710.09412, equation 1; alpha 0.1 to 0.4 is usual, 1 strong.
    Raises ValueError for a batch with hard labels and without its number of classes.
    """

    mixes_labels: ClassVar[bool] = True
    alpha: float = 0.2
    p: float = 1.0

    def __post_init__(self):
        check_number("alpha", self.alpha, 0.001, 100)
        check_number("p", self.p, 0, 1)

    def __call__(self, batch: Batch, generator: Generator) -> Batch:
        """The batch with blended images and labels."""
        shares = _draw_beta(len(batch), self.alpha, generator)
        shares = torch.where(draw_bernoulli(len(batch), self.p, generator), shares, 1.0)
        partners = torch.randperm(len(batch), generator=generator)
        others = gather_images(batch.pixels, partners)
        blended = torch.lerp(others, batch.pixels, per_image(shares, batch.pixels))
        return replace(
            batch, pixels=match_layout(blended, batch.pixels), labels=_mix_labels(batch, partners, shares)
        )


@dataclass(frozen=True)
class CutMix:
    """Paste a box of another image of the batch into each, and of its label the share of the area it covers.

    The box has a share 1 - lambda of the area, lambda drawn for each image from Beta(``alpha``, ``alpha``), and
    is cut at the border, so the label counts the pixels it really covers; a share ``p`` of the images is changed.
    Labels become soft. Yun et al. 2019, arXiv 1905.04899, equations 1 and 2.
    Raises ValueError for a batch with hard labels and without its number of classes.
    """

    mixes_labels: ClassVar[bool] = True
    alpha: float = 1.0
    p: float = 1.0

    def __post_init__(self):
        check_number("alpha", self.alpha, 0.001, 100)
        check_number("p", self.p, 0, 1)

    def __call__(self, batch: Batch, generator: Generator) -> Batch:
        """The batch with pasted boxes and mixed labels."""
        count, size = len(batch), torch.tensor(batch.pixels.shape[-2:])
        side = (1 - _draw_beta(count, self.alpha, generator)).sqrt() * draw_bernoulli(count, self.p, generator)
        centres = torch.rand(count, 2, generator=generator, dtype=torch.float64) * size
        halves = side[:, None] * size / 2
        # Pixels whose centre is in the box: none for a box of no size.
        ends = torch.cat([centres - halves, centres + halves], 1).add(0.5).floor().long()
        boxes = ends.clamp_min(0).minimum(size.repeat(2))
        partners = torch.randperm(count, generator=generator)
        pixels = paste_boxes(gather_images(batch.pixels, partners), batch.pixels, boxes)
        kept = 1 - (boxes[:, 2:] - boxes[:, :2]).prod(1).double() / size.prod()
        return replace(batch, pixels=pixels, labels=_mix_labels(batch, partners, kept))


def paste_boxes(
    images: Float[Tensor, "B C H W"], pixels: Float[Tensor, "B C H W"], boxes: Int[Tensor, "B 4"]
) -> Float[Tensor, "B C H W"]:
    """``pixels`` with the box (top, left, bottom, right; the last two outside) of each image from ``images``."""
    there = pixels.device
    down, across = (
        ((place >= boxes[:, axis, None]) & (place < boxes[:, axis + 2, None])).to(there, non_blocking=True)
        for axis, place in enumerate(map(torch.arange, pixels.shape[-2:]))
    )
    where = down[:, None, :, None] & across[:, None, None, :]  # (B 1 H W)
    # Weights of 0 and 1 in the memory format of the pixels: a where that broadcasts is slower.
    weights = torch.empty_like(as_dense(pixels)).copy_(where)
    return torch.lerp(pixels, match_layout(images, pixels), weights)


def _draw_beta(count: int, alpha: float, generator: Generator) -> Float[Tensor, " B"]:
    """One draw of Beta(alpha, alpha) for each image."""
    # torch's Beta cannot be given a generator; numpy's can be seeded from it.
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.from_numpy(np.random.default_rng(seed).beta(alpha, alpha, count))


def _mix_labels(batch: Batch, partners: Int[Tensor, " B"], shares: Float[Tensor, " B"]) -> Float[Tensor, "B K"]:
    """A share of each image's label and the rest of its partner's."""
    labels = soft_labels(batch)
    there = labels.device
    others = labels[partners.to(there, non_blocking=True)]
    return torch.lerp(others, labels, shares.to(labels.dtype).to(there, non_blocking=True)[:, None])


def soft_labels(batch: Batch) -> Float[Tensor, "B K"]:
    """Labels as distributions: one-hot, unless they are distributions already.

    Raises ValueError where hard labels come without ``batch.classes``.
    """
    if batch.labels.is_floating_point():
        return batch.labels
    if batch.classes is None:
        raise ValueError("mixing labels needs the number of classes: give the Batch its 'classes'")
    return F.one_hot(batch.labels.long(), batch.classes).float()
