"""Thumbnails: the right picture, bounded, made once, and bombs refused."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from sightline.errors import ImageError
from sightline.studio.thumbnails import ThumbnailCache


def encode(pixels: np.ndarray, kind: str = "png") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def photo(seed: int = 0, height: int = 300, width: int = 600) -> np.ndarray:
    ramp = np.linspace(0, 255, width)[None, :, None] * np.linspace(0.2, 1, height)[:, None, None]
    return np.uint8(np.broadcast_to(ramp, (height, width, 3)) * [1, 0.5, seed / 255])


def opened(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_a_photo_is_shrunk_with_its_shape(tmp_path):
    data, kind = ThumbnailCache(tmp_path).get(encode(photo(90), "jpeg"), 100)
    assert kind == "image/jpeg"
    assert opened(data).shape == (50, 100, 3)
    expected = np.asarray(Image.fromarray(photo(90)).resize((100, 50), Image.Resampling.BOX)).astype(int)
    assert np.abs(opened(data).astype(int) - expected).mean() < 4


def test_a_small_picture_keeps_every_pixel(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (8, 9), np.uint8)
    data, kind = ThumbnailCache(tmp_path).get(encode(pixels), 112)
    assert kind == "image/png"
    assert (opened(data) == np.kron(pixels, np.ones((12, 12), np.uint8))).all()


def test_it_is_made_once_and_follows_the_content(tmp_path):
    cache, one, two = ThumbnailCache(tmp_path), encode(photo(10)), encode(photo(250))
    first = cache.get(one)[0]
    assert ThumbnailCache(tmp_path).get(one)[0] == first
    assert cache.writes == 1
    assert cache.get(two)[0] != first
    assert {len(path.name) > 32 for path in tmp_path.glob("??/*")} == {True}
    assert not [*tmp_path.rglob(".*")]


def test_the_folder_is_bounded_and_the_oldest_go_first(tmp_path):
    cache = ThumbnailCache(tmp_path)
    for seed in range(10):
        cache.get(encode(photo(seed)))
    files = sorted(tmp_path.glob("??/*"))
    for age, path in enumerate(files):
        os.utime(path, (1e9 + age, 1e9 + age))
    cache.max_bytes = sum(path.stat().st_size for path in files) // 2
    cache.sweep()
    left = sorted(tmp_path.glob("??/*"))
    assert left == files[-len(left) :]
    assert 0 < len(left) < 6
    assert sum(path.stat().st_size for path in left) <= 0.8 * cache.max_bytes


def test_a_full_disk_costs_only_time(tmp_path):
    place = tmp_path / "file"
    place.write_text("not a folder")
    assert opened(ThumbnailCache(place).get(encode(photo()), 40)[0]).shape == (20, 40, 3)


def test_bombs_and_rubbish_are_refused(tmp_path):
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))
    cache = ThumbnailCache(tmp_path)
    with pytest.raises(ImageError, match="megapixels"):
        cache.get(bomb)
    with pytest.raises(ImageError):
        cache.get(b"GIF89a, or so it says")
    assert not [*tmp_path.rglob("*")]
