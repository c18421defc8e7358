"""Archives read in place: a zip or tar is mapped into memory and never unpacked next to the data.

Only plain files and folders are accepted: a link, a device, or a member that would be written outside of the
archive's folder refuses the whole archive. A compressed tar is first decompressed into the cache, once.
"""

import hashlib
import mmap
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from array import array
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from .. import runtime
from ..errors import DataError, ImageError, OutputError
from ..files import atomic_replace
from .source import MAX_FILE_BYTES, Listing, file_stamp

MAX_UNPACKED_TAR_BYTES = 200_000_000_000
MAX_TAR_COMPRESSION_RATIO = 100
"""Size of a decompressed tar over the size of its file, beyond the first GB: more is not plausible."""
ZIP_ENCODING_VARIABLE = "SIGHTLINE_ZIP_ENCODING"
"""Names the encoding of file names in a zip that another system wrote without a mark: gbk, shift_jis, cp1252."""
_STAMPED_BYTES = 1 << 15
"""Bytes at each end of a tar's member that its stamp is the checksum of."""


MAX_MAPPED_SHARDS = 32
"""Tars of a set that are mapped at a time: each holds a file open, of which a process may have 1,024."""
MAX_TAR_HEADER_BYTES = 1_000_000
"""Bytes of a long name or of extended headers in a tar: ``tarfile`` reads them whole."""


@dataclass(frozen=True, eq=False)
class ArchiveReader:
    """Reads members through one memory map per process."""

    path: Path
    offsets: Int64[ndarray, " N"]
    """Where the member's local header (zip) or its bytes (tar) begin."""
    packed: Int64[ndarray, " N"]
    """Bytes in the archive."""
    sizes: Int64[ndarray, " N"]
    """Bytes of the file."""
    deflated: ndarray | None = None
    """Zip only: which members are compressed."""
    crcs: Int64[ndarray, " N"] | None = None
    _maps: list[mmap.mmap] = field(default_factory=list, repr=False)

    def read(self, key: int) -> bytes:
        """The bytes of member ``key``, checked against its CRC in a zip; raises ImageError."""
        size, start = int(self.sizes[key]), int(self.offsets[key])
        if size > MAX_FILE_BYTES:
            raise ImageError(f"the file is larger than {MAX_FILE_BYTES // 1_000_000} MB, which is refused unread")
        if not self._maps:
            with self.path.open("rb") as stream:
                self._maps.append(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
        view = self._maps[0]
        if self.crcs is None or self.deflated is None:
            return view[start : start + size]
        start += 30 + sum(struct.unpack_from("<2H", view[start : start + 30].ljust(30, b"\0"), 26))
        data = view[start : start + int(self.packed[key])]
        if self.deflated[key]:
            try:  # never beyond the announced size: what is longer was announced falsely
                data = zlib.decompressobj(-15).decompress(data, size + 1)
            except zlib.error:
                data = b""
        if len(data) != size or zlib.crc32(data) != self.crcs[key]:
            raise ImageError("the file is damaged inside the archive (its checksum is wrong)")
        return data

    def modified_times(self, keys: Int64[ndarray, " n"]) -> Float64[ndarray, " n"]:
        """When each member was last written, in seconds since 1970 (a zip's clock is taken for UTC); else NaN."""
        with self.path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:

            def look(start: int) -> float:
                with suppress(ValueError, struct.error):
                    if self.crcs is None:  # the header of a tar's member ends where its bytes begin
                        return float(int(view[start - 376 : start - 364].strip(b" \0"), 8))
                    time, date = struct.unpack_from("<2H", view, start + 10)
                    parts = (
                        1980 + (date >> 9),
                        date >> 5 & 15,
                        date & 31,
                        time >> 11,
                        time >> 5 & 63,
                        time % 32 * 2,
                    )
                    return datetime(*parts, tzinfo=UTC).timestamp()
                return float("nan")

            return np.array([look(start) for start in self.offsets[keys].tolist()], np.float64)

    def __reduce__(self) -> Any:
        return ArchiveReader, (self.path, self.offsets, self.packed, self.sizes, self.deflated, self.crcs)


@dataclass(frozen=True, eq=False)
class ShardReader:
    """Reads members of several plain tars, of which a few are mapped into memory at a time."""

    paths: tuple[Path, ...]
    shards: Int64[ndarray, " N"]
    """The tar of each member."""
    offsets: Int64[ndarray, " N"]
    sizes: Int64[ndarray, " N"]
    _maps: dict[int, mmap.mmap] = field(default_factory=dict, repr=False)

    def read(self, key: int) -> bytes:
        """The bytes of member ``key``; raises ImageError."""
        shard, start, size = int(self.shards[key]), int(self.offsets[key]), int(self.sizes[key])
        if size > MAX_FILE_BYTES:
            raise ImageError(f"the file is larger than {MAX_FILE_BYTES // 1_000_000} MB, which is refused unread")
        view = self._maps.get(shard)  # one that another thread lets go lives as long as this name
        if view is None:
            try:
                with self.paths[shard].open("rb") as stream:
                    view = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise ImageError(f"'{self.paths[shard].name}' cannot be opened ({error})") from error
            while len(self._maps) >= MAX_MAPPED_SHARDS:
                self._maps.pop(next(iter(self._maps)), None)
            self._maps[shard] = view
        return view[start : start + size]

    def __reduce__(self) -> Any:
        return ShardReader, (self.paths, self.shards, self.offsets, self.sizes)


def _damaged_archive_error(path: Path, kind: str) -> DataError:
    return DataError(f"'{path}' is not a complete {kind} archive: copy or download it again.")


def _link_error(name: str, path: Path) -> DataError:
    return DataError(
        f"'{path}' holds a link or device ('{name}'), and only plain files are accepted, so nothing was read: "
        "make the archive again with the files themselves."
    )


def _check_member_path(name: str, path: Path) -> str:
    """The member's path inside the archive; raises DataError where it points outside."""
    name = name.replace("\\", "/") if "\\" in name else name
    if ".." in name or name[:1] == "/" or name[1:2] == ":":
        parts = PurePosixPath(name).parts
        if ".." in parts or name[0] == "/" or name[1:2] == ":":
            raise DataError(
                f"'{path}' holds a file that would land outside of it ('{name}'), so nothing was read: "
                "make the archive again from inside its folder."
            )
    return name[2:] if name[:2] == "./" else name


class _ZipDirectory(zipfile.ZipFile):
    """Gives each member to ``take`` and keeps none: they are half a KB each."""

    def __init__(self, path: Path, take: Callable[[zipfile.ZipInfo], None]):
        class Members(list[zipfile.ZipInfo]):
            def append(self, member: zipfile.ZipInfo, /) -> None:
                take(member)

        class Names(dict[str, zipfile.ZipInfo]):
            def __setitem__(self, name: str, member: zipfile.ZipInfo, /) -> None:
                pass

        self._kept_in = {"filelist": Members(), "NameToInfo": Names()}
        super().__init__(path)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, vars(self).get("_kept_in", {}).get(name, value))


