"""The fifteen corruptions of CIFAR-10-C and ImageNet-C, at five severities.

Hendrycks and Dietterich 2019 (arXiv 1903.12261), with the parameters of their published code.
"""

import math

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional as F

from ..augmentation import affine_matrices, gaussian_blur, warp
from ..preprocessing import compress_jpeg
from .corruption_kernels import (
    Corruption,
    Levels,
    convolve,
    disc_kernel,
    displace,
    draw_normal,
    draw_uniform,
    frost_pattern,
    length_scale,
    luminance,
    motion_kernels,
    plasma_clouds,
)

Images = Float[Tensor, "B C H W"]


class GaussianNoise(Corruption):
    """Sensor noise in low light; a level is its standard deviation."""

    levels = Levels((0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38))

    def run(self, images: Images, level: float, generator: Generator) -> Images:
        """Normal noise on every value."""
        return (images + level * draw_normal(images.shape, generator, images)).clamp_(0, 1)


class ShotNoise(Corruption):
    """Photon noise: Poisson, so brighter places are noisier; a level is the number of photons of white."""

    levels = Levels((500, 250, 100, 75, 50), (60, 25, 12, 5, 3))

    def run(self, images: Images, level: int, generator: Generator) -> Images:
        """Poisson counts in place of the values."""
        return torch.poisson((images * level).cpu(), generator).to(images.device).div_(level).clamp_(0, 1)


class ImpulseNoise(Corruption):
    """Salt and pepper; a level is the share of values that become black or white."""

    levels = Levels((0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27))

    def run(self, images: Images, level: float, generator: Generator) -> Images:
        """Half of that share black, half white."""
        drawn = draw_uniform(images.shape, generator, images)
        return images.masked_fill(drawn < level / 2, 0).masked_fill_(drawn >= 1 - level / 2, 1)


class DefocusBlur(Corruption):
    """Out of focus: every point becomes a disc. A level is (radius in pixels, deviation of the blur of its edge).

    The published kernel counts whole pixels, which cannot be scaled; this one counts shares of them. At severity 4
    of small images the second number is 0.4 instead of 0.2, which gives the published kernel's spread.
    """

    levels = Levels(
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.4), (1.5, 0.1)),
        ((3.0, 0.1), (4.0, 0.5), (6.0, 0.5), (8.0, 0.5), (10.0, 0.5)),
    )

    def run(self, images: Images, level: tuple[float, float], generator: Generator) -> Images:
        """Convolved with the disc."""
        del generator
        radius, edge = level
        return convolve(images, disc_kernel(radius * length_scale(images), edge * length_scale(images))[None])


class GlassBlur(Corruption):
    """Seen through frosted glass: every pixel shows a place near it, blurred before and after.

    A level is (deviation of the blur, reach), in pixels. Ours: the published swaps of whole pixels have the same
    spread at 224, but cannot be scaled, and at 32 their five levels are out of order.
    """

    levels = Levels(
        ((0.3, 0.5), (0.33, 0.75), (0.36, 1.0), (0.4, 1.25), (0.4, 1.5)),
        ((0.7, 1.4), (0.9, 2.0), (1.0, 3.5), (1.1, 4.2), (1.5, 5.7)),
    )

    def run(self, images: Images, level: tuple[float, float], generator: Generator) -> Images:
        """Blurred, displaced and blurred again."""
        sigma, reach = level
        width = torch.tensor([sigma * length_scale(images)])
        count, _, height, wide = images.shape
        shifts = 2 * draw_uniform((count, height, wide, 2), generator, images) - 1
        moved = displace(gaussian_blur(images, width), shifts * (reach * length_scale(images)))
        return gaussian_blur(moved, width).clamp_(0, 1)


