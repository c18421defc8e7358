"""Explainers that only ask for logits: how the logit changes when parts of the image are hidden."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from .. import runtime
from ..augmentation import gaussian_blur
from ..checks import check_int, check_number
from ..classifier import Classifier
from .base import EXPLANATION_BATCH_SIZE, Explainer, gather_target_logits

FILL_BLUR = 1 / 4
"""Standard deviation of the blur that hides a part, as a share of the shorter side."""

FillValue = float | str
"""What hides a part: a value in [0, 1], ``mean`` (the image's mean colour) or ``blur`` (its surroundings)."""


def check_fill(fill: FillValue) -> None:
    """Raise ValueError unless ``fill`` is blur, mean or a number from 0 to 1."""
    if isinstance(fill, str):
        if fill not in ("blur", "mean"):
            raise ValueError(f"fill must be blur, mean or a number from 0 to 1, not '{fill}'")
    else:
        check_number("fill", fill, 0, 1)


def fill_images(images: Float[Tensor, "B C H W"], fill: FillValue) -> Float[Tensor, "B C H W"]:
    """The images with every pixel hidden."""
    if fill == "blur":
        return gaussian_blur(images, torch.tensor([min(images.shape[2:]) * FILL_BLUR]))
    if fill == "mean":
        return images.mean((2, 3), keepdim=True).expand_as(images)
    return torch.full_like(images, float(fill))


@torch.no_grad()
def masked_logits(
    classifier: Classifier,
    images: Float[Tensor, "B C H W"],
    hidden: Float[Tensor, "B C H W"],
    targets: Int[Tensor, " B"],
    masks: Float[Tensor, "M 1 H W"],
) -> Float[Tensor, "M B"]:
    """Target logits of each image seen through each mask: 1 shows the image, 0 shows ``hidden``."""
    found = []
    for some in masks.split(max(1, EXPLANATION_BATCH_SIZE // len(images))):
        shown = torch.lerp(hidden, images, some[:, None])  # (m B C H W)
        found.append(
            gather_target_logits(classifier, shown.flatten(0, 1), targets.repeat(len(some))).view(len(some), -1)
        )
    return torch.cat(found)


@dataclass(frozen=True)
class Occlusion(Explainer):
    """How much the logit falls when a window is hidden, the mean over a pixel's windows (Zeiler and Fergus 2013).

    ``window`` is its side in pixels, by default a sixth of the shorter side; ``stride`` by default half of that.
    """

    window: int | None = None
    stride: int | None = None
    fill: FillValue = "blur"
    needs_gradient: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raise ValueError for an impossible window, stride or fill."""
        for name, value in (("window", self.window), ("stride", self.stride)):
            if value is not None:
                check_int(name, value, 1, 4096)
        check_fill(self.fill)

    def run(
        self,
        classifier: Classifier,
        images: Float[Tensor, "B C H W"],
        targets: Int[Tensor, " B"],
        prepared: Tensor,
    ) -> Float[Tensor, "B C H W"]:
        """The mean fall of the logit over the windows that cover each pixel, the same for every channel."""
        with torch.no_grad():
            whole = gather_target_logits(classifier, images, targets)
        fall = whole - masked_logits(classifier, images, fill_images(images, self.fill), targets, 1 - prepared)
        found = torch.einsum("mb,mhw->bhw", fall, prepared[:, 0]) / prepared.sum(0)
        return found[:, None].expand_as(images)

    def prepare(self, classifier: Classifier, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "M 1 H W"]:
        """Masks that are 1 inside a window; windows at the far borders are cropped, so that every pixel is covered."""
        del classifier
        height, width = images.shape[2:]
        side = min(self.window or max(1, round(min(height, width) / 6)), height, width)
        step = min(self.stride or max(1, side // 2), side)
        down, across = (
            [torch.arange(start, min(start + side, length)) for start in range(0, length - side + step, step)]
            for length in (height, width)
        )
        masks = torch.zeros(len(down) * len(across), 1, height, width)
        for number, mask in enumerate(masks):
            rows, columns = down[number // len(across)], across[number % len(across)]
            mask[0, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = 1
        return masks.to(images)


@dataclass(frozen=True)
class Rise(Explainer):
    """What showing a place does for the logit, over random masks (RISE: Petsiuk et al. 2018, arXiv 1806.07421).

    ``masks`` grids of ``cells`` x ``cells`` places, each shown with probability ``keep``, enlarged and shifted;
    every image gets the same. The slope of the logit over each pixel's visibility: signed, where theirs is not.
    """

    masks: int = 500
    cells: int = 7
    keep: float = 0.5
    seed: int = 0
    fill: FillValue = "blur"
    needs_gradient: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raise ValueError for impossible masks."""
        check_int("masks", self.masks, 2, 100_000)
        check_int("cells", self.cells, 2, 64)
        check_number("keep", self.keep, 0.01, 0.99)
        check_fill(self.fill)

    def run(
        self,
        classifier: Classifier,
        images: Float[Tensor, "B C H W"],
        targets: Int[Tensor, " B"],
        prepared: Tensor,
    ) -> Float[Tensor, "B C H W"]:
        """Slope of the logit over each pixel's visibility, the same for every channel."""
        apart = (prepared - prepared.mean(0))[:, 0]
        logits = masked_logits(classifier, images, fill_images(images, self.fill), targets, prepared)
        together = torch.einsum("mb,mhw->bhw", logits - logits.mean(0), apart)
        return (together / apart.square().sum(0).clamp(min=1e-12))[:, None].expand_as(images)

    def prepare(self, classifier: Classifier, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "M 1 H W"]:
        """The masks: coarse grids enlarged beyond the image, each cropped at a random place."""
        del classifier
        height, width = images.shape[2:]
        random = runtime.make_generator(self.seed)
        tall, wide = -(-height // self.cells), -(-width // self.cells)
        coarse = (torch.rand(self.masks, 1, self.cells + 1, self.cells + 1, generator=random) < self.keep).float()
        tops = torch.randint(tall, (self.masks,), generator=random).tolist()
        lefts = torch.randint(wide, (self.masks,), generator=random).tolist()
        masks = torch.empty(self.masks, 1, height, width)
        for number, (top, left) in enumerate(zip(tops, lefts, strict=True)):
            large = F.interpolate(
                coarse[number : number + 1],
                ((self.cells + 1) * tall, (self.cells + 1) * wide),
                mode="bilinear",
                align_corners=False,
            )
            masks[number] = large[0, :, top : top + height, left : left + width]
        return masks.to(images)
