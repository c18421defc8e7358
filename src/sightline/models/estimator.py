"""A fitted scikit-learn estimator and its features as a network: how a baseline becomes a ``Classifier``.

``pixels (B C H W) in [0, 1] -> logits (B K)``, not differentiable. A bundle holds the estimator as
``estimator.skops``: no pickle, its types are checked before anything is created and its trees before they are
used.
"""

import math
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from numpy import ndarray
from torch import Tensor, nn

from .. import progress
from ..choose import lookup
from ..errors import BundleError
from ..layers import ImageSize, Network
from ..preprocessing import Preprocessing
from .handcrafted import HANDCRAFTED_FEATURES, Feature

ESTIMATOR_FILE = "estimator.skops"
MAX_UNPACKED_SHARE = 50
"""Bytes that an estimator may unpack to, for each byte of its file: skops packs nothing by default."""

MIN_PROBABILITY = 1e-7
"""Probabilities are raised to this before their logarithm is taken."""

TREE_TYPES = (
    "sklearn.tree._tree.Tree",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
)
"""Types that skops loads only on request; ``_check_estimator`` checks the indices in their nodes."""


class EmbeddingFeature(nn.Module):
    """The features a trained network learned: the input of its last layer."""

    separate_units = True

    def __init__(self, preprocessing: Preprocessing, network: Network, architecture: Mapping[str, Any]) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.network = network
        self.architecture = dict(architecture)
        self.requires_grad_(False).eval()

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """The penultimate activations, in eval mode."""
        with torch.no_grad():
            return self.network.embed(self.preprocessing(pixels)).flatten(1).float()

    def config(self) -> dict[str, Any]:
        """Everything but tensors, as JSON."""
        return {"architecture": self.architecture, "preprocessing": self.preprocessing.config()}


