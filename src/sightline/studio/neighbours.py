"""The training images of the release that answers, by their features: which are nearest to another image?"""

import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from ..errors import SightlineError
from ..feedback import find_base
from ..files import atomic_replace, explain_write_errors
from ..pictures import data_url, thumbnail
from ..runs import open_run, sample_images
from ..serving import Engine, Service, load_release
from ..types import Dataset

MAX_NEIGHBOUR_IMAGES = 2000
"""Training images whose features are computed; more would take minutes on two cores."""

NEIGHBOUR_NICENESS = 15
"""Priority of the thread that computes features: the service answers meanwhile."""

_BATCH_IMAGES = 16


@dataclass(frozen=True)
class Neighbour:
    """A training image near another image."""

    label: str
    file: str
    picture: str
    """A data URL."""
    cosine: float
    """Of the features of both, in [-1, 1]."""


class NeighbourFinder:
    """The training images of the current release; ready some time after it was first asked for."""

    def __init__(self, service: Service, folder: Path):
        """``folder`` keeps the features of each release."""
        self._service, self._folder = service, folder
        self._lock = threading.Lock()
        self._release: int | None = None
        self._found: tuple[Dataset, Float[ndarray, "N D"]] | None = None
        self._why: str | None = None

    def nearest(self, pixels: UInt8[ndarray, "H W C"], count: int = 4) -> Sequence[Neighbour] | None:
        """The nearest training images, the nearest first; None while their features are being computed.

        ``pixels`` is an image at the working size. Raises SightlineError with the reason where there are none.
        """
        engine = self._service.engine
        with self._lock:
            if self._release != engine.release:
                self._release, self._found, self._why = engine.release, None, None
                threading.Thread(target=self._open, args=(engine,), name="neighbours", daemon=True).start()
            found, why = self._found, self._why
        if why is not None:
            raise SightlineError(why)
        if found is None:
            return None
        images, features = found
        near = features @ compute_features(engine, pixels[None])[0]
        best = np.argsort(-near, kind="stable")[:count]
        return [
            Neighbour(
                images.classes[int(images.labels[i])], str(images.files[i]),
                data_url(thumbnail(images[[int(i)]][0], most=96)), float(near[i]),
            )
            for i in best
        ]  # fmt: skip

    def _open(self, engine: Engine) -> None:
        """Compute the features of the training images, or read those that were computed before."""
        with suppress(OSError, AttributeError):  # some systems have no priorities of threads
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NEIGHBOUR_NICENESS)
        found = why = None
        try:
            site = self._service.settings.path
            run = open_run(find_base(site.resolve(), load_release(site, engine.release)), device="cpu")
            images, _ = sample_images(run.splits.train, MAX_NEIGHBOUR_IMAGES)
            found = images, self._features(engine, images)
        except SightlineError as error:
            why = str(error)
        except Exception as error:  # a page without neighbours is better than none
            why = f"The training images cannot be read: {type(error).__name__}."
        with self._lock:
            if self._release == engine.release:
                self._found, self._why = found, why

    def _features(self, engine: Engine, images: Dataset) -> Float[ndarray, "N D"]:
        path = self._folder / f"{engine.release:04d}.npy"
        with suppress(OSError, ValueError):
            known = np.load(path, allow_pickle=False).astype(np.float32)
            if len(known) == len(images):
                return known
        parts = [
            compute_features(engine, images[i : i + _BATCH_IMAGES]) for i in range(0, len(images), _BATCH_IMAGES)
        ]
        features = np.concatenate(parts)
        with explain_write_errors(path):
            self._folder.mkdir(parents=True, exist_ok=True)
            with atomic_replace(path) as temporary, temporary.open("wb") as stream:
                np.save(stream, features.astype(np.float16))
        return features


def compute_features(engine: Engine, pixels: UInt8[ndarray, "N H W C"]) -> Float[ndarray, "N D"]:
    """Unit features of images; raise SightlineError for a network without features."""
    found = engine.shared_runner.outputs(pixels).features
    if found is None:
        raise SightlineError("This classifier has no features to compare images by.")
    found = found.reshape(len(pixels), -1).astype(np.float32)
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)
