"""One opened release: images are checked, decoded and ranked, with the classes ``Classifier.predict`` would give.

onnxruntime runs the exported file; a classifier that could not be exported runs in torch. Opening an engine
measures which batch size is fastest. Whether one thread or all answer a single image faster is measured
continuously, since a release may be opened while others keep the cores busy.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from .. import runtime
from ..data import ImageHeader, decode_with_header
from ..errors import ImageError
from ..journal import Reference, SketchInputs
from ..types import Geometry
from .image_checks import JPEG_SCAN, check_image, measure_image
from .requests import PredictRequest, RankedPrediction, RequestError, RequestLimits, sniff_type

if TYPE_CHECKING:
    from ..classifier import Classifier
    from ..exported_model import NetworkOutputs

LARGE_IMAGE_BYTES = 16_000_000
"""Bytes of decoding, 4 megapixels of a photo, above which images are decoded one at a time: memory then does not
grow with the number of threads."""

PARALLEL_DECODE_BYTES = 200_000
"""Bytes of images above which several threads decode them."""

SPIN_OPTIONS = {"session.intra_op.spin_duration_us": "1000"}
"""Spin for 1 ms between operators. Without spinning, several threads are slower than one; onnxruntime's default
(tens of ms after each answer) would keep a core busy."""

TUNING_SECONDS = 0.2
"""Seconds that measuring batch sizes takes, unless two single images already take longer."""

CANDIDATE_BATCH_SIZES = (2, 4, 8, 16, 32)

MAX_TIMED_CALLS = 10
"""Timed calls per batch size; the fastest counts."""

MIN_BATCH_GAIN = 1.03
"""Factor of images per second by which a larger batch must be faster to be used."""

BATCH_OVERHEAD_SECONDS = 0.0003
"""Estimated cost of a batch besides the network: waking threads, the journal, the way back."""

MAX_QUICK_SECONDS, MAX_QUICK_BYTES = 0.003, 300_000
"""A request that is answered in the event loop keeps all others waiting. So its network takes at most these seconds;
and its image at most these bytes, in the file and, times the passes over a JPEG, while it is decoded."""

WARMUP_CALLS, LATENCY_WINDOW, PROBE_INTERVAL = 3, 9, 256
"""Warm-up calls per runner; window of remembered latencies; every 256th request probes the slower runner (rare
enough not to affect the 99th percentile)."""

_LARGE_IMAGE_LOCK = threading.Lock()

Answers = TypeVar("Answers")


@runtime_checkable
class EngineRunner(Protocol):
    """A network that answers 8-bit images."""

    def probabilities(self, images: UInt8[ndarray, "N H W C"], /) -> Float[ndarray, "N K"]:
        """Return the probability of each class for each image."""
        ...

    def outputs(self, images: UInt8[ndarray, "N H W C"], /) -> "NetworkOutputs":
        """Return probabilities, features and energy."""
        ...


class BundleRunner:
    """A bundle's own network in torch, one batch at a time."""

    def __init__(self, classifier: "Classifier"):
        self.classifier = classifier.eval()
        self._lock = threading.Lock()

    def probabilities(self, images: UInt8[ndarray, "N H W C"]) -> Float[ndarray, "N K"]:
        """Return the classifier's probabilities."""
        import torch

        from ..data import to_tensor

        with self._lock, torch.inference_mode():
            return self.classifier.probabilities(to_tensor(images, self.classifier.device)).cpu().numpy()

    def outputs(self, images: UInt8[ndarray, "N H W C"]) -> "NetworkOutputs":
        """Return the classifier's probabilities, features and energy."""
        import torch

        from ..data import to_tensor
        from ..exported_model import NetworkOutputs

        if not hasattr(self.classifier.network, "head"):
            return NetworkOutputs(self.probabilities(images))
        with self._lock, torch.inference_mode():
            features, logits = self.classifier.features_and_logits(to_tensor(images, self.classifier.device))
            found = (torch.softmax(logits / self.classifier.temperature, 1), features, -logits.logsumexp(1))
            return NetworkOutputs(*(one.float().cpu().numpy() for one in found))


