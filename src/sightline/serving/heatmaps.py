"""Where the evidence for an answer lies, as a picture: torch and the classifier are loaded when first asked."""

import threading
from collections.abc import Sequence
from typing import Any

from jaxtyping import UInt8
from numpy import ndarray

from ..errors import SightlineError
from .engine import Engine
from .limits import RequestError


class HeatmapRenderer:
    """Maps by a release's own network, Grad-CAM where it has layers for it; one request at a time."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._engine: Engine | None = None
        self._classifier: Any = None

    def render(
        self, engine: Engine, images: Sequence[UInt8[ndarray, "H W C"]], labels: Sequence[str]
    ) -> list[str]:
        """A data URL for each image: the heat for its label over it. Raises Refusal (422) where there is none."""
        with self._turn:
            try:
                return self._render(engine, images, labels)
            except SightlineError as error:
                raise RequestError(422, f"This classifier has no heat map: {error}") from error

    def _render(self, engine: Engine, images: Sequence[ndarray], labels: Sequence[str]) -> list[str]:
        import numpy as np
        import torch

        from ..data import to_tensor
        from ..explanation import EXPLAINERS, default_explainer, overlay_heat, reduce_channels, to_heat_map
        from ..pictures import data_url

        classifier = self._load_classifier(engine)
        targets = torch.tensor([engine.classes.index(label) for label in labels])
        pixels = to_tensor(np.stack(images), classifier.device)
        explainer = EXPLAINERS[default_explainer(classifier, pixels.shape[1:])]()
        warm = to_heat_map(reduce_channels(explainer, explainer(classifier, pixels, targets))).cpu().numpy()
        return [data_url(overlay_heat(image, one)) for image, one in zip(images, warm, strict=True)]

    def _load_classifier(self, engine: Engine) -> Any:
        from ..classifier import Classifier

        assert engine.bundle is not None  # asked before
        if self._engine is not engine:
            self._classifier = Classifier.load(engine.bundle)
            self._engine = engine
        return self._classifier
