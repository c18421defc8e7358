"""Filters of pixels, [0, 1] -> [0, 1], before any normalisation: what may take an attack's small changes away.

None of them is a defence by itself: each has a gradient that an attacker who knows it can follow.
"""

import hashlib
import io
import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor
from torch.nn import functional as F

from ..checks import check_choice, check_int, check_positive
from .steps import PreprocessingStep

NoiseKind = Literal["gaussian", "uniform"]
"""How noise is distributed."""


class PixelFilter(PreprocessingStep):
    """A step from pixels in [0, 1] to pixels in [0, 1]."""


class MedianFilter(PixelFilter):
    """Each pixel becomes the median of the ``size`` x ``size`` pixels around it, borders continued.

    Its gradient is exact: it goes to the pixel that was the median. (Xu, Evans and Qi 2018, feature squeezing.)
    Raises ValueError unless size is odd, 3 to 9.
    """

    def __init__(self, size: int = 3):
        super().__init__()
        self.size = check_choice("size", size, (3, 5, 7, 9))

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The medians."""
        padded = F.pad(pixels, (self.size // 2,) * 4, mode="replicate")
        windows = padded.unfold(2, self.size, 1).unfold(3, self.size, 1)
        return windows.flatten(4).median(4).values

    def config(self) -> dict[str, Any]:
        """The side of the window, in pixels."""
        return {"size": self.size}


class JpegFilter(PixelFilter):
    """Compressed to JPEG of this quality (1 to 100, colour at half resolution) and decoded again.

    It has no gradient of its own; backwards it passes gradients on as they are (BPDA: Athalye, Carlini and Wagner
    2018, section 4.1). Raises ValueError for another quality.
    """

    export_refusal = (
        "This classifier compresses its images to JPEG first, which no exported file can: train it without jpeg "
        "in --normalize to export it."
    )

    def __init__(self, quality: int = 75):
        super().__init__()
        self.quality = check_int("quality", quality, 1, 100)

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Pixels as they come out of the file."""
        return straight_through(pixels, compress_jpeg(pixels, self.quality))

    def config(self) -> dict[str, Any]:
        """The quality."""
        return {"quality": self.quality}


class BitDepthFilter(PixelFilter):
    """Each value rounded to one of ``2 ** bits`` levels from 0 to 1 (Xu, Evans and Qi 2018).

    It is flat almost everywhere; backwards it passes gradients on as they are (BPDA). Raises ValueError unless
    bits is 1 to 8.
    """

    def __init__(self, bits: int = 4):
        super().__init__()
        self.bits = check_int("bits", bits, 1, 8)

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The nearest levels."""
        steps = 2**self.bits - 1
        return straight_through(pixels, (pixels.detach() * steps).round_().div_(steps))

    def config(self) -> dict[str, Any]:
        """The number of bits."""
        return {"bits": self.bits}


class NoiseFilter(PixelFilter):
    """``clip(x + sigma n)``, n of mean 0 and deviation 1, in training and when answering: noise fusion.

    n is drawn anew in training and wherever gradients are asked for, so by every attack; an answer draws it from a
    seed taken from the image, and so is the same each time and in every batch (Shi, Liao and He 2022). ``kind`` is
    gaussian or uniform. Raises ValueError unless sigma is above 0 and at most 1.
    """

    stochastic = True

    def __init__(self, sigma: float = 0.1, kind: NoiseKind = "gaussian"):
        super().__init__()
        self.sigma = float(check_positive("sigma", sigma, 1))
        self.kind = check_choice("kind", kind, get_args(NoiseKind))

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Pixels with noise."""
        afresh = self.training or torch.is_grad_enabled()
        noise = _draw_noise(pixels, self.kind) if afresh else content_seeded_noise(pixels, self.kind)
        return (pixels + self.sigma * noise).clamp(0, 1)

    def config(self) -> dict[str, Any]:
        """Its deviation, in units of [0, 1] pixels, and its kind."""
        return {"sigma": self.sigma, "kind": self.kind}


PIXEL_FILTERS: dict[str, Callable[..., PixelFilter]] = {
    "median": MedianFilter,
    "jpeg": JpegFilter,
    "bits": BitDepthFilter,
    "noise": NoiseFilter,
}
"""The words of ``--normalize`` that come before any normalisation: ``median:3+fitted``."""


class _StraightThrough(torch.autograd.Function):
    """Forwards the second argument; backwards the gradient as it is, to the first."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, changed: Tensor) -> Tensor:
        del ctx, pixels
        return changed.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        del ctx
        return gradients[0], None


def straight_through(
    pixels: Float[Tensor, "B C H W"], changed: Float[Tensor, "B C H W"]
) -> Float[Tensor, "B C H W"]:
    """``changed``, with the gradient of the identity: how an attacker sees through what has none."""
    return _StraightThrough.apply(pixels, changed) if torch.is_grad_enabled() else changed


def compress_jpeg(pixels: Float[Tensor, "B C H W"], quality: int) -> Float[Tensor, "B C H W"]:
    """Each image as 8-bit JPEG of this quality, colour at half resolution, decoded again; no gradient."""
    images = np.stack([_jpeg_round_trip(image, quality) for image in to_uint8(pixels)])
    return torch.from_numpy(images).permute(0, 3, 1, 2).to(pixels.device, pixels.dtype).div_(255)


def _jpeg_round_trip(image: UInt8[ndarray, "H W C"], quality: int) -> UInt8[ndarray, "H W C"]:
    """Through Pillow, as the published corruptions were made: simplejpeg gives other pixels."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(stream, "jpeg", quality=quality)
    return np.asarray(Image.open(stream)).reshape(image.shape)


def to_uint8(pixels: Float[Tensor, "B C H W"]) -> UInt8[ndarray, "B H W C"]:
    """Pixels as a file would hold them."""
    whole = (pixels.detach().clamp(0, 1) * 255).round_().byte()
    return whole.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def content_seeded_noise(pixels: Float[Tensor, "B C H W"], kind: NoiseKind) -> Float[Tensor, "B C H W"]:
    """Noise of deviation 1 that is a function of each image's 8-bit content alone."""
    rows = []
    for image in to_uint8(pixels):
        digest = hashlib.blake2b(image.tobytes(), digest_size=8).digest()
        chance = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        rows.append(_draw_noise(torch.empty(pixels.shape[1:]), kind, chance))
    return torch.stack(rows).to(pixels.device, pixels.dtype)


def _draw_noise(like: Tensor, kind: NoiseKind, generator: torch.Generator | None = None) -> Tensor:
    """Noise of this shape and deviation 1; without a generator from torch's global one."""
    shape, where = like.shape, {"device": like.device, "dtype": like.dtype}
    if kind == "gaussian":
        return torch.randn(shape, generator=generator, **where)
    return torch.rand(shape, generator=generator, **where).sub_(0.5).mul_(2 * math.sqrt(3))
