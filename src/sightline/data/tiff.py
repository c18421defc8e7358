"""What the header of a TIFF announces, read before Pillow decodes: channels, bits, tiles and strips."""

import struct
from contextlib import suppress

from ..errors import ImageError

MAX_PADDED_TILE_PIXELS = 4_194_304
"""Pixels of a TIFF's tile, 2048 x 2048, that may be more than twice the picture's."""

TIFF_SAMPLES, TIFF_DEPTHS = 277, 258
"""TIFF tags: channels, and bits of each."""

_TIFF_SIDES, _TILE_SIDES, _ROWS_PER_STRIP = (256, 257), (322, 323), 278
_TIFF_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q"}
"""The integers of TIFF by their number, as ``struct`` calls them."""


def check_tiff_blocks(tags: dict[int, tuple[int, ...]]) -> None:
    """Refuse a TIFF whose tiles or strips are far larger than its picture: the decoder allocates a whole one."""
    width, height = (tags.get(tag, (0,))[0] for tag in _TIFF_SIDES)
    rows = tags.get(_ROWS_PER_STRIP, (height,))[0]
    across, down = (
        tags[tag][0] if tag in tags else side for tag, side in zip(_TILE_SIDES, (width, rows), strict=True)
    )
    down = min(down, height) if not tags.keys() & set(_TILE_SIDES) else down  # a strip may end below the picture
    if min(across, down) < 0 or across * down > max(MAX_PADDED_TILE_PIXELS, 2 * width * height):
        raise ImageError(
            f"the TIFF has tiles of {across} x {down} pixels for a picture of {width} x {height}, which is refused "
            "unread: save it again without tiles"
        )


def read_tiff_tags(data: bytes) -> dict[int, tuple[int, ...]]:
    """The integers of a TIFF's first page by tag, BigTIFF's too; empty for other files and damaged ones.

    Of a tag that is there twice, the larger value counts: decoders differ in which one they take.
    """
    order, version = {b"II": "<", b"MM": ">"}.get(data[:2]), data[2:4]
    if order is None or version not in (b"*\0", b"\0*", b"+\0", b"\0+"):
        return {}
    start, entries, value = (8, "Q", "Q") if b"+" in version else (4, "H", "I")  # what BigTIFF has wider
    header = struct.Struct(f"{order}HH{value}")
    room = struct.calcsize(order + value)
    found: dict[int, tuple[int, ...]] = {}
    try:
        (at,) = struct.unpack_from(order + value, data, start)
        (count,) = struct.unpack_from(order + entries, data, at)
    except struct.error:
        return {}
    at += struct.calcsize(order + entries)
    step = header.size + room
    for entry in range(at, min(len(data) - step + 1, at + step * count), step):
        tag, kind, length = header.unpack_from(data, entry)
        if (size := _TIFF_INTEGERS.get(kind)) is None or not 0 < length <= 64:
            continue
        where = entry + header.size
        if struct.calcsize(order + size) * length > room:
            (where,) = struct.unpack_from(order + value, data, where)
        with suppress(struct.error, OverflowError):  # the value lies outside of the file: the decoder skips it too
            found[tag] = max(found.get(tag, ()), struct.unpack_from(f"{order}{length}{size}", data, where))
    return found
