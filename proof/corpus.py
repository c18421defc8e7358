"""Hostile files and requests for ``proof/hostile.py``, made by code, the same ones each time."""

import base64
import io
import json
import os
import pickle
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from helpers.malformed_images import chunk, corpus, gif, page, png, segment, tiff, whole, within_jpeg
from helpers.malformed_tensors import malformed_tensors, pack

File = tuple[str, bytes]
"""A name, and the bytes of a file or of a whole request."""

HOST = b"Host: localhost\r\n"


# Files


def hostile_files() -> list[File]:
    """Names that differ, and bytes: those of the tests of the service, and the kinds below."""
    families = (cut_files, scrambled_files, crossed_files, tiff_files, structured_files, foreign_files)
    return [(one.name, one.data) for one in corpus()] + [one for family in families for one in family()]


def cut_files() -> Iterator[File]:
    """Whole images that end early."""
    for kind, data in whole().items():
        for share in (0.15, 0.6, 0.85, 0.97):
            yield f"{kind} cut at {share:.0%}", data[: int(share * len(data))]


def scrambled_files() -> Iterator[File]:
    """Images with blocks of noise, of zeros, or twice the same block."""
    for kind, data in whole().items():
        rng = np.random.default_rng(len(data))
        at = int(rng.integers(20, len(data) - 20))
        yield f"{kind} with a block of noise", data[:at] + rng.bytes(64) + data[at + 64 :]
        yield f"{kind} with a block of zeros", data[:at] + bytes(64) + data[at + 64 :]
        yield f"{kind} with a block twice", data[: at + 64] + data[at:]


def crossed_files() -> Iterator[File]:
    """The beginning of one format and the rest of another."""
    good = whole()
    for first, head in good.items():
        for second, rest in good.items():
            if first != second:
                yield f"{first} that goes on as {second}", head[:32] + rest[32:]


def tiff_files() -> Iterator[File]:
    """Every compression that TIFF knows, of noise and of too many pixels."""
    noise = np.random.default_rng(0).bytes(400)
    for compression in (2, 3, 4, 5, 6, 7, 8, 32773, 34712, 34925, 50000, 50001):
        for side in (16, 9000):
            tags = page(side, side, compression=compression, strip=len(noise))
            yield f"tiff of compression {compression}, {side} pixels wide", tiff(*tags, tail=noise)
    ifd = struct.pack("<H", 60_000) + struct.pack("<HHII", 256, 4, 1, 16) * 60_000
    yield "tiff of 60,000 tags", b"II*\0" + struct.pack("<I", 8) + ifd + bytes(4)
    yield "tiff whose tags are at its end", b"II*\0" + struct.pack("<I", 2**32 - 1) + bytes(100)


def structured_files() -> Iterator[File]:
    """PNG, JPEG, GIF and WebP that lie about what comes."""
    rows, jpeg, webp = bytes(72), whole()["jpeg"], whole()["webp"]
    frames = chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))
    yield "png of 2^31 frames", png(8, 8, rows=rows, before=[frames])
    control = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 60_000, 60_000, 0, 0, 1, 1, 0, 0))
    yield "png of a frame of 3600 megapixels", png(8, 8, rows=rows, before=[frames, control])
    yield (
        "png of a palette of 85,000 colours",
        png(8, 8, colour=3, rows=rows, before=[chunk(b"PLTE", bytes(255_000))]),
    )
    yield "png of 10,000 empty texts", png(8, 8, rows=rows, before=[chunk(b"tEXt", b"c\0")] * 10_000)
    yield (
        "png of 1000 profiles",
        png(8, 8, rows=rows, before=[chunk(b"iCCP", b"p\0\0" + zlib.compress(b""))] * 1000),
    )
    yield "png whose chunk is 2^31 bytes", png(8, 8, rows=rows)[:33] + struct.pack(">I", 2**31) + b"IDAT"
    yield "jpeg with 4000 tables", within_jpeg(jpeg, *[segment(0xDB, bytes(65))] * 4000)
    yield "jpeg with a table of ones", within_jpeg(jpeg, segment(0xC4, b"\0" + b"\xff" * 16 + bytes(4080)))
    yield "jpeg that restarts at every block", within_jpeg(jpeg, segment(0xDD, b"\0\1"))
    yield "jpeg of two frames", within_jpeg(jpeg, jpeg[2:])
    yield "gif of 2000 frames outside its screen", gif(8, 8)[:-1] + gif(8, 8)[19:-1] * 2000 + b"\x3b"
    yield "webp that claims 4 GB", webp[:4] + b"\xff\xff\xff\xff" + webp[8:]
    yield "webp of a second image", webp + webp[12:]
    yield "ppm of 65,535 levels cut short", b"P6 4000 4000 65535\n" + bytes(1000)
    yield "pgm of a comment of a megabyte", b"P5\n#" + b"x" * 1_000_000 + b"\n4 2 255\n" + bytes(8)
    yield "bmp of a palette beyond its end", whole()["bmp"][:46] + b"\xff\xff\xff\x7f" + whole()["bmp"][50:]


