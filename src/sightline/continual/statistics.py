"""Sums over features, from which the heads that need no training are computed.

Sums add over images, batches and sites, in any order, and they subtract: taking an image's contribution away leaves
what never having seen it would have left. They hold no image.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from numpy import ndarray
from torch import Tensor

from ..errors import DataError
from ..runtime import make_generator
from ..training import FittedHead, solve_discriminant

RIDGE_PENALTIES = tuple(10.0 ** (power / 2) for power in range(-8, 7))
"""Penalties of the ridge regression on random features, in units of the mean eigenvalue."""

_Sums = TypeVar("_Sums", bound="ClassSums")


@dataclass(frozen=True, eq=False)
class ClassSums:
    """Arrays of sums over images, by class (K ...) or over all classes: they add, and they subtract.

    A kind of sums names its arrays: those of ``by_class`` have a row for each of ``classes``.
    """

    classes: tuple[str, ...]
    counts: Float64[ndarray, " K"]
    by_class: ClassVar[tuple[str, ...]] = ("counts", "sums")
    shared: ClassVar[tuple[str, ...]] = ()
    prefix: ClassVar[str] = ""
    """Of its names in a bundle's memory."""

    def __add__(self: _Sums, other: _Sums) -> _Sums:
        """The sums over both sets of images; classes are matched by name, those of ``other`` come last."""
        classes = tuple(dict.fromkeys((*self.classes, *other.classes)))
        return self.expand(classes)._combine(other.expand(classes), np.add)

    def __sub__(self: _Sums, other: _Sums) -> _Sums:
        """The sums without the images of ``other``, which must be among them.

        Raises DataError where a class of ``other`` is not here, or has more images than here.
        """
        theirs = other.expand(self.classes)
        if (theirs.counts > self.counts).any():
            name = self.classes[int((theirs.counts - self.counts).argmax())]
            raise DataError(
                f"Cannot forget more images of the class '{name}' than were learned: name only images that were."
            )
        return self._combine(theirs, np.subtract)

    def _combine(self: _Sums, other: _Sums, operation: Callable[[ndarray, ndarray], ndarray]) -> _Sums:
        names = (*self.by_class, *self.shared)
        return replace(self, **{name: operation(getattr(self, name), getattr(other, name)) for name in names})

    def _rows(self: _Sums, classes: Sequence[str], change: Callable[[ndarray], ndarray]) -> _Sums:
        rows = {name: change(getattr(self, name)) for name in self.by_class}
        return replace(self, classes=tuple(classes), **rows)

    def expand(self: _Sums, classes: Sequence[str]) -> _Sums:
        """The same sums with a row for each of ``classes``; DataError where a class with images is not among them."""
        if missing := [
            n for n, count in zip(self.classes, self.counts, strict=True) if count and n not in classes
        ]:
            raise DataError(f"The class '{missing[0]}' is not among {', '.join(classes[:5])}.")
        place = {name: row for row, name in enumerate(self.classes)}
        rows = [place.get(name, -1) for name in classes]
        return self._rows(classes, lambda values: np.concatenate([values, np.zeros_like(values[:1])])[rows])

    def regroup(self: _Sums, names: Mapping[str, str]) -> _Sums:
        """The sums after classes were renamed: ``names`` maps old to new, and two of one new name are merged."""
        classes = tuple(dict.fromkeys(names.get(name, name) for name in self.classes))
        target = [classes.index(names.get(name, name)) for name in self.classes]

        def merge(values: ndarray) -> ndarray:
            found = np.zeros((len(classes), *values.shape[1:]), values.dtype)
            np.add.at(found, target, values)
            return found

        return self._rows(classes, merge)

    def drop(self: _Sums, names: Sequence[str]) -> _Sums:
        """The sums without these classes."""
        rows = [row for row, name in enumerate(self.classes) if name not in names]
        return self._rows([self.classes[row] for row in rows], lambda values: values[rows])

    def with_images(self: _Sums) -> tuple[_Sums, list[int]]:
        """The same sums for the classes that have images alone, and the rows of these."""
        rows = np.flatnonzero(self.counts)
        return self._rows([self.classes[k] for k in rows], lambda values: values[rows]), rows.tolist()

    def tensors(self) -> dict[str, Tensor]:
        """The sums as a bundle's memory holds them."""
        names = (*self.by_class, *self.shared)
        return {self.prefix + name: torch.from_numpy(getattr(self, name).copy()) for name in names}

    @classmethod
    def from_tensors(cls: type[_Sums], tensors: Mapping[str, Tensor], classes: Sequence[str]) -> _Sums | None:
        """What ``tensors`` gave; None where a memory holds no such sums or those of other classes."""
        arrays = {name: tensors.get(cls.prefix + name) for name in (*cls.by_class, *cls.shared)}
        found = {name: one.numpy().copy() for name, one in arrays.items() if one is not None}
        if len(found) < len(arrays) or any(len(found[name]) != len(classes) for name in cls.by_class):
            return None
        return cls(classes=tuple(classes), **found)


