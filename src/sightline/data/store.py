"""Every image of a source, decoded once and memory-mapped ever after.

A store is a folder of the cache: ``pixels.npy`` (N H W C, uint8), ``facts.npy`` (a record for each file) and
``unreadable.json``. It is built under a lock in a temporary folder and renamed, so it is whole or absent, and of two
processes that want it one builds it and the other waits. Without room on the disk images are decoded whenever they
are read; the folder then holds the facts alone.
"""

import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from filelock import FileLock, Timeout
from jaxtyping import UInt8
from numpy import ndarray

from .. import runtime
from ..errors import DataError, ImageError, OutputError
from ..files import atomic_replace
from ..sources import Source
from ..types import Geometry
from .decode import decode, decoder_name
from .row_work import process_rows
from .rows import STORE_FACTS, PixelFile, RowDecoder

_MAX_DISK_SHARE = 0.9
"""Share of the free disk space that a store may take."""


class MappedPixels:
    """The pixels of a store by row; pickles as its path, so that other processes open it again."""

    def __init__(self, path: Path):
        self.path = path
        self._array: ndarray = np.load(path, mmap_mode="r")

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""
        return self._array.shape

    def __getitem__(self, rows: Any, /) -> UInt8[ndarray, "B H W C"]:
        """The images of these rows; a copy when rows is an index array or a mask."""
        return np.asarray(self._array[rows])

    def __reduce__(self) -> Any:
        return MappedPixels, (self.path,)


@dataclass(frozen=True, eq=False)
class LivePixels:
    """The pixels of a source, decoded whenever they are read, in a thread per core."""

    source: Source
    geometry: Geometry
    reasons: dict[int, str] | None = None
    """Where it is a dict, a file that cannot be read is black, and its row gets the reason here."""
    decodes_on_read: ClassVar[bool] = True

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""
        return len(self.source), *self.geometry.shape

    def __getitem__(self, rows: Any, /) -> UInt8[ndarray, "B H W C"]:
        """The images of these rows; raises DataError for a file that could be read before and now cannot."""
        listed = isinstance(rows, ndarray) and rows.dtype != bool
        wanted = rows if listed else np.atleast_1d(np.arange(len(self.source))[rows])
        pixels = np.empty((len(wanted), *self.geometry.shape), np.uint8)
        threads = min(runtime.cpu_count(), len(wanted))
        if threads < 2:
            self._decode(pixels, wanted)
            return pixels
        with ThreadPoolExecutor(threads) as pool:  # a view of the pixels each
            list(pool.map(self._decode, np.array_split(pixels, threads), np.array_split(wanted, threads)))
        return pixels

    def _decode(self, pixels: ndarray, rows: ndarray) -> None:
        for place, row in enumerate(rows):
            try:
                pixels[place] = decode(self.source.read(int(row)), self.geometry)
            except ImageError as error:
                if self.reasons is not None:
                    pixels[place], self.reasons[int(row)] = 0, str(error)
                    continue
                name = self.source.files[row]
                raise DataError(
                    f"'{name}' could be read before and now cannot: {error}. Bring it back."
                ) from error


@dataclass(frozen=True, eq=False)
class PixelStore:
    """A decoded source."""

    pixels: MappedPixels | LivePixels
    facts: ndarray
    """A FACTS record for each file of the source, in its order."""
    reasons: dict[int, str]
    """Why a file could not be read, by row."""
    unopened: tuple[int, ...] = ()
    """Rows of files that the operating system did not open: they are tried again the next time."""


def open_store(
    source: Source, geometry: Geometry, cache: Path | None = None, *, keep: bool | None = None
) -> PixelStore:
    """The store of this source at this geometry; built first where there is none yet.

    ``keep`` False decodes images whenever they are read; None does so where the disk has no room for the pixels.
    Raises OutputError, with SIGHTLINE_CACHE as the remedy, where the cache cannot be written.
    """
    folder = (cache or runtime.cache_dir()) / "stores" / store_key(source, geometry)
    if keep is not False and (store := _load_store(folder, source, geometry)):
        return store
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if keep is None:
            size = len(source) * int(np.prod(geometry.shape))
            keep = size < _MAX_DISK_SHARE * shutil.disk_usage(folder.parent).free
        folder = folder if keep else folder.with_name(folder.name + "-facts")
        with FileLock(_lock_path(folder)):
            return _load_store(folder, source, geometry) or _build_store(folder, source, geometry, keep=keep)
    except (OSError, OutputError) as error:
        reason = str(error)
        if isinstance(error, OSError):
            why = (error.strerror or reason).lower()
            reason = f"Cannot write '{error.filename or folder.parent}': {why}."
        raise OutputError(
            f"{reason} Decoded images are stored in '{folder.parents[1]}': "
            "set the environment variable SIGHTLINE_CACHE to a folder with room that you may write to."
        ) from error


