"""One release, opened for answering: from the bytes of images to ranked classes, as ``Classifier.predict`` would.

onnxruntime runs the exported file; where a classifier could not be exported, torch runs the bundle.
"""

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from .. import runtime
from ..data import decode
from ..errors import ImageError
from ..types import Geometry
from .batch_tuning import BatchTuning, FasterRunner, tune_batch_size
from .limits import LARGE_IMAGE_PIXELS, RequestError, RequestLimits, check_image
from .requests import RankedPrediction

if TYPE_CHECKING:
    from ..classifier import Classifier

PARALLEL_DECODE_BYTES = 200_000
"""Bytes of images from which they are decoded by several threads."""

SPIN_OPTIONS = {"session.intra_op.spin_duration_us": "1000"}
"""Threads that slept between two layers would take longer together than one alone; onnxruntime's own default has
them awake for tens of milliseconds after an answer, in which they keep a core from everyone else."""

_LARGE_IMAGE_LOCK = threading.Lock()


@runtime_checkable
class EngineRunner(Protocol):
    """Anything that answers 8-bit images with probabilities."""

    def probabilities(self, images: UInt8[ndarray, "N H W C"], /) -> Float[ndarray, "N K"]:
        """The probability of each class for each image."""
        ...


class BundleRunner:
    """A bundle's own network, one batch at a time."""

    def __init__(self, classifier: "Classifier"):
        self.classifier = classifier.eval()
        self._turn = threading.Lock()

    def probabilities(self, images: UInt8[ndarray, "N H W C"]) -> Float[ndarray, "N K"]:
        """The classifier's answers."""
        import torch

        from ..data import to_tensor

        with self._turn, torch.inference_mode():
            return self.classifier.probabilities(to_tensor(images, self.classifier.device)).cpu().numpy()


@dataclass(frozen=True, eq=False, kw_only=True)
class Engine:
    """A release that answers. Several threads may ask it at once."""

    release: int
    """Its number; 0 for a run or file served without releases."""
    classes: tuple[str, ...]
    geometry: Geometry
    threshold: float
    """Confidences below it are answered with ``abstained``."""
    crowd: EngineRunner
    """One thread: what several threads share."""
    alone: EngineRunner
    """One thread or all, whichever is faster: for a request that nothing else competes with."""
    pace: BatchTuning
    """What was measured when it was opened."""
    bundle: Path | None = None
    """Where its classifier can be loaded from, for heat maps."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else is known of it."""

    def predict_images(self, images: Sequence[bytes], *, top: int = 5) -> list[RankedPrediction | str]:
        """The answer for each image, or the sentence that says why it cannot be read."""
        limits = RequestLimits()
        read = [self.decode_image(data, "", limits) for data in images]
        good = [pixels for pixels in read if isinstance(pixels, ndarray)]
        answers = iter(self.rank(good, [top] * len(good)))
        return [next(answers) if isinstance(pixels, ndarray) else pixels.detail for pixels in read]

    def decode_image(
        self, data: bytes, declared: str, limits: RequestLimits
    ) -> UInt8[ndarray, "H W C"] | RequestError:
        """The pixels of an image at the working size, or why there are none."""
        try:
            count = check_image(data, declared, limits)
            if count > LARGE_IMAGE_PIXELS:
                with _LARGE_IMAGE_LOCK:
                    return decode(data, self.geometry)
            return decode(data, self.geometry)
        except RequestError as refusal:
            return refusal
        except ImageError as error:
            return RequestError(422, str(error))
        except MemoryError:
            return RequestError(413, "the image needs more memory than there is")

    def decode_images(
        self, images: Sequence[bytes], types: Sequence[str], limits: RequestLimits, pool: ThreadPoolExecutor
    ) -> list[ndarray | RequestError]:
        """``read`` of each, by several threads where there is much to decode."""
        if len(images) > 1 and sum(map(len, images)) > PARALLEL_DECODE_BYTES:
            return list(pool.map(self.decode_image, images, types, [limits] * len(images)))
        return [self.decode_image(data, kind, limits) for data, kind in zip(images, types, strict=True)]

    def rank(
        self, pixels: Sequence[ndarray], tops: Sequence[int], *, alone: bool = True
    ) -> list[RankedPrediction]:
        """The ``tops[i]`` likeliest classes of the i-th image."""
        if not pixels:
            return []
        runner = self.alone if alone else self.crowd
        images = pixels[0][None] if len(pixels) == 1 else np.stack(pixels)
        rows = runner.probabilities(images).tolist()
        return [self._top_classes(row, top) for row, top in zip(rows, tops, strict=True)]

    def _top_classes(self, row: list[float], top: int) -> RankedPrediction:
        best = sorted(range(len(row)), key=row.__getitem__, reverse=True)[:top]
        ranked = [(self.classes[k], row[k]) for k in best]
        label, confidence = ranked[0]
        return RankedPrediction(label, confidence, confidence < self.threshold, ranked)


def open_engine(
    path: Path,
    *,
    release: int = 0,
    bundle: Path | None = None,
    threads: int | None = None,
    pace: BatchTuning | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Engine:
    """Open an ONNX file that ``export`` wrote, a bundle or a run, and measure how it answers fastest.

    ``threads`` are the cores it may use; ``pace`` skips the measurement. Raises BundleError.
    """
    threads = threads or runtime.cpu_count()
    opened = _open_onnx(path, threads) if path.suffix.lower() == ".onnx" else _open_bundle(path)
    pace = pace or tune_batch_size(opened["crowd"], opened["geometry"].shape)
    opened["facts"] = {**(facts or {}), **opened["facts"]}
    return Engine(release=release, bundle=opened.pop("folder", bundle), pace=pace, **opened)


def _open_onnx(path: Path, threads: int) -> dict[str, Any]:
    crowd = _open_session(path, 1)
    alone = FasterRunner(crowd, _open_session(path, threads)) if threads > 1 else crowd
    return {
        "classes": crowd.classes,
        "geometry": crowd.geometry,
        "threshold": crowd.threshold,
        "crowd": crowd,
        "alone": alone,
        "facts": {"runtime": "onnxruntime", **crowd.facts},
    }


def _open_session(path: Path, threads: int) -> Any:
    """An exported file on so many threads, which stay awake for a moment after an answer, as the next is near."""
    from ..models import open_session, read_exported

    return read_exported(open_session(path, threads, SPIN_OPTIONS if threads > 1 else {}), path)


def _open_bundle(path: Path) -> dict[str, Any]:
    from ..classifier import Classifier, find_bundle

    classifier = Classifier.load(path)
    runner, plan = BundleRunner(classifier), classifier.architecture
    return {
        "classes": classifier.classes,
        "geometry": classifier.geometry,
        "threshold": classifier.threshold,
        "crowd": runner,
        "alone": runner,
        "folder": find_bundle(path),
        "facts": {
            "runtime": "torch",
            "model": plan.arguments.get("word") or plan.name,
            "provenance": classifier.provenance,
        },
    }
