"""Every image of a source decoded once, memory-mapped ever after.

A store is a folder of the cache: ``pixels.npy`` (N H W C, uint8), ``facts.npy`` (a record for each
file) and ``unreadable.json``. It is built under a lock in a temporary folder and renamed, so it is
whole or absent, and of two processes that want it one builds and the other waits. What the disk has
no room for is decoded anew whenever it is asked for; its folder holds the facts alone.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from filelock import FileLock, Timeout
from jaxtyping import UInt8
from numpy import ndarray

from .. import files, progress, runtime
from ..errors import DataError, ImageError, OutputError
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
        ("low", np.uint16),
        ("high", np.uint16),
        ("width", np.int32),
        ("height", np.int32),
        ("digest", np.uint64),
    ]
)
"""What is known of each file: its header (size as seen upright, before geometry), and a hash of its bytes."""

_CHUNK, _CHUNK_BYTES = 64, 1_000_000
"""What a thread takes at a time: so many images, or fewer large ones."""
_TRIAL_SECONDS = 0.1
_MAX_DISK_SHARE = 0.9
"""Share of the free disk that a store may take."""


class MappedPixels:
    """The pixels of a store by row; pickles as its path, so that other processes open it anew."""

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
    """The pixels of a source, decoded whenever they are asked for, in as many threads as there are cores."""

    source: Source
    geometry: Geometry
    decodes_on_read: ClassVar[bool] = True

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""
        return len(self.source), *self.geometry.shape

    def __getitem__(self, rows: Any, /) -> UInt8[ndarray, "B H W C"]:
        """The images of these rows. Raises DataError for a file that could be read before and now cannot."""
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
    """Why the files that are not ok could not be read."""
    unopened: tuple[int, ...] = ()
    """Those of them that the operating system would not open: perhaps it will the next time."""


def open_store(
    source: Source, geometry: Geometry, cache: Path | None = None, *, keep: bool | None = None
) -> PixelStore:
    """The store of this source at this geometry; built first if there is none yet.

    ``keep`` False decodes on the fly, None does so where the disk has no room for the pixels.
    Raises OutputError, naming SIGHTLINE_CACHE as the remedy, where the cache cannot be written.
    """
    folder = (cache or runtime.cache_dir()) / "stores" / store_key(source, geometry)
    if keep is not False and (store := _load_store(folder, source, geometry)):
        return store
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        kept = _has_room(folder, len(source) * int(np.prod(geometry.shape))) if keep is None else keep
        folder = folder if kept else folder.with_name(folder.name + "-facts")
        with FileLock(_lock_path(folder)):
            return _load_store(folder, source, geometry) or _build_store(folder, source, geometry, kept=kept)
    except (OSError, OutputError) as error:
        raise _unwritable_error(folder, error) from error


def store_key(source: Source, geometry: Geometry) -> str:
    """Name of the store: a hash of the files, the geometry and the decoder."""
    words = repr((source.fingerprint, len(source), geometry, decoder_name(), STORE_FACTS.descr))
    return hashlib.blake2b(words.encode(), digest_size=12).hexdigest()


def _lock_path(folder: Path) -> Path:
    return folder.with_name(folder.name + ".lock")


def _has_room(folder: Path, size: int) -> bool:
    return size < _MAX_DISK_SHARE * shutil.disk_usage(folder.parent).free


def _unwritable_error(folder: Path, error: Exception) -> OutputError:
    if isinstance(error, OSError):
        reason = f"Cannot write '{error.filename or folder.parent}': {(error.strerror or str(error)).lower()}."
    else:
        reason = str(error)
    return OutputError(
        f"{reason} Decoded images are kept in '{folder.parents[1]}': "
        "set the environment variable SIGHTLINE_CACHE to a folder with room that you may write to."
    )


def _load_store(folder: Path, source: Source, geometry: Geometry) -> PixelStore | None:
    """The store in this folder; None when it is absent or damaged, or a file can now be opened."""
    live = folder.name.endswith("-facts")
    try:
        pixels = LivePixels(source, geometry) if live else MappedPixels(folder / "pixels.npy")
        facts = np.load(folder / "facts.npy")
        bad = json.loads((folder / "unreadable.json").read_text("utf-8"))
        reasons = {int(row): text for row, text in bad["reasons"].items()}
        store = PixelStore(pixels, facts, reasons, tuple(bad["unopened"]))
    except (OSError, ValueError, EOFError, LookupError, TypeError):
        return None
    whole = (
        pixels.shape == (len(source), *geometry.shape) and facts.dtype == STORE_FACTS and len(facts) == len(source)
    )
    return store if whole and not any(_can_open(source, row) for row in store.unopened) else None


def _can_open(source: Source, row: int) -> bool:
    try:
        source.read(row)
    except ImageError as error:
        return not isinstance(error.__cause__, OSError)
    return True


def _build_store(folder: Path, source: Source, geometry: Geometry, *, kept: bool) -> PixelStore:
    _remove_leftovers(folder)
    built = _StoreBuilder(source, geometry)
    with files.atomic_replace(folder) as temporary:
        temporary.mkdir()
        if kept:
            _write_pixels(temporary / "pixels.npy", built)
        else:
            _process_rows(built.decode, len(source), "Reading images", int(np.prod(geometry.shape)))
        np.save(temporary / "facts.npy", built.facts)
        bad = {"reasons": built.reasons, "unopened": sorted(built.unopened)}
        (temporary / "unreadable.json").write_text(json.dumps(bad), "utf-8")
    pixels = MappedPixels(folder / "pixels.npy") if kept else LivePixels(source, geometry)
    return PixelStore(pixels, built.facts, built.reasons, tuple(sorted(built.unopened)))


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed builds left behind: our own, and any whose lock nobody holds."""
    for leftover in folder.parent.glob(".*.*"):
        name = leftover.name[1:].rpartition(".")[0]
        if name == folder.name:
            shutil.rmtree(leftover, ignore_errors=True)
            continue
        try:
            with FileLock(_lock_path(folder.with_name(name)), timeout=0):
                shutil.rmtree(leftover, ignore_errors=True)
        except (Timeout, OSError):
            continue