class MotionBlur(Corruption):
    """The camera moved: a fading trail, in a direction of each image's own within 45 degrees of level.

    A level is (radius, deviation), in pixels. At severity 4 of small images the deviation is 2.25 instead of 2,
    which looked like severity 3.
    """

    levels = Levels(
        ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.25), (9, 2.5)),
        ((10, 3.0), (15, 5.0), (15, 8.0), (15, 12.0), (20, 15.0)),
    )

    def run(self, images: Images, level: tuple[float, float], generator: Generator) -> Images:
        """Convolved with a trail."""
        radius, sigma = level
        angles = (draw_uniform((len(images),), generator, images) - 0.5) * (math.pi / 2)
        scale = length_scale(images)
        return convolve(images, motion_kernels(angles, radius * scale, sigma * scale))


class ZoomBlur(Corruption):
    """The camera moved closer: the mean of the image at factors 1, 1 + step, 1 + 2 step, ...

    A level is (number of steps, step).
    """

    levels = Levels(
        ((6, 0.01), (11, 0.01), (16, 0.01), (21, 0.01), (26, 0.01)),
        ((11, 0.01), (16, 0.01), (11, 0.02), (13, 0.02), (11, 0.03)),
    )

    def run(self, images: Images, level: tuple[int, float], generator: Generator) -> Images:
        """The mean of the enlarged images."""
        del generator
        steps, step = level
        total = 2 * images  # the image itself, and enlarged by a factor of 1
        for number in range(1, steps):
            size = 1 / (1 + number * step)
            total = total + warp(images, affine_matrices(xx=size, yy=size, count=len(images)), "edge")
        return (total / (steps + 1)).clamp_(0, 1)


class Snow(Corruption):
    """Falling flakes, streaked by their fall, over a whitened image.

    A level is (mean and deviation of the flakes, their enlargement, the threshold below which there is none,
    radius and deviation of their streaks in pixels, weight of the image).
    """

    levels = Levels(
        (
            (0.1, 0.2, 1.0, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1.0, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        (
            (0.1, 0.3, 3.0, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2.0, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4.0, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    )

    def run(self, images: Images, level: tuple[float, ...], generator: Generator) -> Images:
        """The whitened image under flakes and the same flakes turned round."""
        mean, spread, enlarged, least, radius, sigma, stays = level
        size = length_scale(images)
        count, _, height, width = images.shape
        factor = max(1.0, enlarged * size)
        drawn = draw_normal((count, 1, math.ceil(height / factor), math.ceil(width / factor)), generator, images)
        flakes = F.interpolate(drawn * spread + mean, (height, width), mode="bilinear")
        flakes = flakes.clamp(0, 1).masked_fill_(flakes < least, 0)
        angles = (draw_uniform((count,), generator, images) - 1.5) * (math.pi / 2)
        flakes = convolve(flakes, motion_kernels(angles, radius * size, sigma * size))
        white = torch.maximum(images, luminance(images) * 1.5 + 0.5)
        return (stays * images + (1 - stays) * white + flakes + flakes.rot90(2, (2, 3))).clamp_(0, 1)


class Frost(Corruption):
    """Ice on the glass; a level is (weight of the image, weight of the frost). Ours: the frost is drawn."""

    levels = Levels(
        ((1.0, 0.2), (0.95, 0.3), (0.9, 0.4), (0.85, 0.5), (0.75, 0.6)),
        ((0.9, 0.4), (0.8, 0.55), (0.7, 0.7), (0.65, 0.8), (0.6, 0.9)),
    )

    def run(self, images: Images, level: tuple[float, float], generator: Generator) -> Images:
        """The weighted sum of image and frost."""
        kept, added = level
        return (kept * images + added * frost_pattern(images, generator)).clamp_(0, 1)


class Fog(Corruption):
    """Clouds in front of everything, as bright as the image; a level is (thickness, decay of its detail)."""

    levels = Levels(
        ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75)),
        ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)),
    )

    def run(self, images: Images, level: tuple[float, float], generator: Generator) -> Images:
        """Clouds added, and the sum scaled back to the image's brightness."""
        thick, decay = level
        clouds = plasma_clouds(len(images), images.shape[-2:], decay, generator).to(images.device)
        brightest = images.amax((1, 2, 3), keepdim=True)
        return ((images + thick * clouds) * (brightest / (brightest + thick))).clamp_(0, 1)


