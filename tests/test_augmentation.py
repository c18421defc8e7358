"""Laws over every member of the family, and plain per-image versions that must agree."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline import runtime
from sightline.augmentation import AUGMENTATIONS, Affine, Compose, Flip, Rotate, Scale, Shift, policy, warp
from sightline.augmentation.geometry import mirror, move, similarity
from sightline.errors import ChoiceError
from sightline.types import Batch

MEMBERS = [make() for make in AUGMENTATIONS.values()] + [
    Shift(3, "edge"),
    Rotate(170.0, "edge"),
    Scale(0.5, "edge"),
    Affine(30.0, 0.3, 0.4, "edge"),
    policy("flip shift:2 affine:10:scale=0.2"),
]
IDENTITIES = [Flip(0), Shift(0), Shift(0, "edge"), Rotate(0), Scale(0), Affine(0, 0, 0), Compose()]
SHAPES = [(8, 1, 28, 28), (8, 3, 32, 32), (5, 3, 17, 40), (1, 1, 9, 6)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]

members = pytest.mark.parametrize("member", MEMBERS, ids=repr)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])


def batch_of(pixels: Tensor, soft: bool = False) -> Batch:
    count = len(pixels)
    labels = torch.rand(count, 4).softmax(1) if soft else torch.arange(count) % 4
    return Batch(pixels, labels, torch.arange(count) + 100, torch.zeros(count, dtype=torch.int64))


def images(shape, layout=torch.contiguous_format, seed=0) -> Tensor:
    drawn = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return drawn.contiguous(memory_format=layout)


@members
@shapes
@layouts
def test_form_is_kept(member, shape, layout):
    batch = batch_of(images(shape, layout))
    before = batch.pixels.clone()
    out = member(batch, runtime.generator(1))
    assert out.pixels.shape == before.shape
    assert out.pixels.dtype == before.dtype
    assert out.pixels.stride() == before.stride()
    assert out.pixels.min() >= 0
    assert out.pixels.max() <= 1
    assert torch.equal(batch.pixels, before), "the input was written to"


@members
@pytest.mark.parametrize("soft", [False, True])
def test_labels_and_index_are_kept(member, soft):
    batch = batch_of(images((8, 3, 12, 12)), soft)
    out = member(batch, runtime.generator(1))
    assert torch.equal(out.labels, batch.labels)
    assert torch.equal(out.index, batch.index)
    assert out.group is not None
    assert batch.group is not None
    assert torch.equal(out.group, batch.group)


@members
def test_repeats_under_the_same_generator(member):
    batch = batch_of(images((16, 3, 20, 20)))
    first, again, other = (member(batch, runtime.generator(seed)).pixels for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@members
def test_each_image_draws_its_own(member):
    one = images((1, 3, 20, 20))
    out = member(batch_of(one.expand(64, -1, -1, -1).contiguous()), runtime.generator(3)).pixels
    assert len(torch.unique(out.flatten(1), dim=0)) > 1


@members
def test_images_do_not_leak_into_each_other(member):
    pixels = images((6, 3, 15, 15))
    whole = member(batch_of(pixels), runtime.generator(4)).pixels
    others = pixels.clone()
    others[1:] = 0.5
    assert torch.equal(member(batch_of(others), runtime.generator(4)).pixels[0], whole[0])


@members
def test_layout_does_not_change_values(member):
    plain, last = (
        member(batch_of(images((6, 3, 15, 22), layout)), runtime.generator(5)).pixels for layout in LAYOUTS
    )
    assert torch.allclose(plain, last, atol=1e-6)


@members
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_is_kept(member, dtype):
    assert member(batch_of(images((4, 3, 10, 10)).to(dtype)), runtime.generator(1)).pixels.dtype == dtype


@members
def test_strided_views_work(member):
    pixels = images((4, 3, 20, 20))[:, :, ::2, 1:11]
    plain = member(batch_of(pixels.contiguous()), runtime.generator(6)).pixels
    assert torch.allclose(member(batch_of(pixels), runtime.generator(6)).pixels, plain, atol=1e-6)


@members
def test_repr_rebuilds(member):
    names = {kind.__name__: kind for kind in (Affine, Compose, Flip, Rotate, Scale, Shift)}
    assert eval(repr(member), names) == member


@pytest.mark.parametrize("member", IDENTITIES, ids=repr)
@layouts
def test_identity_parameters_change_nothing(member, layout):
    batch = batch_of(images((8, 3, 11, 14), layout))
    assert torch.equal(member(batch, runtime.generator(1)).pixels, batch.pixels)


# The plain versions, one image at a time.


@shapes
@layouts
def test_mirror_equals_plain(shape, layout):
    pixels = images(shape, layout)
    chosen = torch.arange(0, shape[0], 2)
    plain = torch.stack([image.flip(2) if i in chosen.tolist() else image for i, image in enumerate(pixels)])
    assert torch.equal(mirror(pixels, chosen), plain)


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
    assert np.array_equal(move(pixels, offsets, margin, fill).numpy(), plain)


def test_move_by_more_than_the_image():
    pixels = images((2, 1, 3, 3))
    offsets = torch.tensor([[5, 0], [0, -1]])
    moved = move(pixels, offsets, 5, "zero")
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
    return similarity(*values, torch.tensor([[x, y]], dtype=torch.float64), shape)


def test_a_quarter_turn_is_anticlockwise():
    pixels = images((1, 3, 8, 8))
    assert torch.allclose(warp(pixels, matrix(torch.pi / 2)), torch.rot90(pixels, 1, (2, 3)), atol=1e-5)


def test_displacement_is_a_share_of_each_side():
    pixels = images((1, 2, 8, 12))
    moved = warp(pixels, matrix(x=0.25, y=0.125, shape=(8, 12)))
    assert torch.allclose(moved, move(pixels, torch.tensor([[1, 3]]), 3, "zero"), atol=1e-5)


def test_size_two_enlarges():
    pixels = torch.zeros(1, 1, 8, 8)
    pixels[:, :, 3:5, 3:5] = 1
    assert warp(pixels, matrix(size=2.0)).sum() == pytest.approx(16, rel=1e-4)


def test_a_turn_keeps_distances_in_wide_images():
    pixels = torch.zeros(1, 1, 21, 41)
    pixels[0, 0, 10, 26] = 1  # 6 pixels right of the centre
    turned = warp(pixels, matrix(torch.pi / 2, shape=(21, 41)))
    assert turned[0, 0, 4, 20] == pytest.approx(1, abs=1e-4)


# Distributions.


def test_flip_mirrors_its_share():
    ramp = torch.arange(4.0).div(4).expand(4000, 1, 1, 4)
    out = Flip(0.3)(batch_of(ramp), runtime.generator(1)).pixels
    share = (out[:, 0, 0, 0] > 0).float().mean().item()
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / 4000) ** 0.5


def test_shift_reaches_every_offset_alike():
    dot = torch.zeros(8100, 1, 5, 5)
    dot[:, :, 2, 2] = 1
    counts = Shift(1)(batch_of(dot), runtime.generator(2)).pixels.sum((0, 1))
    assert counts.sum() == 8100
    assert counts[1:4, 1:4].sum() == 8100
    assert ((counts[1:4, 1:4] - 900).abs() < 5 * 30).all()


# What a user types.


def test_policy_reads_words():
    expected = Compose((Flip(), Shift(2, "edge"), Rotate(15)))
    assert policy("flip, shift:2:fill=edge rotate:15") == expected
    assert policy(["flip", Shift(2, "edge"), "rotate:degrees=15"]) == expected
    assert policy([]) == Compose()


IMPOSSIBLE = {
    "flipp": "Did you mean 'flip'",
    "flip:2": "p is a number from 0 to 1",
    "shift:-1": "from 0 to 256",
    "rotate:270": "from 0 to 180",
    "scale:-0.1": "from 0 to 10",
    "affine:translate=2": "from 0 to 1",
    "flip:q=1": "q",
}
WRONG_TYPES = {
    "flip:often": "p is a number from 0 to 1",
    "shift:1.5": "whole number",
    "shift:True": "from 0 to 256",
    "shift:4:fill=white": "zero, edge",
    "rotate:much": "from 0 to 180",
}


@pytest.mark.parametrize(("word", "hint"), IMPOSSIBLE.items())
def test_impossible_words_are_refused(word, hint):
    with pytest.raises(ChoiceError, match="augmentation") as caught:
        policy(word)
    assert hint in str(caught.value)


def test_words_of_a_wrong_type_are_refused_in_a_sentence():
    """In a process of its own: here the type checker would speak before the product does."""
    program = (
        "import sys\nfrom sightline.augmentation import policy\n"
        "for word in sys.argv[1:]:\n"
        "    try: print(policy(word))\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
    )
    run = subprocess.run([sys.executable, "-c", program, *WRONG_TYPES], capture_output=True, text=True, check=True)
    answers = run.stdout.splitlines()
    for (word, hint), answer in zip(WRONG_TYPES.items(), answers, strict=True):
        assert answer.startswith(f"ChoiceError The augmentation '{word}' cannot be made")
        assert hint in answer
