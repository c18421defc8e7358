"""Kept images show the same picture, and tell nothing else."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from sightline.data import decode
from sightline.errors import ImageError
from sightline.journal.image_store import ImageStore, content_name, strip_metadata
from sightline.types import Geometry

SECRET = b"52.3731 N Amsterdam, Zoe"
WORDS = (
    SECRET,
    b"Exif",
    b"GPS",
    b"http",
    b"ICC_PROFILE",
    b"Photoshop",
    b"tEXt",
    b"iTXt",
    b"zTXt",
    b"iCCP",
    b"xpacket",
)
RGB, GREY = Geometry(size=(20, 24), channels=3), Geometry(size=(20, 24), channels=1)
STORED = Geometry(size=(20, 24), exif=False)


def smooth(mode="RGB", size=(48, 40)):
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    pixels = np.stack([x, y, (x * 3 + y) % 256], -1).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def exif(turn=1):
    held = Image.Exif()
    held[0x0112] = turn
    held[0x010E] = SECRET.decode()  # description
    held[0x8825] = {1: "N", 2: (52.0, 22.0, 23.16), 29: SECRET.decode()}  # GPS
    return held


def saved(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def jpeg(image=None, turn=1, **options):
    given = {"exif": exif(turn), "comment": SECRET, "icc_profile": SECRET * 9, "quality": 90} | options
    return saved(image or smooth(), "jpeg", **given)


def with_segment(data, kind, body):
    """A JPEG with one more segment, right after its first marker."""
    return data[:2] + bytes((0xFF, kind)) + (len(body) + 2).to_bytes(2, "big") + body + data[2:]


def png(image=None, turn=1, **options):
    told = PngImagePlugin.PngInfo()
    told.add_text("Comment", SECRET.decode())
    told.add_text("Place", SECRET.decode(), zip=False)
    told.add_itxt("XML:com.adobe.xmp", SECRET.decode())
    more = {"exif": exif(turn)} if turn else {}
    return saved(image or smooth(), "png", pnginfo=told, icc_profile=SECRET * 9, **more, **options)


def thumbnailed():
    """JFIF with a preview of 4 x 4 pixels, which may show what was cut away since."""
    data = saved(smooth(), "jpeg")
    assert data[2:4] == b"\xff\xe0"
    body = data[6:18] + b"\4\4" + (SECRET * 3)[:48]
    return data[:4] + (len(body) + 2).to_bytes(2, "big") + body + data[20:]


def animated(kind):
    frames = [smooth(), smooth().rotate(180)]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, loop=0)


def deep(mode, kind):
    values = np.linspace(0, 60_000, 40 * 48).reshape(40, 48)
    values = (
        values.astype({"I;16": np.uint16, "I": np.int32}[mode]) if mode != "F" else values.astype(np.float32) / 6e4
    )
    return saved(Image.fromarray(values), kind)


def palette(transparent=False):
    image = smooth().quantize(32)
    return saved(image, "png", transparency=3) if transparent else saved(image, "png")


JPEGS = {
    "plain": lambda: jpeg(exif=b"", comment=b"", icc_profile=None),
    "told": jpeg,
    "progressive": lambda: jpeg(progressive=True),
    "restarts": lambda: jpeg(restart_marker_blocks=2),
    "optimised": lambda: jpeg(optimize=True, subsampling=0),
    "grey": lambda: jpeg(smooth("L")),
    "inks": lambda: jpeg(smooth("CMYK")),
    "preview": thumbnailed,
    "photoshop": lambda: with_segment(jpeg(), 0xED, b"Photoshop 3.0\0" + SECRET),
    "xmp": lambda: with_segment(jpeg(), 0xE1, b"http://ns.adobe.com/xap/1.0/\0<?xpacket " + SECRET),
    "unknown": lambda: with_segment(jpeg(), 0xEB, SECRET),
    "filled": lambda: jpeg()[:2] + b"\xff\xff\xff" + jpeg()[2:],
    "followed": lambda: jpeg() + b"PK\3\4" + SECRET,
    **{f"turned {turn}": lambda turn=turn: jpeg(turn=turn) for turn in range(2, 9)},
}
PNGS = {
    "plain": lambda: saved(smooth(), "png"),
    "told": png,
    "grey": lambda: png(smooth("L")),
    "black and white": lambda: png(smooth("1")),
    "clear": lambda: png(smooth("RGBA").rotate(20)),
    "grey and clear": lambda: png(smooth("LA").rotate(20)),
    "palette": palette,
    "palette and clear": lambda: palette(True),
    "16 bits": lambda: deep("I;16", "png"),
    "animated": lambda: animated("png"),
    "followed": lambda: png() + b"<script>" + SECRET,
    **{f"turned {turn}": lambda turn=turn: png(turn=turn) for turn in range(2, 9)},
}
OTHERS = {
    "gif": lambda: saved(smooth(), "gif", comment=SECRET),
    "animated gif": lambda: animated("gif"),
    "bmp": lambda: saved(smooth(), "bmp"),
    "ppm": lambda: saved(smooth(), "ppm"),
    "webp": lambda: saved(smooth("RGBA").rotate(20), "webp", lossless=True, exif=exif()),
    "webp turned": lambda: saved(smooth(), "webp", lossless=True, exif=exif(6)),
    "tiff": lambda: saved(smooth(), "tiff", description=SECRET.decode()),
    "tiff turned": lambda: saved(smooth(), "tiff", tiffinfo={0x0112: 6, 0x010E: SECRET.decode()}),
    "tiff inks": lambda: saved(smooth("CMYK"), "tiff"),
    "tiff 16 bits": lambda: deep("I;16", "tiff"),
    "tiff 32 bits": lambda: deep("I", "tiff"),
    "tiff floats": lambda: deep("F", "tiff"),
}
EVERY = {
    f"{kind} {name}": make
    for kind, family in (("jpeg", JPEGS), ("png", PNGS), ("other", OTHERS))
    for name, make in family.items()
}


@pytest.mark.parametrize(
    "geometry", [RGB, GREY, Geometry(size=(20, 24), exif=False)], ids=["rgb", "grey", "as stored"]
)
@pytest.mark.parametrize("name", EVERY)
def test_metadata_is_removed_and_pixels_are_kept(name, geometry):
    data = EVERY[name]()
    kept, suffix = strip_metadata(data)
    assert np.array_equal(decode(kept, geometry), decode(data, geometry))
    turned = "turned" in name
    for word in WORDS:
        assert word not in kept or (turned and word == b"Exif"), word
    assert suffix == {"jpeg": ".jpg", "png": ".png"}.get(name.split()[0], suffix)
    assert strip_metadata(kept)[0] == kept or suffix == ".tif"  # nothing is left to take away


@pytest.mark.parametrize("name", JPEGS)
def test_jpegs_are_not_re_encoded(name):
    data = JPEGS[name]()
    kept, _ = strip_metadata(data)
    at = data.index(b"\xff\xda")
    assert kept[kept.index(b"\xff\xda") :][:200] == data[at:][:200]
    assert len(kept) <= len(data) + 36


@pytest.mark.parametrize("turn", range(1, 9))
def test_only_the_orientation_is_left_of_exif(turn):
    for data in (jpeg(turn=turn), png(turn=turn)):
        held = Image.open(io.BytesIO(strip_metadata(data)[0])).getexif()
        assert dict(held) == ({0x0112: turn} if turn > 1 else {})


def cut(data):
    return [data[: len(data) * part // 10] for part in range(1, 10)]


@pytest.mark.parametrize("name", EVERY)
def test_damaged_images_are_refused_or_kept_whole(name):
    for part in cut(EVERY[name]()):
        try:
            kept, _ = strip_metadata(part)
        except ImageError:
            continue
        assert Image.open(io.BytesIO(kept)).size == (48, 40)


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xe1\xff\xff",
        b"\xff\xd8\xff\xe1\0\0" * 50,
        b"\xff\xd8" + b"\xff" * 5000,
        b"\x89PNG\r\n\x1a\n",
        b"\x89PNG\r\n\x1a\n" + chunk(b"IEND", b""),
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I4s", 2**31, b"IDAT"),
        b"<svg/>",
        b"%PDF-1.7",
        b"\x7fELF" + bytes(99),
    ],
    ids=range(12),
)
def test_only_images_are_kept(data):
    try:
        name, kept = content_name(data)
    except ImageError:
        return
    with pytest.raises(ImageError):
        decode(kept, RGB)
    assert SECRET not in kept
    assert name.endswith((".jpg", ".png"))


def test_files_are_named_by_their_content(tmp_path):
    import hashlib

    first, data = content_name(jpeg())
    second, same = content_name(jpeg(comment=b"another", exif=exif()))
    assert (first, data) == (second, same)
    assert first == hashlib.sha256(data).hexdigest() + ".jpg"
    kept = ImageStore(tmp_path / "images")
    kept.put(first, data)
    kept.put(first, data)
    assert kept.path(first).read_bytes() == data
    assert kept.path(first).relative_to(tmp_path).as_posix() == f"images/{first[:2]}/{first}"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [kept.path(first)]
    kept.delete(first)
    kept.delete(first)
    assert not kept.path(first).exists()