@dataclass(frozen=True, eq=False)
class FeatureStatistics(ClassSums):
    """Number and sum of the features of each class's images, and the sum of outer products over all images.

    Arguments:
        classes: K names, in the order of the rows.
        counts: images of each class.
        sums: sum of the features of each class.
        scatter: sum of ``f f'`` over all images.
    """

    sums: Float64[ndarray, "K D"]
    scatter: Float64[ndarray, "D D"]
    shared: ClassVar[tuple[str, ...]] = ("scatter",)

    @classmethod
    def of(
        cls, features: Float[ndarray, "N D"], labels: Int[ndarray, " N"], classes: Sequence[str]
    ) -> "FeatureStatistics":
        """The statistics of N images; labels are in [0, K)."""
        f = features.astype(np.float64)
        sums = np.zeros((len(classes), f.shape[1]))
        np.add.at(sums, labels, f)
        counts = np.bincount(labels, minlength=len(classes)).astype(np.float64)
        return cls(tuple(classes), counts, sums, f.T @ f)

    def drop(self, names: Sequence[str]) -> "FeatureStatistics":
        """The sums without these classes; the covariance, which all classes share, stays as it was."""
        gone = [row for row, name in enumerate(self.classes) if name in names and self.counts[row]]
        means, counts = self.sums[gone] / self.counts[gone][:, None], self.counts[gone]
        share = self.covariance() * counts.sum() if gone else 0.0
        left = super().drop(names)
        return replace(left, scatter=self.scatter - (means * counts[:, None]).T @ means - share)

    @property
    def means(self) -> Float64[ndarray, "K D"]:
        """The mean feature of each class; DataError where a class has no image."""
        if (self.counts < 0.5).any():
            raise DataError(
                f"The class '{self.classes[int(self.counts.argmin())]}' has no image. Add images of it."
            )
        return self.sums / self.counts[:, None]

    def covariance(self) -> Float64[ndarray, "D D"]:
        """The covariance within classes, over all images."""
        rows = np.flatnonzero(self.counts)
        means, counts = self.sums[rows] / self.counts[rows][:, None], self.counts[rows]
        return (self.scatter - (means * counts[:, None]).T @ means) / counts.sum()

    def fit_lda(self, shrinkage: float | None = None) -> FittedHead:
        """Linear discriminant analysis with equal priors: ``W = S^-1 mu, b = -mu' S^-1 mu / 2`` (Fisher 1936).

        ``shrinkage`` in (0, 1] moves the covariance S towards a multiple of the identity; by default it is D / (D + N),
        as if D images more had been seen, of equal variance in every direction. The mean of n images is off by noise,
        which lowers the class's score by ``t / 2n`` on average, where t is the expected squared distance of a new image
        from the true mean: a class of few images gets that back.
        """
        covariance, images = self.covariance(), self.counts.sum()
        share = len(covariance) / (len(covariance) + images) if shrinkage is None else shrinkage
        equal = np.full(len(self.classes), 1 / len(self.classes))
        head = solve_discriminant(self.means, covariance, equal, share)
        values = np.linalg.eigvalsh(covariance).clip(0)
        level = values.mean() or 1.0
        within = (values / ((1 - share) * values + share * level)).sum()  # distance of an image among the N
        distance = within / max(1 - (1 - share) * within / images, 1e-3)
        back = torch.from_numpy(distance / (2 * self.counts))
        return replace(head, bias=head.bias + back.to(head.bias))


