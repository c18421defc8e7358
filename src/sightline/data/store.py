"""Every image of a source decoded once, memory-mapped ever after.

A store is a folder of the cache: ``pixels.npy`` (N H W C, uint8), ``facts.npy`` (a record for
each file) and ``unreadable.json``. It is built under a lock in a temporary folder and renamed, so
it is whole or absent, and of two processes that want it one builds and the other waits.
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
from typing import Any

import numpy as np
from filelock import FileLock
from jaxtyping import UInt8
from numpy import ndarray

from .. import files, progress, runtime
from ..errors import ImageError, OutputError
from ..sources.source import Source
from ..types import Geometry
from .images import decoder, read

FACTS = np.dtype(
    [
        ("ok", np.bool_),
        ("rotated", np.bool_),
        ("channels", np.uint8),
        ("width", np.int32),
        ("height", np.int32),
        ("digest", np.uint64),
    ]
)
"""What is known of each file: size as seen upright before geometry, hash of its bytes."""

_CHUNK = 64
_TRIAL = 0.1


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
class Store:
    """A decoded source."""

    pixels: MappedPixels
    facts: ndarray
    """A FACTS record for each file of the source, in its order."""
    reasons: dict[int, str]
    """Why the files that are not ok could not be read."""


def open_store(source: Source, geometry: Geometry, cache: Path | None = None) -> Store:
    """The store of this source at this geometry; built first if there is none yet.

    Raises OutputError, naming SIGHTLINE_CACHE as the remedy, where it cannot be written.
    """
    folder = (cache or runtime.cache_dir()) / "stores" / key(source, geometry)
    if store := _opened(folder, source, geometry):
        return store
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(folder.name + ".lock")):
            store = _opened(folder, source, geometry)
            return store or _build(folder, source, geometry)
    except (OSError, OutputError) as error:
        raise _unwritable(folder, error) from error


def key(source: Source, geometry: Geometry) -> str:
    """Name of the store: a hash of the files, the geometry and the decoder."""
    words = repr((source.fingerprint, len(source), geometry, decoder()))
    return hashlib.blake2b(words.encode(), digest_size=12).hexdigest()


def _unwritable(folder: Path, error: Exception) -> OutputError:
    if isinstance(error, OSError):
        reason = f"Cannot write '{error.filename or folder.parent}': {(error.strerror or str(error)).lower()}."
    else:
        reason = str(error)
    return OutputError(
        f"{reason} Decoded images are kept in '{folder.parents[1]}': "
        "set the environment variable SIGHTLINE_CACHE to a folder with room that you may write to."
    )


def _opened(folder: Path, source: Source, geometry: Geometry) -> Store | None:
    """The store in this folder; None when it is absent or damaged."""
    try:
        pixels = MappedPixels(folder / "pixels.npy")
        facts = np.load(folder / "facts.npy")
        reasons = json.loads((folder / "unreadable.json").read_text("utf-8"))
    except (OSError, ValueError, EOFError):
        return None
    whole = pixels.shape == (len(source), *geometry.shape) and facts.dtype == FACTS
    return Store(pixels, facts, {int(row): text for row, text in reasons.items()}) if whole else None


def _build(folder: Path, source: Source, geometry: Geometry) -> Store:
    for leftover in folder.parent.glob(f".{folder.name}.*"):  # of a build that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    shape = (len(source), *geometry.shape)
    _check_room(folder, int(np.prod(shape)))
    with files.replacing(folder) as temporary:
        temporary.mkdir()
        pixels = np.lib.format.open_memmap(temporary / "pixels.npy", mode="w+", dtype=np.uint8, shape=shape)
        first: int = pixels.offset  # type: ignore[attr-defined]  a memmap has one
        size = pixels.nbytes
        del pixels
        facts, reasons = np.zeros(len(source), FACTS), {}
        with (temporary / "pixels.npy").open("r+b") as stream:
            if hasattr(os, "posix_fallocate"):  # so that a full disk is an error, not a crash
                os.posix_fallocate(stream.fileno(), first, size)
            work = _worker(source, geometry, facts, reasons, stream.fileno(), first)
            _run(work, len(source))
        np.save(temporary / "facts.npy", facts)
        (temporary / "unreadable.json").write_text(json.dumps(reasons), "utf-8")
    return Store(MappedPixels(folder / "pixels.npy"), facts, reasons)


def _check_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder.parent).free
    if size > free:
        raise OutputError(
            f"The decoded images take {size / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB left: "
            "use a smaller working size, or --limit."
        )


def _worker(
    source: Source, geometry: Geometry, facts: ndarray, reasons: dict[int, str], target: int, first: int
) -> Callable[[range], int]:
    """A function that decodes a range of files into the store: any thread may run it."""
    each = int(np.prod(geometry.shape))

    def work(rows: range) -> int:
        chunk = np.zeros((len(rows), *geometry.shape), np.uint8)
        known = []
        for place, row in enumerate(rows):
            try:
                data = source.read(row)
                digest = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
                chunk[place], header = read(data, geometry)
                known.append((True, header.rotated, header.channels, header.width, header.height, digest))
            except ImageError as error:
                reasons[row] = str(error)
                known.append((False, False, 0, 0, 0, 0))
        facts[rows.start : rows.stop] = known
        os.pwrite(target, chunk.data, first + rows.start * each)
        return len(rows)

    return work


def _run(work: Callable[[range], int], total: int) -> None:
    """Do all rows, in one thread or in several, whichever a short trial finds faster here.

    JPEG and large images decode without Python's lock and gain from threads; tiny PNGs lose.
    """
    chunks = (range(start, min(start + _CHUNK, total)) for start in range(0, total, _CHUNK))
    threads = runtime.cpu_count()
    with progress.bar("Decoding images", total) as advance:
        advance(sum(work(chunk) for chunk in islice(chunks, 1)))  # imports and caches
        if threads == 1:
            _alone(work, chunks, advance)
            return
        alone = _alone(work, chunks, advance, _TRIAL)
        together = _together(work, chunks, advance, threads, _TRIAL)
        if together > alone:
            _together(work, chunks, advance, threads)
        else:
            _alone(work, chunks, advance)


def _alone(
    work: Callable[[range], int], chunks: Iterator[range], advance: progress.Advance, seconds: float = np.inf
) -> float:
    """Images a second in this thread, working for at most about so many seconds."""
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds and (chunk := next(chunks, None)) is not None:
        done += work(chunk)
        advance(len(chunk))
    return done / (time.perf_counter() - start)


def _together(
    work: Callable[[range], int],
    chunks: Iterator[range],
    advance: progress.Advance,
    threads: int,
    seconds: float = np.inf,
) -> float:
    """Images a second in several threads, working for at most about so many seconds."""
    start, done = time.perf_counter(), 0
    with ThreadPoolExecutor(threads) as pool:
        running: set[Future[int]] = {pool.submit(work, chunk) for chunk in islice(chunks, 2 * threads)}
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            count = sum(future.result() for future in finished)
            done += count
            advance(count)
            if time.perf_counter() - start < seconds:
                running |= {pool.submit(work, chunk) for chunk in islice(chunks, len(finished))}
    return done / (time.perf_counter() - start)