def _write_pixels(path: Path, built: "_StoreBuilder") -> None:
    shape = (len(built.source), *built.geometry.shape)
    pixels = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    first: int = pixels.offset  # type: ignore[attr-defined]  a memmap has one
    size, each = pixels.nbytes, int(np.prod(shape[1:]))
    del pixels
    with path.open("r+b") as stream:
        target = stream.fileno()
        if hasattr(os, "posix_fallocate"):  # so that a full disk is an error, not a crash
            os.posix_fallocate(target, first, size)

        def work(rows: range) -> None:
            _pwrite_all(target, built.decode(rows), first + rows.start * each)

        _process_rows(work, len(built.source), "Decoding images", each)


def _pwrite_all(target: int, pixels: list[ndarray], at: int) -> None:
    """All of the pixels at this place, uncopied; the system may take less than it is offered."""
    done = os.pwritev(target, [each.data for each in pixels], at)
    if done == sum(each.nbytes for each in pixels):
        return
    rest = memoryview(b"".join(each.data for each in pixels))
    while done < len(rest):
        done += os.pwrite(target, rest[done:], at + done)


class _StoreBuilder:
    """What becomes known of a source while its images are decoded, by any thread."""

    def __init__(self, source: Source, geometry: Geometry):
        self.source, self.geometry = source, geometry
        self.facts = np.zeros(len(source), STORE_FACTS)
        self.reasons: dict[int, str] = {}
        self.unopened: list[int] = []
        self._black = np.zeros(geometry.shape, np.uint8)

    def decode(self, rows: range) -> list[ndarray]:
        """The pixels of these files, black where one cannot be read; the facts of each are noted."""
        heads: dict[ImageHeader | None, int] = {}  # a chunk has few kinds of header: each becomes a record once
        kinds, digests, chunk = [], [], []
        for row in rows:
            pixels, head, digest = self._decode_file(row)
            chunk.append(pixels)
            kinds.append(heads.setdefault(head, len(heads)))
            digests.append(digest)
        facts = np.array([_fact_record(head) for head in heads], STORE_FACTS)[kinds]
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
        return np.ascontiguousarray(pixels), header, hashlib.blake2b(data, digest_size=8).digest()


def _fact_record(head: ImageHeader | None) -> tuple[Any, ...]:
    """A FACTS record, the digest left at 0."""
    if head is None:
        return (False,) * len(STORE_FACTS.descr)
    known = (
        head.rotated,
        head.animated,
        head.transparent,
        head.cmyk,
        head.channels,
        head.depth,
        head.low,
        head.high,
    )
    return (True, *known, head.width, head.height, 0)


def _process_rows(work: Callable[[range], Any], total: int, what: str, each: int) -> None:
    """Do all rows, in one thread or in several, whichever a short trial finds faster here.

    JPEG and large images decode without Python's lock and gain from threads; tiny PNGs lose.
    """
    size = max(1, min(_CHUNK, _CHUNK_BYTES // each))
    chunks = (range(start, min(start + size, total)) for start in range(0, total, size))
    threads = runtime.cpu_count()
    with progress.progress_bar(what, total) as advance:
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
    """Images a second in this thread, working for at most about so many seconds."""
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
    """Images a second in several threads, working for at most about so many seconds."""
    start, done = time.perf_counter(), 0
    with ThreadPoolExecutor(threads) as pool:

        def begin(count: int) -> set[Future[int]]:
            return {pool.submit(_run_and_count, work, chunk) for chunk in islice(chunks, count)}

        running = begin(2 * threads)
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            count = sum(future.result() for future in finished)
            done += count
            advance(count)
            if time.perf_counter() - start < seconds:
                running |= begin(len(finished))
    return done / (time.perf_counter() - start)


def _run_and_count(work: Callable[[range], Any], chunk: range) -> int:
    work(chunk)
    return len(chunk)
