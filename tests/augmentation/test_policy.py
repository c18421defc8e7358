"""Laws over every member of the family, and what a user may type."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import sightline.augmentation as stage
from sightline import runtime
from sightline.augmentation import (
    AUGMENTATIONS,
    Affine,
    AlternatingFlip,
    Blur,
    Brightness,
    Compose,
    Contrast,
    CutMix,
    Elastic,
    Erase,
    Flip,
    Hue,
    Mixup,
    Noise,
    RandAugment,
    ResizedCrop,
    Rotate,
    Saturation,
    Scale,
    Sharpen,
    Shear,
    Shift,
    StrongAugment,
    VerticalFlip,
    parse_policy,
)
from sightline.batches import Batch
from sightline.errors import ChoiceError

MEMBERS = [make() for make in AUGMENTATIONS.values()] + [
    Shift(3, "edge"),
    Affine(30.0, 0.3, 0.4, "edge"),
    Shear(50.0, "edge"),
    Elastic(60.0, 2.0, "edge"),
    Erase(1.0, content="grey"),
    RandAugment(3, 30),
    StrongAugment(),
    parse_policy("flip shift:2 affine:10:scale=0.2"),
    parse_policy("randaugment:1 mixup:p=0.5 cutmix erase"),
]
MIXING = tuple(m for m in MEMBERS if "Mixup(" in repr(m) or "CutMix(" in repr(m))
FIXED = (AlternatingFlip(),)
"""Members that draw nothing: index and epoch decide."""
IDENTITIES = [
    *(Flip(0), VerticalFlip(0), Shift(0), Shift(0, "edge"), Rotate(0), Scale(0), Affine(0, 0, 0), Compose()),
    *(Shear(0), ResizedCrop(1, 1, 1), Elastic(0), Brightness(0), Contrast(0), Saturation(0), Hue(0), Sharpen(0)),
    *(Blur(0), Noise(0), Erase(0), Mixup(p=0), CutMix(p=0), RandAugment(0), StrongAugment(0, 0)),
]
SHAPES = [(8, 1, 28, 28), (8, 3, 32, 32), (5, 3, 17, 40), (1, 3, 9, 6), (3, 1, 2, 1)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
CLASSES = 4

members = pytest.mark.parametrize("member", MEMBERS, ids=repr)
one_to_one = pytest.mark.parametrize("member", [m for m in MEMBERS if m not in MIXING], ids=repr)
mixing = pytest.mark.parametrize("member", MIXING, ids=repr)


def batch_of(pixels: Tensor, soft: bool = False) -> Batch:
    count = len(pixels)
    labels = torch.rand(count, CLASSES).softmax(1) if soft else torch.arange(count) % CLASSES
    group = torch.zeros(count, dtype=torch.int64)
    return Batch(pixels, labels, torch.arange(count) + 100, group, None if soft else CLASSES, epoch=1)


def images(shape, layout=torch.contiguous_format, seed=0) -> Tensor:
    drawn = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return drawn.contiguous(memory_format=layout)


@members
def test_shape_is_kept(member):
    for shape in SHAPES:
        for layout in LAYOUTS:
            batch = batch_of(images(shape, layout))
            before = batch.pixels.clone()
            out = member(batch, runtime.make_generator(1))
            assert out.pixels.shape == before.shape
            assert out.pixels.dtype == before.dtype
            assert out.pixels.stride() == before.stride()
            assert out.pixels.min() >= 0
            assert out.pixels.max() <= 1
            assert torch.equal(batch.pixels, before), "the input was written to"


@members
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_black_and_white_stay_in_range(member, value):
    out = member(batch_of(torch.full((6, 3, 12, 12), value)), runtime.make_generator(1)).pixels
    assert out.isfinite().all()
    assert out.min() >= 0
    assert out.max() <= 1


@members
@pytest.mark.parametrize("soft", [False, True])
def test_index_and_group_are_kept(member, soft):
    batch = batch_of(images((8, 3, 12, 12)), soft)
    out = member(batch, runtime.make_generator(1))
    assert torch.equal(out.index, batch.index)
    assert out.group is not None
    assert batch.group is not None
    assert torch.equal(out.group, batch.group)
    assert (out.classes, out.epoch) == (batch.classes, batch.epoch)


@one_to_one
@pytest.mark.parametrize("soft", [False, True])
def test_labels_are_kept(member, soft):
    batch = batch_of(images((8, 3, 12, 12)), soft)
    assert torch.equal(member(batch, runtime.make_generator(1)).labels, batch.labels)


@mixing
@pytest.mark.parametrize("soft", [False, True])
def test_mixed_labels_keep_their_mass(member, soft):
    batch = batch_of(images((8, 3, 12, 12)), soft)
    before = batch.labels.clone()
    labels = member(batch, runtime.make_generator(1)).labels
    assert labels.shape == (8, CLASSES)
    assert labels.dtype == torch.float32
    assert labels.min() >= 0
    assert torch.allclose(labels.sum(1), torch.ones(8))
    assert torch.equal(batch.labels, before), "the labels were written to"


@mixing
def test_mixing_needs_the_number_of_classes(member):
    batch = replace(batch_of(images((4, 3, 8, 8))), classes=None)
    with pytest.raises(ValueError, match="number of classes"):
        member(batch, runtime.make_generator(1))


@members
def test_repeats_under_the_same_generator(member):
    batch = batch_of(images((16, 3, 20, 20)))
    first, again, other = (member(batch, runtime.make_generator(seed)).pixels for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (member in FIXED)


@one_to_one
def test_each_image_draws_its_own(member):
    one = images((1, 3, 20, 20))
    out = member(batch_of(one.expand(64, -1, -1, -1).contiguous()), runtime.make_generator(3)).pixels
    assert len(torch.unique(out.flatten(1), dim=0)) > 1


@one_to_one
def test_images_do_not_mix(member):
    pixels = images((6, 3, 15, 15))
    whole = member(batch_of(pixels), runtime.make_generator(4)).pixels
    others = pixels.clone()
    others[1:] = 0.5
    assert torch.allclose(member(batch_of(others), runtime.make_generator(4)).pixels[0], whole[0], atol=1e-6)


@members
def test_memory_format_does_not_change_values(member):
    plain, last = (
        member(batch_of(images((6, 3, 15, 22), layout)), runtime.make_generator(5)).pixels for layout in LAYOUTS
    )
    assert torch.allclose(plain, last, atol=1e-6)


@members
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_is_kept(member, dtype):
    assert member(batch_of(images((4, 3, 10, 10)).to(dtype)), runtime.make_generator(1)).pixels.dtype == dtype


@members
def test_strided_views_work(member):
    pixels = images((4, 3, 20, 20))[:, :, ::2, 1:11]
    plain = member(batch_of(pixels.contiguous()), runtime.make_generator(6)).pixels
    assert torch.allclose(member(batch_of(pixels), runtime.make_generator(6)).pixels, plain, atol=1e-6)


@members
def test_repr_rebuilds(member):
    assert eval(repr(member), vars(stage)) == member


@pytest.mark.parametrize("member", IDENTITIES, ids=repr)
@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
def test_identity_parameters_change_nothing(member, layout):
    batch = batch_of(images((8, 3, 11, 14), layout))
    assert torch.equal(member(batch, runtime.make_generator(1)).pixels, batch.pixels)


@pytest.mark.parametrize("member", [Saturation(1.0), Hue(0.5)], ids=repr)
def test_grey_images_have_no_colour_to_change(member):
    batch = batch_of(images((4, 1, 8, 8)))
    assert torch.equal(member(batch, runtime.make_generator(1)).pixels, batch.pixels)


def test_every_member_has_a_docstring():
    lines = [(make.__doc__ or "").partition("\n")[0] for make in AUGMENTATIONS.values()]
    assert all(20 < len(line) <= 115 and line[-1] in ".:" for line in lines)
    assert len(set(lines)) == len(lines)


# What a user types.


def test_words_of_a_policy():
    expected = Compose((Flip(), Shift(2, "edge"), Rotate(15)))
    assert parse_policy("flip, shift:2:fill=edge rotate:15") == expected
    assert parse_policy(["flip", Shift(2, "edge"), "rotate:degrees=15"]) == expected
    assert parse_policy([]) == Compose()


IMPOSSIBLE = {
    "flipp": "Did you mean 'flip'",
    "flip:2": "p must be a number from 0 to 1",
    "shift:-1": "from 0 to 256",
    "rotate:270": "from 0 to 180",
    "scale:-0.1": "from 0 to 10",
    "affine:translate=2": "from 0 to 1",
    "flip:q=1": "q",
    "shear:80": "from 0 to 60",
    "resized-crop:0": "least must be a number",
    "resized-crop:0.9:0.5": "least must be a number from 0.001 to 0.5",
    "elastic:sigma=0": "from 0.1 to 100",
    "brightness:2": "from 0 to 1",
    "hue:0.6": "from 0 to 0.5",
    "erase:least=0.5": "from 0 to 0.4",
    "mixup:0": "from 0.001 to 100",
    "cutmix:p=2": "p must be a number from 0 to 1",
    "randaugment:2:31": "from 0 to 30",
    "trivialaugment:3": "trivialaugment",
    "cut-mix": "Did you mean 'cutmix'",
}
WRONG_TYPES = {
    "flip:often": "p must be a number from 0 to 1",
    "shift:1.5": "whole number",
    "shift:True": "pixels must be a whole number from 0 to 256",
    "shift:4:fill=white": "zero, edge",
    "rotate:much": "from 0 to 180",
    "randaugment:1.5": "n must be a whole number",
    "erase:content=white": "noise, grey, black",
    "elastic:alpha=big": "alpha must be a number",
}


@pytest.mark.parametrize(("word", "hint"), IMPOSSIBLE.items())
def test_impossible_words_are_refused(word, hint):
    with pytest.raises(ChoiceError, match="augmentation") as caught:
        parse_policy(word)
    assert hint in str(caught.value)


@pytest.mark.parametrize(("word", "hint"), WRONG_TYPES.items())
def test_arguments_of_a_wrong_type_are_refused(word, hint):
    with pytest.raises(ChoiceError) as caught:
        parse_policy(word)
    assert str(caught.value).startswith(f"The augmentation '{word}' cannot be made")
    assert hint in str(caught.value)
