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
from ..data.images import decode
from ..errors import ImageError
from ..types import Geometry
from .answers import Answer
from .limits import LARGE, Limits, Refusal, checked
from .pace import Faster, Pace, measured

if TYPE_CHECKING:
    from ..classifier import Classifier

HEAVY = 200_000
"""Bytes of images from which they are decoded by several threads."""

AWAKE = {"session.intra_op.spin_duration_us": "1000"}
"""Threads that slept between two layers would take longer together than one alone; onnxruntime's own default has
them awake for tens of milliseconds after an answer, in which they keep a core from everyone else."""

_ONE_LARGE = threading.Lock()


@runtime_checkable
class Runner(Protocol):
    """Anything that answers 8-bit images with probabilities."""

    def probabilities(self, images: UInt8[ndarray, "N H W C"], /) -> Float[ndarray, "N K"]:
        """The probability of each class for each image."""
        ...


class Torch:
    """A bundle's own network, one batch at a time."""

    def __init__(self, classifier: "Classifier"):
        self.classifier = classifier.eval()
        self._turn = threading.Lock()

    def probabilities(self, images: UInt8[ndarray, "N H W C"]) -> Float[ndarray, "N K"]:
        """The classifier's answers."""
        import torch

        from ..data.loader import to_batch

        with self._turn, torch.inference_mode():
            return self.classifier.probabilities(to_batch(images, self.classifier.device)).cpu().numpy()


@dataclass(frozen=True, eq=False, kw_only=True)
class Engine:
    """A release that answers. Several threads may ask it at once."""

    release: int
    """Its number; 0 for a run or file served without releases."""
    classes: tuple[str, ...]
    geometry: Geometry
    threshold: float
    """Confidences below it are answered with ``abstained``."""
    crowd: Runner
    """One thread: what several threads share."""
    alone: Runner
    """One thread or all, whichever is faster: for a request that nothing else competes with."""
    pace: Pace
    """What was measured when it was opened."""
    bundle: Path | None = None
    """Where its classifier can be loaded from, for heat maps."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else is known of it."""

    def answers(self, images: Sequence[bytes], *, top: int = 5) -> list[Answer | str]:
        """The answer for each image, or the sentence that says why it cannot be read."""
        limits = Limits()
        read = [self.read(data, "", limits) for data in images]
        good = [pixels for pixels in read if isinstance(pixels, ndarray)]
        answers = iter(self.ranked(good, [top] * len(good)))
        return [next(answers) if isinstance(pixels, ndarray) else pixels.detail for pixels in read]

    def read(self, data: bytes, declared: str, limits: Limits) -> UInt8[ndarray, "H W C"] | Refusal:
        """The pixels of an image at the working size, or why there are none."""
        try:
            count = checked(data, declared, limits)
            if count > LARGE:
                with _ONE_LARGE:
                    return decode(data, self.geometry)
            return decode(data, self.geometry)
        except Refusal as refusal:
            return refusal
        except ImageError as error:
            return Refusal(422, str(error))
        except MemoryError:
            return Refusal(413, "the image needs more memory than there is")

    def read_all(
        self, images: Sequence[bytes], types: Sequence[str], limits: Limits, pool: ThreadPoolExecutor
    ) -> list[ndarray | Refusal]:
        """``read`` of each, by several threads where there is much to decode."""
        if len(images) > 1 and sum(map(len, images)) > HEAVY:
            return list(pool.map(self.read, images, types, [limits] * len(images)))
        return [self.read(data, kind, limits) for data, kind in zip(images, types, strict=True)]

    def ranked(self, pixels: Sequence[ndarray], tops: Sequence[int], *, alone: bool = True) -> list[Answer]:
        """The ``tops[i]`` likeliest classes of the i-th image."""
        if not pixels:
            return []
        runner = self.alone if alone else self.crowd
        images = pixels[0][None] if len(pixels) == 1 else np.stack(pixels)
        rows = runner.probabilities(images).tolist()
        return [self._answer(row, top) for row, top in zip(rows, tops, strict=True)]

    def _answer(self, row: list[float], top: int) -> Answer:
        best = sorted(range(len(row)), key=row.__getitem__, reverse=True)[:top]
        ranked = [(self.classes[k], row[k]) for k in best]
        label, confidence = ranked[0]
        return Answer(label, confidence, confidence < self.threshold, ranked)


def open_engine(
    path: Path,
    *,
    release: int = 0,
    bundle: Path | None = None,
    threads: int | None = None,
    pace: Pace | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Engine:
    """Open an ONNX file that ``export`` wrote, a bundle or a run, and measure how it answers fastest.

    ``threads`` are the cores it may use; ``pace`` skips the measurement. Raises BundleError.
    """
    threads = threads or runtime.cpu_count()
    opened = _of_onnx(path, threads) if path.suffix.lower() == ".onnx" else _of_bundle(path)
    pace = pace or measured(opened["crowd"], opened["geometry"].shape)
    opened["facts"] = {**(facts or {}), **opened["facts"]}
    return Engine(release=release, bundle=opened.pop("folder", bundle), pace=pace, **opened)


def _of_onnx(path: Path, threads: int) -> dict[str, Any]:
    crowd = _session(path, 1)
    alone = Faster(crowd, _session(path, threads)) if threads > 1 else crowd
    return {
        "classes": crowd.classes,
        "geometry": crowd.geometry,
        "threshold": crowd.threshold,
        "crowd": crowd,
        "alone": alone,
        "facts": {"runtime": "onnxruntime", **crowd.facts},
    }


def _session(path: Path, threads: int) -> Any:
    """An exported file on so many threads, which stay awake for a moment after an answer, as the next is near."""
    from ..models.exported import exported, session_of

    return exported(session_of(path, threads, AWAKE if threads > 1 else {}), path)


def _of_bundle(path: Path) -> dict[str, Any]:
    from ..classifier import Classifier, bundle_of

    classifier = Classifier.load(path)
    runner, plan = Torch(classifier), classifier.architecture
    return {
        "classes": classifier.classes,
        "geometry": classifier.geometry,
        "threshold": classifier.threshold,
        "crowd": runner,
        "alone": runner,
        "folder": bundle_of(path),
        "facts": {
            "runtime": "torch",
            "model": plan.arguments.get("word") or plan.name,
            "provenance": classifier.provenance,
        },
    }
