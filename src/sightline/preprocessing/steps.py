"""The steps of a preprocessing: normalisations, and filters of pixels that may remove an attack's small changes.

A filter maps [0, 1] to [0, 1] and comes before any normalisation. No filter is a defence by itself: each has a
gradient that an adaptive attacker can follow.
"""

import hashlib
import io
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import check_choice, check_int, check_positive
from ..errors import DataError

STD_FLOOR = 1 / 255
"""One grey level: the smallest standard deviation to divide by, so that constant images stay finite."""


class PreprocessingStep(nn.Module, ABC):
    """One step, ``(B C H W) -> (B C H W)``; its ``config()`` holds the arguments that rebuild it."""

    export_refusal: str = ""
    """Why no exported file can hold the step, and what to do instead; empty where one can."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The arguments of the constructor, as JSON; larger tensors belong in the state_dict."""


class Normalise(PreprocessingStep):
    """``(x - mean) / std``, per channel.

    Raises ValueError unless mean and std are finite, of one length, and std is positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.statistics = tuple(map(float, mean)), tuple(map(float, std))
        if len(mean) != len(std) or not len(mean):
            raise ValueError(f"mean and std must have one number per channel, got {mean} and {std}")
        if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
            raise ValueError(f"mean and std must be finite and std positive, got {mean} and {std}")
        # Not persistent: the config holds the same numbers, and a bundle has room for one truth.
        for name, values in zip(("mean", "std"), self.statistics, strict=True):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Normalised pixels; raises DataError for another number of channels."""
        if pixels.shape[1] != len(self.mean):
            raise DataError(
                f"These images have {pixels.shape[1]} channels and the normalisation {len(self.mean)}: "
                "decode them with the classifier's geometry."
            )
        mean, std = self.mean, self.std
        if len(mean) > 1 and pixels.is_contiguous(memory_format=torch.channels_last):
            # A broadcast over innermost channels is slower than over a plane of its own.
            mean, std = (
                value.expand(1, *pixels.shape[1:]).contiguous(memory_format=torch.channels_last)
                for value in (mean, std)
            )
        return (pixels - mean).div_(std)

    def config(self) -> dict[str, Any]:
        """Mean and std per channel, exact."""
        return {"mean": list(self.statistics[0]), "std": list(self.statistics[1])}

    def extra_repr(self) -> str:
        """The numbers, in ``repr``."""
        return f"mean={self.statistics[0]}, std={self.statistics[1]}"


class ContrastNormalise(PreprocessingStep):
    """Global contrast normalisation: ``(x - m) / max(s, floor)``, m and s the mean and std of each image.

    All channels together; a constant image becomes 0. As Coates, Ng and Lee 2011, section 3.1.1, do to patches.
    Raises ValueError unless floor is positive.
    """

    def __init__(self, floor: float = STD_FLOOR):
        super().__init__()
        self.floor = float(check_positive("floor", floor))

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Pixels of mean 0 and, unless the image is nearly constant, std 1 in each image."""
        centred = pixels - pixels.mean((1, 2, 3), keepdim=True)
        # The floor before the root: the root of 0 has no gradient.
        variance = centred.square().mean((1, 2, 3), keepdim=True).clamp_min(self.floor**2)
        return centred * variance.rsqrt()

    def config(self) -> dict[str, Any]:
        """The floor, in units of [0, 1] pixels."""
        return {"floor": self.floor}

    def extra_repr(self) -> str:
        """The floor, in ``repr``."""
        return f"floor={self.floor}"


# filters

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

    It has no gradient of its own; the backward pass is the identity (BPDA: Athalye, Carlini and Wagner 2018,
    section 4.1). Raises ValueError for an impossible quality.
    """

    export_refusal = (
        "This classifier compresses its images to JPEG first, which no exported file can: train it without jpeg "
        "in --normalize to export it."
    )

    def __init__(self, quality: int = 75):
        super().__init__()
        self.quality = check_int("quality", quality, 1, 100)

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The pixels after compression and decoding."""
        return straight_through(pixels, compress_jpeg(pixels, self.quality))

    def config(self) -> dict[str, Any]:
        """The quality."""
        return {"quality": self.quality}


class BitDepthFilter(PixelFilter):
    """Each value rounded to one of ``2 ** bits`` levels from 0 to 1 (Xu, Evans and Qi 2018).

    It is flat almost everywhere; the backward pass is the identity (BPDA). Raises ValueError unless bits is 1 to
    8.
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
    """``clip(x + sigma n)``, n of mean 0 and deviation 1, in training and in prediction: noise fusion.

    n is drawn again in training and wherever gradients are enabled, so in every attack; a prediction draws it from
    a seed that is a hash of the image, so it is the same each time and in every batch (Shi, Liao and He 2022).
    ``kind`` is gaussian or uniform. Raises ValueError unless sigma is above 0 and at most 1.
    """

    stochastic = True

    def __init__(self, sigma: float = 0.1, kind: NoiseKind = "gaussian"):
        super().__init__()
        self.sigma = float(check_positive("sigma", sigma, 1))
        self.kind = check_choice("kind", kind, get_args(NoiseKind))

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Pixels with noise."""
        redraw = self.training or torch.is_grad_enabled()
        noise = _draw_noise(pixels, self.kind) if redraw else content_seeded_noise(pixels, self.kind)
        return (pixels + self.sigma * noise).clamp(0, 1)

    def config(self) -> dict[str, Any]:
        """Its deviation, in units of [0, 1] pixels, and its kind."""
        return {"sigma": self.sigma, "kind": self.kind}


class _StraightThrough(torch.autograd.Function):
    """Forward: the second argument. Backward: the gradient, unchanged, to the first."""

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
    """``changed`` with the gradient of the identity with respect to ``pixels``."""
    return _StraightThrough.apply(pixels, changed) if torch.is_grad_enabled() else changed


def compress_jpeg(pixels: Float[Tensor, "B C H W"], quality: int) -> Float[Tensor, "B C H W"]:
    """Each image as 8-bit JPEG of this quality, colour at half resolution, decoded again; no gradient.

    By Pillow, as the published corruptions were made: simplejpeg gives other pixels.
    """
    from PIL import Image

    images = []
    for image in to_uint8(pixels):
        grey, stream = image.shape[2] == 1, io.BytesIO()
        Image.fromarray(image[..., 0] if grey else image).save(stream, "jpeg", quality=quality)
        images.append(np.asarray(Image.open(stream)).reshape(image.shape))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(pixels.device, pixels.dtype).div_(255)


def to_uint8(pixels: Float[Tensor, "B C H W"]) -> UInt8[ndarray, "B H W C"]:
    """Pixels rounded to 8 bits, (B H W C) in memory."""
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