def is_stored(source: Source, geometry: Geometry) -> bool:
    """Whether the user's cache has the decoded images of this source at this geometry."""
    return (runtime.cache_dir() / "stores" / store_key(source, geometry) / "facts.npy").exists()


def store_key(source: Source, geometry: Geometry) -> str:
    """Name of the store: a hash of the files, the geometry and the decoder."""
    words = repr((source.fingerprint, len(source), geometry, decoder_name(), STORE_FACTS.descr))
    return hashlib.blake2b(words.encode(), digest_size=12).hexdigest()


def _lock_path(folder: Path) -> Path:
    return folder.with_name(folder.name + ".lock")


def _load_store(folder: Path, source: Source, geometry: Geometry) -> PixelStore | None:
    """The store in this folder; None where it is absent or damaged, or a file that failed to open now opens."""
    live = folder.name.endswith("-facts")
    try:
        pixels = LivePixels(source, geometry) if live else MappedPixels(folder / "pixels.npy")
        facts = np.load(folder / "facts.npy")
        bad = json.loads((folder / "unreadable.json").read_text("utf-8"))
        reasons = {int(row): text for row, text in bad["reasons"].items()}
        store = PixelStore(pixels, facts, reasons, tuple(bad["unopened"]))
    except (OSError, ValueError, EOFError, LookupError, TypeError):
        return None
    if pixels.shape != (len(source), *geometry.shape) or facts.dtype != STORE_FACTS or len(facts) != len(source):
        return None
    for row in store.unopened:
        try:
            source.read(row)
        except ImageError as error:
            if isinstance(error.__cause__, OSError):
                continue
        return None
    return store


def _build_store(folder: Path, source: Source, geometry: Geometry, *, keep: bool) -> PixelStore:
    for leftover in folder.parent.glob(".*.*"):  # of killed builds: our own, and those whose lock is free
        name = leftover.name[1:].rpartition(".")[0]
        lock = nullcontext() if name == folder.name else FileLock(_lock_path(folder.with_name(name)), timeout=0)
        with suppress(Timeout, OSError), lock:
            shutil.rmtree(leftover, ignore_errors=True)
    decoder = RowDecoder(source.reader, source.keys, geometry)
    with atomic_replace(folder) as temporary:
        temporary.mkdir()
        if keep:
            decoder.pixels = _create_pixels(temporary / "pixels.npy", (len(source), *geometry.shape))
            with decoder.pixels.stream:
                process_rows(decoder, "Decoding images", folder.parent)
        else:
            process_rows(decoder, "Reading images")
        reasons, unopened = dict(sorted(decoder.reasons.items())), sorted(decoder.unopened)
        np.save(temporary / "facts.npy", decoder.facts)
        bad = {"reasons": reasons, "unopened": unopened}
        (temporary / "unreadable.json").write_text(json.dumps(bad), "utf-8")
    pixels = MappedPixels(folder / "pixels.npy") if keep else LivePixels(source, geometry)
    return PixelStore(pixels, decoder.facts, reasons, tuple(unopened))


def _create_pixels(path: Path, shape: tuple[int, ...]) -> PixelFile:
    """A ``.npy`` file of this shape, open to be written to."""
    pixels = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    first: int = pixels.offset  # type: ignore[attr-defined]  a memmap has one
    size = pixels.nbytes
    del pixels
    if hasattr(os, "posix_fallocate"):  # so that a full disk is an error, not a crash
        with path.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), first, size)
    return PixelFile(path, first, int(np.prod(shape[1:])))