def random_projection(features: int, projections: int, seed: int) -> Float[Tensor, "M D"]:
    """Standard normal weights of a layer of random features, equal for equal arguments."""
    return torch.randn(projections, features, generator=make_generator(seed, features, projections))


def fit_ridge(gram: Float64[ndarray, "M M"], targets: Float64[ndarray, "M K"], penalty: float) -> ndarray:
    """``(G + penalty I)^-1 Q`` (M K): the ridge regression of K targets on M features."""
    return np.linalg.solve(gram + penalty * np.eye(len(gram)), targets)


@dataclass(frozen=True, eq=False)
class RidgeStatistics(ClassSums):
    """Number, sum and sum of outer products of the random features of each class's images.

    They give RanPAC's head (McDonnell et al. 2023, arXiv 2307.02251) with every class of equal weight, independent of
    the number of its images. A sum of outer products is symmetric: its lower triangle, in float64, takes 4 M^2 bytes.
    In float32 a forgotten image would leave a trace.
    """

    sums: Float64[ndarray, "K M"]
    triangles: Float64[ndarray, "K T"]
    by_class: ClassVar[tuple[str, ...]] = ("counts", "sums", "triangles")
    prefix: ClassVar[str] = "random."

    @classmethod
    def of(
        cls, hidden: Float[ndarray, "N M"], labels: Int[ndarray, " N"], classes: Sequence[str]
    ) -> "RidgeStatistics":
        """The statistics of the random features of N images; labels are in [0, K)."""
        parts = [hidden[labels == k].astype(np.float64) for k in range(len(classes))]
        lower = np.tril_indices(hidden.shape[1])
        return cls(
            tuple(classes),
            np.array([len(part) for part in parts], np.float64),
            np.stack([part.sum(0) for part in parts]),
            np.stack([(part.T @ part)[lower] for part in parts]),
        )

    def fit(self) -> tuple[Float64[ndarray, "M K"], float]:
        """The weights, and the penalty that cross-validation of each class prefers.

        For each class the mean squared residual is divided by the square of 1 minus the mean leverage of its images,
        as generalised cross-validation does for all images together (Golub, Heath and Wahba 1979): a class of few
        images, which the fit follows most, is not outvoted. The penalty depends on the sums alone, so the head does
        not depend on the order of the images. Raises DataError where a class has no image.
        """
        if (self.counts < 1).any():
            name = self.classes[int(self.counts.argmin())]
            raise DataError(f"The class '{name}' has no image. Add images of it.")
        weight = self.counts.sum() / (len(self.counts) * self.counts)  # of each image, 1 on average
        width = self.sums.shape[1]
        gram, lower = np.zeros((width, width)), np.tril_indices(width)
        gram[lower] = weight @ self.triangles
        gram += np.tril(gram, -1).T
        targets = (weight[:, None] * self.sums).T
        values, vectors = np.linalg.eigh(gram)
        values, turned = values.clip(0), vectors.T @ targets
        level = values.mean() or 1.0

        def mean_products(matrix: Float64[ndarray, "M M"]) -> Float64[ndarray, " K"]:
            """The mean of ``h' A h`` over the images of each class, for a symmetric A."""
            return self.triangles @ (2 * matrix - np.diag(matrix.diagonal()))[lower] / self.counts

        def score(penalty: float) -> float:
            shrink = 1 / (values + penalty * level)
            solution = vectors @ (turned * shrink[:, None])
            fitted = (self.sums * solution.T).sum(1) / self.counts
            residual = 1 - 2 * fitted + mean_products(solution @ solution.T)
            root = vectors * np.sqrt(shrink)
            leverage = weight * mean_products(root @ root.T)
            return float((residual / (1 - leverage).clip(1e-6) ** 2).sum())

        penalty = min(RIDGE_PENALTIES, key=score) * level
        return fit_ridge(gram, targets, penalty), penalty
