"""The reference of a release: what its classifier says of held-out images, which everything later is compared with.

The projection and the class means are fitted to some held-out images and the scores are of others: were they the same,
their scores would be more typical than those of any new image.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..errors import JournalError
from ..files import atomic_replace
from .sketches import IMAGE_STATISTICS, MAX_SKETCHED_CLASSES, PROJECTED_FEATURES, Sketches, sketch_dtype

REFERENCE_FILE = "reference.safetensors"

REFERENCE_FORMAT = 1
"""Version of the file; a release reads its own version and every earlier one."""

WATCHED_PROJECTIONS = 8
"""Projections, the first ones, whose distribution is watched."""

MIN_REFERENCE_IMAGES = 100
"""Held-out images, half of them to fit the projection, below which a release has no reference."""

_SMALLEST_VARIANCE = 1e-6
"""Share of the largest variance below which a direction of the features is left out."""


@dataclass(frozen=True, eq=False)
class Projection:
    """Features whitened along their main directions, and where the classes lie there; empty without features."""

    mean: Float[ndarray, " D"]
    components: Float[ndarray, "D P"]
    class_means: Float[ndarray, "K P"]
    """NaN for a class without images."""

    @classmethod
    def fit(
        cls, features: Float[ndarray, "N D"] | None, labels: Int[ndarray, " N"], n_classes: int
    ) -> "Projection":
        """Fit to held-out images: principal components, scaled to variance 1."""
        if features is None:
            return cls(np.zeros(0, np.float32), np.zeros((0, 0), np.float32), np.zeros((n_classes, 0), np.float32))
        mean = features.mean(0)
        _, singular, directions = np.linalg.svd((features - mean).astype(np.float64), full_matrices=False)
        variances = singular**2 / max(1, len(features) - 1)
        kept = variances[:PROJECTED_FEATURES] > _SMALLEST_VARIANCE * variances.max(initial=0)
        components = (
            directions[:PROJECTED_FEATURES][kept] / np.sqrt(variances[:PROJECTED_FEATURES][kept])[:, None]
        ).T
        components = components.astype(np.float32)
        projected = (features - mean.astype(np.float32)) @ components
        means = np.full((n_classes, projected.shape[1]), np.nan, np.float32)
        for label in np.unique(labels):
            means[label] = projected[labels == label].mean(0)
        return cls(mean.astype(np.float32), components, means)

    def project(self, features: Float[ndarray, "N D"] | None, n: int) -> Float[ndarray, "N P"]:
        """The projected features of ``n`` images; without columns where there are no features."""
        if features is None or not self.components.size:
            return np.zeros((n, 0), np.float32)
        return (features - self.mean) @ self.components


@dataclass(frozen=True, eq=False)
class Reference:
    """A projection, and the sketches of R held-out images that it was not fitted to."""

    classes: tuple[str, ...]
    projection: Projection
    sketches: Sketches
    labels: Int[ndarray, " R"]

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the Q scores that are watched."""
        projected = self.projection.components.shape[1]
        return (
            *(f"probability of {self.classes[k]}" for k in self._watched_classes),
            "confidence",
            *(("energy", "distance to the classes") if projected else ()),
            *(f"feature direction {i + 1}" for i in range(min(WATCHED_PROJECTIONS, projected))),
            *(name for name, has in zip(IMAGE_STATISTICS, self._known_statistics, strict=True) if has),
        )

    @property
    def _known_statistics(self) -> Bool[ndarray, " S"]:
        """Which numbers of the image are known of every reference image."""
        return np.asarray(np.isfinite(self.sketches["statistics"].astype(np.float32)).all(0))

    @property
    def _watched_classes(self) -> list[int]:
        """All classes, or those that the reference answers most often."""
        if len(self.classes) <= MAX_SKETCHED_CLASSES:
            return list(range(len(self.classes)))
        counts = np.bincount(predicted_classes(self.sketches), minlength=len(self.classes))
        return sorted(np.argsort(-counts, kind="stable")[:MAX_SKETCHED_CLASSES].tolist())

    def scores(self, sketches: Sketches) -> Float[ndarray, "N Q"]:
        """The watched scores of N answers, one column for each of ``channels``."""
        columns = [class_probabilities(sketches, k) for k in self._watched_classes]
        columns.append(confidences(sketches))
        projected = sketches["projection"].astype(np.float32)
        if projected.shape[1]:
            means = self.projection.class_means
            means = means[np.isfinite(means).all(1)]
            distances = ((projected[:, None] - means) ** 2).sum(2).min(1) ** 0.5
            columns += [sketches["energy"].astype(np.float32), distances, *projected[:, :WATCHED_PROJECTIONS].T]
        columns += [*sketches["statistics"].astype(np.float32)[:, self._known_statistics].T]
        return np.stack(columns, 1)

    @property
    def right(self) -> Bool[ndarray, " R"]:
        """Which reference images were classified correctly."""
        return predicted_classes(self.sketches) == self.labels

    def save(self, path: Path) -> None:
        """Write the reference, whole or not at all."""
        facts = {"format": REFERENCE_FORMAT, "classes": list(self.classes)}
        tensors = {
            "mean": self.projection.mean,
            "components": self.projection.components,
            "class_means": self.projection.class_means,
            "sketches": np.frombuffer(self.sketches.tobytes(), np.uint8),
            "labels": self.labels.astype(np.int64),
        }
        with atomic_replace(path) as temporary:
            save_file(
                {name: np.ascontiguousarray(one) for name, one in tensors.items()},
                temporary,
                {"sightline": json.dumps(facts, ensure_ascii=False)},
            )

    @classmethod
    def load(cls, path: Path) -> "Reference":
        """Read what ``save`` wrote; raise JournalError where there is none, it is damaged or of a newer release."""
        if not path.is_file():
            raise JournalError(
                f"There is no '{path}': this release has no reference to compare answers with. Publish it again from "
                "its run, or with --images FOLDER of labelled held-out images."
            )
        try:
            with safe_open(path, "numpy") as stream:
                facts = json.loads(stream.metadata()["sightline"])
                held = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 no mapping
            if facts["format"] > REFERENCE_FORMAT:
                raise JournalError(
                    f"'{path}' has format {facts['format']}, newer than this release reads ({REFERENCE_FORMAT}). "
                    "Upgrade with: pip install --upgrade sightline"
                )
            classes, projection = (
                tuple(facts["classes"]),
                Projection(held["mean"], held["components"], held["class_means"]),
            )
            kind = sketch_dtype(len(classes), projection.components.shape[1])
            found = cls(classes, projection, np.frombuffer(held["sketches"].tobytes(), kind), held["labels"])
            if len(found.labels) != len(found.sketches) or projection.class_means.shape[0] != len(classes):
                raise ValueError("its tensors do not fit together")
            return found
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, IndexError) as error:
            raise JournalError(f"'{path}' is damaged: {error}. Publish the release again.") from error


