"""What a request may ask: bytes, images and pixels are counted before any is decoded, contents are sniffed."""

import struct
from dataclasses import dataclass

from ..data import IMAGE_FORMATS, MAX_IMAGE_PIXELS, read_header, read_jpeg_header
from ..errors import ImageError, ServiceError

IMAGE_SIGNATURES = {
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
    b"BM": "image/bmp",
    b"II*\0": "image/tiff",
    b"MM\0*": "image/tiff",
    b"II+\0": "image/tiff",
    b"MM\0+": "image/tiff",
}
"""How the content of each kind of image begins; WebP and the PNM family are told apart in ``sniff``."""

TYPE_ALIASES = {
    "image/jpg": "image/jpeg",
    "image/pjpeg": "image/jpeg",
    "image/apng": "image/png",
    "image/x-png": "image/png",
    "image/x-ms-bmp": "image/bmp",
    "image/x-bmp": "image/bmp",
    "image/x-portable-pixmap": "image/x-portable-anymap",
    "image/x-portable-graymap": "image/x-portable-anymap",
    "image/x-portable-bitmap": "image/x-portable-anymap",
}
"""Other names of the same types."""

GENERIC_TYPES = ("", "application/octet-stream", "binary/octet-stream", "image/*")
"""Declared types that say nothing."""

LARGE_IMAGE_PIXELS = 4_000_000
"""Pixels from which an image is decoded alone, so that memory does not grow with the number of threads."""

MAX_JPEG_SCANS = 100
"""Passes over the picture that a JPEG may have, each as little as ten bytes; a progressive one has about ten."""


class RequestError(Exception):
    """A request, or one image of it, that is not answered: an HTTP status and one sentence."""

    def __init__(self, status: int, detail: str):
        super().__init__(detail)
        self.status = status
        self.detail = detail


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """How much one request may bring, and how many may wait."""

    body_mb: float = 20.0
    """Bytes of a request, in MB (10^6 bytes)."""
    pixels: int = 50_000_000
    """Pixels of an image, told by its header."""
    images: int = 64
    """Images of a request."""
    queue: int = 256
    """Requests that may wait for an answer; one more is told to come back (503)."""

    def __post_init__(self):
        """Raise ValueError for limits that would refuse everything."""
        if not 0.001 <= self.body_mb <= 1000:
            raise ValueError(f"--max-body-mb is {self.body_mb:g}: it must be from 0.001 to 1000")
        if not 1 <= self.pixels <= MAX_IMAGE_PIXELS:
            raise ValueError(f"--max-pixels is {self.pixels}: it must be from 1 to {MAX_IMAGE_PIXELS:,}")
        if not 1 <= self.images <= 10_000:
            raise ValueError(f"--max-images is {self.images}: it must be from 1 to 10,000")
        if not 1 <= self.queue <= 100_000:
            raise ValueError(f"--queue is {self.queue}: it must be from 1 to 100,000")

    @property
    def max_body_bytes(self) -> int:
        """Bytes of a request, at most."""
        return int(self.body_mb * 1e6)

    @property
    def max_buffered_bytes(self) -> int:
        """Bytes of all requests that are being read or wait, at most."""
        return max(64_000_000, 2 * self.max_body_bytes)


def sniff_type(data: bytes) -> str | None:
    """The type that the content has by its first bytes; None for what is no image we read."""
    for start, kind in IMAGE_SIGNATURES.items():
        if data.startswith(start):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data[:1] == b"P" and data[1:2] in (b"1", b"2", b"3", b"4", b"5", b"6") and data[2:3].isspace():
        return "image/x-portable-anymap"
    return None


def check_image(data: bytes, declared: str, limits: RequestLimits) -> int:
    """The number of pixels of an image that may be decoded; 0 where its header does not tell.

    Raises Refusal: 400 for no bytes, 415 for what is no image or another than declared, 413 for too many pixels.
    """
    if not data:
        raise RequestError(400, "the image is empty (zero bytes)")
    kind = sniff_type(data)
    if kind is None:
        if data[4:8] == b"ftyp":
            raise RequestError(
                415, "the content is HEIC, AVIF or a video, which is not read: convert it to JPEG or PNG"
            )
        raise RequestError(415, f"the content is not an image ({', '.join(IMAGE_FORMATS)} are read)")
    if declared not in GENERIC_TYPES and TYPE_ALIASES.get(declared, declared) != kind:
        raise RequestError(415, f"the content is {kind}, not what it was declared to be")
    if kind == "image/jpeg" and (scans := data.count(b"\xff\xda")) > MAX_JPEG_SCANS:
        raise RequestError(413, f"the JPEG has {scans} scans, more than the {MAX_JPEG_SCANS} that are allowed")
    count = count_pixels(data, kind)
    if count > limits.pixels:
        raise RequestError(
            413, f"the image has {count:,} pixels, more than the {limits.pixels:,} that are allowed"
        )
    return count


def count_pixels(data: bytes, kind: str) -> int:
    """Width times height as the decoder will find them, without decoding; 0 where they cannot be told."""
    if kind == "image/jpeg":
        head = read_jpeg_header(data)
        return head.width * head.height if head else _inspected(data)
    if kind == "image/png" and data.count(b"IHDR") == 1 and len(data) >= 24:  # with two, the last one counts
        width, height = struct.unpack_from(">II", data, 16)
        return width * height
    return _inspected(data)


def _inspected(data: bytes) -> int:
    try:
        header = read_header(data)
    except ImageError:
        return 0  # decoding says why
    return header.width * header.height


def build_limits(**values: float) -> RequestLimits:
    """Limits as a user named them; raises ServiceError for impossible ones."""
    try:
        return RequestLimits(**values)  # type: ignore[arg-type]  counts come as whole numbers
    except ValueError as error:
        raise ServiceError(f"{error}.") from error
