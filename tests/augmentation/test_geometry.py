"""Where pixels go, against plain versions one image at a time, Pillow and scipy; and what is drawn."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from sightline import runtime
from sightline.augmentation import AlternatingFlip, Elastic, Flip, ResizedCrop, Shear, Shift, VerticalFlip, warp
from sightline.augmentation.kernels import (
    flip_images,
    gather_images,
    gaussian_blur,
    resample,
    scatter_images,
    similarity_matrices,
    translate_images,
)
from sightline.batches import Batch

SHAPES = [(8, 1, 28, 28), (8, 3, 32, 32), (5, 3, 17, 40), (1, 1, 9, 6)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]

shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])


def batch_of(pixels: Tensor, epoch: int = 0) -> Batch:
    count = len(pixels)
    return Batch(pixels, torch.zeros(count, dtype=torch.int64), torch.arange(count), epoch=epoch)


def images(shape, layout=torch.contiguous_format, seed=0) -> Tensor:
    drawn = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return drawn.contiguous(memory_format=layout)


# The plain versions, one image at a time.


@shapes
@layouts
def test_mirror_equals_plain(shape, layout):
    pixels = images(shape, layout)
    chosen = torch.arange(0, shape[0], 2)
    plain = torch.stack([image.flip(2) if i in chosen.tolist() else image for i, image in enumerate(pixels)])
    assert torch.equal(flip_images(pixels, chosen), plain)


@shapes
@layouts
@pytest.mark.parametrize("fill", ["zero", "edge"])
def test_move_equals_plain(shape, layout, fill):
    pixels, margin = images(shape, layout), 4
    offsets = torch.randint(-margin, margin + 1, (shape[0], 2), generator=torch.Generator().manual_seed(7))
    mode = {"zero": "constant", "edge": "edge"}[fill]
    plain = np.zeros(shape, np.float32)
    for i, (dy, dx) in enumerate(offsets.tolist()):
        padded = np.pad(pixels[i].numpy(), ((0, 0), (margin, margin), (margin, margin)), mode=mode)
        plain[i] = padded[:, margin - dy :, margin - dx :][:, : shape[2], : shape[3]]
    assert np.array_equal(translate_images(pixels, offsets, margin, fill).numpy(), plain)


def test_move_by_more_than_the_image():
    pixels = images((2, 1, 3, 3))
    offsets = torch.tensor([[5, 0], [0, -1]])
    moved = translate_images(pixels, offsets, 5, "zero")
    assert moved[0].abs().sum() == 0
    assert torch.equal(moved[1, :, :, :2], pixels[1, :, :, 1:])


def plain_warp(image: np.ndarray, matrix: np.ndarray, fill: str) -> np.ndarray:
    """Bilinear, pixel by pixel, in float64."""
    channels, height, width = image.shape
    out = np.zeros(image.shape)

    def at(y, x):
        if fill == "zero" and not (0 <= y < height and 0 <= x < width):
            return np.zeros(channels)
        return image[:, min(max(y, 0), height - 1), min(max(x, 0), width - 1)]

    for y in range(height):
        for x in range(width):
            u, v = matrix @ (x - (width - 1) / 2, y - (height - 1) / 2, 1)
            u, v = u + (width - 1) / 2, v + (height - 1) / 2
            left, top = int(np.floor(u)), int(np.floor(v))
            a, b = u - left, v - top
            upper = (1 - a) * at(top, left) + a * at(top, left + 1)
            lower = (1 - a) * at(top + 1, left) + a * at(top + 1, left + 1)
            out[:, y, x] = (1 - b) * upper + b * lower
    return out


@pytest.mark.parametrize("shape", [(4, 1, 9, 9), (3, 3, 8, 13)], ids=str)
@layouts
@pytest.mark.parametrize("fill", ["zero", "edge"])
def test_warp_equals_plain(shape, layout, fill):
    pixels = images(shape, layout)
    generator = torch.Generator().manual_seed(8)
    matrices = torch.eye(2, 3, dtype=torch.float64) + torch.rand(shape[0], 2, 3, generator=generator) - 0.5
    plain = np.stack([plain_warp(p.numpy(), m.numpy(), fill) for p, m in zip(pixels, matrices, strict=True)])
    assert np.allclose(warp(pixels, matrices, fill).numpy(), plain, atol=1e-5)


def matrix(turn=0.0, size=1.0, x=0.0, y=0.0, shape=(8, 8)):
    values = (torch.tensor([value], dtype=torch.float64) for value in (turn, size))
    return similarity_matrices(*values, torch.tensor([[x, y]], dtype=torch.float64), shape)


def test_a_quarter_turn_is_anticlockwise():
    pixels = images((1, 3, 8, 8))
    assert torch.allclose(warp(pixels, matrix(torch.pi / 2)), torch.rot90(pixels, 1, (2, 3)), atol=1e-5)


def test_displacement_is_a_share_of_each_side():
    pixels = images((1, 2, 8, 12))
    moved = warp(pixels, matrix(x=0.25, y=0.125, shape=(8, 12)))
    assert torch.allclose(moved, translate_images(pixels, torch.tensor([[1, 3]]), 3, "zero"), atol=1e-5)


def test_size_two_enlarges():
    pixels = torch.zeros(1, 1, 8, 8)
    pixels[:, :, 3:5, 3:5] = 1
    assert warp(pixels, matrix(size=2.0)).sum() == pytest.approx(16, rel=1e-4)


def test_a_rotation_keeps_distances_in_wide_images():
    pixels = torch.zeros(1, 1, 21, 41)
    pixels[0, 0, 10, 26] = 1  # 6 pixels right of the centre
    turned = warp(pixels, matrix(torch.pi / 2, shape=(21, 41)))
    assert turned[0, 0, 4, 20] == pytest.approx(1, abs=1e-4)


# Distributions.


def test_flip_mirrors_its_share():
    ramp = torch.arange(4.0).div(4).expand(4000, 1, 1, 4)
    out = Flip(0.3)(batch_of(ramp), runtime.make_generator(1)).pixels
    share = (out[:, 0, 0, 0] > 0).float().mean().item()
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / 4000) ** 0.5


def test_shift_draws_every_offset_equally():
    dot = torch.zeros(8100, 1, 5, 5)
    dot[:, :, 2, 2] = 1
    counts = Shift(1)(batch_of(dot), runtime.make_generator(2)).pixels.sum((0, 1))
    assert counts.sum() == 8100
    assert counts[1:4, 1:4].sum() == 8100
    assert ((counts[1:4, 1:4] - 900).abs() < 5 * 30).all()


@shapes
@layouts
def test_gather_and_scatter_are_indexing(shape, layout):
    pixels = images(shape, layout)
    rows = torch.randperm(shape[0], generator=runtime.make_generator(1))[: max(1, shape[0] // 2)]
    assert torch.equal(gather_images(pixels, rows), pixels[rows])
    assert gather_images(pixels, rows).stride()[1:] == pixels.stride()[1:]
    plain = pixels.clone()
    plain[rows] = 1 - pixels[rows]
    assert torch.equal(scatter_images(pixels, rows, 1 - pixels[rows]), plain)


def test_vertical_flip_is_upside_down():
    pixels = images((200, 3, 5, 4))
    out = VerticalFlip(0.4)(batch_of(pixels), runtime.make_generator(1)).pixels
    turned = (out == pixels.flip(2)).flatten(1).all(1)
    assert ((out == pixels).flatten(1).all(1) ^ turned).all()
    assert abs(turned.float().mean().item() - 0.4) < 4 * (0.4 * 0.6 / 200) ** 0.5


def mirrored(epoch: int, count: int) -> Tensor:
    ramp = torch.arange(4.0).div(4).expand(count, 1, 1, 4)
    return AlternatingFlip()(batch_of(ramp, epoch), runtime.make_generator(epoch)).pixels[:, 0, 0, 0] > 0


def test_alternating_flip_shows_each_image_both_ways_in_any_two_epochs():
    ways = [mirrored(epoch, 10_000) for epoch in range(5)]
    assert all((one ^ other).all() for one, other in pairwise(ways))
    assert abs(ways[0].float().mean().item() - 0.5) < 4 * (0.25 / 10_000) ** 0.5


def test_alternating_flip_starts_as_if_at_random():
    """Neighbours, and images some powers of two apart, agree as often as coins do."""
    first = mirrored(0, 10_000)
    for distance in (1, 2, 3, 7, 10, 64, 500, 1000, 4096):
        agree = (first[distance:] == first[:-distance]).float().mean().item()
        assert abs(agree - 0.5) < 5 * (0.25 / (10_000 - distance)) ** 0.5, distance


def test_alternating_flip_goes_by_the_image_not_by_its_place():
    pixels = images((50, 1, 3, 4))
    batch, order = batch_of(pixels), torch.randperm(50, generator=runtime.make_generator(1))
    shuffled = Batch(pixels[order], batch.labels, batch.index[order])
    whole, mixed = (AlternatingFlip()(b, runtime.make_generator(1)).pixels for b in (batch, shuffled))
    assert torch.equal(mixed, whole[order])


# The oracles.


def sampled(images: Tensor, matrix: np.ndarray, mode: str) -> np.ndarray:
    """By scipy, whose matrices are for (row, column) from the corner; ours are for (x, y) from the centre."""
    height, width = images.shape[-2:]
    swapped = matrix[::-1, 1::-1]
    centre = (np.array([height, width]) - 1) / 2
    offset = centre + matrix[::-1, 2] - swapped @ centre
    return np.stack(
        [[ndimage.affine_transform(c, swapped, offset, order=1, mode=mode) for c in i] for i in images.numpy()]
    )


class Caught(Exception):
    pass


def matrices_of(member, batch, monkeypatch, seed=1) -> tuple[Tensor, str]:
    """The matrices and fill with which a member calls the kernel."""

    def caught(pixels, matrices, fill):
        raise Caught(matrices, fill)

    monkeypatch.setattr("sightline.augmentation.geometry.warp", caught)
    with pytest.raises(Caught) as found:
        member(batch, runtime.make_generator(seed))
    monkeypatch.undo()
    return found.value.args


@pytest.mark.parametrize("fill", ["zero", "edge"])
def test_shear_equals_scipy_and_keeps_areas(fill, monkeypatch):
    batch = batch_of(images((6, 2, 12, 17)))
    member = Shear(25.0, fill)
    matrices, _ = matrices_of(member, batch, monkeypatch)
    assert torch.allclose(torch.linalg.det(matrices[:, :, :2]), torch.ones(6, dtype=torch.float64))
    assert (matrices[:, :, 2] == 0).all(), "the centre stays"
    out = member(batch, runtime.make_generator(1)).pixels
    mode = {"zero": "grid-constant", "edge": "nearest"}[fill]
    for number, matrix in enumerate(matrices.numpy()):
        oracle = sampled(batch.pixels[number : number + 1], matrix, mode)
        assert np.allclose(out[number].numpy(), oracle[0], atol=1e-5)


def test_shear_draws_angles_evenly(monkeypatch):
    matrices, _ = matrices_of(Shear(30.0), batch_of(torch.zeros(4000, 1, 4, 4)), monkeypatch)
    for slopes in (matrices[:, 0, 1], matrices[:, 1, 0]):
        angles = torch.rad2deg(torch.atan(slopes))
        assert angles.abs().max() <= 30
        assert torch.allclose(
            angles.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)),
            torch.tensor([-15.0, 0.0, 15.0], dtype=torch.float64),
            atol=2.0,
        )


def test_resized_crop_equals_pillow(monkeypatch):
    """It resizes a box given in fractions of pixels; enlarging, its bilinear filter is two taps wide, as ours."""
    batch = batch_of(images((8, 2, 16, 24)))
    matrices, fill = matrices_of(ResizedCrop(0.2, 0.8), batch, monkeypatch)
    out = ResizedCrop(0.2, 0.8)(batch, runtime.make_generator(1)).pixels
    assert fill == "edge"
    for number, ((w, _, x), (_, h, y)) in enumerate(matrices.tolist()):
        centre_x, centre_y = 12 + x, 8 + y
        box = (centre_x - 12 * w, centre_y - 8 * h, centre_x + 12 * w, centre_y + 8 * h)
        for channel in range(2):
            pillow = Image.fromarray(batch.pixels[number, channel].numpy(), "F")
            oracle = np.asarray(pillow.resize((24, 16), Image.Resampling.BILINEAR, box))
            inner = slice(2, -2)  # at the box's border Pillow stays inside of it
            assert np.allclose(out[number, channel].numpy()[inner, inner], oracle[inner, inner], atol=2e-5)


def test_resized_crop_draws_boxes_inside_the_image(monkeypatch):
    batch = batch_of(torch.zeros(4000, 1, 20, 20))
    matrices, _ = matrices_of(ResizedCrop(0.08, 1.0, 4 / 3), batch, monkeypatch)
    w, h = matrices[:, 0, 0], matrices[:, 1, 1]
    assert max(w.max(), h.max()) <= 1
    for side, middle in ((w, matrices[:, 0, 2]), (h, matrices[:, 1, 2])):
        assert ((middle.abs() / 20 + side / 2) <= 0.5 + 1e-9).all()
    assert (w * h).min() > 0.079
    small = w * h < 0.5625  # such a box fits at any aspect, so nothing was refused
    assert (w * h)[small].mean().item() == pytest.approx((0.08 + 0.5625) / 2, abs=0.012)
    ratios = (w / h)[small].log()
    assert ratios.abs().max() <= math.log(4 / 3) + 1e-9
    assert ratios.abs().mean().item() == pytest.approx(math.log(4 / 3) / 2, abs=0.01)


def test_a_box_that_never_fits_keeps_the_whole_image(monkeypatch):
    matrices, _ = matrices_of(ResizedCrop(1.0, 1.0, 10.0), batch_of(torch.zeros(20, 1, 8, 8)), monkeypatch)
    assert torch.equal(matrices, torch.eye(2, 3, dtype=torch.float64).expand(20, 2, 3))


@pytest.mark.parametrize("shape", [(3, 3, 20, 20), (2, 1, 11, 26)], ids=str)
@layouts
def test_smooth_equals_scipy(shape, layout):
    pixels = images(shape, layout)
    sigmas = torch.linspace(0.3, 2.5, shape[0], dtype=torch.float64)
    out = gaussian_blur(pixels, sigmas).numpy()
    for image, sigma, ours in zip(pixels.numpy(), sigmas.tolist(), out, strict=True):
        oracle = ndimage.gaussian_filter(image, (0, sigma, sigma), mode="reflect", truncate=8)
        assert np.allclose(ours, oracle, atol=1e-5)


def test_a_blur_of_zero_is_exact():
    pixels = images((2, 3, 9, 9))
    assert torch.equal(gaussian_blur(pixels, torch.zeros(2)), pixels)


@pytest.mark.parametrize("fill", ["zero", "edge"])
def test_elastic_equals_scipy(fill):
    """Simard's recipe in scipy, on the field the generator gives."""
    pixels = images((3, 2, 18, 25))
    field = 2 * torch.rand(3, 2, 18, 25, generator=runtime.make_generator(1)).double().numpy() - 1
    out = Elastic(20.0, 3.0, fill)(batch_of(pixels), runtime.make_generator(1)).pixels.numpy()
    rows, columns = np.mgrid[:18, :25]
    for image, (dx, dy), ours in zip(pixels.numpy(), field, out, strict=True):
        right, down = (20 * ndimage.gaussian_filter(d, 3.0, mode="reflect", truncate=8) for d in (dx, dy))
        mode = {"zero": "grid-constant", "edge": "nearest"}[fill]
        for channel, plane in zip(image, ours, strict=True):
            oracle = ndimage.map_coordinates(channel, [rows + down, columns + right], order=1, mode=mode)
            assert np.allclose(plane, oracle, atol=1e-4)


def test_elastic_moves_by_the_documented_distance(monkeypatch):
    """About alpha / (6 sigma) pixels rms along each axis, away from the mirrored borders."""
    seen = []

    def caught(pixels, places, fill):
        seen.append(places)
        return pixels

    monkeypatch.setattr("sightline.augmentation.geometry.resample", caught)
    Elastic()(batch_of(torch.zeros(16, 1, 64, 64)), runtime.make_generator(2))
    still = (2 * torch.arange(64.0) + 1) / 64 - 1
    moved = (seen[0][..., 0] - still) * 32
    assert moved[:, 16:-16, 16:-16].square().mean().sqrt().item() == pytest.approx(34 / 24, rel=0.1)


def test_resample_at_every_place_is_the_image():
    pixels = images((2, 3, 7, 10))
    x, y = ((2 * torch.arange(side) + 1) / side - 1 for side in (10, 7))
    places = torch.stack([x.expand(7, 10), y[:, None].expand(7, 10)], 2).expand(2, 7, 10, 2)
    assert torch.allclose(resample(pixels, places), pixels, atol=1e-5)