def list_zip(path: Path) -> Listing:
    """Every member of a zip archive, from its directory alone.

    Raises DataError for a truncated or encrypted archive, links, and members that point outside.
    """
    names, numbers = [], array("q")

    def take(member: zipfile.ZipInfo) -> None:
        names.append(member.orig_filename)
        sizes = member.compress_size, member.file_size, member.CRC, member.header_offset
        numbers.extend((*sizes, member.flag_bits, member.compress_type, member.external_attr >> 16))

    try:
        _ZipDirectory(path, take).close()
    except (zipfile.BadZipFile, OSError, ValueError, struct.error, NotImplementedError, OverflowError) as error:
        raise _damaged_archive_error(path, "zip") from error
    packed, sizes, crcs, offsets, flags, methods, modes = np.array(numbers, np.int64).reshape(-1, 7).T
    unmarked = [row for row in np.flatnonzero(flags & 0x800 == 0).tolist() if not names[row].isascii()]
    encoding, notes = _detect_zip_encoding([names[row] for row in unmarked], path)
    for row in unmarked:
        with suppress(UnicodeError):
            names[row] = names[row].encode("cp437").decode(encoding)
    names = [_check_member_path(name, path) for name in names]
    if (flags & 1).any():
        raise DataError(f"'{path}' is protected by a password: make it again without one.")
    for row in np.flatnonzero(~np.isin(modes & 0o170000, (0, stat.S_IFREG, stat.S_IFDIR))):
        raise _link_error(names[row], path)
    for row in np.flatnonzero(~np.isin(methods, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))):
        raise DataError(
            f"'{path}' uses an unusual compression (method {methods[row]}) for '{names[row]}': "
            "make it again with the standard one."
        )
    folders = frozenset(name.rstrip("/") for name in names if name.endswith("/"))
    rows = np.array([row for row, name in enumerate(names) if not name.endswith("/")], np.int64)
    packed, sizes, crcs, offsets, deflated = (
        one[rows] for one in (packed, sizes, crcs, offsets, methods == zipfile.ZIP_DEFLATED)
    )
    reader = ArchiveReader(path, offsets, packed, sizes, deflated, crcs)
    return Listing([names[row] for row in rows], sizes, crcs, folders, reader, notes)


def _detect_zip_encoding(names: Iterable[str], path: Path) -> tuple[str, tuple[str, ...]]:
    """The encoding of these names, which are read as cp437 and not marked as UTF-8, and a note where it is a guess.

    Raises DataError where the one that is named by ``SIGHTLINE_ZIP_ENCODING`` does not fit.
    """
    text = b"\n".join(name.encode("cp437", "replace") for name in names)
    asked = os.environ.get(ZIP_ENCODING_VARIABLE)
    if not text:
        return "utf-8", ()
    try:
        text.decode(asked or "utf-8")
        return asked or "utf-8", ()
    except LookupError as error:
        raise DataError(
            f"{ZIP_ENCODING_VARIABLE} is '{asked}', which is no encoding: try gbk, shift_jis or cp1252."
        ) from error
    except UnicodeDecodeError as error:
        if asked:
            raise DataError(
                f"The names in '{path}' are not {asked}, which {ZIP_ENCODING_VARIABLE} names: name another "
                "encoding (gbk, shift_jis, cp1252), or unset it."
            ) from error
    return "cp437", (
        "The names in the archive are not UTF-8 and their encoding is not marked: they were read as cp437, the "
        f"standard of zip files. If class names look wrong, name theirs: {ZIP_ENCODING_VARIABLE}=gbk (or "
        "shift_jis, cp1252, ...).",
    )


