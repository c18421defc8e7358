"""Brightness, contrast, colour, sharpness, blur and noise: a function for each, and a member that draws for it.

A function takes ``(pixels, amounts)``, one amount for each image. Factors are those of Pillow's ImageEnhance: 1
changes nothing, 0 removes the property, above 1 exaggerates it. Results are clipped to [0, 1].
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from ..batches import Batch
from ..checks import check_number
from .kernels import gaussian_blur, match_layout, per_image, uniform_per_image

LUMA_WEIGHTS = (0.299, 0.587, 0.114)
"""Weights of R, G and B in grey (ITU-R BT.601), as in Pillow."""


def adjust_brightness(pixels: Float[Tensor, "B C H W"], factors: Float[Tensor, " B"]) -> Float[Tensor, "B C H W"]:
    """Each image times its factor."""
    return (pixels * per_image(factors, pixels)).clamp_(0, 1)


def adjust_contrast(pixels: Float[Tensor, "B C H W"], factors: Float[Tensor, " B"]) -> Float[Tensor, "B C H W"]:
    """Each pixel's distance from its image's mean grey, times the factor."""
    means = pixels.mean((2, 3), keepdim=True)
    return _blend(_to_grey(means), pixels, factors)


def adjust_saturation(pixels: Float[Tensor, "B C H W"], factors: Float[Tensor, " B"]) -> Float[Tensor, "B C H W"]:
    """Each pixel's distance from its own grey, times the factor; grey images are unchanged."""
    if pixels.shape[1] != 3:
        return pixels
    planes = pixels.contiguous()  # meeting one grey plane costs more in channels_last than going there and back
    return match_layout(_blend(_to_grey(planes), planes, factors), pixels)


def adjust_hue(pixels: Float[Tensor, "B C H W"], turns: Float[Tensor, " B"]) -> Float[Tensor, "B C H W"]:
    """The hue of HSV moved by ``turns`` of the colour circle (1 is once round); grey images are unchanged.

    R, G, B are v - c clamp(2 - |k - 2|, 0, 1), with k = (n + 6 hue) mod 6, n = 5, 3, 1, v the greatest of them
    and c the difference to the least.
    """
    if pixels.shape[1] != 3:
        return pixels
    planes = pixels.float().contiguous()
    r, g, b = planes.unbind(1)
    value = torch.maximum(torch.maximum(r, g), b)
    chroma = value - torch.minimum(torch.minimum(r, g), b)
    scale = 1 / (6 * chroma + (chroma == 0))
    hue = torch.where(value == g, 1 / 3 + (b - r) * scale, 2 / 3 + (r - g) * scale)
    hue = torch.where(value == r, (g - b) * scale, hue) + per_image(turns, planes).view(-1, 1, 1)
    turned = torch.empty_like(planes)
    for channel, n in enumerate((5, 3, 1)):
        k = (hue + (1 + n / 6)).frac_().mul_(6)  # plus one round: the fraction of a negative number is negative
        torch.addcmul(
            value, chroma, k.sub_(2).abs_().neg_().add_(2).clamp_(0, 1), value=-1, out=turned[:, channel]
        )
    return match_layout(turned.clamp_(0, 1), pixels)


def adjust_sharpness(pixels: Float[Tensor, "B C H W"], factors: Float[Tensor, " B"]) -> Float[Tensor, "B C H W"]:
    """Each pixel's distance from the smoothed image, times the factor; the outermost pixels stay.

    Smoothed by (1 1 1; 1 5 1; 1 1 1) / 13, as in Pillow.
    """
    if min(pixels.shape[-2:]) < 3:
        return pixels
    rows = pixels[:, :, :-2] + pixels[:, :, 1:-1] + pixels[:, :, 2:]  # faster than a pooling
    sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smoothed = pixels.clone()
    smoothed[:, :, 1:-1, 1:-1] = sums.add_(pixels[:, :, 1:-1, 1:-1], alpha=4).div_(13)
    return _blend(smoothed, pixels, factors)


def posterize(pixels: Float[Tensor, "B C H W"], bits: Float[Tensor, " B"]) -> Float[Tensor, "B C H W"]:
    """Only the highest ``bits`` of each 8-bit value."""
    steps = per_image(2 ** (8 - bits.round()), pixels)
    return (pixels * 255).round_().div_(steps).floor_().mul_(steps).div_(255)


def solarize(pixels: Float[Tensor, "B C H W"], thresholds: Float[Tensor, " B"]) -> Float[Tensor, "B C H W"]:
    """Values at or above the threshold inverted."""
    return torch.where(pixels >= per_image(thresholds, pixels), 1 - pixels, pixels)


