"""decode: every kind of image file, against Pillow alone (the plain version beside the fast one)."""

import struct
import threading
import zlib
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch.nn.functional import interpolate

from helpers.malformed_images import tiled
from sightline.data import ImageHeader, codecs, decode, read_header
from sightline.data.decode import decode_with_header, readable_formats
from sightline.data.geometry import crop_box, resized_shape
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
    method = Image.Resampling[geometry.interpolation.upper()]
    if geometry.resize_mode == "crop":
        image = ImageOps.fit(image, (width, height), method)
    elif geometry.resize_mode == "pad":
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
    geometry = Geometry(size=(24, 20), channels=channels, resize_mode=fit, interpolation=filter)
    data = encoded(smooth(50, 70), kind)
    ours, plain = decode(data, geometry), reference(data, geometry)
    assert ours.shape == (24, 20, channels)
    # ImageOps rounds its crop box to its own convention, torch its weights: one level of 255 at most.
    exact = fit != "crop" and filter in ("box", "lanczos")
    assert np.abs(ours.astype(int) - plain.astype(int)).max() <= (0 if exact else 1)


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(600, 800), (801, 333), (64, 64), (30, 400)])
def test_jpeg_is_close_to_the_reference(shape, channels, fit):
    geometry = Geometry(size=(64, 48), channels=channels, resize_mode=fit)
    data = encoded(smooth(*shape), "JPEG", quality=95)
    assert apart(decode(data, geometry), reference(data, geometry)) < 1.5


