"""Heat maps of answers: drawn one request at a time, by the bundle of the release that answered."""

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import SightlineError
from .engine import Engine
from .requests import RankedPrediction, RequestError, dump_json

if TYPE_CHECKING:
    from ..classifier import Classifier

MAX_PENDING_HEATMAPS = 8
"""Requests for heat maps that may wait."""


@dataclass(frozen=True, eq=False)
class PendingHeatmaps:
    """A response whose heat maps are still to be drawn."""

    engine: Engine
    value: dict[str, Any]
    """The response's JSON without heat maps."""
    predictions: list[RankedPrediction]
    """Of the images that could be decoded."""


class HeatmapRenderer:
    """Draws the heat maps of one process, in a thread of its own; ``close`` ends it."""

    def __init__(self) -> None:
        self._pending = 0
        self._classifier: tuple[Engine, Classifier] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="heat")

    @contextmanager
    def reserve(self, engine: Engine) -> Iterator[None]:
        """Reserve a place for a request's heat maps; raise RequestError (422, 503) before anything is answered."""
        if engine.bundle is None:
            raise RequestError(
                422, "This service answers from an exported file, which has no heat maps: serve a site."
            )
        if self._pending >= MAX_PENDING_HEATMAPS:
            raise RequestError(503, "Too many heat maps are being drawn: try again in a second.")
        self._pending += 1
        try:
            yield
        finally:
            self._pending -= 1

    async def render(self, pending: PendingHeatmaps) -> bytes:
        """Return the JSON of a response with its heat maps; raise RequestError (422) if the network has none."""
        loop = asyncio.get_running_loop()
        heatmaps = iter(await loop.run_in_executor(self._thread, self._draw, pending.engine, pending.predictions))
        for one in pending.value["predictions"]:
            if one["error"] is None:
                one["heat"] = next(heatmaps)
        return dump_json(pending.value)

    def draw(self, engine: Engine, predictions: list[RankedPrediction]) -> list[str]:
        """Return a data URL per prediction: its image and the heat map of its label; raise RequestError (422, 503)."""
        with self.reserve(engine):
            return self._thread.submit(self._draw, engine, predictions).result()

    def close(self) -> None:
        """Draw what waits, and end the thread."""
        self._thread.shutdown()

    def _draw(self, engine: Engine, predictions: Sequence[RankedPrediction]) -> list[str]:
        """Return a data URL per image: it and the heat map of its label. Torch is loaded at the first call."""
        import numpy as np
        import torch

        from ..classifier import Classifier
        from ..data import to_tensor
        from ..explanation import EXPLAINERS, default_explainer, overlay_heat, reduce_channels, to_heat_map
        from ..pictures import data_url

        try:
            if self._classifier is None or self._classifier[0] is not engine:
                assert engine.bundle is not None  # ``reserve`` checks it
                self._classifier = engine, Classifier.load(engine.bundle)
            classifier = self._classifier[1]
            images = [one.pixels for one in predictions]
            targets = torch.tensor([engine.classes.index(one.label) for one in predictions])
            pixels = to_tensor(np.stack(images), classifier.device)
            explainer = EXPLAINERS[default_explainer(classifier, pixels.shape[1:])]()
            heat = to_heat_map(reduce_channels(explainer, explainer(classifier, pixels, targets))).cpu().numpy()
            return [data_url(overlay_heat(image, one)) for image, one in zip(images, heat, strict=True)]
        except SightlineError as error:
            raise RequestError(422, f"This classifier has no heat map: {error}") from error
