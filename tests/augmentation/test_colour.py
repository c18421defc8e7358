"""Colour against Pillow and the standard library, one image at a time; noise and blur by what they draw."""

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from sightline import runtime
from sightline.augmentation import Blur, Brightness, Contrast, Hue, Noise, Sharpen
from sightline.augmentation.colour import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    adjust_sharpness,
    autocontrast,
    equalize,
    posterize,
    solarize,
)
from sightline.batches import Batch

GREY_LEVEL = 1 / 255
FACTORS = (0.0, 0.3, 1.0, 1.7)
LAYOUTS = [torch.contiguous_format, torch.channels_last]

channels = pytest.mark.parametrize("channels", [1, 3])
layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])


def batch_of(pixels: Tensor) -> Batch:
    return Batch(pixels, torch.zeros(len(pixels), dtype=torch.int64), torch.arange(len(pixels)))


def pictures(channels: int, count: int = 4, size=(15, 21)) -> np.ndarray:
    """Soft gradients with noise, uint8 (N H W C): a middle range in some, the full one in others."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: size[0], : size[1], :channels][:2] / max(size)
    phases = rng.uniform(0, 6, (count, 1, 1, channels))
    reach = np.linspace(40, 130, count)[:, None, None, None]
    images = 128 + reach * np.sin(4 * x + 3 * y + phases) + rng.normal(0, 9, (count, *size, channels))
    return np.clip(images, 0, 255).astype(np.uint8)


def to_pixels(images: np.ndarray, layout=torch.contiguous_format) -> Tensor:
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255).contiguous(memory_format=layout)


def by_pillow(images: np.ndarray, change) -> Tensor:
    """``change`` of each image as a Pillow image."""
    made = [
        np.asarray(change(Image.fromarray(i[..., 0] if i.shape[2] == 1 else i), n)) for n, i in enumerate(images)
    ]
    return to_pixels(np.stack(made).reshape(images.shape))


@channels
@layouts
@pytest.mark.parametrize(
    ("ours", "pillows"),
    [
        (adjust_brightness, ImageEnhance.Brightness),
        (adjust_contrast, ImageEnhance.Contrast),
        (adjust_saturation, ImageEnhance.Color),
        (adjust_sharpness, ImageEnhance.Sharpness),
    ],
)
def test_factors_equal_pillows(channels, layout, ours, pillows):
    images = pictures(channels)
    oracle = by_pillow(images, lambda image, n: pillows(image).enhance(FACTORS[n]))
    changed = ours(to_pixels(images, layout), torch.tensor(FACTORS, dtype=torch.float64))
    # Pillow rounds the smoothed or grey image to whole levels, and then the result.
    assert (changed - oracle).abs().max() <= 1.75 * GREY_LEVEL
    assert (changed - oracle).abs().mean() <= 0.6 * GREY_LEVEL


@channels
@layouts
def test_histogram_changes_equal_pillows(channels, layout):
    images = pictures(channels)
    images[1] = 77  # a constant image stays as it is
    images[2, :, :, 0] = np.arange(images[2, :, :, 0].size).reshape(images.shape[1:3]) % 3
    pixels = to_pixels(images, layout)
    assert torch.allclose(equalize(pixels), by_pillow(images, lambda i, _: ImageOps.equalize(i)), atol=1e-6)
    oracle = by_pillow(images, lambda i, _: ImageOps.autocontrast(i))
    assert (autocontrast(pixels) - oracle).abs().max() <= GREY_LEVEL  # Pillow rounds down


@channels
def test_posterize_and_solarize_equal_pillows(channels):
    images = pictures(channels)
    bits = (8, 5, 3, 1)
    oracle = by_pillow(images, lambda image, n: ImageOps.posterize(image, bits[n]))
    assert torch.allclose(posterize(to_pixels(images), torch.tensor(bits).double()), oracle, atol=1e-6)
    thresholds = (256, 200, 128, 0)
    oracle = by_pillow(images, lambda image, n: ImageOps.solarize(image, thresholds[n]))
    ours = solarize(to_pixels(images), (torch.tensor(thresholds).double() - 0.5) / 255)
    assert torch.allclose(ours, oracle, atol=1e-6)


@layouts
@pytest.mark.parametrize("turn", [0.0, 0.1, -0.1, 1 / 3, 0.5, -0.5])
def test_hue_equals_colorsys(turn, layout):
    pixels = torch.rand(2, 3, 6, 7, generator=runtime.make_generator(1)).contiguous(memory_format=layout)
    pixels[0, :, 0, :4] = torch.tensor([[0.0, 1.0, 0.5, 0.2]])  # black, white and greys have no hue
    pixels[0, :, 1, :3] = torch.eye(3)  # ties of two channels
    pixels[0, :, 2, :3] = 1 - torch.eye(3)
    plain = np.empty(pixels.shape)
    for place in np.ndindex(2, 6, 7):
        h, s, v = colorsys.rgb_to_hsv(*pixels[place[0], :, place[1], place[2]].tolist())
        plain[place[0], :, place[1], place[2]] = colorsys.hsv_to_rgb((h + turn) % 1, s, v)
    turned = adjust_hue(pixels, torch.full((2,), turn, dtype=torch.float64))
    assert np.allclose(turned.numpy(), plain, atol=2e-6)


def test_a_full_turn_of_hue_changes_nothing():
    pixels = torch.rand(2, 3, 8, 8, generator=runtime.make_generator(1))
    assert torch.allclose(adjust_hue(pixels, torch.ones(2, dtype=torch.float64)), pixels, atol=1e-6)


# What is drawn.


def test_brightness_draws_factors_evenly():
    out = Brightness(0.4)(batch_of(torch.full((4000, 1, 2, 2), 0.5)), runtime.make_generator(1)).pixels[:, 0, 0, 0]
    assert out.min() >= 0.5 * 0.6
    assert out.max() <= 0.5 * 1.4
    quarters = out.quantile(torch.tensor([0.25, 0.5, 0.75]))
    assert torch.allclose(quarters, torch.tensor([0.4, 0.5, 0.6]), atol=0.015)


def test_contrast_keeps_the_mean_grey():
    pixels = 0.3 + 0.4 * torch.rand(8, 3, 12, 12, generator=runtime.make_generator(1))
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    out = Contrast(0.4)(batch_of(pixels), runtime.make_generator(2)).pixels
    greys = [(p * weights).sum(1).mean((1, 2)) for p in (pixels, out)]
    assert torch.allclose(*greys, atol=1e-5)
    assert not torch.allclose(out, pixels, atol=1e-2)


def test_hue_keeps_the_largest_and_smallest_channel():
    pixels = torch.rand(8, 3, 12, 12, generator=runtime.make_generator(1))
    out = Hue(0.5)(batch_of(pixels), runtime.make_generator(2)).pixels
    assert torch.allclose(out.amax(1), pixels.amax(1), atol=1e-6)
    assert torch.allclose(out.amin(1), pixels.amin(1), atol=1e-6)
    assert not torch.allclose(out, pixels, atol=1e-2)


def roughness(pixels: Tensor) -> Tensor:
    return (pixels[..., 1:] - pixels[..., :-1]).square().mean((1, 2, 3))


def test_sharpen_roughens_and_blur_smooths():
    pixels = 0.3 + 0.4 * torch.rand(64, 3, 12, 12, generator=runtime.make_generator(1))
    before = roughness(pixels)
    assert (roughness(Sharpen(0.5)(batch_of(pixels), runtime.make_generator(2)).pixels) > before).all()
    blurred = Blur(2.0)(batch_of(pixels), runtime.make_generator(2)).pixels
    assert (roughness(blurred) <= before).all()
    assert torch.allclose(blurred.mean((2, 3)), pixels.mean((2, 3)), atol=1e-5), "a mirrored border keeps the mean"


@layouts
def test_noise_has_the_given_deviation(layout):
    grey = torch.full((400, 3, 16, 16), 0.5).contiguous(memory_format=layout)
    spread = (Noise(0.1)(batch_of(grey), runtime.make_generator(1)).pixels - 0.5).flatten(1).std(1)
    assert spread.max() < 0.11
    quarters = spread.quantile(torch.tensor([0.25, 0.5, 0.75]))
    assert torch.allclose(quarters, torch.tensor([0.025, 0.05, 0.075]), atol=0.012)
