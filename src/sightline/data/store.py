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
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from filelock import FileLock, Timeout
from jaxtyping import UInt8
from numpy import ndarray

from .. import progress, runtime
from ..errors import DataError, ImageError, OutputError
from ..files import atomic_replace
from ..sources import Source
from ..types import Geometry
from .decode import ImageHeader, decode, decode_with_header, decoder_name

STORE_FACTS = np.dtype(
    [
        ("ok", np.bool_),
        ("rotated", np.bool_),
        ("animated", np.bool_),
        ("transparent", np.bool_),
        ("inks", np.bool_),
        ("channels", np.uint8),
        ("depth", np.uint8),
        ("low", np.float32),
        ("high", np.float32),
        ("floating", np.bool_),
        ("width", np.int32),
        ("height", np.int32),
        ("digest", np.uint64),
    ]
)
"""A record of each file: its header (upright size, before the geometry is applied) and a hash of its bytes."""
_HEADER_FACTS = (
    "rotated",
    "animated",
    "transparent",
    "cmyk",
    "channels",
    "depth",
    "low",
    "high",
    "floating",
    "width",
    "height",
)
"""The fields of an ``ImageHeader`` in the order of ``STORE_FACTS``."""

_CHUNK, _CHUNK_BYTES = 64, 1_000_000
"""Images that a thread takes at a time, and bytes of pixels: fewer large images."""
_TRIAL_SECONDS = 0.1
_SLOW_IMAGE_SECONDS = 0.01
"""An image that takes longer is timed in one thread only: a few in each thread would take seconds."""
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