class EstimatorNetwork(Network):
    """Standardised features, then a scikit-learn estimator.

    Its tensors are the standardisation and the networks of embedding features.
    """

    differentiable = False
    export_refusal = (
        "A scikit-learn estimator has no converter, so it cannot be exported: export a network, or ship the "
        "bundle and let Sightline answer."
    )

    known: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        classes: int,
        channels: int,
        size: ImageSize,
        features: Sequence[Feature | EmbeddingFeature],
        estimator: Any = None,
    ) -> None:
        super().__init__()
        self.features = tuple(features)
        self.embeddings = nn.ModuleList(one for one in features if isinstance(one, EmbeddingFeature))
        self.estimator = estimator
        widths = [part.shape[1] for part in self._feature_parts(torch.zeros(1, channels, *size))]
        self.widths = tuple(widths)
        """Length of each feature's vector."""
        self.register_buffer("known", torch.zeros(classes, dtype=torch.bool))
        self.register_buffer("shift", torch.zeros(sum(widths)))
        self.register_buffer("scale", torch.ones(sum(widths)))

    @property
    def n_classes(self) -> int:
        """Number of classes K."""
        return len(self.known)

    def train(self, mode: bool = True) -> "EstimatorNetwork":
        """Keep the networks of embedding features in eval mode."""
        super().train(mode)
        self.embeddings.eval()
        return self

    def _feature_parts(self, pixels: Float[Tensor, "B C H W"]) -> list[Tensor]:
        return [feature(pixels) for feature in self.features]

    @torch.no_grad()
    def feature_vectors(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """The concatenated features, before they are standardised."""
        return torch.cat(self._feature_parts(pixels), 1).float()

    def fit_units(self, vectors: Float[ndarray, "N D"]) -> None:
        """Set shift and scale from training vectors, so that every feature has the same total variance.

        Features with ``separate_units`` (moments, embeddings) are standardised number by number. All others are
        divided by one number and not shifted: a pixel that is nearly always black is not amplified, and zeros stay
        zeros, which makes linear methods fast.
        """
        shift, scale, begin = [], [], 0
        for feature, width in zip(self.features, self.widths, strict=True):
            own = vectors[:, begin : begin + width]
            deviation = own.std(0, dtype=np.float64)
            if feature.separate_units:
                shift.append(own.mean(0, dtype=np.float64))
            else:
                shift.append(np.zeros(width))
                deviation = np.full(width, math.sqrt(np.square(deviation).mean()))
            share = math.sqrt(width * len(self.widths) / sum(self.widths))
            scale.append(np.where(deviation > 0, deviation, 1.0) * share)
            begin += width
        self.shift.copy_(torch.from_numpy(np.concatenate(shift)))
        self.scale.copy_(torch.from_numpy(np.concatenate(scale)))

    def standardise(self, vectors: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Feature vectors on the scale that the estimator was fitted on."""
        return (vectors - self.shift) / self.scale

    def embed(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """The standardised features: the estimator's input."""
        return self.standardise(self.feature_vectors(pixels))

    def set_estimator(self, estimator: Any) -> None:
        """Use this fitted estimator, whose classes are indices of this network's classes."""
        self.estimator = estimator
        self.known.zero_()[torch.from_numpy(np.asarray(estimator.classes_, np.int64))] = True

    def logits(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Scores, the largest at the estimator's prediction; classes it was not fitted on get the lowest."""
        vectors = self.standardise(self.feature_vectors(pixels)).cpu().numpy()
        seen = estimator_scores(self.estimator, vectors)
        whole = np.repeat(seen.min(1, keepdims=True) - 1, self.n_classes, 1)
        whole[:, self.known.cpu().numpy()] = seen
        return torch.from_numpy(_to_float32(whole)).to(pixels.device)

    def save_extra_files(self, folder: Path) -> None:
        """Write the estimator into the bundle."""
        from skops.io import dump

        dump(self.estimator, folder / ESTIMATOR_FILE, compression=zipfile.ZIP_DEFLATED, compresslevel=1)

    def load_extra_files(self, folder: Path) -> None:
        """Read the estimator of a bundle; raises BundleError where it is unsafe, damaged or does not fit."""
        estimator = read_estimator(folder / ESTIMATOR_FILE)
        known = np.flatnonzero(self.known.cpu().numpy())
        if estimator.n_features_in_ != len(self.shift) or not np.array_equal(estimator.classes_, known):
            raise BundleError(
                f"The {ESTIMATOR_FILE} of '{folder}' was fitted on other features or classes than its config.json "
                "says. Copy the bundle again."
            )
        self.estimator = estimator


def estimator_scores(estimator: Any, vectors: Float[ndarray, "N D"]) -> Float[ndarray, "N k"]:
    """The estimator's decision function (N k), or else the logarithms of its probabilities.

    The largest is at ``estimator.predict``. Where an estimator has both (logistic regression, boosting), the
    softmax of the first is the second; a binary decision d becomes (-d/2, d/2).
    """
    if hasattr(estimator, "decision_function"):
        decided = np.asarray(estimator.decision_function(vectors), np.float64)
        return decided if decided.ndim == 2 else np.stack([-decided / 2, decided / 2], 1)
    return np.log(np.maximum(np.asarray(estimator.predict_proba(vectors), np.float64), MIN_PROBABILITY))


def _to_float32(whole: Float[ndarray, "N K"]) -> Float[ndarray, "N K"]:
    """Scores in float32 with the same argmax, also where two become equal by rounding."""
    single, best = whole.astype(np.float32), whole.argmax(1)
    rows = np.flatnonzero(single.argmax(1) != best)
    single[rows, best[rows]] = np.nextafter(single[rows].max(1), np.float32(np.inf))
    return single


def rebuild_estimator(
    rebuild: Callable[[Mapping[str, Any]], Network],
    classes: int,
    channels: int,
    size: ImageSize,
    features: Sequence[Mapping[str, Any]],
    word: str = "",
) -> Network:
    """The network of a baseline, without its estimator, from its config.

    ``features`` are configs as ``feature_config`` makes them, ``rebuild`` makes a network from an architecture's
    config, ``word`` is the name users know it by. Raises BundleError where a feature cannot be rebuilt.
    """
    del word
    try:
        made: list[Feature | EmbeddingFeature] = []
        for one in features:
            arguments = {name: value for name, value in one.items() if name != "feature"}
            if one["feature"] == "embedding":
                steps = Preprocessing.from_config(arguments["preprocessing"])
                plan = arguments["architecture"]
                made.append(EmbeddingFeature(steps, rebuild(plan), plan))
            else:
                made.append(lookup(HANDCRAFTED_FEATURES, one["feature"], "feature")(**arguments))
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"A feature of the baseline cannot be rebuilt: {error}.") from error
    if not made:
        raise BundleError("The baseline has no features.")
    return EstimatorNetwork(classes, channels, size, made)


def feature_config(feature: Feature | EmbeddingFeature) -> dict[str, Any]:
    """What ``rebuild_estimator`` needs to make a feature again, as JSON."""
    if isinstance(feature, EmbeddingFeature):
        return {"feature": "embedding", **feature.config()}
    names = {kind: name for name, kind in HANDCRAFTED_FEATURES.items()}
    return {"feature": names[type(feature)], **feature.config()}


def read_estimator(file: Path) -> Any:
    """A fitted estimator from a skops file; raises BundleError for types that no baseline consists of.

    skops creates only types it knows to be harmless. Trees, which it does not know, are created and then checked
    node by node before they predict anything.
    """
    from skops.io import get_untrusted_types, load

    if not file.is_file():
        raise BundleError(f"The bundle '{file.parent}' lacks its file '{ESTIMATOR_FILE}'. Copy the bundle again.")
    try:
        with zipfile.ZipFile(file) as archive:
            size = sum(one.file_size for one in archive.infolist())
        if size > MAX_UNPACKED_SHARE * file.stat().st_size:
            raise BundleError(f"The file '{file}' unpacks to {size / 1e6:,.0f} MB: do not use this bundle.")
        strange = [name for name in get_untrusted_types(file=file) if name not in TREE_TYPES]
        if strange:
            raise BundleError(
                f"The file '{file}' holds {', '.join(strange[:3])}, which no baseline is made of: do not use this "
                "bundle unless you know where it comes from, and then fit the baseline again."
            )
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            found = load(file, trusted=list(TREE_TYPES))
    except BundleError:
        raise
    except Exception as error:  # skops and scikit-learn raise many exceptions for damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BundleError(f"The file '{file}' cannot be read: {reason}. Fit the baseline again.") from error
    if type(found) not in _estimator_types():
        raise BundleError(f"The file '{file}' holds a {type(found).__name__}, which is not a baseline.")
    _check_estimator(found, file)
    if any("version" in str(one.message) for one in warned):
        progress.notify(f"'{file}' was made with another scikit-learn: test it before you trust its answers.")
    return found


@cache
def _estimator_types() -> frozenset[type]:
    """The types of estimators that baselines are."""
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import GaussianNB
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.svm import SVC, LinearSVC
    from sklearn.tree import DecisionTreeClassifier

    return frozenset(
        {
            SVC,
            LinearSVC,
            GaussianNB,
            KNeighborsClassifier,
            RandomForestClassifier,
            DecisionTreeClassifier,
            HistGradientBoostingClassifier,
            LogisticRegression,
        }
    )


def _check_estimator(found: Any, file: Path) -> None:
    """Raise BundleError for indices outside their arrays or in a circle: predicting would read foreign memory."""
    width = int(found.n_features_in_)
    members = found.estimators_ if hasattr(found, "estimators_") else [found]
    sound = True
    for tree in (one.tree_ for one in members if hasattr(one, "tree_")):
        left, right = tree.children_left, tree.children_right
        sound &= tree.node_count == tree.capacity and tree.n_features == width
        sound = sound and _leads_to_leaves(left != -1, left, right, tree.feature, width)
    for tree in (tree for stage in getattr(found, "_predictors", ()) for tree in stage):
        nodes = tree.nodes
        left, right, feature = (nodes[name].astype(np.int64) for name in ("left", "right", "feature_idx"))
        sound = sound and not nodes["is_categorical"].any()
        sound = sound and _leads_to_leaves(nodes["is_leaf"] == 0, left, right, feature, width)
    if not sound:
        raise BundleError(f"A tree in '{file}' is damaged: its nodes lead nowhere. Fit the baseline again.")
    if hasattr(found, "support_vectors_"):  # libsvm does not check its arrays
        vectors, classes, counts = found.support_vectors_, len(found.classes_), np.asarray(found._n_support)
        shapes = (found._dual_coef_.shape, np.shape(found._n_support), np.shape(found._intercept_))
        wanted = ((classes - 1, len(vectors)), (classes,), (classes * (classes - 1) // 2,))
        fitting = vectors.shape[1] == width and shapes == wanted
        if not fitting or counts.min() < 0 or counts.sum() != len(vectors):
            raise BundleError(f"The support vectors in '{file}' do not fit together. Fit the baseline again.")


def _leads_to_leaves(
    inner: Shaped[ndarray, " n"],
    left: Shaped[ndarray, " n"],
    right: Shaped[ndarray, " n"],
    feature: Shaped[ndarray, " n"],
    width: int,
) -> bool:
    """Whether every inner node has an existing feature and later nodes as children: then all paths end."""
    here, count = np.arange(len(inner)), len(inner)
    onward = all(((side > here) & (side < count))[inner].all() for side in (left, right))
    return bool(count and onward and ((feature >= 0) & (feature < width))[inner].all())
