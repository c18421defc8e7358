"""near_duplicates: planted copies are found, look-alikes are not, and nothing is chained."""

import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from sightline.data import decode, find_near_duplicates, load_dataset, similarity_join
from sightline.data import duplicates as module
from sightline.types import Dataset, Geometry

RNG = np.random.default_rng(0)


def scene(side: int = 160, seed: int = 0) -> Image.Image:
    """A picture with structure at every scale, unlike any other seed's."""
    rng, total = np.random.default_rng(seed), np.zeros((side, side, 3))
    for cells in (3, 6, 12, 24):
        coarse = Image.fromarray(rng.integers(0, 255, (cells, cells, 3), dtype=np.uint8))
        total += np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), float) * 3 / cells
    return Image.fromarray(np.rint(255 * total / total.max()).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def cropped(image: Image.Image) -> bytes:
    """Two per cent of each side, taken from one corner."""
    width, height = image.size
    return encoded(image.crop((0, 0, width - round(0.02 * width), height - round(0.02 * height))))


COPIES: dict[str, Callable[[Image.Image], bytes]] = {
    "half": lambda image: encoded(image.resize((image.width // 2, image.height // 2))),
    "double": lambda image: encoded(image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC)),
    "jpeg60": lambda image: encoded(image, "JPEG", quality=60),
    "jpeg90": lambda image: encoded(image, "JPEG", quality=90),
    "webp": lambda image: encoded(image, "WEBP", quality=70),
    "cropped": cropped,
    "blurred": lambda image: encoded(image.filter(ImageFilter.GaussianBlur(0.7))),
    "faded": lambda image: encoded(image.point(lambda value: 20 + 0.85 * value)),
}
OTHERS: dict[str, Callable[[Image.Image], bytes]] = {
    "mirrored": lambda image: encoded(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    "half of it": lambda image: encoded(image.crop((0, 0, image.width // 2, image.height))),
    "a hole in it": lambda image: encoded(holed(image)),
    "negative": lambda image: encoded(image.point(lambda value: 255 - value)),
    "other colours": lambda image: encoded(recoloured(image)),
}


def holed(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.paste((0, 0, 0), (60, 60, 100, 100))
    return image


def recoloured(image: Image.Image) -> Image.Image:
    """The same in grey, very different in colour."""
    grey = np.asarray(image.convert("L"), float)
    tint = np.array([40, -15, -31.6])  # weighs nothing in grey
    return Image.fromarray(np.clip(grey[..., None] * 0.5 + 60 + tint, 0, 255).astype(np.uint8))


def dataset(pixels: np.ndarray, digests=None, labels=None, columns=None) -> Dataset:
    count = len(pixels)
    labels = np.zeros(count, np.int64) if labels is None else np.asarray(labels, np.int64)
    return Dataset(
        pixels=pixels,
        rows=np.arange(count),
        labels=labels,
        classes=tuple(f"class{i}" for i in range(labels.max() + 1)),
        files=np.array([f"{i}.png" for i in range(count)], object),
        digests=np.arange(count, dtype=np.uint64) if digests is None else np.asarray(digests, np.uint64),
        geometry=Geometry(size=pixels.shape[1:3], channels=pixels.shape[3]),
        fingerprint="",
        columns=columns or {},
    )


def decoded(files: list[bytes], side: int = 64, channels: int = 3) -> Dataset:
    geometry = Geometry(size=(side, side), channels=channels)
    return dataset(np.stack([decode(data, geometry) for data in files]))


@pytest.mark.parametrize("side", [32, 64, 150])
@pytest.mark.parametrize("kind", COPIES)
def test_planted_copies_are_found(kind, side):
    scenes = [scene(seed=seed) for seed in range(12)]
    files = [encoded(image) for image in scenes] + [COPIES[kind](image) for image in scenes]
    leader = find_near_duplicates(decoded(files, side))
    for i in range(12):
        assert leader[i] == leader[12 + i]
    assert len(np.unique(leader)) == 12


@pytest.mark.parametrize("kind", OTHERS)
def test_different_pictures_are_not_grouped(kind):
    scenes = [scene(seed=seed) for seed in range(8)]
    files = [encoded(image) for image in scenes] + [OTHERS[kind](image) for image in scenes]
    np.testing.assert_array_equal(find_near_duplicates(decoded(files)), np.arange(16))


def test_no_chains():
    """A picture that turns slowly into another: neighbours are alike, and no group joins the ends."""
    one, two = (np.asarray(scene(64, seed=seed), float) for seed in (1, 2))
    steps = np.linspace(0, 1, 60)[:, None, None, None]
    turning = np.rint(one * (1 - steps) + two * steps).astype(np.uint8)
    data = dataset(turning)
    looks = module.ImageSignatures(data, np.arange(60))
    neighbours = np.stack([np.arange(59), np.arange(1, 60)], 1)
    assert looks.confirm_pairs(neighbours).all()
    leader = find_near_duplicates(data)
    assert 3 < len(np.unique(leader)) < 30
    members = np.flatnonzero(leader != np.arange(60))
    assert looks.confirm_pairs(np.stack([leader[members], members], 1)).all()  # each with its leader itself
    assert (leader[leader] == leader).all()


def test_exact_copies_are_grouped_and_flat_pictures_are_not():
    pixels = np.stack([np.asarray(scene(32, seed=seed)) for seed in (0, 1, 0, 0)] + [np.full((32, 32, 3), 90)] * 3)
    data = dataset(pixels.astype(np.uint8), digests=[5, 6, 5, 5, 7, 8, 7])
    assert find_near_duplicates(data).tolist() == [0, 1, 0, 0, 4, 5, 4]


def test_more_copies_than_are_compared_are_one_group(monkeypatch):
    """Noisy copies of two pictures, many more than each is compared with: two groups; and a slow change is none."""
    rng = np.random.default_rng(0)
    base = np.stack([np.asarray(scene(32, seed=seed), float) for seed in (0, 1)])
    copies = np.clip(np.repeat(base, [90, 60], axis=0) + rng.normal(0, 2, (150, 32, 32, 3)), 0, 255)
    steps = np.linspace(0, 1, 60)[:, None, None, None]
    turning = base[0] * (1 - steps) + base[1] * steps
    monkeypatch.setattr(module, "MAX_CANDIDATES", 5)
    leader = find_near_duplicates(dataset(np.rint(copies).astype(np.uint8)))
    assert len(np.unique(leader[:90])) == len(np.unique(leader[90:])) == 1
    assert leader[0] != leader[90]
    data = dataset(np.rint(turning).astype(np.uint8))
    leader = find_near_duplicates(data)
    assert len(np.unique(leader)) > 3
    members = np.flatnonzero(leader != np.arange(60))
    assert len(members) > 20
    looks = module.ImageSignatures(data, np.arange(60))
    assert looks.confirm_pairs(np.stack([leader[members], members], 1)).all()
    assert (leader[leader] == leader).all()


def test_candidates_that_no_pixels_confirm():
    """Equal low frequencies under different fine patterns: candidates, and not one near duplicate."""
    rng = np.random.default_rng(0)
    smooth = np.asarray(scene(32).convert("L"), float)[..., None]
    noisy = np.clip(smooth + rng.normal(0, 12, (6, 32, 32, 1)), 0, 255).astype(np.uint8)
    looks = module.ImageSignatures(dataset(noisy), np.arange(6))
    pairs = looks.candidate_pairs()
    assert len(pairs)
    assert not looks.confirm_pairs(pairs).any()
    np.testing.assert_array_equal(find_near_duplicates(dataset(noisy)), np.arange(6))


def test_tiny_images_are_compared_byte_for_byte():
    data = load_dataset("digits", Geometry(size=(8, 8), channels=1))
    np.testing.assert_array_equal(find_near_duplicates(data), np.arange(1797))


def test_among_many_images_no_candidate_is_lost(monkeypatch):
    """All pairs within the distance are candidates, as of a set small enough to compare every pair in float64."""
    rng = np.random.default_rng(3)
    base = np.stack([np.asarray(scene(32, seed=seed)) for seed in range(300)])
    near = np.clip(base + rng.normal(0, 3, base.shape), 0, 255).astype(np.uint8)
    shifted = np.stack([decode(cropped(Image.fromarray(each)), Geometry(size=(32, 32))) for each in base[:100]])
    data = dataset(np.concatenate([base, near, shifted]))
    monkeypatch.setattr(similarity_join, "MAX_LEAF_VECTORS", 16)
    looks = module.ImageSignatures(data, np.arange(len(data)))
    low = looks.low.astype(np.float64)
    distances = np.linalg.norm(low[:, None] - low, axis=2) + np.tri(len(low))  # each pair once
    assert {tuple(pair) for pair in looks.candidate_pairs()} == {
        tuple(pair) for pair in np.argwhere(distances <= module.MAX_SPECTRAL_DISTANCE)
    }
    leader = find_near_duplicates(data)
    np.testing.assert_array_equal(leader, [*range(300), *range(300), *range(100)])


def test_the_result_is_cached_in_the_store(tmp_path, monkeypatch):
    for i in range(6):
        path = tmp_path / f"data/{'ab'[i % 2]}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(COPIES["half"](scene(seed=i // 2)) if i % 2 else encoded(scene(seed=i // 2)))
    data = load_dataset(tmp_path / "data", Geometry(size=(64, 64)))
    first = find_near_duplicates(data)
    assert len(np.unique(first)) == 3
    part = find_near_duplicates(data.subset(np.array([0, 1, 2])))
    monkeypatch.setattr(module, "ImageSignatures", lambda *_: pytest.fail("looked for again"))
    np.testing.assert_array_equal(find_near_duplicates(data), first)
    np.testing.assert_array_equal(find_near_duplicates(data.subset(np.array([0, 1, 2]))), part)


def test_real_datasets_have_few_near_duplicates(shared_data: Path):
    """The first four thousand of each: few groups where none is meant, and every planted JPEG found."""
    for name, side, channels, most in (("mnist_png.zip", 28, 1, 4), ("cifar10_jpg.zip", 32, 3, 40)):
        geometry = Geometry(size=(side, side), channels=channels)
        with zipfile.ZipFile(shared_data / name) as archive:
            names = [each for each in archive.namelist() if each.endswith(("png", "jpg"))][:4000]
            files = [archive.read(each) for each in names]
        mode = "L" if channels == 1 else "RGB"
        copies = [encoded(Image.open(BytesIO(data)).convert(mode), "JPEG", quality=80) for data in files[:100]]
        pixels = np.stack([decode(data, geometry) for data in files + copies])
        leader = find_near_duplicates(dataset(pixels))
        joined = leader[:100] == leader[4000:]
        assert joined.mean() >= 0.98, name
        grouped = np.bincount(leader[:4000], minlength=4100)
        assert grouped[grouped > 1].sum() <= most, name
