"""Features kept on the disk, by row of a pixel store.

A store is a folder of the cache: ``features.npy`` (N D, float32, memory-mapped) and ``sums.npy``, a checksum of each
row that is there. Rows are added under a lock as they are asked for, so an embedding that was killed continues where
it stopped, and a row that was damaged is computed again.
"""

import errno
import hashlib
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from .. import progress, runtime
from ..classifier import Classifier
from ..errors import OutputError
from ..files import explain_write_errors
from ..layers import Network
from ..models import get_head
from ..types import Dataset
from .embedding import Embedder, embedding_precision

FEATURES_VERSION = 2
"""Version of the computation: increased when the same weights would give other features."""

KEPT_ROWS = 256
"""Rows that are computed between two writes: a killed process loses at most these."""

LOCK_NOTICE_SECONDS = 5.0
"""Seconds of waiting for another process before the user is notified."""

NO_ROOM = (
    "The disk has no room to keep the features of these images, so they are computed again whenever they are needed. "
    "SIGHTLINE_CACHE names a folder with more room."
)
"""What a user reads where features are not kept."""

_MAX_DISK_SHARE = 0.9
"""Share of the free disk that a store may take."""


def embed_cached(
    classifier: Classifier,
    dataset: Dataset,
    *,
    precision: torch.dtype | None = None,
    cache: Path | None = None,
    quiet: bool = False,
) -> Float[ndarray, "N D"]:
    """The input of the last layer for every image of a dataset, from the store where it is there.

    Features do not depend on the last layer, so every head on the same backbone shares a store. ``precision`` None is
    that of ``embedding_precision``; each has a store of its own. Where the disk has no room, they are computed and
    not kept. ``quiet`` shows no progress bar. Raises OutputError where the cache
    cannot be written, BundleError for a network without a last layer.
    """
    width = get_head(classifier.network).in_features
    if not len(dataset):
        return np.zeros((0, width), np.float32)
    precision = precision or embedding_precision(classifier)
    folder = (cache or runtime.cache_dir()) / "features" / feature_key(classifier, dataset, precision)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with lock_store(folder.with_name(folder.name + ".lock")):
            try:
                store = FeatureStore(folder, dataset.pixels.shape[0], width)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                store = None
            found = np.empty((len(dataset), width), np.float32)
            known = np.zeros(len(dataset), np.bool_) if store is None else store.read(dataset.rows, found)
            if len(missing := np.flatnonzero(~known)):
                if store is None:
                    progress.notify(NO_ROOM)

                def keep(part: Int[ndarray, " k"], features: Float[ndarray, "k D"]) -> None:
                    found[part] = features
                    if store is not None:
                        store.write(dataset.rows[part], features)

                place = None if store is None else folder.parent
                embed_missing(Embedder(classifier, dataset, precision), missing, keep, place=place, quiet=quiet)
            return found
    except OSError as error:
        raise OutputError(
            f"Cannot keep features in '{folder.parent}': {(error.strerror or str(error)).lower()}. "
            "Set the environment variable SIGHTLINE_CACHE to a folder with room that you may write to."
        ) from error


def predict_logits_cached(classifier: Classifier, dataset: Dataset) -> Float[torch.Tensor, "N K"]:
    """Logits of every image by the last layer on kept features: no second pass of the backbone.

    They differ from ``predict_logits`` by the rounding of ``embedding_precision``.
    """
    features = torch.from_numpy(embed_cached(classifier, dataset)).to(classifier.device)
    with torch.inference_mode():
        return get_head(classifier.network)(features).float().cpu()