def autocontrast(pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Each channel of each image stretched to [0, 1] (autocontrast); a constant one stays."""
    low, high = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)
    flat = high <= low
    return ((pixels - low.masked_fill(flat, 0)) / (high - low).masked_fill(flat, 1)).clamp_(0, 1)


def equalize(pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Each channel of each image given an even histogram of its 8-bit values, exactly as Pillow does."""
    values = (pixels.flatten(2) * 255).round().long()  # (B C H*W)
    counts = values.new_zeros(*values.shape[:2], 256).scatter_add_(2, values, torch.ones_like(values))
    last = counts.gather(2, values.amax(2, keepdim=True))
    step = (values.shape[2] - last) // 255
    table = (step // 2 + counts.cumsum(2) - counts) // step.clamp_min(1)
    table = torch.where(step > 0, table.clamp_max(255), torch.arange(256, device=pixels.device))
    return match_layout((table.gather(2, values) / 255).view(pixels.shape), pixels)


def _to_grey(pixels: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 1 h w"]:
    """Luminance of RGB; the mean of any other number of channels."""
    if pixels.shape[1] != 3:
        return pixels.mean(1, keepdim=True)
    r, g, b = (pixels[:, channel : channel + 1] for channel in range(3))
    return (r * LUMA_WEIGHTS[0]).add_(g, alpha=LUMA_WEIGHTS[1]).add_(b, alpha=LUMA_WEIGHTS[2])


def _blend(without: Tensor, pixels: Float[Tensor, "B C H W"], factors: Tensor) -> Float[Tensor, "B C H W"]:
    """``without + factor (pixels - without)``; exactly ``pixels`` for a factor of 1."""
    return match_layout(
        torch.lerp(without.expand_as(pixels), pixels, per_image(factors, pixels)).clamp_(0, 1), pixels
    )


@dataclass(frozen=True)
class _FactorAugmentation(ABC):
    """A factor for each image, uniform in [1 - ``strength``, 1 + ``strength``]."""

    strength: float = 0.4

    def __post_init__(self):
        check_number("strength", self.strength, 0, 1)

    def __call__(self, batch: Batch, generator: Generator) -> Batch:
        """The batch with every image changed by its own factor."""
        factors = uniform_per_image(len(batch), 1 - self.strength, 1 + self.strength, generator)
        return replace(batch, pixels=self.change(batch.pixels, factors)) if self.strength else batch

    @staticmethod
    @abstractmethod
    def change(pixels: Tensor, factors: Tensor, /) -> Tensor:
        """The pixels, each image changed by its factor."""


class Brightness(_FactorAugmentation):
    """Make each image darker or lighter, by a factor from 1 - ``strength`` to 1 + ``strength``."""

    change = staticmethod(adjust_brightness)


class Contrast(_FactorAugmentation):
    """Lower or raise each image's contrast, by a factor from 1 - ``strength`` to 1 + ``strength``."""

    change = staticmethod(adjust_contrast)


class Saturation(_FactorAugmentation):
    """Make each image's colours paler or stronger, by a factor from 1 - ``strength`` to 1 + ``strength``.

    Grey images are unchanged.
    """

    change = staticmethod(adjust_saturation)


@dataclass(frozen=True)
class Hue:
    """Turn each image's hue by up to ``turn`` of the colour circle either way, at most 0.5.

    Grey images are unchanged.
    """

    turn: float = 0.05

    def __post_init__(self):
        check_number("turn", self.turn, 0, 0.5)

    def __call__(self, batch: Batch, generator: Generator) -> Batch:
        """The batch with every image's hue turned by its own amount."""
        turns = uniform_per_image(len(batch), -self.turn, self.turn, generator)
        return replace(batch, pixels=adjust_hue(batch.pixels, turns)) if self.turn else batch


@dataclass(frozen=True)
class Sharpen:
    """Sharpen each image, by a factor from 1 to 1 + ``strength``: away from the smoothed image."""

    strength: float = 1.0

    def __post_init__(self):
        check_number("strength", self.strength, 0, 10)

    def __call__(self, batch: Batch, generator: Generator) -> Batch:
        """The batch with every image sharpened by its own factor."""
        factors = uniform_per_image(len(batch), 1, 1 + self.strength, generator)
        return replace(batch, pixels=adjust_sharpness(batch.pixels, factors)) if self.strength else batch


@dataclass(frozen=True)
class Blur:
    """Blur each image by a Gaussian of 0 to ``sigma`` pixels."""

    sigma: float = 1.0

    def __post_init__(self):
        check_number("sigma", self.sigma, 0, 100)

    def __call__(self, batch: Batch, generator: Generator) -> Batch:
        """The batch with every image blurred by its own amount."""
        sigmas = uniform_per_image(len(batch), 0, self.sigma, generator)
        return replace(batch, pixels=gaussian_blur(batch.pixels, sigmas).clamp_(0, 1)) if self.sigma else batch


@dataclass(frozen=True)
class Noise:
    """Add Gaussian noise to each image, of a standard deviation from 0 to ``std`` of the range of pixels."""

    std: float = 0.05

    def __post_init__(self):
        check_number("std", self.std, 0, 1)

    def __call__(self, batch: Batch, generator: Generator) -> Batch:
        """The batch with noise of its own in every image."""
        pixels = batch.pixels
        stds = uniform_per_image(len(batch), 0, self.std, generator)
        noise = match_layout(
            torch.randn(pixels.shape, generator=generator).to(pixels.device, non_blocking=True), pixels
        )
        return replace(batch, pixels=noise.mul_(per_image(stds, pixels)).add_(pixels).clamp_(0, 1))
