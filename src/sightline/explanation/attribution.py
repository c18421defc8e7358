"""Attribution of the target's logit to pixels: by its gradient, or by hiding parts of the image."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from .. import runtime
from ..augmentation import gaussian_blur
from ..checks import check_int, check_number
from ..classifier import Classifier
from .base import EXPLANATION_BATCH_SIZE, Explainer, as_leaf, gather_target_logits


def logit_gradient(
    classifier: Classifier, images: Float[Tensor, "B C H W"], targets: Int[Tensor, " B"]
) -> Float[Tensor, "B C H W"]:
    """The gradient of each image's target logit with respect to its pixels."""
    pixels = as_leaf(images)
    (found,) = torch.autograd.grad(gather_target_logits(classifier, pixels, targets).sum(), pixels)
    return found


@dataclass(frozen=True)
class Saliency(Explainer):
    """The gradient of the target's logit: where a small change matters most (Simonyan et al. 2013, 1312.6034).

    Its sign says which way to change a pixel, not whether it speaks for the target, so heat shows the magnitude.
    """

    signed: ClassVar[bool] = False

    def run(
        self, classifier: Classifier, images: Float[Tensor, "B C H W"], targets: Int[Tensor, " B"], prepared: Any
    ) -> Float[Tensor, "B C H W"]:
        """Change of the logit per unit of pixel."""
        del prepared
        return logit_gradient(classifier, images, targets)


@dataclass(frozen=True)
class SmoothGrad(Explainer):
    """The mean gradient over noisy copies of the image (Smilkov et al. 2017, arXiv 1706.03825).

    ``noise`` is the standard deviation as a share of the image's own range; every image gets the same draws.
    """

    samples: int = 25
    noise: float = 0.15
    seed: int = 0
    signed: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raise ValueError for an impossible field."""
        check_int("samples", self.samples, 1, 10_000)
        check_number("noise", self.noise, 0, 1)

    def prepare(self, classifier: Classifier, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "S 1 C H W"]:
        """The noise, which all images share."""
        del classifier
        drawn = torch.randn(self.samples, *images.shape[1:], generator=runtime.make_generator(self.seed))
        return drawn.to(images)[:, None] * self.noise

    def run(
        self,
        classifier: Classifier,
        images: Float[Tensor, "B C H W"],
        targets: Int[Tensor, " B"],
        prepared: Tensor,
    ) -> Float[Tensor, "B C H W"]:
        """Change of the logit per unit of pixel, averaged."""
        reach = (images.amax((1, 2, 3)) - images.amin((1, 2, 3)))[:, None, None, None]
        shares = torch.full((self.samples,), 1 / self.samples)
        return sum_gradients(classifier, images, targets, shares, lambda steps: images + reach * prepared[steps])


@dataclass(frozen=True)
class IntegratedGradients(Explainer):
    """``(x - x') * integral of the gradient from x' to x`` (Sundararajan et al. 2017, arXiv 1703.01365).

    The attributions sum to the logit's change from ``baseline`` x', an image of this one value in [0, 1]. The
    integral is a Gauss-Legendre sum over ``steps`` points. A pixel that equals the baseline gets nothing.
    """

    steps: int = 32
    baseline: float = 0.0

    def __post_init__(self) -> None:
        """Raise ValueError for an impossible field."""
        check_int("steps", self.steps, 1, 10_000)
        check_number("baseline", self.baseline, 0, 1)

    def run(
        self, classifier: Classifier, images: Float[Tensor, "B C H W"], targets: Int[Tensor, " B"], prepared: Any
    ) -> Float[Tensor, "B C H W"]:
        """Each pixel's part of the logit's change."""
        del prepared
        points, weights = (torch.from_numpy(each) for each in np.polynomial.legendre.leggauss(self.steps))
        places = ((points + 1) / 2).to(images).view(-1, 1, 1, 1, 1)
        way = images - self.baseline
        return way * sum_gradients(
            classifier, images, targets, weights / 2, lambda steps: self.baseline + places[steps] * way
        )


def sum_gradients(
    classifier: Classifier,
    images: Float[Tensor, "B C H W"],
    targets: Int[Tensor, " B"],
    weights: Float[Tensor, " S"],
    points: Callable[[Int[Tensor, " s"]], Float[Tensor, "s B C H W"]],
) -> Float[Tensor, "B C H W"]:
    """The weighted sum of the gradients at S points of each image, as many at once as fit into one pass."""
    total, weights = torch.zeros_like(images), weights.to(images)
    for steps in torch.arange(len(weights)).split(max(1, EXPLANATION_BATCH_SIZE // len(images))):
        found = logit_gradient(classifier, points(steps).flatten(0, 1), targets.repeat(len(steps)))
        total += torch.einsum("s,sbchw->bchw", weights[steps], found.unflatten(0, (len(steps), -1)))
    return total


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
