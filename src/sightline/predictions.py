"""Image files become predictions: each thread decodes a batch and answers it with one core, while others do the same.

So decoding takes turns with the network on every core, and no two pools of threads compete. Nothing here needs torch.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from . import runtime
from .data import ImageInput, decode, list_inputs, name_input, read_input
from .errors import ImageError
from .exported_model import ExportedModel
from .types import Geometry, Prediction

Answer = Callable[[UInt8[ndarray, "B H W C"]], Float[ndarray, "B K"]]
"""Images to probabilities."""

MAX_BATCH_IMAGES, MAX_BATCH_PIXELS = 64, 1 << 18
"""Images and pixels of a batch: 64 of 32 x 32, five of 224 x 224. Larger ones leave the caches of a core and are no
faster; with fewer photos, reading a network's weights takes a fifth of the time."""


def batch_images(geometry: Geometry) -> int:
    """Images of this geometry that one thread answers together."""
    return max(1, min(MAX_BATCH_IMAGES, MAX_BATCH_PIXELS // (geometry.size[0] * geometry.size[1])))


def predict_exported(
    model: ExportedModel, images: ImageInput | Iterable[ImageInput], *, top: int = 5
) -> Iterator[Prediction]:
    """The predictions of an exported file opened with one thread, as ``Classifier.iter_predictions`` gives them.

    Images are resampled without torch where the filter is bilinear: see ``resize_to_geometry``.
    """
    ranker = Ranker(model.classes, model.geometry, model.threshold, top, without_torch=True)
    answers = [model.probabilities] * runtime.thread_count()
    return predict_batches(images, ranker, batch_images(model.geometry), answers[0], lambda: answers)


class Ranker:
    """What becomes of a batch: its images are decoded, answered and ranked.

    ``without_torch`` is that of ``decode``.
    """

    def __init__(
        self,
        classes: Sequence[str],
        geometry: Geometry,
        threshold: float,
        top: int,
        *,
        without_torch: bool = False,
    ):
        self.classes, self.geometry, self.threshold, self.top = classes, geometry, threshold, top
        self.without_torch = without_torch

    def __call__(self, images: Sequence[ImageInput], answer: Answer) -> list[Prediction]:
        """The predictions for these images, in order; one that cannot be read has its ``error``."""
        decoded = [self._decode(image) for image in images]
        good = [pixels for pixels in decoded if isinstance(pixels, ndarray)]
        probabilities = answer(np.stack(good)) if good else np.zeros((0, len(self.classes)), np.float32)
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, : self.top]
        rows = zip(best.tolist(), np.take_along_axis(probabilities, best, 1).tolist(), strict=True)
        return [
            Prediction(name_input(image), None, None, error=pixels)
            if isinstance(pixels, str)
            else self._rank(name_input(image), *next(rows))
            for image, pixels in zip(images, decoded, strict=True)
        ]

    def _decode(self, image: ImageInput) -> ndarray | str:
        try:
            return decode(read_input(image), self.geometry, without_torch=self.without_torch)
        except ImageError as error:
            return str(error)

    def _rank(self, name: str, best: list[int], confidences: list[float]) -> Prediction:
        top = tuple((self.classes[k], p) for k, p in zip(best, confidences, strict=True))
        return Prediction(name, *top[0], top=top, abstained=top[0][1] < self.threshold)


def predict_batches(
    images: ImageInput | Iterable[ImageInput],
    ranker: Ranker,
    size: int,
    alone: Answer,
    share: Callable[[], Sequence[Answer]],
    begin: Callable[[], object] | None = None,
    few: int = 1,
) -> Iterator[Prediction]:
    """Predictions in the order of the images, ``size`` of them at a time.

    Up to ``few`` batches are answered by ``alone``, in this thread. More are answered by ``share()``, a thread for
    each of its answers, which calls ``begin()`` first; an answer that it gives once has one call at a time. Images
    are read at most four batches a thread ahead.
    """
    remaining = iter(list_inputs(images))
    batches = iter(lambda: list(islice(remaining, size)), [])
    first = list(islice(batches, few + 1))
    if len(first) <= few:
        for batch in first:
            yield from ranker(batch, alone)
        return
    idle, waiting = deque(share()), deque[Future[list[Prediction]]]()
    threads = len(idle)

    def work(batch: list[ImageInput]) -> list[Prediction]:
        answer = idle.popleft()  # there are as many as threads
        try:
            return ranker(batch, answer)
        finally:
            idle.append(answer)

    pool = ThreadPoolExecutor(threads, "predict", begin)
    try:
        for batch in chain(first, batches):
            waiting.append(pool.submit(work, batch))
            if len(waiting) == 4 * threads:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