def confidences(sketches: Sketches) -> Float[ndarray, " N"]:
    """The largest probability of each answer."""
    return sketches["probabilities"].astype(np.float32).max(1)


def predicted_classes(sketches: Sketches) -> Int[ndarray, " N"]:
    """The most probable class of each answer."""
    best = sketches["probabilities"].argmax(1)
    if not sketches["classes"].shape[1]:
        return best
    return np.take_along_axis(sketches["classes"], best[:, None], 1)[:, 0].astype(np.int64)


def entropies(sketches: Sketches) -> Float[ndarray, " N"]:
    """Entropy of each answer's probabilities, in nats; the classes beyond the largest ones count as one."""
    probabilities = sketches["probabilities"].astype(np.float64)
    rest = np.clip(1 - probabilities.sum(1, keepdims=True), 0, 1)
    every = np.concatenate([probabilities, rest], 1)
    return -(every * np.log(every.clip(1e-12))).sum(1)


def class_probabilities(sketches: Sketches, k: int) -> Float[ndarray, " N"]:
    """The probability of class ``k`` in each answer; 0 where it is not among the largest ones."""
    probabilities = sketches["probabilities"].astype(np.float32)
    if not sketches["classes"].shape[1]:
        return probabilities[:, k]
    return (probabilities * (sketches["classes"] == k)).sum(1)
