"""Mixing and erasing by what they show and count; the automatic policies by an operation at a time."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from sightline import runtime
from sightline.augmentation import CutMix, Erase, Mixup, RandAugment, TrivialAugment, parse_policy
from sightline.augmentation.automatic import RANDAUGMENT_SPACE, TRIVIALAUGMENT_SPACE, apply_operations
from sightline.augmentation.kernels import translate_images
from sightline.batches import Batch

LAYOUTS = [torch.contiguous_format, torch.channels_last]
layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])


def coloured(count: int, size=(8, 8), layout=torch.contiguous_format) -> Batch:
    """Image i shows its own value everywhere and has a class of its own."""
    values = torch.arange(count) / count
    pixels = values.view(-1, 1, 1, 1).expand(count, 3, *size).contiguous(memory_format=layout)
    return Batch(pixels, torch.arange(count), torch.arange(count), classes=count)


def images(shape, layout=torch.contiguous_format) -> Tensor:
    return torch.rand(shape, generator=runtime.make_generator(9)).contiguous(memory_format=layout)


def batch_of(pixels: Tensor) -> Batch:
    return Batch(pixels, torch.zeros(len(pixels), dtype=torch.int64), torch.arange(len(pixels)), classes=2)


# Mixing: every pixel says which image it is from, every label must say the same.


@layouts
def test_mixup_blends_images_and_labels_alike(layout):
    batch = coloured(64, layout=layout)
    out = Mixup(1.0)(batch, runtime.make_generator(1))
    values = torch.arange(64) / 64
    assert torch.allclose(out.pixels[:, 0, 0, 0], out.labels @ values, atol=1e-6)
    assert (out.labels.count_nonzero(1) <= 2).all()
    assert torch.allclose(out.labels.sum(0).sum(), torch.tensor(64.0))


@layouts
def test_cutmix_labels_count_pixels(layout):
    batch = coloured(64, (7, 12), layout)
    out = CutMix()(batch, runtime.make_generator(1))
    values = torch.arange(64) / 64
    for pixels, label in zip(out.pixels, out.labels, strict=True):
        shown = torch.stack([(pixels[0] == value).float().mean() for value in values])
        assert torch.allclose(shown, label, atol=1e-6)


def test_cutmix_pastes_one_box_from_the_same_place():
    pixels = images((32, 3, 10, 14))
    out = CutMix()(batch_of(pixels), runtime.make_generator(2)).pixels
    for number, image in enumerate(out):
        changed = (image != pixels[number]).any(0)
        if changed.any():
            rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
            box = (slice(None), slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1))
            assert changed[box[1:]].all(), "not a box"
            assert any(torch.equal(image[box], other[box]) for other in pixels)


def test_shares_are_drawn_from_beta():
    for member, alpha in ((Mixup(0.3), 0.3), (Mixup(1.0), 1.0)):
        labels = member(coloured(2000, (1, 1)), runtime.make_generator(3)).labels
        own = labels.diagonal().numpy()
        partner = labels.argmax(1) == torch.arange(2000)
        assert partner.any()
        assert stats.kstest(own, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_cutmix_boxes_have_the_area_of_beta():
    """Away from the borders: a box cut there covers less."""
    batch = coloured(4000, (64, 64))
    batch = replace(batch, pixels=batch.pixels[:, :1].contiguous())
    kept = CutMix()(batch, runtime.make_generator(3)).labels.diagonal()
    assert kept.mean().item() > 0.5
    rng = np.random.default_rng(0)
    side = np.sqrt(1 - rng.beta(1, 1, 400_000))
    centre = rng.random((2, 400_000))
    covered = np.prod(np.minimum(centre + side / 2, 1) - np.maximum(centre - side / 2, 0), axis=0)
    assert kept.mean().item() == pytest.approx(1 - covered.mean(), abs=0.015)


@pytest.mark.parametrize("make", [Mixup, CutMix])
def test_a_share_of_the_images_is_mixed(make):
    labels = make(p=0.25)(coloured(2000, (6, 6)), runtime.make_generator(4)).labels
    share = (labels.diagonal() < 1).float().mean().item()
    assert share < 0.25 + 4 * (0.25 * 0.75 / 2000) ** 0.5
    assert share > 0.15


def test_soft_labels_are_mixed_again():
    batch = coloured(16)
    once = Mixup()(batch, runtime.make_generator(5))
    twice = CutMix()(replace(once, classes=None), runtime.make_generator(6))
    assert torch.allclose(twice.labels.sum(1), torch.ones(16))
    assert (twice.labels.count_nonzero(1) > 2).any()


def test_a_batch_of_one_is_mixed_with_itself():
    batch = coloured(1)
    for member in (Mixup(), CutMix()):
        out = member(batch, runtime.make_generator(1))
        assert torch.equal(out.pixels, batch.pixels)
        assert torch.equal(out.labels, torch.ones(1, 1))


# Erasing.


@layouts
@pytest.mark.parametrize("content", ["grey", "black"])
def test_erase_fills_one_box_within_its_limits(layout, content):
    shown = {"grey": 0.5, "black": 0.0}[content]
    pixels = torch.ones(600, 3, 30, 20).contiguous(memory_format=layout)
    out = Erase(0.7, 0.05, 0.3, 2.0, content)(batch_of(pixels), runtime.make_generator(1)).pixels
    changed = (out == shown).all(1)
    assert torch.equal(changed.unsqueeze(1).expand_as(out), out != 1)
    areas = changed.float().mean((1, 2))
    assert abs((areas > 0).float().mean().item() - 0.7) < 4 * (0.7 * 0.3 / 600) ** 0.5
    rows, columns = changed.any(2).sum(1), changed.any(1).sum(1)
    assert torch.equal(rows * columns, changed.sum((1, 2))), "not a box"
    erased = areas > 0
    assert areas[erased].min() > 0.04
    assert areas[erased].max() < 0.32
    assert areas[erased].mean().item() == pytest.approx(0.175, abs=0.02)
    ratios = (rows[erased] / 30) / (columns[erased] / 20)
    assert ratios.max() < 2.4
    assert ratios.min() > 1 / 2.4


def test_erase_reaches_every_pixel():
    out = Erase(1.0, content="black")(batch_of(torch.ones(3000, 1, 9, 9)), runtime.make_generator(1)).pixels
    assert (1 - out).sum((0, 1)).min() > 100


def test_erased_boxes_show_even_noise():
    out = Erase(1.0)(batch_of(torch.full((400, 1, 24, 24), 0.123)), runtime.make_generator(1)).pixels
    noise = out[out != 0.123].numpy()
    assert stats.kstest(noise, stats.uniform.cdf).pvalue > 1e-3


# The automatic policies.


@layouts
@pytest.mark.parametrize("space", [TRIVIALAUGMENT_SPACE, RANDAUGMENT_SPACE], ids=["wide", "classic"])
def test_operations_are_applied_to_those_who_drew_them(space, layout):
    """All at once, grouped, against each image alone."""
    pixels = images((28, 3, 14, 11), layout)
    chosen = torch.randperm(28, generator=runtime.make_generator(1)) % len(space)
    levels = torch.rand(28, generator=runtime.make_generator(2), dtype=torch.float64)
    signs = 2 * torch.randint(2, (28,), generator=runtime.make_generator(3)) - 1
    out = apply_operations(pixels, chosen, levels, signs, space)
    operations = list(space.values())
    for i in range(28):
        operation, low, high, signed = operations[chosen[i]]
        amount = (low + (high - low) * levels[i : i + 1]) * (signs[i] if signed else 1)
        assert torch.allclose(out[i], operation(pixels[i : i + 1], amount)[0], atol=1e-6)
    assert out.stride() == pixels.stride()


@pytest.mark.parametrize(
    "name", [name for name in TRIVIALAUGMENT_SPACE if name not in {"identity", "autocontrast", "equalize"}]
)
@pytest.mark.parametrize("space", [TRIVIALAUGMENT_SPACE, RANDAUGMENT_SPACE], ids=["wide", "classic"])
def test_magnitude_zero_changes_nothing_and_more_changes_more(space, name):
    pixels = 0.05 + 0.9 * torch.rand(4, 3, 16, 16, generator=runtime.make_generator(1))
    chosen = torch.full((4,), list(space).index(name))
    changes = []
    for level in (0.0, 0.5, 1.0):
        out = apply_operations(
            pixels, chosen, torch.full((4,), level).double(), torch.ones(4, dtype=torch.int64), space
        )
        changes.append((out - pixels).abs().mean().item())
    assert changes[0] < 0.002  # posterize rounds to 8 bits
    assert min(changes[1:]) > 0.005


@pytest.mark.parametrize(("name", "step"), [("move-x", (0, 8)), ("move-y", (8, 0))])
def test_the_wide_space_moves_by_up_to_32_pixels(name, step):
    pixels = images((1, 3, 40, 40))
    chosen, plus = torch.tensor([list(TRIVIALAUGMENT_SPACE).index(name)]), torch.ones(1, dtype=torch.int64)
    out = apply_operations(pixels, chosen, torch.tensor([0.25], dtype=torch.float64), plus, TRIVIALAUGMENT_SPACE)
    assert torch.allclose(out, translate_images(pixels, torch.tensor([step]), 8, "zero"), atol=1e-4)


def test_trivialaugment_draws_every_operation_and_magnitude(monkeypatch):
    seen = []

    def caught(pixels, chosen, levels, signs, space):
        seen.append((chosen, levels, signs))
        return pixels

    monkeypatch.setattr("sightline.augmentation.automatic.apply_operations", caught)
    TrivialAugment()(batch_of(torch.zeros(10_000, 1, 1, 1)), runtime.make_generator(1))
    ((chosen, levels, signs),) = seen
    counts = torch.bincount(chosen, minlength=14)
    assert len(TRIVIALAUGMENT_SPACE) == len(counts) == 14
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    bins = torch.bincount((levels * 30).round().long())
    assert len(bins) == 31
    assert stats.chisquare(bins.numpy()).pvalue > 1e-3
    assert abs(signs.float().mean().item()) < 0.05
    seen.clear()
    RandAugment(3, 15)(batch_of(torch.zeros(100, 1, 1, 1)), runtime.make_generator(1))
    assert len(seen) == 3
    assert all((levels == 0.5).all() for _, levels, _ in seen)


def test_one_image_in_fourteen_is_unchanged():
    pixels = images((3000, 1, 4, 4))
    out = TrivialAugment()(batch_of(pixels), runtime.make_generator(2)).pixels
    same = (out == pixels).flatten(1).all(1).float().mean().item()
    assert 1 / 14 - 0.02 < same < 0.35  # and those that drew a magnitude of 0


def test_policies_are_parsed():
    assert parse_policy("randaugment:3:m=12 mixup:0.4:p=0.5").members == (RandAugment(3, 12), Mixup(0.4, 0.5))