def list_tar(path: Path) -> Listing:
    """Every member of a tar archive (gz, bz2 and xz are first decompressed into the cache).

    Raises DataError for a truncated archive, links, devices, and members that point outside.
    """
    with path.open("rb") as stream:
        is_plain = stream.read(262)[257:] == b"ustar"
    plain = path if is_plain else _decompress_to_cache(path)
    length = plain.stat().st_size
    names, rows, folders = [], [], set()
    try:
        with tarfile.open(plain, "r:", tarinfo=_BoundedTarInfo) as archive:
            for member in archive:
                name = _check_member_path(member.name, path)
                if member.isdir():
                    folders.add(name.rstrip("/"))
                    continue
                if not member.isreg() or member.issparse():
                    raise _link_error(name, path)
                if not 0 <= member.size <= length:  # an extended header may give another size
                    raise _damaged_archive_error(path, "tar")
                names.append(name)
                rows.append((member.offset_data, member.size, int(member.mtime)))
                archive.members.clear()  # type: ignore[attr-defined]  else every header stays in memory
        offsets, sizes, times = np.array(rows, np.int64).reshape(-1, 3).T.copy()
    except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as error:
        raise _damaged_archive_error(path, "tar") from error
    with plain.open("rb") as stream:
        stream.seek(max(0, length - 512))
        if stream.read().strip(b"\0") or (offsets + sizes > length).any():
            raise _damaged_archive_error(path, "tar")
        stamps = _member_stamps(stream, offsets, sizes, times)
    return Listing(names, sizes, stamps, frozenset(folders), ArchiveReader(plain, offsets, sizes, sizes))


class _BoundedTarInfo(tarfile.TarInfo):
    """Refuses sizes below zero, on which ``tarfile`` loops for ever, and extended headers without end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_BoundedTarInfo":
        """A member of its header; raises tarfile.ReadError."""
        found = super().frombuf(buf, encoding, errors)
        extended = found.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, *tarfile.GNU_TYPES)
        if found.size < 0 or (
            extended and found.type != tarfile.GNUTYPE_SPARSE and found.size > MAX_TAR_HEADER_BYTES
        ):
            raise tarfile.ReadError(f"a header says that it has {found.size:,} bytes")
        return found


def _member_stamps(stream: BinaryIO, offsets: ndarray, sizes: ndarray, times: ndarray) -> Int64[ndarray, " N"]:
    """A checksum of each member, which a tar does not have; of large ones of both ends, with the time."""
    stamps = np.empty(len(sizes), np.int64)
    for i, (offset, size, time) in enumerate(zip(offsets.tolist(), sizes.tolist(), times.tolist(), strict=True)):
        stream.seek(offset)
        crc = zlib.crc32(stream.read(min(size, _STAMPED_BYTES)))
        if size > _STAMPED_BYTES:
            stream.seek(offset + size - min(_STAMPED_BYTES, size - _STAMPED_BYTES))
            tail = stream.read(min(_STAMPED_BYTES, size - _STAMPED_BYTES))
            crc = zlib.crc32(tail, crc) ^ (time % 2**31 << 32)
        stamps[i] = crc
    return stamps


def _decompress_to_cache(path: Path) -> Path:
    """The same tar without its compression, in the cache; made once for each state of the file."""
    import bz2
    import gzip
    import lzma

    key = hashlib.blake2b(os.fsencode(path.resolve()) + file_stamp(path).encode(), digest_size=12)
    plain = runtime.cache_dir() / "archives" / f"{key.hexdigest()}.tar"
    if plain.exists():
        return plain
    limit = min(MAX_UNPACKED_TAR_BYTES, max(1_000_000_000, MAX_TAR_COMPRESSION_RATIO * path.stat().st_size))
    with path.open("rb") as stream:
        head = stream.read(6)
    opener = gzip.open if head[:2] == b"\x1f\x8b" else bz2.open if head[:3] == b"BZh" else lzma.open
    try:
        with atomic_replace(plain) as temporary, temporary.open("wb") as target, opener(path, "rb") as source:
            while True:
                try:
                    block = source.read(1 << 22)
                except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
                    raise _damaged_archive_error(path, "tar") from error
                if not block:
                    break
                if target.tell() + len(block) > min(limit, shutil.disk_usage(target.name).free + target.tell()):
                    raise DataError(
                        f"'{path}' grows beyond {target.tell() // 1_000_000} MB when decompressed, more than is "
                        "plausible or than the cache has room for: unpack it yourself and give its folder."
                    )
                target.write(block)
    except OutputError as error:
        raise OutputError(f"{error} The variable SIGHTLINE_CACHE names another folder.") from error
    return plain
