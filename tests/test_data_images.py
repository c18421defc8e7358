"""decode: every kind of image file, against Pillow alone (the plain version beside the fast one)."""

import threading
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageOps

from sightline.data import Header, decode, inspect
from sightline.data.images import fitted, kept
from sightline.data.png import read_plain
from sightline.errors import ImageError
from sightline.types import Geometry

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    """A picture without sharp detail: what photos are at the scale of pixels."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(6 * x + k) * np.cos(5 * y - k) for k in range(3)]
    return np.rint(127 + 100 * np.stack(waves, -1)).astype(np.uint8)


def encoded(picture: np.ndarray | Image.Image, kind: str, **options) -> bytes:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def reference(data: bytes, geometry: Geometry) -> np.ndarray:
    """The plain way: Pillow alone, in the order of the words (open, upright, channels, fit)."""
    image = Image.open(BytesIO(data))
    if geometry.exif:
        image = ImageOps.exif_transpose(image)
    image = image.convert("L" if geometry.channels == 1 else "RGB")
    height, width = geometry.size
    method = Image.Resampling[geometry.filter.upper()]
    if geometry.fit == "crop":
        image = ImageOps.fit(image, (width, height), method)
    elif geometry.fit == "pad":
        image = ImageOps.pad(image, (width, height), method)
    elif image.size != (width, height):
        image = image.resize((width, height), method)
    return np.asarray(image).reshape(height, width, geometry.channels)


def apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
@pytest.mark.parametrize("filter", ["bilinear", "bicubic", "box", "lanczos"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_files_equal_the_reference(kind, channels, filter, fit):
    geometry = Geometry(size=(24, 20), channels=channels, fit=fit, filter=filter)
    data = encoded(smooth(50, 70), kind)
    ours, plain = decode(data, geometry), reference(data, geometry)
    assert ours.shape == (24, 20, channels)
    # ImageOps rounds its crop box to its own convention: one level of 255 at most.
    assert np.abs(ours.astype(int) - plain.astype(int)).max() <= (1 if fit == "crop" else 0)


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(600, 800), (801, 333), (64, 64), (30, 400)])
def test_jpeg_is_close_to_the_reference(shape, channels, fit):
    geometry = Geometry(size=(64, 48), channels=channels, fit=fit)
    data = encoded(smooth(*shape), "JPEG", quality=95)
    assert apart(decode(data, geometry), reference(data, geometry)) < 1.5


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP"])
@pytest.mark.parametrize("grey", [True, False])
def test_a_picture_of_the_working_size_keeps_its_exact_pixels(kind, grey):
    picture = NOISE[..., 0] if grey else NOISE
    data = encoded(picture, kind)
    geometry = Geometry(size=(40, 60), channels=1 if grey else 3)
    plain = np.asarray(Image.open(BytesIO(data))).reshape(40, 60, -1)
    np.testing.assert_array_equal(decode(data, geometry), plain)
    if kind != "JPEG":
        np.testing.assert_array_equal(decode(data, geometry).squeeze(), picture)


def test_scaled_decoding_never_upsamples(monkeypatch):
    import simplejpeg

    asked = []

    class Spy:
        decode_jpeg_header = staticmethod(simplejpeg.decode_jpeg_header)

        @staticmethod
        def decode_jpeg(*arguments, **options):
            asked.append(simplejpeg.decode_jpeg(*arguments, **options).shape)
            return simplejpeg.decode_jpeg(*arguments, **options)

    monkeypatch.setattr("sightline.data.images._simplejpeg", lambda: Spy)
    data = encoded(smooth(900, 1300), "JPEG")
    for fit in ("squash", "crop", "pad"):
        geometry = Geometry(size=(100, 200), fit=fit)
        decode(data, geometry)
        tall, wide = fitted(900, 1300, geometry)
        assert asked[-1][0] >= 2 * tall
        assert asked[-1][1] >= 2 * wide
        assert asked[-1][0] < 900  # scaled decoding was used


def test_without_simplejpeg_pillow_reads_jpeg(monkeypatch):
    data = encoded(smooth(300, 400), "JPEG")
    geometry = Geometry(size=(32, 32))
    fast = decode(data, geometry)
    monkeypatch.setattr("sightline.data.images._simplejpeg", lambda: None)
    assert apart(decode(data, geometry), fast) < 2
    assert inspect(data) == Header(400, 300, 3, "JPEG", False)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(smooth(40, 60), kind, exif=exif, **options)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(data))).convert("RGB"))
    geometry = Geometry(size=upright.shape[:2])
    assert apart(decode(data, geometry), upright) < (2 if kind == "JPEG" else 0.01)
    header = inspect(data)
    assert (header.height, header.width) == upright.shape[:2]
    assert header.rotated == (orientation > 1)
    if kind != "TIFF":
        stored = np.asarray(Image.open(BytesIO(data)).convert("RGB"))
        assert apart(decode(data, Geometry(size=(40, 60), exif=False)), stored) < 2


def test_rotated_photo_is_scaled_to_both_sides():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(smooth(400, 1200), "JPEG", exif=exif)
    geometry = Geometry(size=(300, 90))
    assert apart(decode(data, geometry), reference(data, geometry)) < 1.5


def test_broken_exif_does_not_cost_the_picture():
    data = encoded(smooth(40, 60), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode(data, Geometry(size=(40, 60))).shape == (40, 60, 3)
    assert not inspect(data).rotated


def test_transparency_lies_on_white():
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:, 4:] = (200, 10, 30, 255)
    pixels = decode(encoded(rgba, "PNG"), Geometry(size=(8, 8)))
    assert (pixels[:, :4] == 255).all()
    assert (pixels[:, 4:] == (200, 10, 30)).all()
    la = Image.fromarray(rgba).convert("LA")
    assert (decode(encoded(la, "PNG"), Geometry(size=(8, 8), channels=1))[:, :4] == 255).all()
    palette = Image.fromarray(rgba).convert("P")
    clear = decode(encoded(palette, "PNG", transparency=palette.getpixel((0, 0))), Geometry(size=(8, 8)))
    assert (clear[:, :4] == 255).all()


def test_sixteen_bit_grey_keeps_its_full_range():
    deep = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    expected = np.rint(deep / 257).astype(np.uint8)
    for kind in ("PNG", "TIFF"):
        data = encoded(deep, kind)
        np.testing.assert_array_equal(decode(data, Geometry(size=(8, 8), channels=1))[..., 0], expected)
        assert decode(data, Geometry(size=(8, 8))).shape == (8, 8, 3)
        assert inspect(data).channels == 1


def test_float_tiff():
    ramp = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    pixels = decode(encoded(ramp, "TIFF"), Geometry(size=(8, 8), channels=1))[..., 0]
    np.testing.assert_array_equal(pixels, np.rint(ramp * 255).astype(np.uint8))
    with pytest.raises(ImageError, match="not numbers"):
        decode(encoded(ramp * np.nan, "TIFF"), Geometry(size=(8, 8), channels=1))


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(kind):
    image = Image.fromarray(smooth(40, 60)).convert("CMYK")
    data = encoded(image, kind)
    plain = np.asarray(Image.open(BytesIO(data)).convert("RGB"))
    assert apart(decode(data, Geometry(size=(40, 60))), plain) < 1
    assert inspect(data).channels == 3


def test_palette_bilevel_and_animation():
    first, second = np.zeros((8, 8), np.uint8), np.full((8, 8), 255, np.uint8)
    frames = [Image.fromarray(each).convert("P") for each in (first, second)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode(data, Geometry(size=(8, 8))) == 0).all()
    bits = encoded(Image.fromarray(second).convert("1"), "PNG")
    assert (decode(bits, Geometry(size=(8, 8), channels=1)) == 255).all()
    palette = Image.fromarray(smooth(8, 8)).convert("P", palette=Image.Palette.ADAPTIVE)
    plain = np.asarray(palette.convert("RGB"))
    np.testing.assert_array_equal(decode(encoded(palette, "PNG"), Geometry(size=(8, 8))), plain)


def test_plain_png_reader_equals_pillow_and_leaves_the_rest():
    for picture in (NOISE, NOISE[..., 0], smooth(33, 17)):
        data = encoded(picture, "PNG", optimize=True)
        pixels = read_plain(data, 10**6)
        assert pixels is not None
        np.testing.assert_array_equal(pixels.squeeze(), picture)
    assert read_plain(encoded(Image.fromarray(NOISE).convert("P"), "PNG"), 10**6) is None
    assert read_plain(encoded(NOISE, "PNG"), 100) is None
    damaged = bytearray(encoded(NOISE, "PNG"))
    damaged[len(damaged) // 2] ^= 1
    assert read_plain(bytes(damaged), 10**6) is None


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM"])
def test_cut_files_are_refused_wherever_they_are_cut(kind):
    data = encoded(NOISE, kind)
    for share in (0.05, 0.3, 0.6, 0.9):
        with pytest.raises(ImageError):
            decode(data[: int(len(data) * share)], Geometry(size=(16, 16)))


def test_damage_in_the_middle_of_a_jpeg_is_refused():
    data = bytearray(encoded(NOISE, "JPEG", quality=95))
    data[len(data) // 2 : len(data) // 2 + 20] = b"\xff\xd9" * 10
    with pytest.raises(ImageError, match="damaged or cut short"):
        decode(bytes(data), Geometry(size=(16, 16)))


def test_not_images():
    geometry = Geometry(size=(8, 8))
    for data, reason in (
        (b"", "empty"),
        (b"hello, I am a text\n" * 10, "not an image"),
        (b"\0\0\0\x18ftypheic" + bytes(100), "HEIC"),
        (b"%PDF-1.7 " + bytes(100), "not an image"),
    ):
        with pytest.raises(ImageError, match=reason):
            decode(data, geometry)
        with pytest.raises(ImageError, match=reason):
            inspect(data)


@pytest.mark.parametrize("side", [10_001, 16_000])
def test_bombs_are_refused_unread(side):
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    jpeg = bytearray(encoded(NOISE, "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", side, side)
    for data in (png, bytes(jpeg)):
        with pytest.raises(ImageError, match="100 megapixels"):
            decode(data, Geometry(size=(8, 8)))


def test_decoding_in_many_threads_at_once():
    files = [encoded(smooth(50, 60), kind) for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP")]
    geometry = Geometry(size=(20, 20))
    expected = [decode(data, geometry) for data in files]
    wrong = []

    def work() -> None:
        for data, right in list(zip(files, expected, strict=True)) * 10:
            if not np.array_equal(decode(data, geometry), right):
                wrong.append(data)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_kept_is_the_largest_centred_box_of_the_right_aspect():
    left, top, right, bottom = kept(300, 400, Geometry(size=(50, 50), fit="crop"))
    assert (left, top, right, bottom) == pytest.approx((50, 0, 350, 300))


def test_photos_agree_with_pillow(shared_data):
    import zipfile

    geometry = Geometry(size=(96, 96))
    with zipfile.ZipFile(shared_data / "photos_jpg.zip") as archive:
        for name in archive.namelist()[:300:20]:
            data = archive.read(name)
            assert apart(decode(data, geometry), reference(data, geometry)) < 4, name
