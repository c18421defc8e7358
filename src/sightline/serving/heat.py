"""Where the evidence for an answer lies, as a picture: torch and the classifier are loaded when first asked."""

import threading
from collections.abc import Sequence
from typing import Any

from jaxtyping import UInt8
from numpy import ndarray

from ..errors import SightlineError
from .engine import Engine
from .limits import Refusal


class Heat:
    """Maps by a release's own network, Grad-CAM where it has layers for it; one request at a time."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._engine: Engine | None = None
        self._classifier: Any = None

    def drawn(self, engine: Engine, images: Sequence[UInt8[ndarray, "H W C"]], labels: Sequence[str]) -> list[str]:
        """A data URL for each image: the heat for its label over it. Raises Refusal (422) where there is none."""
        with self._turn:
            try:
                return self._drawn(engine, images, labels)
            except SightlineError as error:
                raise Refusal(422, f"This classifier has no heat map: {error}") from error

    def _drawn(self, engine: Engine, images: Sequence[ndarray], labels: Sequence[str]) -> list[str]:
        import numpy as np
        import torch

        from ..data.loader import to_batch
        from ..explanation.examine import EXPLAINERS, usual
        from ..explanation.explainer import evidence, heat
        from ..explanation.sheets import overlay
        from ..pictures.sheets import data_url

        classifier = self._loaded(engine)
        targets = torch.tensor([engine.classes.index(label) for label in labels])
        pixels = to_batch(np.stack(images), classifier.device)
        explainer = EXPLAINERS[usual(classifier, pixels.shape[1:])]()
        warm = heat(evidence(explainer, explainer(classifier, pixels, targets))).cpu().numpy()
        return [data_url(overlay(image, one)) for image, one in zip(images, warm, strict=True)]

    def _loaded(self, engine: Engine) -> Any:
        from ..classifier import Classifier

        assert engine.bundle is not None  # asked before
        if self._engine is not engine:
            self._classifier = Classifier.load(engine.bundle)
            self._engine = engine
        return self._classifier