@pytest.mark.parametrize("fit", ["squash", "pad"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(600, 800), (601, 333), (40, 31), (50, 64)])
def test_without_torch_pixels_are_one_level_from_those_of_its_interpolation(shape, channels, fit):
    geometry = Geometry(size=(64, 48), channels=channels, resize_mode=fit)
    drawn = np.random.default_rng(shape[0])
    noise = drawn.normal(0, 20, (*shape, 1)) * (drawn.random((*shape, 1)) < 0.5)
    picture = Image.fromarray((smooth(*shape) + noise).clip(0, 255).astype(np.uint8))
    picture = picture.convert("L" if channels == 1 else "RGB")
    planes = (
        torch.tensor(np.asarray(picture), dtype=torch.float64).reshape(1, *shape, channels).permute(0, 3, 1, 2)
    )
    size = resized_shape(*shape, geometry)
    wanted = interpolate(planes, size, mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
    top, left = (64 - size[0]) // 2, (48 - size[1]) // 2
    found = decode(encoded(picture, "PNG"), geometry, without_torch=True)
    assert np.abs(found[top : top + size[0], left : left + size[1]] - wanted).max() < 1.1  # it rounds twice
    for kind in ("PNG", "JPEG"):  # a JPEG is decoded at half its size, which may end in half a pixel
        data = encoded(picture, kind)
        ours = decode(data, geometry, without_torch=True)
        assert np.abs(ours.astype(int) - decode(data, geometry)).max() <= 1
    cubic = replace(geometry, interpolation="bicubic")  # torch's in both ways, as Pillow's are not close
    assert np.array_equal(decode(data, cubic, without_torch=True), decode(data, cubic))


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

    monkeypatch.setattr("sightline.data.codecs.import_simplejpeg", lambda: Spy)
    data = encoded(smooth(900, 1300), "JPEG")
    for fit in ("squash", "crop", "pad"):
        geometry = Geometry(size=(100, 200), resize_mode=fit)
        decode(data, geometry)
        tall, wide = resized_shape(900, 1300, geometry)
        assert asked[-1][0] >= 2 * tall
        assert asked[-1][1] >= 2 * wide
        assert asked[-1][0] < 900  # scaled decoding was used


def test_without_simplejpeg_pillow_reads_jpeg(monkeypatch):
    data = encoded(smooth(300, 400), "JPEG")
    geometry = Geometry(size=(32, 32))
    fast = decode(data, geometry)
    monkeypatch.setattr("sightline.data.codecs.import_simplejpeg", lambda: None)
    assert apart(decode(data, geometry), fast) < 2
    assert read_header(data) == ImageHeader(400, 300, 3, "JPEG", False)


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
    header = read_header(data)
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


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_is_ignored(kind):
    for broken in (b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + bytes(500), b"Exif\0\0nonsense"):
        data = encoded(smooth(40, 60), kind, exif=broken)
        whole = encoded(smooth(40, 60), kind)
        assert (decode(data, Geometry(size=(40, 60))) == decode(whole, Geometry(size=(40, 60)))).all()
        assert not read_header(data).rotated


def test_a_png_cut_short_is_refused_whatever_it_says_of_exif():
    data = encoded(smooth(40, 60), "PNG", exif=b"Exif\0\0" + bytes(20))
    for end in range(100, len(data) - 40, 37):
        with pytest.raises(ImageError):
            decode(data[:end], Geometry(size=(40, 60)))


def test_transparency_is_laid_on_white():
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

    assert decode_with_header(encoded(rgba, "PNG"), Geometry(size=(8, 8)))[1].transparent
    opaque = np.full((8, 8, 4), 255, np.uint8)
    opaque[..., 1] = 9
    pixels, header = decode_with_header(encoded(opaque, "PNG"), Geometry(size=(8, 8)))
    assert not header.transparent
    assert (pixels == (255, 9, 255)).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_by_its_full_range_or_a_window(kind):
    deep = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    data = encoded(deep, kind)
    pixels, header = decode_with_header(data, Geometry(size=(8, 8), channels=1))
    np.testing.assert_array_equal(pixels[..., 0], np.rint(deep / 257).astype(np.uint8))
    assert (header.depth, header.low, header.high, header.channels) == (16, 0, 65535, 1)
    assert decode(data, Geometry(size=(8, 8))).shape == (8, 8, 3)
    twelve = encoded(deep >> 4, kind)  # as a microscope's camera writes them
    shown = decode(twelve, Geometry(size=(8, 8), channels=1, window=(0, 4095)))[..., 0]
    np.testing.assert_array_equal(shown, np.rint((deep >> 4) / 4095 * 255).astype(np.uint8))
    narrow = decode(twelve, Geometry(size=(8, 8), channels=1, window=(1000, 2000)))[..., 0]
    assert narrow[deep >> 4 <= 1000].max() == 0
    assert narrow[deep >> 4 >= 2000].min() == 255
    with pytest.raises(ValueError, match="empty or impossible"):
        Geometry(size=(8, 8), window=(5, 5))


def test_sixteen_bit_colour_is_known_and_has_no_window():
    deep = (NOISE.astype(">u2") * 257).reshape(40, -1)
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60, 40, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    pixels, header = decode_with_header(data, Geometry(size=(40, 60)))
    np.testing.assert_array_equal(pixels, NOISE)
    assert (header.depth, header.channels) == (16, 3)
    with pytest.raises(ImageError, match="16-bit colour is read by its full range only"):
        decode(data, Geometry(size=(40, 60), window=(0, 4095)))


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_float_tiff():
    ramp = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    pixels = decode(encoded(ramp, "TIFF"), Geometry(size=(8, 8), channels=1))[..., 0]
    np.testing.assert_array_equal(pixels, np.rint(ramp * 255).astype(np.uint8))
    with pytest.raises(ImageError, match="not numbers"):
        decode(encoded(ramp * np.nan, "TIFF"), Geometry(size=(8, 8), channels=1))


INKS = np.array([(200, 20, 40, 10), (0, 0, 0, 0), (0, 0, 0, 255), (30, 180, 90, 60)], np.uint8)
"""Cyan, magenta, yellow, black: 0 is none."""
PRINTED = (255 - INKS[:, :3].astype(int)) * (255 - INKS[:, 3:].astype(int)) / 255
"""What is left of white light, red, green and blue: each ink takes its own share, black all."""


def stored(values: np.ndarray) -> bytes:
    """A four-channel JPEG with Adobe's marker that holds these values as they are, in 16 x 16 squares."""
    squares = values.reshape(2, 2, 4).repeat(16, 0).repeat(16, 1)
    # Pillow inverts what it writes
    return encoded(Image.fromarray(255 - squares, "CMYK"), "JPEG", quality=100, subsampling=0)


def ycc(rgb: np.ndarray) -> np.ndarray:
    """JFIF's colour space."""
    r, g, b = rgb.astype(float).T
    y = 0.299 * r + 0.587 * g + 0.114 * b
    return np.rint(np.stack([y, 128 + (b - y) / 1.772, 128 + (r - y) / 1.402], 1)).clip(0, 255).astype(np.uint8)


def four_colours(way: str) -> bytes:
    """The four inks in a file, written the way that programs have of it."""
    if way == "tiff":
        return encoded(Image.fromarray(INKS.reshape(2, 2, 4).repeat(16, 0).repeat(16, 1), "CMYK"), "TIFF")
    if way == "adobe":
        return stored(255 - INKS)
    marker = b"\xff\xee\0\x0eAdobe"
    if way == "plain":  # no marker: inks as they are
        data = stored(INKS)
        at = data.index(marker)
        return data[:at] + data[at + 16 :]
    data = bytearray(stored(np.concatenate([ycc(INKS[:, :3]), 255 - INKS[:, 3:]], 1)))
    data[data.index(marker) + 15] = 2  # "adobe-ycck": libjpeg turns YCC into 255 - RGB, which are Adobe's inks
    return bytes(data)


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
@pytest.mark.parametrize("way", ["tiff", "adobe", "plain", "adobe-ycck"])
def test_cmyk_is_converted_by_the_formula(way):
    data = four_colours(way)
    pixels, header = decode_with_header(data, Geometry(size=(32, 32)))
    middles = pixels[8::16, 8::16].reshape(4, 3)
    np.testing.assert_allclose(middles, PRINTED, atol=3)
    assert header.cmyk
    assert (header.channels, read_header(data).cmyk) == (3, True)


def tiff(bands: int) -> bytes:
    """A little-endian TIFF of 4 x 4 pixels with this many 8-bit channels, written by hand."""
    pixels = bytes(range(16)) * bands
    entries = [
        (256, 3, 1, 4),
        (257, 3, 1, 4),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 2 if bands > 2 else 1),
        (273, 4, 1, 8),
        (277, 3, 1, bands),
        (278, 3, 1, 4),
        (279, 4, 1, len(pixels)),
    ]
    at = 8 + len(pixels)
    table = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return struct.pack("<2sHI", b"II", 42, at) + pixels + table + struct.pack("<I", 0)