def foreign_files() -> Iterator[File]:
    """Files of this trade that are no images, as they lie among them."""
    array, packed, table = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(array, np.array([{"a": 1}], object), allow_pickle=True)
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as content:
        content.writestr("../../evil.png", bytes(5_000_000))
        content.writestr(
            "schema.json", '{"__class__": "system", "__module__": "os", "__loader__": "FunctionNode"}'
        )
    with tarfile.open(fileobj=table, mode="w") as content:
        link = tarfile.TarInfo("x.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        content.addfile(link)
    yield "numpy of objects.npy", array.getvalue()
    yield (
        "numpy of 10^12 values.npy",
        b"\x93NUMPY\1\0\x76\0{'descr':'<f8','fortran_order':False,'shape':(1000000,1000000)}\n",
    )
    yield "skops of a system call.skops", packed.getvalue()
    yield "archive of a link.tar", table.getvalue()
    yield "pickle of a system call.pkl", pickle.dumps(print, 0)
    yield "parquet of no rows.parquet", b"PAR1" + bytes(8) + struct.pack("<I", 2**31 - 1) + b"PAR1"
    yield "safetensors of a header of 2^62 bytes.safetensors", struct.pack("<Q", 2**62) + b"{}"
    yield (
        "safetensors that overlaps.safetensors",
        struct.pack("<Q", 66) + (b'{"a":{"dtype":"F32","shape":[1073741824],"data_offsets":[0,4]}}   ' + bytes(4)),
    )
    weights = pack({"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}, bytes(16))
    yield from ((f"safetensors of {what}.safetensors", data) for what, data in malformed_tensors(weights))
    yield "onnx of noise.onnx", b"\x08\x07\x12\x04" + np.random.default_rng(1).bytes(500)
    yield "idx of 2^96 pixels", b"\0\0\x08\3" + b"\xff" * 12
    yield (
        "matlab of noise.mat",
        b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM" + np.random.default_rng(2).bytes(300),
    )


STRANGE_NAMES = (
    "-rf.png",
    "--help.png",
    "=cmd|' !A0.png",
    "a\nb.png",
    "a\tb.png",
    "%s%n.png",
    "..png",
    " .png",
    "\u202egnp.exe.png",
    "\U0001f431.png",
    "x" * 240 + ".png",
    "con.png",
    "a'b\"c`d$(e).png",
    "*.png",
    "[0-9].png",
    "\x1b[31mred.png",
    "{a,b}.png",
    "~.png",
    "con:stream.png",
    "\\\\share\\x.png",
)


def write_folder(folder: Path, files: list[File]) -> int:
    """Write the files into two classes, with strange names and special files; the number of entries."""
    for number, (name, data) in enumerate(files):
        ending = f".{name.split()[0]}" if name.split()[0] in whole() else ".png"
        path = folder / f"class{number % 2}" / f"{number:03}{Path(name).suffix if '.' in name else ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    good, home = whole()["png"], folder / "class0"
    for name in STRANGE_NAMES:
        (home / name).write_bytes(good)
    with suppress(OSError):  # some file systems take no such name
        Path(os.fsdecode(bytes(home) + b"/\xff\xfe.png")).write_bytes(good)
    os.mkfifo(home / "pipe.png")
    (home / "folder.png").mkdir()
    (home / "loop").symlink_to(home)
    (home / "self.png").symlink_to(home / "self.png")
    (home / "dead.png").symlink_to("/nowhere/x.png")
    (home / "endless.png").symlink_to("/dev/zero")
    with (home / "sparse.png").open("wb") as stream:
        stream.truncate(30_000_000_000)
    return sum(1 for _ in folder.rglob("*"))


# Requests


def hostile_requests() -> list[File]:
    """Names and the bytes of whole requests."""
    image = whole()["jpeg"]
    families = (
        odd_methods(),
        odd_queries(),
        odd_feedback(),
        odd_json(base64.b64encode(image).decode()),
        odd_forms(image),
        odd_headers(image),
        odd_framing(image),
    )
    return [one for family in families for one in family]


def ask(method: str, path: str, body: bytes = b"", kind: str = "", more: bytes = b"") -> bytes:
    """A well-framed request."""
    head = f"{method} {path} HTTP/1.1\r\n".encode("utf-8", "surrogateescape") + HOST + b"Connection: close\r\n"
    head += f"Content-Type: {kind}\r\n".encode() if kind else b""
    return head + b"Content-Length: %d\r\n" % len(body) + more + b"\r\n" + body


def odd_methods() -> Iterator[File]:
    """Methods that no route knows."""
    for method in ("DELETE", "PUT", "PATCH", "TRACE", "OPTIONS", "CONNECT", "BREW"):
        for path in ("/predict", "/feedback", "/predictions", "/releases/1/promote", "/docs"):
            yield f"{method} {path}", ask(method, path)


def odd_queries() -> Iterator[File]:
    """Queries and paths."""
    big = "9" * 5000
    for query in (
        "limit=-1",
        "limit=0",
        "limit=1e9",
        f"limit={big}",
        "limit=%00",
        "limit=1&limit=2",
        "before=%FF%FE",
        f"before={'f' * 9000}",
        "since=nan",
        "since=inf",
        "since=-1e308",
        "until=1e400",
        f"since={big}",
        "label=%00",
        "label=%F0%9F%92%A9",
        f"label={'x' * 9000}",
        "release=-1",
        f"release={2**70}",
        f"release={big}",
        "release=1.5",
        "abstained=maybe",
        "corrected=[]",
        "unknown=1",
        "=",
        "&" * 9000,
        "limit",
        "limit=%",
        "limit=\xe9",
        "label=';DROP TABLE predictions;--",
        "label=${jndi:ldap://x}",
    ):
        yield f"/predictions?{query[:40]}", ask("GET", f"/predictions?{query}".replace(" ", "%20"))
    for path in (
        "/releases/0/promote",
        "/releases/-1/promote",
        f"/releases/{big}/promote",
        "/releases/%2e%2e/promote",
    ):
        yield f"POST {path[:40]}", ask("POST", path)
    for path in (
        "/../../etc/passwd",
        "//",
        "/%00",
        "/docs%00",
        "/%c0%ae%c0%ae/",
        "/" + "a/" * 4000,
        "/docs/..;/metrics",
        "*",
    ):
        yield f"GET {path[:40]}", ask("GET", path)
    for query in ("top=0", "top=-1", f"top={big}", "top=\u0663", "heat=maybe", "x=1", "top=1&top=2&top=x"):
        yield f"POST /predict?{query[:40]}", ask("POST", f"/predict?{query}", whole()["png"])


def odd_feedback() -> Iterator[File]:
    """Corrections."""
    identity = "0" * 32
    for value in (
        None,
        True,
        1e300,
        "x",
        [],
        {},
        {"id": identity},
        {"label": "1"},
        {"id": None, "label": None},
        {"id": identity, "label": "1"},
        {"id": "x" * 50_000, "label": "1"},
        {"id": identity, "label": "x" * 50_000},
        {"id": "\0", "label": "\0"},
        {"id": ["a"], "label": {"b": 1}},
        {"id": identity, "label": "1", "more": 1},
        {"id": "\ud800", "label": "\ud800"},
    ):
        text = json.dumps(value)
        yield f"feedback {text[:40]}", ask("POST", "/feedback", text.encode(), "application/json")
    for body in (
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 60_000,
        b'{"id":' * 9000,
        b"NaN",
        b'{"id": 1e99999, "label": -0}',
        b"x" * 64_001,
    ):
        yield f"feedback {body[:20]!r}", ask("POST", "/feedback", body, "application/json")


def odd_json(image: str) -> Iterator[File]:
    """Predictions in JSON."""
    for value in (
        {"image": ""},
        {"images": []},
        {"images": None},
        {"images": image},
        {"images": [image] * 65},
        {"images": [[image]]},
        {"image": image, "images": [image]},
        {"image": image, "top": 1.0},
        {"image": image, "top": True},
        {"image": image, "top": 10**400},
        {"image": image, "heat": "yes"},
        {"image": image, "subject": 1},
        {"image": image, "subject": "x" * 201},
        {"image": image, "subject": "\u202e\0"},
        {"image": image, "subject": "\ud800"},
        {"image": "data:image/png;base64"},
        {"image": "data:text/html;base64," + image},
        {"image": "data:,x"},
        {"image": "file:///etc/passwd"},
        {"image": "http://localhost/"},
        {"image": image[:-7]},
        {"image": "=" * 100_000},
        {"image": "A" * 3_000_000},
        {"image": "\n" * 1_000_000 + image},
        {"__proto__": image},
        {"image": image, "x" * 100_000: 1},
        {"image": {"$ref": "#"}},
        {"images": [image, None, 3]},
        [image],
        image,
        7,
    ):
        text = json.dumps(value)
        yield f"predict {text[:40]}", ask("POST", "/predict", text.encode(), "application/json")
    for body in (
        b"{" * 1_000_000,
        b"[" * 1_000_000,
        b'{"a":' * 300_000,
        b'{"image": "\\u0000"}',
        b'{"image": NaN}',
        b"1" * 900_000,
    ):
        yield f"predict {body[:20]!r}", ask("POST", "/predict", body, "application/json")


def odd_forms(image: bytes) -> Iterator[File]:
    """Predictions in forms."""

    def part(head: bytes, data: bytes) -> bytes:
        return b"--x\r\n" + head + b"\r\n\r\n" + data + b"\r\n"

    disposition = b'Content-Disposition: form-data; name="image"; filename="'
    good = part(disposition + b'a.jpg"', image)
    for name, body in {
        "no end": good,
        "no parts": b"--x--\r\n",
        "200 parts": good * 200 + b"--x--",
        "a part without a name": part(b"A: b", image) + b"--x--",
        "a part in a part": part(b"Content-Type: multipart/mixed; boundary=x", good) + b"--x--",
        "a name of 100 kB": part(disposition + b"a" * 100_000 + b'"', image) + b"--x--",
        "a name with a path": part(disposition + b'../../../etc/cron.d/x"', image) + b"--x--",
        "a name with a NUL": part(disposition + b'\0"', image) + b"--x--",
        "100,000 headers": part(b"A: b\r\n" * 100_000 + disposition + b'a"', image) + b"--x--",
        "a bad transfer encoding": part(disposition + b'a"\r\nContent-Transfer-Encoding: base64', image)
        + b"--x--",
        "a field of 2 MB": part(b'Content-Disposition: form-data; name="subject"', b"x" * 2_000_000) + b"--x--",
        "top of words": part(b'Content-Disposition: form-data; name="top"', b"many") + good + b"--x--",
        "bare line feeds": good.replace(b"\r\n", b"\n") + b"--x--",
        "bytes behind its end": good + b"--x--" + bytes(100_000),
        "only a preamble": bytes(100_000),
    }.items():
        yield f"form of {name}", ask("POST", "/predict", body, "multipart/form-data; boundary=x")
    for kind in (
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary="',
        "multipart/form-data; boundary=\xff",
    ):
        yield f"form of {kind[20:]!r}", ask("POST", "/predict", good + b"--x--", kind)


def odd_headers(image: bytes) -> Iterator[File]:
    """Headers, declared types and hosts."""
    for more in (
        b"Content-Encoding: gzip\r\n",
        b"Content-Encoding: br, gzip, gzip\r\n",
        b"Expect: 100-continue\r\n",
        b"Expect: the unexpected\r\n",
        b"Authorization: Bearer " + b"x" * 20_000 + b"\r\n",
        b"Authorization: \xff\xfe\r\n",
        b"X-API-Key: \r\n",
        b"X-API-Key: sl_\r\n",
        b"Sightline-Subject: " + b"x" * 10_000 + b"\r\n",
        b"Sightline-Subject: \xff\xfe\r\n",
        b"Origin: null\r\n",
        b"Origin: http://evil.example\r\n",
        b"Range: bytes=0-99999999\r\n",
        b"X-Forwarded-For: 127.0.0.1\r\n",
        b"X-HTTP-Method-Override: DELETE\r\n",
        b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n",
        b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n",
        b"Accept: " + b"*/*," * 3000 + b"\r\n",
        b"Cookie: " + b"a=b;" * 3000 + b"\r\n",
        b"X: y\r\n" * 5000,
        b"X" * 40_000 + b": y\r\n",
    ):
        yield f"header {more[:30]!r}", ask("POST", "/predict", image, "image/jpeg", more)
    for kind in (
        "text/html",
        "image/svg+xml",
        "application/x-www-form-urlencoded",
        "application/json; charset=utf-16",
        "x" * 9000,
        ";;;",
    ):
        yield f"type {kind[:30]}", ask("POST", "/predict", image, kind)
    for host in (
        b"evil.example",
        b"localhost:99999",
        b"[::1",
        b"",
        b"localhost\r\nHost: evil.example",
        b"127.0.0.1@evil.example",
    ):
        yield f"host {host!r}", b"GET /model HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n\r\n"


def odd_framing(image: bytes) -> Iterator[File]:
    """Requests that do not agree with themselves; those that wait for more end with the half that is sent."""
    post = b"POST /predict HTTP/1.1\r\n" + HOST
    chunked = post + b"Transfer-Encoding: chunked\r\n\r\n"
    yield from {
        "length and chunks": post + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "two lengths": post + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
        "a negative length": post + b"Content-Length: -1\r\n\r\n",
        "a length of 2^64": post + b"Content-Length: 18446744073709551616\r\n\r\n",
        "a length of 10 GB": post + b"Content-Length: 10000000000\r\n\r\n",
        "a length in hexadecimal": post + b"Content-Length: 0x10\r\n\r\n" + bytes(16),
        "a chunk of 2^64 bytes": chunked + b"FFFFFFFFFFFFFFFFF\r\n",
        "a chunk of -1 bytes": chunked + b"-1\r\n",
        "a chunk of words": chunked + b"many\r\n",
        "chunks of one byte": chunked + b"".join(b"1\r\n%c\r\n" % byte for byte in image) + b"0\r\n\r\n",
        "25 MB in chunks": chunked + (b"100000\r\n" + bytes(0x100000) + b"\r\n") * 24 + b"0\r\n\r\n",
        "many trailers": chunked + b"0\r\n" + b"A: b\r\n" * 20_000 + b"\r\n",
        "an unknown encoding": post + b"Transfer-Encoding: zip\r\n\r\n",
        "a second request in the body": post
        + b"Content-Length: 40\r\n\r\nGET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "a pipeline of 200": (b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n") * 200,
        "a pipeline of images": ask("POST", "/predict", image).replace(b"Connection: close\r\n", b"") * 20,
        "HTTP/0.9": b"GET /\r\n",
        "HTTP/1.0": b"GET /healthz HTTP/1.0\r\n\r\n",
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(100),
        "HTTP/9.9": b"GET / HTTP/9.9\r\n\r\n",
        "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
        "an absolute address": b"GET http://evil.example/model HTTP/1.1\r\n" + HOST + b"\r\n",
        "a folded header": b"GET / HTTP/1.1\r\n" + HOST + b"X: a\r\n b\r\n\r\n",
        "a header without a colon": b"GET / HTTP/1.1\r\n" + HOST + b"nonsense\r\n\r\n",
        "a header with a NUL": b"GET / HTTP/1.1\r\n" + HOST + b"X: a\0b\r\n\r\n",
        "line feeds only": b"GET /healthz HTTP/1.1\nHost: localhost\n\n",
        "noise": np.random.default_rng(3).bytes(50_000),
        "zeros": bytes(50_000),
        "an address of 100 kB": b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    }.items()
