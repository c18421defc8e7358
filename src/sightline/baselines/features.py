"""The words of features: ``pixels``, ``hog:cell=4``, ``edges:canny``, ``embedding:RUN``, joined by ``+``."""

from collections.abc import Callable, Mapping

from ..choose import choose
from ..classifier import Classifier
from ..errors import ChoiceError
from ..models import HANDCRAFTED_FEATURES, EmbeddingFeature, Feature
from ..types import Geometry


class LearntFeatures(EmbeddingFeature):
    """What the last layer of a trained network is given; the word says which run or bundle: embedding:RUN."""

    def __init__(self, run: object) -> None:
        classifier = Classifier.load(str(run))
        super().__init__(classifier.preprocessing, classifier.network, classifier.architecture.config())
        self.run = str(run)
        self.geometry = classifier.geometry


FEATURES: Mapping[str, Callable[..., Feature | EmbeddingFeature]] = {
    **HANDCRAFTED_FEATURES,
    "embedding": LearntFeatures,
}
"""Name -> ``(arguments) -> feature``."""


def parse_features(words: str, geometry: Geometry | None = None) -> tuple[Feature | EmbeddingFeature, ...]:
    """The features that ``words`` name, in order: ``hog+lbp``.

    Raises ChoiceError for one that nobody knows, or an embedding of a network that takes other pixels than
    ``geometry`` gives, BundleError for a run that cannot be read.
    """
    found = tuple(choose(FEATURES, word, "feature") for word in words.split("+"))
    for feature in found:
        if isinstance(feature, LearntFeatures) and geometry is not None and feature.geometry != geometry:
            (height, width), channels = feature.geometry.size, feature.geometry.channels
            raise ChoiceError(
                f"The network of 'embedding:{feature.run}' takes images decoded as {feature.geometry}, and these "
                f"are {geometry}. Work at its size: --size {max(height, width)} --channels {channels} "
                f"--fit {feature.geometry.resize_mode} --filter {feature.geometry.interpolation}"
            )
    return found
