"""Pictures that lack rows, hold 32-bit values, or are very large; and PNGs with much beside their picture."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from sightline.data import audit, decode, load_dataset, read_header, survey
from sightline.data.decode import decoder_name
from sightline.errors import DataError, ImageError
from sightline.sources import find
from sightline.training import Recipe, read_dataset
from sightline.types import Geometry

SMALL = Geometry(size=(32, 32))
GREY = Geometry(size=(32, 32), channels=1)


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(rows, side=32, colour=2, depth=8, interlaced=0, value=0xB4, packed=None):
    """A PNG that announces ``side`` rows and holds ``rows`` of them, well formed."""
    width = -(-side * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour] * depth // 8)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, interlaced))
    palette = chunk(b"PLTE", bytes(768)) if colour == 3 else b""
    packed = zlib.compress((b"\0" + bytes([value]) * width) * rows) if packed is None else packed
    return b"\x89PNG\r\n\x1a\n" + head + palette + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def encoded(values, kind="TIFF", **options):
    stream = BytesIO()
    Image.fromarray(values).save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("value", [0, 5])
@pytest.mark.parametrize(("colour", "depth"), [(0, 1), (0, 8), (0, 16), (2, 8), (2, 16), (3, 8), (4, 8), (6, 8)])
def test_a_png_that_lacks_rows_cannot_be_read(colour, depth, value):
    assert decode(png(32, colour=colour, depth=depth, value=value), SMALL).shape == (32, 32, 3)
    for rows in (0, 16, 31):
        with pytest.raises(ImageError, match="damaged or cut short"):
            decode(png(rows, colour=colour, depth=depth, value=value), SMALL)


def test_an_interlaced_png_that_lacks_a_pass_cannot_be_read():
    lines = [(8 // 8, 1)] * 2 + [(8 // 4, 1), (8 // 4, 2), (8 // 2, 2), (8 // 2, 4), (8, 4)]  # of an 8 x 8 picture
    whole = b"".join((b"\0" + bytes([9]) * wide) * tall for wide, tall in lines)
    data = png(0, side=8, colour=0, interlaced=1, packed=zlib.compress(whole))
    assert (decode(data, GREY) == 9).all()
    with pytest.raises(ImageError, match="damaged or cut short"):
        decode(png(0, side=8, colour=0, interlaced=1, packed=zlib.compress(whole[:-9])), GREY)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP", "PPM", "WEBP", "JPEG"])
def test_half_a_file_of_another_kind_cannot_be_read(kind):
    data = encoded(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), kind)
    with pytest.raises(ImageError):
        decode(data[: len(data) // 2], SMALL)


def test_a_png_with_much_text_and_a_large_profile():
    notes = PngImagePlugin.PngInfo()
    notes.add_text("history", "x" * 3_000_000, zip=True)
    notes.add_itxt("more", "y" * 3_000_000, zip=True)
    values = np.random.default_rng(0).integers(0, 256, (32, 32, 4), np.uint8)
    data = encoded(values, "PNG", pnginfo=notes, icc_profile=bytes(3_000_000))
    np.testing.assert_array_equal(decode(data, SMALL), decode(encoded(values, "PNG"), SMALL))
    assert read_header(data).width == 32


def test_floats_are_shown_alike_in_every_picture():
    values = np.full((32, 32), 0.5, np.float32)
    bright = values.copy()
    bright[0, 0] = 7
    assert decode(encoded(values), GREY)[9, 9, 0] == decode(encoded(bright), GREY)[9, 9, 0] == 128


RANGES = {
    "0:1.02": lambda x: (x * 1.02).astype(np.float32),
    "0:255": lambda x: (x * 255).astype(np.float32),
    "280:310": lambda x: (280 + 30 * x).astype(np.float32),
    "-1000:3000": lambda x: (x * 4000 - 1000).astype(np.int32),
    "0:65535": lambda x: (x * 60_000).astype(np.int32),
    "-2:2": lambda x: (x * 4 - 2).astype(np.float32),
}


def plant(root, make, hot=None):
    x = np.linspace(0, 1, 40 * 40).reshape(40, 40)
    for label in "ab":
        (root / label).mkdir(parents=True)
        for number in range(10):
            values = make(np.roll(x, number))
            if hot is not None and number == 0:
                values[3, 3] = hot
            (root / label / f"{number}.tif").write_bytes(encoded(values))
    return root


@pytest.mark.parametrize("window", RANGES)
def test_one_range_for_the_whole_set(window, tmp_path):
    data = plant(tmp_path / "d", RANGES[window])
    dataset, chosen = read_dataset(Recipe(data=str(data), size=40))
    (reason,) = [one.reason for one in chosen if one.field == "window"]
    assert f"(--window {window})" in reason
    assert dataset.geometry.window == tuple(map(float, window.split(":")))
    assert dataset[:].max() - dataset[:].min() > 200
    assert f"{dataset.geometry.window[0]:g} becomes black" in dataset.notes[-1]
    given, chosen = read_dataset(Recipe(data=str(data), size=40, window="0:7"))
    assert given.geometry.window == (0, 7)
    assert "window" not in {one.field for one in chosen}


def test_a_hot_pixel_does_not_darken_the_set(tmp_path):
    data = plant(tmp_path / "d", RANGES["280:310"], hot=1e6)
    low, high = survey(find(data)).window
    assert 279 < low < 281
    assert 309 < high < 311


def test_ordinary_pictures_have_no_window(tmp_path):
    data = plant(tmp_path / "d", lambda x: (x * 255).astype(np.uint8))
    assert survey(find(data)).window is None
    deep = plant(tmp_path / "e", lambda x: (x * 4000).astype(np.uint16))
    assert survey(find(deep)).window is None  # a window is proposed, as before


def test_a_range_that_shows_nothing_is_said(tmp_path):
    data = plant(tmp_path / "d", RANGES["280:310"])
    dataset = load_dataset(data, GREY)
    assert "go from 280 to 310, which go beyond it and are cut off: --window 280:310 shows" in dataset.notes[-1]
    remarks = {one.level: one.text for one in audit(dataset).remarks}
    assert remarks["warning"].startswith("100% of the images are nearly one tone")
    windowed = load_dataset(data, Geometry(size=(32, 32), channels=1, window=(280.0, 310.0)))
    assert not [one for one in audit(windowed).remarks if "one tone" in one.text]


def test_a_photo_of_108_megapixels_is_read():
    stream = BytesIO()
    Image.new("L", (12_000, 9000), 99).save(stream, "JPEG", quality=30)
    assert np.ptp(decode(stream.getvalue(), SMALL)) == 0
    assert read_header(stream.getvalue()).width == 12_000
    with pytest.raises(ImageError, match=r"12000 x 9000 pixels, more than 100 megapixels.*--max-megapixels 108"):
        decode(stream.getvalue(), Geometry(size=(4096, 4096)))  # nothing would be saved
    start = stream.getvalue()[:20_000]
    with pytest.raises(ImageError, match="100 megapixels"):
        decode(start, SMALL)


def test_the_limit_for_files_that_are_trusted(monkeypatch):
    huge = png(13_500, side=13_500, colour=0, depth=1, value=255)  # 182 megapixels: more than Pillow itself reads
    usual = decoder_name()
    with pytest.raises(ImageError, match=r"more than 100 megapixels.*--max-megapixels 183"):
        read_header(huge)
    monkeypatch.setenv("SIGHTLINE_MAX_MEGAPIXELS", "183")
    assert read_header(huge).width == 13_500
    assert decoder_name() != usual  # what was refused is read anew
    monkeypatch.setenv("SIGHTLINE_MAX_MEGAPIXELS", "much")
    with pytest.raises(DataError, match="whole number from 1 to 4000"):
        read_header(huge)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "I;16", "F"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resize_mode", ["squash", "pad"])
def test_large_pictures_by_rows_are_the_same_pixels(mode, channels, resize_mode, monkeypatch):
    rng = np.random.default_rng(0)
    if mode in ("I;16", "F"):
        values = rng.random((431, 307))
        image = Image.fromarray(
            (values * 60_000).astype(np.uint16) if mode == "I;16" else values.astype(np.float32)
        )
    else:
        image = Image.fromarray(rng.integers(0, 256, (431, 307, 4), np.uint8)).convert(mode)
    stream = BytesIO()
    image.save(stream, "tiff" if mode == "F" else "png")
    geometry = Geometry(size=(40, 33), channels=channels, resize_mode=resize_mode)
    whole = decode(stream.getvalue(), geometry)
    monkeypatch.setattr("sightline.data.codecs.rows_at_a_time", lambda _: 10)
    monkeypatch.setattr("sightline.data.geometry.rows_at_a_time", lambda _: 10)
    assert np.array_equal(decode(stream.getvalue(), geometry), whole)
