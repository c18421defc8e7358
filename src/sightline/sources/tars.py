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
from ..files import atomic_replace
from .archives import ArchiveReader, check_member_path, damaged_archive_error, link_error
from .listing import Listing, file_stamp

_MAX_UNPACKED_BYTES = 200_000_000_000
_MAX_COMPRESSION_RATIO = 100
_SAMPLED_BYTES = 1 << 15


def list_tar(path: Path) -> Listing:
    """Every member of a tar archive (gz, bz2 and xz are first decompressed into the cache).

    Raises DataError for a truncated archive, links, devices, and members that point outside.
    """
    plain = path if _is_plain_tar(path) else _decompress_to_cache(path)
    length = plain.stat().st_size
    names, rows, folders = [], [], set()
    try:
        with tarfile.open(plain, "r:") as archive:
            for member in archive:
                name = check_member_path(member.name, path)
                if member.isdir():
                    folders.add(name.rstrip("/"))
                    continue
                if not member.isreg() or member.issparse():
                    raise link_error(name, path, "link or device")
                names.append(name)
                rows.append((member.offset_data, member.size, int(member.mtime)))
                archive.members.clear()  # type: ignore[attr-defined]  else every header stays in memory
    except (tarfile.TarError, OSError) as error:
        raise damaged_archive_error(path, "tar") from error
    offsets, sizes, times = np.array(rows, np.int64).reshape(-1, 3).T.copy()
    with plain.open("rb") as stream:
        stream.seek(max(0, length - 512))
        if stream.read().strip(b"\0") or (offsets + sizes > length).any():
            raise damaged_archive_error(path, "tar")
        stamps = _member_stamps(stream, offsets, sizes, times)
    return Listing(names, sizes, stamps, frozenset(folders), ArchiveReader(plain, offsets, sizes, sizes))


def _member_stamps(stream: BinaryIO, offsets: ndarray, sizes: ndarray, times: ndarray) -> Int64[ndarray, " N"]:
    """A checksum of each member, which a tar does not keep; of large ones of both ends, with the time."""
    stamps = np.empty(len(sizes), np.int64)
    for i, (offset, size, time) in enumerate(zip(offsets.tolist(), sizes.tolist(), times.tolist(), strict=True)):
        stream.seek(offset)
        crc = zlib.crc32(stream.read(min(size, _SAMPLED_BYTES)))
        if size > _SAMPLED_BYTES:
            stream.seek(offset + size - min(_SAMPLED_BYTES, size - _SAMPLED_BYTES))
            crc = zlib.crc32(stream.read(min(_SAMPLED_BYTES, size - _SAMPLED_BYTES)), crc) ^ (time % 2**31 << 32)
        stamps[i] = crc
    return stamps


def _is_plain_tar(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(262)[257:] == b"ustar"


def _decompress_to_cache(path: Path) -> Path:
    """The same tar without its compression, in the cache; made once for each state of the file."""
    import hashlib

    key = hashlib.blake2b(os.fsencode(path.resolve()) + file_stamp(path).encode(), digest_size=12)
    plain = runtime.cache_dir() / "archives" / f"{key.hexdigest()}.tar"
    if plain.exists():
        return plain
    limit = min(_MAX_UNPACKED_BYTES, max(1_000_000_000, _MAX_COMPRESSION_RATIO * path.stat().st_size))
    try:
        with atomic_replace(plain) as temporary, temporary.open("wb") as target:
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
        while block := _read_block(source, path):
            if target.tell() + len(block) > min(limit, shutil.disk_usage(target.name).free + target.tell()):
                raise DataError(
                    f"'{path}' grows beyond {target.tell() // 1_000_000} MB when decompressed, more than is "
                    "plausible or than the cache has room for: unpack it yourself and give its folder."
                )
            target.write(block)


def _read_block(source: Any, path: Path) -> bytes:
    import lzma

    try:
        return source.read(1 << 22)
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise damaged_archive_error(path, "tar") from error
