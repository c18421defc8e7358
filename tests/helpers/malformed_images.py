"""Two hundred images that somebody who means harm, or has a broken camera, might send; all made here, by code.

Each has a name, its bytes, and what must become of it: ``right`` (answered as the classifier answers), ``refused``
(told so), or ``either`` (whatever the classifier itself says of it).
"""

import base64
import gzip
import io
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin


class Hostile(NamedTuple):
    """One of them."""

    name: str
    data: bytes
    fate: str


def picture(height=40, width=48, seed=0):
    """A smooth picture in colour."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def saved(image, kind, **options):
    """A picture as a file."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def whole():
    """A good file of each format."""
    image = picture()
    return {
        "jpeg": saved(image, "jpeg", quality=90),
        "png": saved(image, "png"),
        "gif": saved(image.quantize(64), "gif"),
        "bmp": saved(image, "bmp"),
        "tiff": saved(image, "tiff"),
        "webp": saved(image, "webp", lossless=True),
        "ppm": saved(image, "ppm"),
    }


def chunk(kind, data=b""):
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@cache
def zeros(count):
    """So many zero bytes, packed."""
    return zlib.compress(bytes(count), 1)


def png(width, height, *, depth=8, colour=0, rows=b"\0\0", packed=None, before=(), end=True):
    """A PNG from its parts: ``rows`` are packed, or are already."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    packed = packed or (b"" if rows is None else zlib.compress(rows))
    parts = [head, *before, chunk(b"IDAT", packed) if packed else b"", chunk(b"IEND") if end else b""]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def segment(mark, data):
    """A segment of a JPEG."""
    return bytes((0xFF, mark)) + struct.pack(">H", len(data) + 2) + data


def within_jpeg(data, *segments):
    """A JPEG with segments after its first two bytes."""
    return data[:2] + b"".join(segments) + data[2:]


def resized_jpeg(data, height, width):
    """A JPEG whose header tells other sides."""
    at = next(i for i in range(len(data)) if data[i] == 0xFF and data[i + 1] in (0xC0, 0xC2))
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def tiff(*tags, tail=b"", order="<"):
    """A TIFF of one page from (tag, kind, count, value)."""
    start = b"II*\0" if order == "<" else b"MM\0*"
    entries = b"".join(struct.pack(order + "HHII", *tag) for tag in sorted(tags))
    return start + struct.pack(order + "IH", 8, len(tags)) + entries + struct.pack(order + "I", 0) + tail


def tiled(side, *, big=False, order="<", extra=(), strip=False):
    """A TIFF of 16 x 16 grey pixels with one compressed tile of ``side`` x ``side``, or a strip of as many rows."""
    data = zeros(side * side if side < 20_000 else 100)
    start = 16 if big else 8
    blocks = [(273, 4, start), (278, 4, side), (279, 4, len(data))]
    if not strip:
        blocks = [(322, 4, side), (323, 4, side), (324, 4, start), (325, 4, len(data))]
    fields = [(256, 4, 16), (257, 4, 16), (258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1), *blocks, *extra]
    count, word, pad = ("Q", "Q", 8) if big else ("H", "I", 4)
    rows = b""
    for tag, kind, value in sorted(fields, key=lambda field: field[0]):
        rows += struct.pack(f"{order}HH{word}", tag, kind, 1)
        rows += struct.pack(order + {1: "B", 3: "H", 4: "I", 16: "Q"}[kind], value).ljust(pad, b"\0")
    mark = b"II" if order == "<" else b"MM"
    head = mark + struct.pack(
        f"{order}HHHQ" if big else f"{order}HI", *((43, 8, 0) if big else (42,)), start + len(data)
    )
    return head + data + struct.pack(order + count, len(fields)) + rows + bytes(pad)


def page(width, height, *, bits=8, samples=1, compression=1, strip=None, rows=None):
    """The tags of a grey page whose strip lies behind them."""
    length = width * height if strip is None else strip
    return [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, bits),
        (259, 3, 1, compression),
        (262, 3, 1, 1),
        (273, 4, 1, 8 + 2 + 12 * 9 + 4),
        (277, 3, 1, samples),
        (278, 4, 1, height if rows is None else rows),
        (279, 4, 1, length),
    ]


def gif(width, height, frame=None, *, tail=b"\x3b", extra=b""):
    """A GIF of one frame, black."""
    fw, fh = frame or (width, height)
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff" + extra
    return head + b"\x2c" + struct.pack("<HHHHB", 0, 0, fw, fh, 0) + b"\x02\x02\x4c\x01\0" + tail


def truncated() -> Iterator[Hostile]:
    for kind, data in whole().items():
        for name, stop in (("1", 1), ("4", 4), ("12", 12), ("30", 30), ("quarter", len(data) // 4)):
            yield Hostile(f"{kind} cut at {name}", data[:stop], "refused")
        yield Hostile(f"{kind} cut in the middle", data[: len(data) // 2], "refused")
        yield Hostile(f"{kind} without its last byte", data[:-1], "either")


def scrambled() -> Iterator[Hostile]:
    for kind, data in whole().items():
        for seed in range(3):
            rng = np.random.default_rng(seed)
            wrong = bytearray(data)
            for at in rng.integers(8, len(data), 1 + 10 * seed):
                wrong[at] = int(rng.integers(0, 256))
            yield Hostile(f"{kind} with {1 + 10 * seed} wrong bytes", bytes(wrong), "either")


def bombs() -> Iterator[Hostile]:
    good = whole()
    yield Hostile("png of 900 megapixels", png(30_000, 30_000, rows=bytes(1000)), "refused")
    yield Hostile("png of 3600 megapixels in colour", png(60_000, 60_000, colour=2, rows=bytes(1000)), "refused")
    yield Hostile("png of 2^31 by 2^31", png(2**31 - 1, 2**31 - 1), "refused")
    yield Hostile("png of 2^32 - 1 wide", png(2**32 - 1, 1), "refused")
    yield Hostile("png of 49 megapixels, in 48 kB", png(7000, 7000, packed=zeros(7001 * 7000)), "right")
    yield Hostile("png with more pixels than announced", png(10, 10, packed=zeros(20_000_000)), "either")
    text = chunk(b"zTXt", b"c\0\0" + zeros(80_000_000))
    yield Hostile("png with a text of 80 MB", png(8, 8, rows=bytes(72), before=[text]), "either")
    text = chunk(b"iTXt", b"c\0\1\0\0\0" + zeros(80_000_000))
    yield Hostile("png with an international text of 80 MB", png(8, 8, rows=bytes(72), before=[text]), "either")
    profile = chunk(b"iCCP", b"p\0\0" + zeros(80_000_000))
    yield Hostile("png with a profile of 80 MB", png(8, 8, rows=bytes(72), before=[profile]), "either")
    yield Hostile("gif of 4295 megapixels", gif(65_535, 65_535), "refused")
    yield Hostile("gif with a frame of 3600 megapixels", gif(1, 1, (60_000, 60_000)), "refused")
    bmp = bytearray(good["bmp"])
    bmp[18:26] = struct.pack("<ii", 60_000, 60_000)
    yield Hostile("bmp of 3600 megapixels", bytes(bmp), "refused")
    bmp[18:26] = struct.pack("<ii", 60_000, -60_000)
    yield Hostile("bmp of 3600 megapixels upside down", bytes(bmp), "refused")
    yield Hostile("tiff of 3600 megapixels", tiff(*page(60_000, 60_000, strip=10), tail=bytes(10)), "refused")
    deflated = zlib.compress(bytes(1_000_000))
    tags = page(30_000, 30_000, compression=8, strip=len(deflated))
    yield Hostile("tiff of 900 megapixels, deflated", tiff(*tags, tail=deflated), "refused")
    for side in (12_000, 60_000):
        for order in "<>":
            for big in (False, True):
                name = f"{'big ' * big}tiff {order} of 16 x 16 pixels in a tile of {side} x {side}"
                yield Hostile(name, tiled(side, big=big, order=order), "refused")
    yield Hostile("tiff whose tile is there twice", tiled(12_000, extra=((322, 4, 16), (323, 4, 16))), "refused")
    yield Hostile("tiff with a strip of 4 billion rows", tiled(4_000_000_000, strip=True), "either")
    yield Hostile("ppm of 3600 megapixels", b"P6 60000 60000 255\n" + bytes(300), "refused")
    yield Hostile("pbm of 10^10 pixels", b"P4\n99999 99999\n" + bytes(300), "refused")
    canvas = struct.pack("<I", 16_382)[:3] * 2
    vp8x = b"VP8X" + struct.pack("<I", 10) + bytes((2, 0, 0, 0)) + canvas
    yield Hostile("webp of 268 megapixels", b"RIFF" + struct.pack("<I", 4 + len(vp8x)) + b"WEBP" + vp8x, "refused")
    yield Hostile("jpeg of 4290 megapixels", resized_jpeg(good["jpeg"], 65_500, 65_500), "refused")
    progressive = saved(picture(64, 64), "jpeg", progressive=True)
    yield Hostile("progressive jpeg of 4290 megapixels", resized_jpeg(progressive, 65_500, 65_500), "refused")


def many_scans() -> Iterator[Hostile]:
    """Each scan costs a whole pass over the picture, and as little as ten bytes."""
    data = saved(picture(64, 64), "jpeg", progressive=True)
    last = data.rindex(b"\xff\xda")
    yield Hostile("jpeg of 2000 scans", data[:last] + data[last:-2] * 2000 + data[-2:], "refused")


def strangers() -> Iterator[Hostile]:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("x.txt", "x")
    page_of = "<html><script>alert(1)</script></html>"
    laughs = '<!ENTITY a "aaaaaaaaaa">' + "".join(
        f'<!ENTITY {n} "{f"&{chr(ord(n) - 1)};" * 10}">' for n in "bcdefghij"
    )
    box = struct.pack(">I", 24)
    strangers = {
        "nothing": b"",
        "one byte": b"\xff",
        "a zero": b"\0",
        "a megabyte of zeros": bytes(1_000_000),
        "noise": np.random.default_rng(0).bytes(100_000),
        "text": b"not an image",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
        "svg with entities": f"<?xml version='1.0'?><!DOCTYPE svg [{laughs}]><svg>&j;</svg>".encode(),
        "svg that reads a file": b'<!DOCTYPE s [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>',
        "html": page_of.encode(),
        "elf": b"\x7fELF\x02\x01\x01" + bytes(57),
        "windows program": b"MZ" + bytes(62) + b"PE\0\0",
        "shell script": b"#!/bin/sh\nrm -rf /\n",
        "pdf": b"%PDF-1.7\n1 0 obj<<>>endobj\n%%EOF",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) print\n",
        "zip": archive.getvalue(),
        "gzip": gzip.compress(bytes(1000)),
        "pickle": pickle.dumps({"a": 1}),
        "json": b'{"image": "x"}',
        "mp4": box + b"ftypisom" + bytes(12),
        "heic": box + b"ftypheic" + bytes(12),
        "avif": box + b"ftypavif" + bytes(12),
        "jpeg 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40),
        "jpeg xl": b"\xff\x0a" + bytes(40),
        "icon": b"\0\0\1\0\1\0\x10\x10\0\0\1\0\x20\0\x68\4\0\0\x16\0\0\0" + bytes(40),
        "photoshop": b"8BPS\0\1" + bytes(40),
        "pcx": b"\x0a\5\1\x08" + bytes(124),
        "dds": b"DDS \x7c\0\0\0" + bytes(120),
        "wave": b"RIFF\x24\0\0\0WAVEfmt " + bytes(28),
        "avi": b"RIFF\x24\0\0\0AVI LIST" + bytes(28),
        "pam": b"P7\nWIDTH 2\nHEIGHT 2\nDEPTH 1\nMAXVAL 255\nENDHDR\n" + bytes(4),
        "xbm": b"#define x_width 8\n#define x_height 1\nstatic char x_bits[] = {0x00};",
        "xpm": b'/* XPM */\nstatic char *x[] = {"1 1 1 1", "a c #000000", "a"};',
        "an image in base64": base64.b64encode(whole()["png"]),
        "a data url": b"data:image/png;base64," + base64.b64encode(whole()["png"]),
        "an image behind a space": b" " + whole()["png"],
        "an image behind a mark of byte order": b"\xef\xbb\xbf" + whole()["jpeg"],
    }
    for name, data in strangers.items():
        yield Hostile(name, data, "refused")


def polyglots() -> Iterator[Hostile]:
    good, script = whole(), b"<script>alert(1)</script>"
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("evil.jar", "x" * 100)
    for kind in ("jpeg", "png", "gif", "webp"):
        yield Hostile(f"{kind} that is a zip", good[kind] + archive.getvalue(), "right")
    for kind in ("jpeg", "png", "gif", "bmp", "tiff"):
        yield Hostile(f"{kind} that ends in html", good[kind] + script, "right")
    comment = PngImagePlugin.PngInfo()
    comment.add_text("Comment", script.decode())
    yield Hostile("png with html in its text", saved(picture(), "png", pnginfo=comment), "right")
    yield Hostile("jpeg with php in a comment", within_jpeg(good["jpeg"], segment(0xFE, b"<?php die;?>")), "right")
    yield Hostile("gif that is javascript", gif(0x2A2F, 1, (8, 8), extra=b"", tail=b"\x3b*/=alert(1)"), "either")
    yield Hostile("jpeg then png", good["jpeg"] + good["png"], "right")
    yield Hostile("png then jpeg", good["png"] + good["jpeg"], "right")
    yield Hostile("pdf with a jpeg in it", b"%PDF-1.4\n" + good["jpeg"], "refused")
    yield Hostile("html then a png", script + good["png"], "refused")
    yield Hostile("zip then a jpeg", archive.getvalue() + good["jpeg"], "refused")
    yield Hostile("bmp that is javascript", b"BM=1;/*" + good["bmp"][7:] + b"*/", "either")


def stuffed() -> Iterator[Hostile]:
    jpeg, big = whole()["jpeg"], bytes(65_000)
    exif = b"Exif\0\0"
    loop = (
        exif + b"II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHII", 0x8769, 4, 1, 8) + struct.pack("<I", 8)
    )
    wild = exif + b"II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHII", 0x0112, 3, 2**32 - 1, 8) + bytes(4)
    yield Hostile("jpeg with 2 MB of comments", within_jpeg(jpeg, *[segment(0xFE, big)] * 30), "right")
    yield Hostile("jpeg with 1000 empty segments", within_jpeg(jpeg, *[segment(0xE5, b"")] * 1000), "right")
    yield Hostile("jpeg with noise for exif", within_jpeg(jpeg, segment(0xE1, exif + big)), "right")
    yield Hostile("jpeg whose exif points at itself", within_jpeg(jpeg, segment(0xE1, loop)), "right")
    yield Hostile("jpeg whose exif has 2^32 values", within_jpeg(jpeg, segment(0xE1, wild)), "right")
    xmp = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + b"<x>" * 20_000)
    yield Hostile("jpeg with a deep xmp", within_jpeg(jpeg, xmp), "right")
    parts = [segment(0xE2, b"ICC_PROFILE\0" + bytes((n + 1, 8)) + big) for n in range(8)]
    yield Hostile("jpeg with a profile of 500 kB", within_jpeg(jpeg, *parts), "right")
    text = chunk(b"tEXt", b"c\0" + b"x" * 5_000_000)
    yield Hostile("png with a plain text of 5 MB", png(8, 8, rows=bytes(72), before=[text]), "either")
    many = [chunk(b"tIME", bytes(7))] * 20_000
    yield Hostile("png of 20,000 chunks", png(8, 8, rows=bytes(72), before=many), "right")
    yield Hostile("png with noise for exif", png(8, 8, rows=bytes(72), before=[chunk(b"eXIf", big)]), "right")
    yield Hostile(
        "tiff with a description of 2 MB", saved(picture(), "tiff", tiffinfo={270: "x" * 2_000_000}), "right"
    )
    blocks = b"\x21\xfe" + (b"\xff" + b"x" * 255) * 4000 + b"\0"
    yield Hostile("gif with a comment of 1 MB", gif(8, 8, extra=blocks), "either")


def moving() -> Iterator[Hostile]:
    frames = [picture(seed=seed) for seed in range(3)]
    more = {"save_all": True, "append_images": frames[1:]}
    yield Hostile("gif that moves", saved(frames[0], "gif", **more), "right")
    yield Hostile("png that moves", saved(frames[0], "png", **more), "right")
    yield Hostile("webp that moves", saved(frames[0], "webp", lossless=True, **more), "right")
    yield Hostile("tiff of three pages", saved(frames[0], "tiff", **more), "right")
    tiny = [Image.new("L", (4, 4), n % 256) for n in range(1000)]
    yield Hostile("gif of 1000 frames", saved(tiny[0], "gif", save_all=True, append_images=tiny[1:]), "right")
    tags = tiff(*page(8, 8), tail=bytes(64))
    at = 8 + 2 + 12 * 9
    yield Hostile("tiff whose next page is itself", tags[:at] + struct.pack("<I", 8) + tags[at + 4 :], "right")
    yield Hostile(
        "tiff whose next page is nowhere", tags[:at] + struct.pack("<I", 2**31) + tags[at + 4 :], "either"
    )


def rare() -> Iterator[Hostile]:
    image = picture()
    grey, deep = image.convert("L"), (np.asarray(picture().convert("L")).astype(np.uint16) * 257)
    yield Hostile("cmyk jpeg", saved(image.convert("CMYK"), "jpeg"), "right")
    yield Hostile("cmyk tiff", saved(image.convert("CMYK"), "tiff"), "right")
    adobe = segment(0xEE, b"Adobe\0\x64\0\0\0\0\0")
    yield Hostile("cmyk jpeg of adobe", within_jpeg(saved(image.convert("CMYK"), "jpeg"), adobe), "right")
    yield Hostile("16-bit png", saved(Image.fromarray(deep), "png"), "right")
    yield Hostile("16-bit tiff", saved(Image.fromarray(deep), "tiff"), "right")
    yield Hostile("16-bit pgm", saved(Image.fromarray(deep.astype(np.int32)), "ppm"), "right")
    colour = b"".join(b"\0" + bytes(range(240)) for _ in range(30))
    yield Hostile("16-bit png in colour", png(40, 30, depth=16, colour=2, rows=colour), "right")
    yield Hostile("32-bit tiff", saved(Image.fromarray(deep.astype(np.int32)), "tiff"), "right")
    floats = (deep / 65_535).astype(np.float32)
    yield Hostile("tiff of floats", saved(Image.fromarray(floats), "tiff"), "right")
    floats[3, 3] = np.nan
    yield Hostile("tiff with a pixel that is no number", saved(Image.fromarray(floats), "tiff"), "refused")
    for mode, kind in (
        ("1", "png"),
        ("1", "tiff"),
        ("P", "png"),
        ("LA", "png"),
        ("RGBA", "png"),
        ("RGBA", "webp"),
    ):
        yield Hostile(f"{kind} of mode {mode}", saved(image.convert(mode), kind), "right")
    yield Hostile("tiff of mode LAB", saved(image.convert("RGB").convert("LAB"), "tiff"), "either")
    yield Hostile("tiff of mode YCbCr", saved(image.convert("YCbCr"), "tiff"), "either")
    yield Hostile("png of 4 bits", png(8, 8, depth=4, rows=bytes(40)), "right")
    yield Hostile("png of 2 bits", png(8, 8, depth=2, rows=bytes(24)), "right")
    yield Hostile("png of one bit", png(8, 8, depth=1, rows=bytes(16)), "right")
    yield Hostile("clear palette png", saved(image.quantize(16), "png", transparency=3), "right")
    yield Hostile("grey jpeg", saved(grey, "jpeg"), "right")
    yield Hostile("progressive jpeg", saved(image, "jpeg", progressive=True), "right")
    yield Hostile("jpeg of quality 1", saved(image, "jpeg", quality=1), "right")
    yield Hostile("jpeg without subsampling", saved(image, "jpeg", subsampling=0), "right")
    yield Hostile("ascii pgm", b"P2 4 2 255\n0 50 100 150\n10 60 110 160\n", "right")
    yield Hostile("ascii pbm", b"P1 4 2\n0 1 0 1\n1 0 1 0\n", "right")
    yield Hostile("palette bmp", saved(image.quantize(16), "bmp"), "right")
    yield Hostile("one-bit bmp", saved(image.convert("1"), "bmp"), "right")
    yield Hostile("lzw tiff", saved(image, "tiff", compression="tiff_lzw"), "right")


def turned() -> Iterator[Hostile]:
    for orientation in (2, 3, 5, 6, 8, 0, 9, 65_535):
        exif = Image.Exif()
        exif[274] = orientation
        yield Hostile(f"jpeg of orientation {orientation}", saved(picture(), "jpeg", exif=exif), "right")
    exif = Image.Exif()
    exif[274] = 6
    yield Hostile("png of orientation 6", saved(picture(), "png", exif=exif), "right")
    yield Hostile("webp of orientation 6", saved(picture(), "webp", exif=exif), "right")


def misshapen() -> Iterator[Hostile]:
    for kind in ("jpeg", "png", "gif", "bmp", "tiff", "webp", "ppm"):
        yield Hostile(f"{kind} of one pixel", saved(picture(1, 1), kind), "right")
    for kind in ("png", "jpeg", "tiff"):
        yield Hostile(f"{kind} of 50,000 by 1", saved(picture(1, 50_000), kind), "right")
        yield Hostile(f"{kind} of 1 by 50,000", saved(picture(50_000, 1), kind), "right")
    jpeg = whole()["jpeg"]
    yield Hostile("png of no pixels", png(0, 0), "refused")
    yield Hostile("png of no height", png(8, 0), "refused")
    yield Hostile("gif of no pixels", gif(0, 0), "either")
    yield Hostile("jpeg of no pixels", resized_jpeg(jpeg, 0, 0), "refused")
    yield Hostile("ppm of no pixels", b"P6 0 0 255\n", "refused")
    yield Hostile("ppm of words", b"P6 ten ten 255\n" + bytes(300), "refused")
    yield Hostile("ppm of negative sides", b"P6 -5 -5 255\n" + bytes(300), "refused")
    yield Hostile("ppm with a number of 10,000 digits", b"P6 " + b"9" * 10_000 + b" 1 255\n" + bytes(9), "refused")
    yield Hostile("tiff of no pixels", tiff(*page(0, 0)), "refused")
    yield Hostile("tiff of nothing", tiff(), "refused")
    yield Hostile("tiff of 999 channels", tiff(*page(8, 8, samples=999), tail=bytes(64)), "refused")
    yield Hostile("tiff whose strip is elsewhere", tiff(*page(8, 8, strip=2**31)), "refused")
    yield Hostile("tiff with no rows in a strip", tiff(*page(8, 8, rows=0), tail=bytes(64)), "either")


def malformed() -> Iterator[Hostile]:
    jpeg, good = whole()["jpeg"], whole()["png"]
    idat = good.index(b"IDAT")
    yield Hostile("png with a wrong checksum", good[: idat + 20] + b"\0" + good[idat + 21 :], "either")
    yield Hostile("png without its end", png(8, 8, rows=bytes(72), end=False), "either")
    yield Hostile("png without pixels", png(8, 8, rows=None), "refused")
    yield Hostile("png of half its pixels", png(8, 8, rows=bytes(36)), "either")
    yield Hostile("png of colour type 7", png(8, 8, colour=7, rows=bytes(72)), "refused")
    yield Hostile("png of 3 bits", png(8, 8, depth=3, rows=bytes(72)), "refused")
    yield Hostile("png with two heads", png(8, 8, rows=bytes(72), before=[png(9000, 5000)[8:33]]), "either")
    first = b"\x89PNG\r\n\x1a\n" + chunk(b"tEXt", bytes(8) + struct.pack(">II", 8, 8)) + png(9000, 5000)[8:]
    yield Hostile("png whose head comes second", first, "either")
    yield Hostile("png whose palette is missing", png(8, 8, colour=3, rows=bytes(72)), "either")
    broken = chunk(b"IDAT", b"\x78\x9c" + b"\xff" * 50)
    yield Hostile("png of broken zlib", png(8, 8, rows=None, before=[broken]), "refused")
    scan = jpeg.index(b"\xff\xda")
    yield Hostile("jpeg without a scan", jpeg[:scan] + b"\xff\xd9", "refused")
    tables = jpeg.index(b"\xff\xc4")
    yield Hostile("jpeg without tables", jpeg[:tables] + jpeg[scan:], "either")
    yield Hostile("jpeg with a segment of length 0", within_jpeg(jpeg, b"\xff\xe0\0\0"), "either")
    yield Hostile("jpeg with a segment beyond its end", within_jpeg(jpeg, b"\xff\xe0\xff\xff"), "either")
    yield Hostile("jpeg of 255 components", within_jpeg(jpeg, segment(0xC0, b"\x08\0\x08\0\x08\xff")), "either")
    yield Hostile("jpeg of 12 bits", jpeg.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c", 1), "refused")
    yield Hostile("lossless jpeg", jpeg.replace(b"\xff\xc0", b"\xff\xc3", 1), "refused")
    yield Hostile("arithmetic jpeg", jpeg.replace(b"\xff\xc0", b"\xff\xc9", 1), "either")
    yield Hostile("jpeg of two bytes and an end", b"\xff\xd8\xff\xd9", "refused")
    yield Hostile("gif of broken lzw", gif(8, 8)[:-5] + b"\x02\xff\xff\0\x3b", "either")
    yield Hostile("gif with a code size of 255", gif(8, 8).replace(b"\x02\x02\x4c", b"\xff\x02\x4c"), "either")
    yield Hostile("webp of an empty frame", b"RIFF\x0c\0\0\0WEBPVP8L\0\0\0\0", "refused")


FAMILIES = (
    truncated,
    scrambled,
    bombs,
    many_scans,
    strangers,
    polyglots,
    stuffed,
    moving,
    rare,
    turned,
    misshapen,
    malformed,
)


def corpus() -> list[Hostile]:
    """All of them."""
    return [one for family in FAMILIES for one in family()]