class Brightening(Corruption):
    """A brighter day; a level is what is added to the value of HSV."""

    levels = Levels((0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5))

    def run(self, images: Images, level: float, generator: Generator) -> Images:
        """The value raised, hue and saturation unchanged."""
        del generator
        value = images.amax(1, keepdim=True)
        raised = (value + level).clamp(max=1)
        return torch.where(value > 0, images * (raised / value.clamp(min=1e-12)), raised).clamp_(0, 1)


class LowContrast(Corruption):
    """Flat light; a level is the contrast that is left."""

    levels = Levels((0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05))

    def run(self, images: Images, level: float, generator: Generator) -> Images:
        """Each channel drawn towards its mean."""
        del generator
        return torch.lerp(images.mean((2, 3), keepdim=True), images, level).clamp_(0, 1)


class ElasticDistortion(Corruption):
    """Three corners moved, then every pixel a little, together with its neighbours.

    A level is (reach of the corners, reach of the pixels, distance over which neighbours move together), in
    pixels. Levels 3 to 5 bend as published, by alpha and sigma; the published first two bend nothing at 32 pixels,
    and turn the image more than the last ones do.
    """

    levels = Levels(
        ((0.64, 0.1, 2.2), (0.8, 0.15, 2.0), (0.96, 0.22, 1.92), (0.96, 0.41, 1.28), (0.96, 0.54, 0.96)),
        ((3.0, 0.5, 3.0), (4.0, 0.65, 2.7), (4.48, 0.81, 2.24), (4.48, 1.14, 2.24), (4.48, 1.95, 2.24)),
    )

    def run(self, images: Images, level: tuple[float, float, float], generator: Generator) -> Images:
        """An affine warp that brings the moved corners back, then smooth displacements."""
        corners, reach, together = (number * length_scale(images) for number in level)
        count, _, height, width = images.shape
        third = min(height, width) // 3
        points = torch.tensor([[third, third], [third, -third], [-third, -third]], dtype=torch.float64)
        moves = (2 * torch.rand(count, 3, 2, generator=generator, dtype=torch.float64) - 1) * corners
        there = torch.cat([points + moves, torch.ones(count, 3, 1, dtype=torch.float64)], 2)
        matrices = torch.linalg.solve(there, points.expand(count, 3, 2)).transpose(1, 2)
        turned = warp(images, matrices, "edge")
        drawn = 2 * draw_uniform((count, 2, height, width), generator, images) - 1
        # Smoothed, uniform numbers of deviation 1/sqrt(3) keep that over 2 sigma sqrt(pi).
        gain = reach * math.sqrt(3) * 2 * together * math.sqrt(math.pi)
        shifts = gaussian_blur(drawn, torch.tensor([together])) * gain
        return displace(turned, shifts.permute(0, 2, 3, 1))


class Pixelation(Corruption):
    """Shrunk, and enlarged without smoothing; a level is the share of the side that is left."""

    levels = Levels((0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25))

    def run(self, images: Images, level: float, generator: Generator) -> Images:
        """Box means, enlarged to the nearest pixel."""
        del generator
        height, width = images.shape[-2:]
        down, across = (_box_means(side, max(1, int(side * level))).to(images) for side in (height, width))
        small = down @ images.contiguous() @ across.T
        return F.interpolate(small, (height, width), mode="nearest-exact").clamp_(0, 1)


class JPEGCompression(Corruption):
    """A strongly compressed file; a level is the JPEG quality."""

    levels = Levels((80, 65, 58, 50, 40), (25, 18, 15, 10, 7))

    def run(self, images: Images, level: int, generator: Generator) -> Images:
        """Compressed and decoded."""
        del generator
        return compress_jpeg(images, level)


def _box_means(side: int, size: int) -> Float[Tensor, "n N"]:
    """A matrix that shrinks a line of pixels: each new one is the mean of those whose centres lie in its box."""
    step = side / size
    apart = (torch.arange(side) + 0.5) - (torch.arange(size)[:, None] + 0.5) * step
    inside = ((apart > -step / 2) & (apart <= step / 2)).float()
    return inside / inside.sum(1, keepdim=True)
