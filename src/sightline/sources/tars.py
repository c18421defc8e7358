"""Tar archives, read in place; a compressed one cannot be read at random and is unpacked into the cache, once."""

import os
import shutil
import tarfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from .. import runtime
from ..errors import DataError, OutputError
from ..files import replacing
from .archives import ArchiveReader, damaged, refused_link, safe
from .listing import Listing, stamp_of

_MAX_TAR = 200_000_000_000
_MAX_RATIO = 100
_END = 1 << 15


def list_tar(path: Path) -> Listing:
    """Every member of a tar archive (gz, bz2 and xz are first decompressed into the cache).

    Raises DataError for a truncated archive, links, devices, and members that point outside.
    """
    plain = path if _is_plain_tar(path) else _decompressed(path)
    length = plain.stat().st_size
    names, rows, folders = [], [], set()
    try:
        with tarfile.open(plain, "r:") as archive:
            for member in archive:
                name = safe(member.name, path)
                if member.isdir():
                    folders.add(name.rstrip("/"))
                    continue
                if not member.isreg() or member.issparse():
                    raise refused_link(name, path, "link or device")
                names.append(name)
                rows.append((member.offset_data, member.size, int(member.mtime)))
                archive.members.clear()  # type: ignore[attr-defined]  else every header stays in memory
    except (tarfile.TarError, OSError) as error:
        raise damaged(path, "tar") from error
    offsets, sizes, times = np.array(rows, np.int64).reshape(-1, 3).T.copy()
    with plain.open("rb") as stream:
        stream.seek(max(0, length - 512))
        if stream.read().strip(b"\0") or (offsets + sizes > length).any():
            raise damaged(path, "tar")
        stamps = _stamps(stream, offsets, sizes, times)
    return Listing(names, sizes, stamps, frozenset(folders), ArchiveReader(plain, offsets, sizes, sizes))


def _stamps(stream: BinaryIO, offsets: ndarray, sizes: ndarray, times: ndarray) -> Int64[ndarray, " N"]:
    """A checksum of each member, which a tar does not keep; of large ones of both ends, with the time."""
    stamps = np.empty(len(sizes), np.int64)
    for i, (offset, size, time) in enumerate(zip(offsets.tolist(), sizes.tolist(), times.tolist(), strict=True)):
        stream.seek(offset)
        crc = zlib.crc32(stream.read(min(size, _END)))
        if size > _END:
            stream.seek(offset + size - min(_END, size - _END))
            crc = zlib.crc32(stream.read(min(_END, size - _END)), crc) ^ (time % 2**31 << 32)
        stamps[i] = crc
    return stamps


def _is_plain_tar(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(262)[257:] == b"ustar"


def _decompressed(path: Path) -> Path:
    """The same tar without its compression, in the cache; made once for each state of the file."""
    import hashlib

    key = hashlib.blake2b(os.fsencode(path.resolve()) + stamp_of(path).encode(), digest_size=12)
    plain = runtime.cache_dir() / "archives" / f"{key.hexdigest()}.tar"
    if plain.exists():
        return plain
    limit = min(_MAX_TAR, max(1_000_000_000, _MAX_RATIO * path.stat().st_size))
    try:
        with replacing(plain) as temporary, temporary.open("wb") as target:
            _decompress(path, target, limit)
    except OutputError as error:
        raise OutputError(f"{error} The variable SIGHTLINE_CACHE names another folder.") from error
    return plain


def _decompress(path: Path, target: Any, limit: int) -> None:
    import bz2
    import gzip
    import lzma

    with path.open("rb") as stream:
        head = stream.read(6)
    opener = gzip.open if head[:2] == b"\x1f\x8b" else bz2.open if head[:3] == b"BZh" else lzma.open
    with opener(path, "rb") as source:
        while block := _next_block(source, path):
            if target.tell() + len(block) > min(limit, shutil.disk_usage(target.name).free + target.tell()):
                raise DataError(
                    f"'{path}' grows beyond {target.tell() // 1_000_000} MB when decompressed, more than is "
                    "plausible or than the cache has room for: unpack it yourself and give its folder."
                )
            target.write(block)


def _next_block(source: Any, path: Path) -> bytes:
    import lzma

    try:
        return source.read(1 << 22)
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise damaged(path, "tar") from error