class FasterRunner:
    """The faster of two runners for single images, by the median of their last ``LATENCY_WINDOW`` latencies.

    Both are called ``WARMUP_CALLS`` times in turn; thereafter every ``PROBE_INTERVAL``-th image goes to the slower
    one, so that the choice follows the load of the machine.
    """

    def __init__(self, first: EngineRunner, second: EngineRunner):
        self._runners = (first, second)
        self._seconds: list[tuple[float, ...]] = [(), ()]
        self._calls = 0

    @property
    def fastest(self) -> int:
        """Index of the faster runner: 0 or 1."""
        first, second = (sorted(last)[len(last) // 2] if last else 0.0 for last in self._seconds)
        return int(second < first)

    def probabilities(self, images: UInt8[ndarray, "N H W C"]) -> Float[ndarray, "N K"]:
        """Return the probabilities from the faster runner, or from the one that is probed."""
        return self._run(len(images), lambda runner: runner.probabilities(images))

    def outputs(self, images: UInt8[ndarray, "N H W C"]) -> "NetworkOutputs":
        """Return all outputs from the faster runner, or from the one that is probed."""
        return self._run(len(images), lambda runner: runner.outputs(images))

    def _run(self, size: int, ask: Callable[[EngineRunner], Answers]) -> Answers:
        if size != 1:
            return ask(self._runners[self.fastest])
        self._calls = calls = self._calls + 1
        k = self.fastest if calls % PROBE_INTERVAL else 1 - self.fastest
        if calls <= 2 * WARMUP_CALLS:
            k = calls % 2
        start = time.perf_counter()
        answers = ask(self._runners[k])
        self._seconds[k] = (time.perf_counter() - start, *self._seconds[k][: LATENCY_WINDOW - 1])
        return answers


@dataclass(frozen=True)
class BatchTuning:
    """The fastest batch size, and what was measured."""

    max_batch: int = 1
    """Images answered together; 1 if batches are no faster."""
    images_per_second: tuple[tuple[int, float], ...] = ()
    """Batch size and images per second of one thread, ``BATCH_OVERHEAD_SECONDS`` included."""
    single_seconds: float = float("inf")
    """Seconds of the network for one image on one thread; infinite if not measured."""


def tune_batch_size(runner: EngineRunner, shape: tuple[int, int, int]) -> BatchTuning:
    """Time batches of random images of ``shape`` (H W C); the fastest of several calls counts."""
    until = time.perf_counter() + TUNING_SECONDS
    images = np.random.default_rng(0).integers(0, 256, (max(CANDIDATE_BATCH_SIZES), *shape), dtype=np.uint8)

    def best_seconds(size: int) -> float:
        runner.probabilities(images[:size])  # not timed
        best = float("inf")
        for calls in range(MAX_TIMED_CALLS):
            start = time.perf_counter()
            runner.probabilities(images[:size])
            best = min(best, time.perf_counter() - start)
            if calls >= 1 and time.perf_counter() > until - TUNING_SECONDS / 2:
                break
        return best

    one = best_seconds(1)
    rates, largest = {1: 1 / (one + BATCH_OVERHEAD_SECONDS)}, 1
    for size in CANDIDATE_BATCH_SIZES:
        if time.perf_counter() + 3 * size * one > until:
            break
        rates[size] = size / (best_seconds(size) + BATCH_OVERHEAD_SECONDS)
        if rates[size] > MIN_BATCH_GAIN * rates[largest]:
            largest = size
    return BatchTuning(largest, tuple(rates.items()), one)


@dataclass(frozen=True, eq=False, kw_only=True)
class Engine:
    """A release that answers; thread-safe."""

    release: int
    """Number of the release; 0 for a run or file served without releases."""
    classes: tuple[str, ...]
    geometry: Geometry
    threshold: float
    """Predictions of a lower confidence abstain."""
    shared_runner: EngineRunner
    """Runs on one thread: for several requests at a time."""
    exclusive_runner: EngineRunner
    """Runs on one or on all threads, whichever is faster: for a request that nothing competes with."""
    tuning: BatchTuning
    bundle: Path | None = None
    """Bundle of the classifier, for heat maps; None for an exported file."""
    reference: Reference | None = None
    """What the sketches of answers are made with; None leaves them out."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What ``GET /model`` shows besides."""

    def predict(
        self,
        requests: Sequence[PredictRequest],
        limits: RequestLimits,
        pool: ThreadPoolExecutor | None = None,
        *,
        exclusive: bool = True,
    ) -> list[list[RankedPrediction | RequestError]]:
        """Check, decode and rank the images of all requests in one batch.

        Return for every request a prediction, or the reason why there is none, for each of its images. ``pool``
        decodes large images in parallel; ``exclusive`` means that no other request competes for the cores.
        """
        images = [image for request in requests for image in request.images]
        if pool is not None and len(images) > 1 and sum(map(len, images)) > PARALLEL_DECODE_BYTES:
            decoded = list(pool.map(self.decode_image, images, [limits] * len(images)))
        else:
            decoded = [self.decode_image(data, limits) for data in images]
        pixels = [one[0] for one in decoded if not isinstance(one, RequestError)]
        rows, inputs = iter(()), iter(())
        if pixels:
            runner = self.exclusive_runner if exclusive else self.shared_runner
            batch = pixels[0][None] if len(pixels) == 1 else np.stack(pixels)
            if self.reference is None:
                probabilities, made = runner.probabilities(batch), [None] * len(batch)
            else:
                outputs = runner.outputs(batch)
                sizes = [
                    (one[1].width, one[1].height, len(data))
                    for data, one in zip(images, decoded, strict=True)
                    if not isinstance(one, RequestError)
                ]
                probabilities, unknown = outputs.probabilities, [None] * len(batch)
                energy = unknown if outputs.energy is None else outputs.energy.tolist()
                features = unknown if outputs.features is None else outputs.features
                made = [
                    SketchInputs(self.reference, *one)
                    for one in zip(probabilities, energy, features, pixels, sizes, strict=True)
                ]
            rows, inputs = iter(probabilities.tolist()), iter(made)
        results = iter(decoded)
        return [
            [
                one if isinstance(one, RequestError) else self._rank(next(rows), request.top, one[0], next(inputs))
                for one in (next(results) for _ in request.images)
            ]
            for request in requests
        ]

    def is_quick(self, request: PredictRequest) -> bool:
        """Whether a request may be answered in the event loop: one small JPEG or PNG, a fast network, no heat map."""
        if request.heat or len(request.images) != 1 or self.tuning.single_seconds > MAX_QUICK_SECONDS:
            return False
        (data,) = request.images
        kind = sniff_type(data)
        if len(data) > MAX_QUICK_BYTES or kind not in ("image/jpeg", "image/png"):
            return False
        return 0 < measure_image(data, kind).decode_bytes * max(1, data.count(JPEG_SCAN)) <= MAX_QUICK_BYTES

    def decode_image(
        self, data: bytes, limits: RequestLimits
    ) -> tuple[UInt8[ndarray, "H W C"], ImageHeader] | RequestError:
        """Return the pixels of an image at the working size and its header, or the reason why there are none."""
        try:
            found = check_image(data, limits)
            with _LARGE_IMAGE_LOCK if found.decode_bytes > LARGE_IMAGE_BYTES else nullcontext():
                return decode_with_header(data, self.geometry, found.jpeg)
        except RequestError as error:
            return error
        except ImageError as error:
            return RequestError(422, str(error))
        except MemoryError:
            return RequestError(413, "the image needs more memory than there is")

    def _rank(
        self, probabilities: list[float], top: int, pixels: ndarray, inputs: SketchInputs | None
    ) -> RankedPrediction:
        best = sorted(range(len(probabilities)), key=probabilities.__getitem__, reverse=True)[:top]
        ranked = [(self.classes[k], probabilities[k]) for k in best]
        label, confidence = ranked[0]
        return RankedPrediction(label, confidence, confidence < self.threshold, ranked, pixels, inputs)


def open_engine(
    path: Path,
    *,
    release: int = 0,
    bundle: Path | None = None,
    threads: int | None = None,
    tuning: BatchTuning | None = None,
    facts: Mapping[str, Any] | None = None,
    reference: Reference | None = None,
) -> Engine:
    """Open an exported ONNX file, a bundle or a run, and measure how it answers fastest.

    ``threads`` are the cores it may use; ``tuning`` skips the measurement; answers are sketched with ``reference``.
    Raise BundleError.
    """
    threads = threads or runtime.cpu_count()
    if path.suffix.lower() == ".onnx":
        from ..exported_model import open_session, read_exported

        model = read_exported(open_session(path, 1, {}), path)
        shared: EngineRunner = model
        exclusive: EngineRunner = model
        if threads > 1:
            exclusive = FasterRunner(model, read_exported(open_session(path, threads, SPIN_OPTIONS), path))
        own_facts = {"runtime": "onnxruntime", **model.facts}
    else:
        from ..classifier import Classifier, find_bundle

        model = Classifier.load(path)
        shared = exclusive = BundleRunner(model)
        bundle, plan = find_bundle(path), model.architecture
        own_facts = {
            "runtime": "torch",
            "model": plan.arguments.get("word") or plan.name,
            "provenance": model.provenance,
        }
    return Engine(
        release=release,
        classes=model.classes,
        geometry=model.geometry,
        threshold=model.threshold,
        shared_runner=shared,
        exclusive_runner=exclusive,
        tuning=tuning or tune_batch_size(shared, model.geometry.shape),
        bundle=bundle,
        reference=reference,
        facts={**(facts or {}), **own_facts},
    )