@pytest.mark.parametrize("bands", [5, 7, 12])
def test_images_with_too_many_channels_are_refused(bands):
    for call in (read_header, lambda data: decode(data, Geometry(size=(4, 4)))):
        with pytest.raises(ImageError, match=rf"the TIFF has {bands} channels, and only grey"):
            call(tiff(bands))
    assert decode(tiff(1), Geometry(size=(4, 4), channels=1)).shape == (4, 4, 1)


def test_two_channels():
    la = Image.merge("LA", Image.fromarray(NOISE).split()[:2])
    for kind in ("PNG", "TIFF"):
        pixels, header = decode_with_header(encoded(la, kind), Geometry(size=(40, 60), channels=1))
        grey, alpha = NOISE[..., 0].astype(float), NOISE[..., 1] / 255
        np.testing.assert_allclose(pixels[..., 0], grey * alpha + 255 * (1 - alpha), atol=2)
        assert (header.channels, header.transparent) == (1, True)
    jpeg = bytearray(encoded(NOISE, "JPEG"))
    jpeg[jpeg.index(b"\xff\xc0") + 9] = 2
    with pytest.raises(ImageError, match="the JPEG has 2 channels"):
        decode(bytes(jpeg), Geometry(size=(8, 8)))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_of_several_frames_is_taken(kind):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((250, 10, 10), (10, 250, 10), (10, 10, 250))]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    pixels, header = decode_with_header(data, Geometry(size=(16, 16)))
    np.testing.assert_allclose(pixels, np.broadcast_to((250, 10, 10), (16, 16, 3)), atol=6)
    assert header.animated
    assert read_header(data).animated
    assert not read_header(encoded(frames[0], kind)).animated


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
        pixels = codecs.decode_png(data, 10**6)
        assert pixels is not None
        np.testing.assert_array_equal(pixels.squeeze(), picture)
    assert codecs.decode_png(encoded(Image.fromarray(NOISE).convert("P"), "PNG"), 10**6) is None
    assert codecs.decode_png(encoded(NOISE, "PNG"), 100) is None
    damaged = bytearray(encoded(NOISE, "PNG"))
    damaged[len(damaged) // 2] ^= 1
    assert codecs.decode_png(bytes(damaged), 10**6) is None


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
            read_header(data)


@pytest.mark.parametrize("side", [10_001, 16_000])
def test_decompression_bombs_are_refused_before_decoding(side):
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


def test_the_crop_box_is_the_largest_centred_one():
    left, top, right, bottom = crop_box(300, 400, Geometry(size=(50, 50), resize_mode="crop"))
    assert (left, top, right, bottom) == pytest.approx((50, 0, 350, 300))


def test_photos_agree_with_pillow(shared_data):
    import zipfile

    geometry = Geometry(size=(96, 96))
    with zipfile.ZipFile(shared_data / "photos_jpg.zip") as archive:
        for name in archive.namelist()[:300:20]:
            data = archive.read(name)
            assert apart(decode(data, geometry), reference(data, geometry)) < 0.5, name


def test_a_photo_at_half_scale_is_not_shifted():
    """375 rows become 188 at half scale, of which the picture fills 187.5."""
    y, x = np.mgrid[:375, :499] / 375
    picture = np.rint(127 + 100 * np.sin(40 * x) * np.cos(37 * y))[..., None].repeat(3, 2).astype(np.uint8)
    data = encoded(picture, "JPEG", quality=97)
    for fit in ("squash", "crop", "pad"):
        geometry = Geometry(size=(90, 90), resize_mode=fit)
        assert apart(decode(data, geometry), reference(data, geometry)) < 1, fit


@pytest.mark.parametrize("big", [False, True], ids=["TIFF", "BigTIFF"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tile_far_larger_than_its_picture_is_refused_unread(big, order):
    if not (big and order == ">"):  # Pillow reads no BigTIFF of that order, and libtiff might
        assert decode(tiled(256, big=big, order=order), Geometry(size=(16, 16), channels=1)).shape == (16, 16, 1)
    for side in (12_000, 60_000, 2**31 - 1):
        for call in (read_header, lambda data: decode(data, Geometry(size=(16, 16)))):
            with pytest.raises(ImageError, match=f"tiles of {side} x {side} pixels for a picture of 16 x 16"):
                call(tiled(side, big=big, order=order))


@pytest.mark.parametrize(
    "extra", [((322, 4, 16), (323, 4, 16)), ((65_000, 3, 5),)], ids=["tags twice", "a private tag"]
)
def test_no_other_tag_hides_a_large_tile(extra):
    with pytest.raises(ImageError, match="tiles of 12000 x 12000"):
        read_header(tiled(12_000, extra=extra))


def test_a_tag_that_points_outside_does_not_hide_a_large_tile():
    data = bytearray(tiled(12_000, extra=((1000, 4, 2**31),)))
    at = data.rindex(struct.pack("<HHI", 1000, 4, 1))
    data[at : at + 8] = struct.pack("<HHI", 1000, 4, 60)
    with pytest.raises(ImageError, match="tiles of 12000 x 12000"):
        read_header(bytes(data))


def test_a_strip_may_end_below_the_picture():
    assert read_header(tiled(4_000_000_000, strip=True)).width == 16
    assert read_header(tiled(4_000_000_000, strip=True, big=True)).width == 16


XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="%d"/></rdf:RDF></x:xmpmeta>'
)


@pytest.mark.parametrize("orientation", [3, 6, 8])
@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_an_orientation_in_xmp_alone_counts(kind, orientation):
    picture, geometry = smooth(48, 64), Geometry(size=(32, 32))
    exif = Image.Exif()
    exif[0x0112] = orientation
    by_xmp = decode(encoded(picture, kind, xmp=XMP % orientation), geometry)
    assert np.array_equal(by_xmp, decode(encoded(picture, kind, exif=exif), geometry))
    both = encoded(picture, kind, xmp=XMP % orientation, exif=Image.Exif())
    assert read_header(both).rotated


@pytest.mark.skipif("AVIF" not in readable_formats(), reason="this Pillow reads no AVIF")
def test_avif_is_read_and_turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    found = decode(encoded(smooth(48, 64), "AVIF", quality=90, exif=exif), Geometry(size=(64, 48)))
    assert apart(found, np.rot90(smooth(48, 64), -1)) < 4
    with pytest.raises(ImageError):
        decode(encoded(smooth(48, 64), "AVIF")[:300], Geometry(size=(32, 32)))
