"""What a backbone sees in every image: computed once for each data, geometry and weights, and kept.

A store is a folder of the cache: ``features.npy`` (N D, float32, memory-mapped) and ``done.npy`` (which rows are
there). Rows are added under a lock as they are asked for, so an interrupted embedding goes on where it stopped.
"""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Float, Int
from numpy import ndarray

from . import progress, runtime
from .classifier import Classifier
from .data import to_tensor
from .errors import OutputError
from .files import explain_write_errors
from .layers import Network
from .models import get_head
from .types import Dataset

EMBEDDING_BATCH_SIZE = 32
"""Images a batch of a backbone at 224 pixels: larger ones leave the processor's caches."""

_MAX_DISK_SHARE = 0.9
"""Share of the free disk that a store may take."""


def embed_cached(
    classifier: Classifier, dataset: Dataset, *, cache: Path | None = None, quiet: bool = False
) -> Float[ndarray, "N D"]:
    """The input of the last layer for every image of a dataset, from the store where it is there.

    Features do not depend on the last layer, so every head on the same backbone shares a store. Where the disk has
    no room, they are computed and not kept. ``quiet`` shows no progress bar. Raises OutputError where the cache
    cannot be written, BundleError for a network without a last layer.
    """
    if not len(dataset):
        return np.zeros((0, get_head(classifier.network).in_features), np.float32)
    width = get_head(classifier.network).in_features
    folder = (cache or runtime.cache_dir()) / "features" / feature_key(classifier, dataset)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        rows_in_store = dataset.pixels.shape[0]
        if (
            not folder.exists()
            and 4 * width * rows_in_store > _MAX_DISK_SHARE * shutil.disk_usage(folder.parent).free
        ):
            progress.notify(
                "The disk has no room to keep the features of these images, so they are computed again whenever "
                "they are needed. SIGHTLINE_CACHE names a folder with more room."
            )
            return _embed_rows(classifier, dataset, np.arange(len(dataset)), quiet=quiet)
        with FileLock(folder.with_name(folder.name + ".lock")):
            store = FeatureStore(folder, rows_in_store, width)
            missing = np.flatnonzero(~store.done[dataset.rows])
            for part in np.array_split(missing, max(1, len(missing) // 512)) if len(missing) else []:
                store.write(dataset.rows[part], _embed_rows(classifier, dataset, part, quiet=quiet))
            return store.read(dataset.rows)
    except OSError as error:
        raise OutputError(
            f"Cannot keep features in '{folder.parent}': {(error.strerror or str(error)).lower()}. "
            "Set the environment variable SIGHTLINE_CACHE to a folder with room that you may write to."
        ) from error


class FeatureStore:
    """Features by row of a pixel store, some of them perhaps not yet there."""

    def __init__(self, folder: Path, rows: int, width: int):
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self._features = _open_array(folder / "features.npy", (rows, width), np.float32)
        self.done: Any = _open_array(folder / "done.npy", (rows,), np.bool_)

    def write(self, rows: Int[ndarray, " n"], features: Float[ndarray, "n D"]) -> None:
        """Keep the features of these rows; they count as done only when they are on the disk."""
        with explain_write_errors(self.folder):
            self._features[rows] = features
            self._features.flush()
            self.done[rows] = True
            self.done.flush()

    def read(self, rows: Int[ndarray, " n"]) -> Float[ndarray, "n D"]:
        """A copy of the features of these rows."""
        return np.asarray(self._features[rows])


def _open_array(path: Path, shape: tuple[int, ...], kind: Any) -> Any:
    """The array in a file; a fresh one of zeros where there is none of this shape."""
    try:
        found = np.load(path, mmap_mode="r+")
        if found.shape == shape and found.dtype == kind:
            return found
    except (OSError, ValueError, EOFError):
        pass
    return np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=shape)


def feature_key(classifier: Classifier, dataset: Dataset) -> str:
    """Name of the store: a hash of the files, the geometry, the preprocessing and every weight but the head's."""
    digest = hashlib.blake2b(digest_size=12)
    words = (dataset.fingerprint, dataset.pixels.shape[0], dataset.geometry, inference_precision(classifier))
    network = classifier.network
    more = (
        classifier.architecture.name,
        network.flip_tta,
        classifier.preprocessing,
        backbone_fingerprint(network),
    )
    digest.update(repr((*words, *more)).encode())
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


def inference_precision(classifier: Classifier) -> torch.dtype:
    """bfloat16 where the device computes with it natively, else float32.

    It depends on the machine alone, not on a measurement, so that features repeat.
    """
    if classifier.device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    native = classifier.device.type == "cpu" and torch.backends.mkldnn.is_available()
    return torch.bfloat16 if native and torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


@torch.inference_mode()
def _embed_rows(
    classifier: Classifier, dataset: Dataset, rows: Int[ndarray, " n"], *, quiet: bool
) -> Float[ndarray, "n D"]:
    precision, device = inference_precision(classifier), classifier.device
    training = classifier.training
    classifier.eval()
    found = []
    with progress.progress_bar("Embedding images", None if quiet else len(rows)) as advance:
        for start in range(0, len(rows), EMBEDDING_BATCH_SIZE):
            part = rows[start : start + EMBEDDING_BATCH_SIZE]
            pixels = to_tensor(dataset[part]).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision is torch.bfloat16):
                found.append(classifier.features(pixels).float().cpu())
            advance(len(part))
    classifier.train(training)
    return torch.cat(found).numpy()