@contextmanager
def lock_store(path: Path) -> Iterator[None]:
    """The lock of a store; says so where another process holds it for long."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=LOCK_NOTICE_SECONDS)
    except Timeout:
        progress.notify("Another process computes the features of these images: waiting for it.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def embed_missing(
    embedder: Embedder,
    missing: Int[ndarray, " m"],
    keep: Callable[[Int[ndarray, " k"], Float[ndarray, "k D"]], None],
    *,
    place: Path | None = None,
    quiet: bool = False,
) -> None:
    """Hand the features of these images to ``keep``, in order: ``KEPT_ROWS`` of them or a few more at a time.

    ``place`` is the folder that ``keep`` writes to, if it does: a user who waits long is told what goes there.
    """
    done, batches = 0, list[Float[ndarray, "b D"]]()
    disk = 0 if place is None else 4 * embedder.width * len(missing)
    if quiet:
        bar = progress.progress_bar("Embedding images", None)
    else:
        bar = progress.image_progress("Embedding images", len(missing), disk_bytes=disk, place=place)
    with bar as advance, closing(embedder(missing)) as found:
        for batch in found:
            batches.append(batch)
            advance(len(batch))
            count = sum(map(len, batches))
            if count >= KEPT_ROWS or done + count == len(missing):
                keep(missing[done : done + count], np.concatenate(batches))
                done, batches = done + count, []


class FeatureStore:
    """Features by row of a pixel store, some of them perhaps not yet there.

    Raises OSError with ENOSPC where the disk has no room for a new one.
    """

    def __init__(self, folder: Path, rows: int, width: int):
        self.folder, self.width = folder, width
        features, sums = folder / "features.npy", folder / "sums.npy"
        self._features: Any = _open_array(features, (rows, width), np.float32)
        self._sums: Any = None if self._features is None else _open_array(sums, (rows,), np.uint32)
        if self._features is None or self._sums is None:  # one without the other says nothing
            if 4 * width * rows > _MAX_DISK_SHARE * shutil.disk_usage(folder.parent).free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            self._sums = _create_array(sums, (rows,), np.uint32)
            self._features = _create_array(features, (rows, width), np.float32)

    def write(self, rows: Int[ndarray, " n"], features: Float[ndarray, "n D"]) -> None:
        """Keep the features of these rows; they count only when they are whole on the disk."""
        with explain_write_errors(self.folder):
            self._features[rows] = features
            self._features.flush()
            self._sums[rows] = checksum_rows(features)
            self._sums.flush()

    def read(self, rows: Int[ndarray, " n"], into: Float[ndarray, "n D"]) -> Bool[ndarray, " n"]:
        """Copy the features of these rows; returns which of them are there and undamaged."""
        known = self._sums[rows]
        into[:] = self._features[rows]
        there = np.flatnonzero(known)
        there = there[checksum_rows(into[there]) == known[there]] if len(there) else there
        return np.isin(np.arange(len(rows)), there)


def checksum_rows(features: Float[ndarray, "n D"]) -> ndarray:
    """A checksum of each row, never 0."""
    return np.array([zlib.crc32(row.data) or 1 for row in np.ascontiguousarray(features)], np.uint32)


def _open_array(path: Path, shape: tuple[int, ...], kind: Any) -> Any:
    """The array in a file; None where there is none of this shape."""
    try:
        found = np.load(path, mmap_mode="r+")
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == shape and found.dtype == kind else None


def _create_array(path: Path, shape: tuple[int, ...], kind: Any) -> Any:
    """A file of zeros, its room taken on the disk, so that a full disk is an error and not a crash."""
    found = np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
    return found


def feature_key(classifier: Classifier, dataset: Dataset, precision: torch.dtype | None = None) -> str:
    """Name of the store: a hash of files, geometry, precision, preprocessing and every weight but the head's."""
    network = classifier.network
    words = (
        FEATURES_VERSION,
        dataset.fingerprint,
        dataset.pixels.shape[0],
        dataset.geometry,
        precision or embedding_precision(classifier),
        classifier.architecture.name,
        network.flip_tta,
        classifier.preprocessing,
        backbone_fingerprint(network),
    )
    digest = hashlib.blake2b(repr(words).encode(), digest_size=12)
    for name, value in sorted(classifier.preprocessing.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def backbone_fingerprint(network: Network) -> str:
    """A hash of all weights but the head's: equal for equal features."""
    last = get_head(network)
    prefix = next(name for name, module in network.named_modules() if module is last) + "."
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(network.state_dict().items()):
        if not name.startswith(prefix) and not name.endswith("num_batches_tracked"):
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
