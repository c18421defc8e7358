"""Whether an image may be decoded: by its header, before anything is."""

import struct
from typing import NamedTuple

from ..data import IMAGE_FORMATS, JpegHeader, read_header, read_jpeg_header
from ..errors import ImageError
from .requests import RequestError, RequestLimits, sniff_type

JPEG_SCAN = b"\xff\xda"
"""The marker before a pass over the picture in a JPEG; compressed data cannot contain it."""

MAX_JPEG_SCANS = 100
"""Passes over the picture in one JPEG, each as short as ten bytes; a progressive JPEG has about ten."""


class MeasuredImage(NamedTuple):
    """What the header of an image announces; zeros if it cannot be read."""

    pixels: int
    decode_bytes: int
    """Bytes that decoding takes at most."""
    jpeg: JpegHeader | None = None
    """The header of a JPEG, for the decoder; None where Pillow reads it, and for other formats."""


def check_image(data: bytes, limits: RequestLimits) -> MeasuredImage:
    """Return what the header of an image announces, if it may be decoded.

    Raise RequestError: 400 for no bytes, 415 for no image, 413 for too many pixels.
    """
    if not data:
        raise RequestError(400, "the image is empty (zero bytes)")
    kind = sniff_type(data)
    if kind is None:
        if data[4:8] == b"ftyp":
            raise RequestError(
                415, "the content is HEIC, AVIF or a video, which the service does not read: send JPEG or PNG"
            )
        raise RequestError(415, f"the content is not an image ({', '.join(IMAGE_FORMATS)} are read)")
    if kind == "image/jpeg" and (scans := data.count(JPEG_SCAN)) > MAX_JPEG_SCANS:
        raise RequestError(413, f"the JPEG has {scans} scans, more than the {MAX_JPEG_SCANS} that are allowed")
    found = measure_image(data, kind)
    if found.pixels > limits.pixels:
        raise RequestError(
            413, f"the image has {found.pixels:,} pixels, more than the {limits.pixels:,} that are allowed"
        )
    if found.decode_bytes > limits.max_decode_bytes:
        raise RequestError(
            413,
            f"decoding the image takes {found.decode_bytes // 1_000_000} MB, more than the "
            f"{limits.max_decode_bytes // 1_000_000} MB that are allowed: send it smaller, or as JPEG",
        )
    return found


def measure_image(data: bytes, kind: str) -> MeasuredImage:
    """Return the pixels of an image of this content type, as the decoder will find them, and what decoding takes.

    The bytes per pixel were measured, for large images.
    """
    if kind == "image/jpeg" and (header := read_jpeg_header(data)):
        pixels = header.width * header.height
        return MeasuredImage(pixels, pixels * (6 if b"\xff\xc2" in data else 4), header)
    if kind == "image/png" and data.count(b"IHDR") == 1 and len(data) >= 26:  # with two, the last one counts
        width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
        plain_grey = colour == 0 and depth <= 8 and b"tRNS" not in data
        return MeasuredImage(width * height, width * height * (4 if plain_grey else 9))
    try:
        found = read_header(data)
    except ImageError:
        return MeasuredImage(0, 0)  # decoding reports the reason
    pixels = found.width * found.height
    return MeasuredImage(pixels, pixels * (17 if kind == "image/webp" else 13 if found.depth > 16 else 9))