def time_decoding(source: Source, geometry: Geometry) -> float:
    """Seconds per image in which a sample, evenly spread, is read and decoded on this machine's cores; 0.2 s or so."""
    work, total, threads = _StoreBuilder(source, geometry).decode, len(source), runtime.cpu_count()
    singles = (range(row, row + 1) for row in range(0, total, max(1, total // 512)))
    _run_serially(work, islice(singles, 1), lambda *_: None)  # imports and caches
    alone = _run_serially(work, singles, lambda *_: None, _TRIAL_SECONDS)
    if alone < 1 / _SLOW_IMAGE_SECONDS:  # of a large image, decoded without Python's lock
        return 1 / max(threads * alone, 1e-9)
    chunks = (range(first, min(first + 8, total)) for first in range(0, total, max(8, total // 256)))
    return 1 / max(alone, _run_threaded(work, chunks, lambda *_: None, threads, _TRIAL_SECONDS))


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
    builder = _StoreBuilder(source, geometry)
    with atomic_replace(folder) as temporary:
        temporary.mkdir()
        if keep:
            _write_pixels(temporary / "pixels.npy", builder, folder.parent)
        else:
            _process_rows(builder.decode, len(source), "Reading images", int(np.prod(geometry.shape)))
        np.save(temporary / "facts.npy", builder.facts)
        bad = {"reasons": builder.reasons, "unopened": sorted(builder.unopened)}
        (temporary / "unreadable.json").write_text(json.dumps(bad), "utf-8")
    pixels = MappedPixels(folder / "pixels.npy") if keep else LivePixels(source, geometry)
    return PixelStore(pixels, builder.facts, builder.reasons, tuple(sorted(builder.unopened)))


def _write_pixels(path: Path, builder: "_StoreBuilder", kept_in: Path) -> None:
    shape = (len(builder.source), *builder.geometry.shape)
    pixels = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    first: int = pixels.offset  # type: ignore[attr-defined]  a memmap has one
    size, each = pixels.nbytes, int(np.prod(shape[1:]))
    del pixels
    with path.open("r+b") as stream:
        target = stream.fileno()
        if hasattr(os, "posix_fallocate"):  # so that a full disk is an error, not a crash
            os.posix_fallocate(target, first, size)

        def work(rows: range) -> None:
            images, at = [one.data for one in builder.decode(rows)], first + rows.start * each
            done = os.pwritev(target, images, at)  # without a copy; the system may write less than it is given
            if done < sum(one.nbytes for one in images):
                rest = memoryview(b"".join(images))
                while done < len(rest):
                    done += os.pwrite(target, rest[done:], at + done)

        _process_rows(work, len(builder.source), "Decoding images", each, kept_in)


class _StoreBuilder:
    """The facts of a source, collected while its images are decoded in any thread."""

    def __init__(self, source: Source, geometry: Geometry):
        self.source, self.geometry = source, geometry
        self.facts = np.zeros(len(source), STORE_FACTS)
        self.reasons: dict[int, str] = {}
        self.unopened: list[int] = []
        self._black = np.zeros(geometry.shape, np.uint8)

    def decode(self, rows: range) -> list[ndarray]:
        """The pixels of these files, black for an unreadable one; adds the facts of each."""
        heads: dict[ImageHeader | None, int] = {}  # a chunk has few kinds of header: each becomes a record once
        kinds, digests, chunk = [], [], []
        for row in rows:
            pixels, head, digest = self._decode_file(row)
            chunk.append(pixels)
            kinds.append(heads.setdefault(head, len(heads)))
            digests.append(digest)
        unknown = (False,) * len(STORE_FACTS.descr)
        records = [
            (True, *(getattr(head, name) for name in _HEADER_FACTS), 0) if head else unknown for head in heads
        ]
        facts = np.array(records, STORE_FACTS)[kinds]
        facts["digest"] = np.frombuffer(b"".join(digests), "<u8")
        self.facts[rows.start : rows.stop] = facts
        return chunk

    def _decode_file(self, row: int) -> tuple[ndarray, ImageHeader | None, bytes]:
        try:
            data = self.source.read(row)
            pixels, header = decode_with_header(data, self.geometry)
        except ImageError as error:
            self.reasons[row] = str(error)
            if isinstance(error.__cause__, OSError):
                self.unopened.append(row)
            return self._black, None, bytes(8)
        return np.ascontiguousarray(pixels), header, hash_file(data)


def _process_rows(
    work: Callable[[range], Any], total: int, what: str, each: int, kept_in: Path | None = None
) -> None:
    """Process all rows in one thread or several, whichever is faster in a short trial.

    ``each`` is the bytes of an image's pixels, which go to ``kept_in``, or nowhere where it is None. JPEG and large
    images are decoded without Python's lock and gain from threads; tiny PNGs lose.
    """
    size = max(1, min(_CHUNK, _CHUNK_BYTES // each))
    chunks = (range(start, min(start + size, total)) for start in range(0, total, size))
    threads = runtime.cpu_count()
    disk = 0 if kept_in is None else each * total
    with progress.image_progress(what, total, disk_bytes=disk, place=kept_in) as advance:
        _run_serially(work, islice(chunks, 1), advance)  # imports and caches
        if threads == 1:
            _run_serially(work, chunks, advance)
            return
        alone = _run_serially(work, chunks, advance, _TRIAL_SECONDS)
        together = _run_threaded(work, chunks, advance, threads, _TRIAL_SECONDS)
        if together > alone:
            _run_threaded(work, chunks, advance, threads)
        else:
            _run_serially(work, chunks, advance)


def _run_serially(
    work: Callable[[range], Any], chunks: Iterator[range], advance: progress.Advance, seconds: float = np.inf
) -> float:
    """Images per second in this thread, in about ``seconds`` at most."""
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds and (chunk := next(chunks, None)) is not None:
        work(chunk)
        done += len(chunk)
        advance(len(chunk))
    return done / (time.perf_counter() - start)


def _run_threaded(
    work: Callable[[range], Any],
    chunks: Iterator[range],
    advance: progress.Advance,
    threads: int,
    seconds: float = np.inf,
) -> float:
    """Images per second in several threads, in about ``seconds`` at most."""
    start, done = time.perf_counter(), 0
    with ThreadPoolExecutor(threads) as pool:
        running: dict[Future[Any], int] = {}
        room = 2 * threads
        while True:
            if time.perf_counter() - start < seconds or not done:
                running |= {pool.submit(work, chunk): len(chunk) for chunk in islice(chunks, room)}
            if not running:
                break
            finished = wait(running, return_when=FIRST_COMPLETED).done
            room = len(finished)
            for future in finished:
                future.result()  # raises what the work raised
                count = running.pop(future)
                done += count
                advance(count)
    return done / (time.perf_counter() - start)


def hash_file(data: bytes) -> bytes:
    """Eight bytes that are equal for equal files: an image's entry in ``Dataset.digests``, little-endian."""
    return hashlib.blake2b(data, digest_size=8).digest()
