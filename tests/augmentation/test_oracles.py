"""Colours and geometry against kornia and torchvision, whose operations of the same name mean the same."""

import math

import pytest
import torch

from sightline.augmentation import gaussian_blur, similarity_matrices, warp
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
from sightline.models.timm_network import declare_operators

kornia = pytest.importorskip("kornia")


def torchvision_functional():
    """torchvision's functions, which may have been compiled for another torch."""
    declare_operators()
    from torchvision.transforms.v2 import functional

    return functional


def images(channels: int = 3) -> torch.Tensor:
    """Four random images, their values those of 8 bits."""
    drawn = torch.rand(4, channels, 20, 17, generator=torch.Generator().manual_seed(channels))
    return (drawn * 255).round() / 255


AMOUNTS = torch.tensor([0.2, 0.7, 1.0, 1.8])


def factors(amounts: torch.Tensor) -> torch.Tensor:
    return amounts.double()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("ours", "name"),
    [
        (adjust_brightness, "adjust_brightness"),
        (adjust_contrast, "adjust_contrast"),
        (adjust_saturation, "adjust_saturation"),
        (adjust_sharpness, "adjust_sharpness"),
    ],
)
def test_factors_are_those_of_torchvision(ours, name, channels):
    pixels = images(channels)
    theirs = getattr(torchvision_functional(), name)
    expected = torch.stack([theirs(image, float(amount)) for image, amount in zip(pixels, AMOUNTS, strict=True)])
    # torchvision rounds the weights of grey to 4 digits, as the standard prints them.
    torch.testing.assert_close(ours(pixels, factors(AMOUNTS)), expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", ["saturation", "contrast", "sharpness"])
def test_factors_are_those_of_kornia(name):
    pixels, enhance = images(), kornia.enhance
    ours, theirs = {
        "saturation": (adjust_saturation, enhance.adjust_saturation_with_gray_subtraction),
        "contrast": (adjust_contrast, enhance.adjust_contrast_with_mean_subtraction),
        "sharpness": (adjust_sharpness, enhance.sharpness),
    }[name]
    expected = theirs(pixels, AMOUNTS).clamp(0, 1)
    torch.testing.assert_close(ours(pixels, factors(AMOUNTS)), expected, rtol=0, atol=1e-5)


def test_hue_is_kornias_and_torchvisions():
    pixels, turns = images(), torch.tensor([-0.4, -0.1, 0.0, 0.3])
    ours = adjust_hue(pixels, turns.double())
    torch.testing.assert_close(ours, kornia.enhance.adjust_hue(pixels, turns * 2 * math.pi), rtol=0, atol=1e-4)
    theirs = torchvision_functional().adjust_hue
    expected = torch.stack([theirs(image, float(turn)) for image, turn in zip(pixels, turns, strict=True)])
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


def test_tables_of_values_are_torchvisions():
    pixels, functional = images(), torchvision_functional()
    bytes_of = (pixels * 255).round().byte()
    shown = {
        "posterize": (posterize(pixels, torch.full((4,), 3.0).double()), functional.posterize(bytes_of, 3)),
        "solarize": (solarize(pixels, torch.full((4,), 0.5).double()), functional.solarize(bytes_of, 127.5)),
        "autocontrast": (autocontrast(pixels), functional.autocontrast(bytes_of)),
        "equalize": (equalize(pixels), functional.equalize(bytes_of)),
    }
    for name, (ours, theirs) in shown.items():
        apart = (ours * 255 - theirs.float()).abs().max()
        assert apart <= 1, name  # torchvision rounds down, Pillow and we round


def test_a_rotation_is_kornias_and_torchvisions():
    pixels, degrees = images(), torch.tensor([-70.0, -5.0, 0.0, 33.0])
    still, ones = torch.zeros(4, 2), torch.ones(4)
    ours = warp(
        pixels, similarity_matrices(torch.deg2rad(degrees).double(), ones.double(), still.double(), (20, 17))
    )
    functional = torchvision_functional()
    from torchvision.transforms import InterpolationMode

    expected = torch.stack(
        [
            functional.rotate(image, float(angle), InterpolationMode.BILINEAR)
            for image, angle in zip(pixels, degrees, strict=True)
        ]
    )
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
    moved = kornia.geometry.transform.rotate(pixels, degrees, align_corners=True)
    inner = (slice(None), slice(None), slice(6, 14), slice(5, 12))  # kornia resamples the border otherwise
    torch.testing.assert_close(ours[inner], moved[inner], rtol=0, atol=1e-4)


def test_a_blur_is_kornias_away_from_the_border():
    pixels, sigma = images(), 1.3
    ours = gaussian_blur(pixels, torch.tensor([sigma]))
    theirs = kornia.filters.gaussian_blur2d(pixels, (15, 15), (sigma, sigma), border_type="reflect")
    torch.testing.assert_close(ours[:, :, 8:-8, 8:-8], theirs[:, :, 8:-8, 8:-8], rtol=0, atol=1e-5)
