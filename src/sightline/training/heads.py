"""Ways to compute a last layer on the features of frozen weights; each is one frozen value and one line in plan.py.

Every result is an ordinary linear layer: what was done to the features (centring, scaling) is folded into its
weights, so it exports, calibrates, explains and trains on like any other.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from ..checks import check_number
from ..errors import DataError
from ..runtime import permutation

PROBE_PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003)
"""Squared norms of the weights (standardised features) in the mean loss, from the strongest: a path is warm-started."""

PROBE_FOLDS = 5
"""Folds of the cross-validation that chooses the penalty."""

MAX_PROBE_ITERATIONS = 60
"""L-BFGS iterations for each penalty of the path."""

PROBE_EVALUATIONS = 300
"""Evaluations of the loss, of all folds at once, that a cross-validated probe takes: waste took 290, photos fewer."""

EVALUATIONS_PER_ITERATION = 1.25
"""Evaluations of the loss for an iteration: line searches take more than one."""

MIN_PROBE_ITERATIONS = 6
"""Iterations of a penalty, however short the time: the fewest that give a usable layer."""

TIMED_PROBE_ROWS = 256
"""Rows on which the loss of a probe is timed before there are features."""

VARIANCE_PRIOR_IMAGES = 100
"""Weight, in images, of the mean variance in each feature's own: the variance of ten images is mostly noise.

With 5 photos a class the probe is right about 97 % of training images left out, without it about 85 %."""

DEFAULT_SHRINKAGE = 0.1
"""Share of the mean variance in the covariance of linear discriminant analysis where no shrinkage is given."""


@dataclass(frozen=True, eq=False)
class FittedHead:
    """A last layer, and what its fitting measured."""

    weight: Float[Tensor, "K D"]
    bias: Float[Tensor, " K"]
    facts: dict[str, Any]


class HeadMethod(ABC):
    """Computes a last layer from features: ``fit``. A member that ``fine_tunes`` is trained on by gradient."""

    fine_tunes: ClassVar[bool] = False
    normalises: ClassVar[bool] = False
    """Whether features are to be divided by their length first: the network then gets a ``PrototypeHead``."""

    @abstractmethod
    def fit(
        self,
        features: Float[ndarray, "N D"],
        labels: Int[ndarray, " N"],
        n_classes: int,
        *,
        seed: int,
        weights: Float[ndarray, " N"] | None = None,
        seconds: float = math.inf,
    ) -> FittedHead:
        """The last layer for features, normalised if need be, and labels in [0, n_classes); ``weights`` of images.

        An iterative method does less where it would take more than ``seconds``, and ``shortened`` of the facts says so.
        """

    def estimate_seconds(self, images: int, width: int, n_classes: int) -> float:  # noqa: ARG002
        """Seconds that ``fit`` takes, as far as that is worth planning for."""
        return 0.0


@dataclass(frozen=True)
class LinearProbeHead(HeadMethod):
    """Multinomial logistic regression, its penalty by cross-validation, or given: ``probe:penalty=0.01``."""

    penalty: float | None = None

    def __post_init__(self) -> None:
        if self.penalty is not None:
            check_number("penalty", self.penalty, above=0)

    def fit(self, features, labels, n_classes, *, seed, weights=None, seconds=math.inf):
        """The regression; the facts have its penalty and the accuracy of images left out."""
        given = {"seed": seed, "weights": weights, "penalty": self.penalty, "seconds": seconds}
        return fit_linear_probe(features, labels, n_classes, **given)

    def estimate_seconds(self, images: int, width: int, n_classes: int) -> float:
        """By the loss of random features, timed now on this machine."""
        rng, rows = np.random.default_rng(0), min(images, TIMED_PROBE_ROWS)
        x = torch.from_numpy(rng.standard_normal((rows, min(width, images)), np.float32))
        y, shown = torch.arange(rows) % n_classes, torch.ones(PROBE_FOLDS, rows)
        *_, each = (_time_loss(_ProbeLoss(x, y, shown, n_classes)) for _ in range(2))
        return PROBE_EVALUATIONS * each * images / rows


@dataclass(frozen=True)
class ProbeThenFineTune(LinearProbeHead):
    """The logistic regression, from which the whole network is fine-tuned where that pays."""

    fine_tunes = True


@dataclass(frozen=True)
class ClassMeans(HeadMethod):
    """The nearest class mean: ``W = 2 mu, b = -|mu|^2``, whose softmax is that of ``-|f - mu|^2`` (Snell et al. 2017).

    Features are normalised, which helps where images are few (SimpleShot: Wang et al. 2019, arXiv 1911.04623).
    """

    normalises = True

    def fit(self, features, labels, n_classes, *, seed, weights=None, seconds=math.inf):  # noqa: ARG002
        """The class means; nothing is drawn."""
        means = _class_means(features, labels, n_classes, weights)
        return FittedHead(_tensor(2 * means), _tensor(-np.square(means).sum(1)), {})


@dataclass(frozen=True)
class LinearDiscriminant(HeadMethod):
    """Linear discriminant analysis: one covariance for all classes, shrunk towards a multiple of the identity.

    ``W = S^-1 mu, b = -mu' S^-1 mu / 2 + ln(prior)`` (Fisher 1936); ``shrinkage`` in (0, 1].
    """

    shrinkage: float = DEFAULT_SHRINKAGE

    def fit(self, features, labels, n_classes, *, seed, weights=None, seconds=math.inf):  # noqa: ARG002
        """The discriminant; nothing is drawn."""
        images = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
        means = _class_means(features, labels, n_classes, weights)
        rest = (features - means[labels]) * np.sqrt(images)[:, None]
        covariance = rest.T @ rest / images.sum()
        prior = np.bincount(labels, images, n_classes) / images.sum()
        return solve_discriminant(means, covariance, prior, self.shrinkage)


def solve_discriminant(
    means: Float[ndarray, "K D"], covariance: Float[ndarray, "D D"], prior: Float[ndarray, " K"], shrinkage: float
) -> FittedHead:
    """The linear discriminant of these class means, covariance within classes and class priors."""
    centre, width = means.mean(0), covariance.shape[0]
    level = np.trace(covariance) / width or 1.0
    covariance = (1 - shrinkage) * covariance + shrinkage * level * np.eye(width)
    weight = np.linalg.solve(covariance, (means - centre).T).T
    bias = -0.5 * ((means - centre) * weight).sum(1) - weight @ centre + np.log(prior)
    return FittedHead(_tensor(weight), _tensor(bias), {"shrinkage": shrinkage})


def predict_left_out(
    head: HeadMethod,
    features: Float[ndarray, "N D"],
    labels: Int[ndarray, " N"],
    n_classes: int,
    *,
    seed: int,
    weights: Float[ndarray, " N"] | None = None,
) -> tuple[Float[Tensor, "n K"], Int[Tensor, " n"]]:
    """Logits and label of every image by a head that was fitted without it; of none where a class has one image."""
    folds = min(PROBE_FOLDS, int(np.bincount(labels, minlength=n_classes).min()))
    x, y = torch.from_numpy(features).float(), torch.from_numpy(labels).long()
    if folds < 2:
        return torch.zeros(0, n_classes), y[:0]
    logits, fold = torch.zeros(len(y), n_classes), _deal_folds(labels, folds, seed)
    for number in range(folds):
        shown = (fold != number).numpy()
        some = None if weights is None else weights[shown]
        fitted = head.fit(features[shown], labels[shown], n_classes, seed=seed, weights=some)
        logits[~shown] = F.linear(x[~shown], fitted.weight, fitted.bias)
    return logits, y


def _deal_folds(labels: Int[ndarray, " N"], folds: int, seed: int) -> Int[Tensor, " N"]:
    """The fold of each image: every class is spread evenly."""
    order = permutation(len(labels), seed, 77)
    order = order[np.argsort(labels[order], kind="stable")]
    fold = torch.empty(len(labels), dtype=torch.long)
    fold[torch.from_numpy(order)] = torch.arange(len(labels)) % folds
    return fold


def _class_means(
    features: Float[ndarray, "N D"],
    labels: Int[ndarray, " N"],
    n_classes: int,
    weights: Float[ndarray, " N"] | None,
) -> Float[ndarray, "K D"]:
    images = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    sums = np.zeros((n_classes, features.shape[1]))
    np.add.at(sums, labels, features * images[:, None])
    return sums / np.bincount(labels, images, n_classes)[:, None]


def _tensor(values: ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))


def fit_linear_probe(
    features: Float[ndarray, "N D"],
    labels: Int[ndarray, " N"],
    n_classes: int,
    *,
    seed: int = 0,
    weights: Float[ndarray, " N"] | None = None,
    penalty: float | None = None,
    seconds: float = math.inf,
) -> FittedHead:
    """The logistic regression of this penalty, or of the one that cross-validation prefers, fitted to all images.

    Features are standardised, which is folded into the weights afterwards. The facts: ``penalty``,
    ``cross_validated_accuracy`` of images left out at that penalty (None where none could be),
    ``cross_validated_losses`` by penalty (nats), and ``shortened`` where ``seconds`` allowed fewer iterations or
    penalties than usual: the path of penalties then ends early, and the last fit starts from the mean of the folds.

    ``weights`` are of the images, such as class weights; all are 1 where none are given. With fewer than two images of
    some class there is nothing to leave out: the strongest penalty is taken. Raises DataError where a class has no
    image.
    """
    counts = np.bincount(labels, minlength=n_classes)
    if (counts == 0).any():
        raise DataError(f"Class number {int(counts.argmin())} has no image to fit the last layer to. Add images.")
    ends = time.monotonic() + seconds
    x = torch.from_numpy(features).float()
    mean, variance = x.mean(0), x.var(0, correction=0)
    prior = VARIANCE_PRIOR_IMAGES * variance.mean()
    std = ((len(x) * variance + prior) / (len(x) + VARIANCE_PRIOR_IMAGES)).sqrt().clamp_min(1e-6)
    x, y = (x - mean) / std, torch.from_numpy(labels).long()
    basis = None
    if len(x) < x.shape[1]:  # the penalised solution lies in the span of the images: the same answer, sooner
        basis = torch.linalg.qr(x.T)[0]  # (D, N)
        x = x @ basis
    images = torch.ones(len(y)) if weights is None else torch.from_numpy(weights).float()
    losses: dict[float, float] = {}
    accuracy, start, shortened = None, None, False
    folds = min(PROBE_FOLDS, int(counts.min()))
    if penalty is None and folds >= 2:
        fold = _deal_folds(labels, folds, seed)
        shown = images * (torch.arange(folds)[:, None] != fold).float()  # (F, N)
        rates = {}
        path = _Path(_ProbeLoss(x, y, shown, n_classes), PROBE_PENALTIES, ends, share=0.75)
        for candidate, found in path:
            logits = torch.einsum("nd,fdk->fnk", x, found[:, :-1]) + found[:, -1:]
            left_out = logits[fold, torch.arange(len(y))]
            losses[candidate] = float(
                (F.cross_entropy(left_out, y, reduction="none") * images).sum() / images.sum()
            )
            rates[candidate] = (left_out.argmax(1) == y).double().mean().item()
            if losses[candidate] == min(losses.values()):
                start = found.mean(0, keepdim=True)
            if losses[candidate] > 1.02 * min(losses.values()):  # the loss has one valley: the rest is worse
                break
        shortened = path.shortened
        penalty = min(losses, key=lambda one: losses[one])
        accuracy = rates[penalty]
    until = penalty or PROBE_PENALTIES[0]
    penalties = (*(one for one in PROBE_PENALTIES if one > until), until)
    final = _ProbeLoss(x, y, images[None], n_classes)
    if shortened and start is not None:
        penalties, final.solution = (until,), start.clone().requires_grad_()
    path = _Path(final, penalties, ends)
    *_, (penalty, found) = path
    standardised = found[0, :-1] if basis is None else basis @ found[0, :-1]
    weight = (standardised / std[:, None]).T
    facts = {
        "penalty": penalty,
        "cross_validated_accuracy": accuracy,
        "cross_validated_losses": {f"{one:g}": loss for one, loss in losses.items()},
        **({"shortened": True} if shortened or path.shortened else {}),
    }
    return FittedHead(weight.contiguous(), found[0, -1] - weight @ mean, facts)


class _ProbeLoss:
    """The loss of ``solution`` (F, D + 1, K), the bias as last row: the sum over the folds of each one's weighted mean
    cross-entropy of its images plus penalty * |weights|^2 / 2.
    """

    def __init__(
        self, x: Float[Tensor, "N D"], y: Int[Tensor, " N"], shown: Float[Tensor, "F N"], n_classes: int
    ) -> None:
        self.solution = torch.zeros(len(shown), x.shape[1] + 1, n_classes, requires_grad=True)
        self.x, self.target = x, F.one_hot(y, n_classes).float()
        self.share = shown / shown.sum(1, keepdim=True)

    def __call__(self, penalty: float) -> Float[Tensor, ""]:
        """The loss; its gradient is added to ``solution.grad``."""
        solution = self.solution
        flat = solution[:, :-1].permute(1, 0, 2).flatten(1)  # (D, F K): one product for all folds
        logits = (self.x @ flat).unflatten(1, (len(solution), -1)) + solution[:, -1]
        nll = -(F.log_softmax(logits, 2) * self.target[:, None]).sum(2)  # (N, F)
        loss = (nll * self.share.T).sum() + penalty / 2 * solution[:, :-1].square().sum()
        loss.backward()
        return loss


def _time_loss(loss: _ProbeLoss) -> float:
    """Seconds of one evaluation, with its gradient, which is dropped."""
    began = time.monotonic()
    loss(1.0)
    loss.solution.grad = None
    return time.monotonic() - began


class _Path:
    """Iterates (penalty, solution (F, D + 1, K)) from the strongest penalty, each from the one before.

    The iterations are as many as fit until ``ends`` (``time.monotonic()``), of which the path takes a ``share``; where
    that is over, it ends. ``shortened`` says whether it did less than it would have done without an end.
    """

    def __init__(self, loss: _ProbeLoss, penalties: tuple[float, ...], ends: float, share: float = 1.0) -> None:
        self.loss, self.penalties, self.shortened = loss, penalties, False
        now = time.monotonic()
        self.ends = now + share * max(0.0, ends - now)

    def __iter__(self) -> Iterator[tuple[float, Float[Tensor, "F E K"]]]:
        loss, each, rest = self.loss, 0.0, len(self.penalties)
        if math.isfinite(self.ends):
            *_, each = (_time_loss(loss) for _ in range(2))
        for penalty in self.penalties:
            left = self.ends - time.monotonic()
            fitting = math.inf if not each else left / (EVALUATIONS_PER_ITERATION * each)
            if fitting < MIN_PROBE_ITERATIONS and rest < len(self.penalties):
                self.shortened = True
                return
            # Half of the time for each penalty: the strong ones are needed most, and the loss often turns early.
            iterations = max(MIN_PROBE_ITERATIONS, int(min(MAX_PROBE_ITERATIONS, fitting / min(rest, 2))))
            optimizer = torch.optim.LBFGS(
                [loss.solution],
                max_iter=iterations,
                history_size=10,
                line_search_fn="strong_wolfe",
                tolerance_grad=1e-5,
            )

            def closure(penalty: float = penalty, optimizer: torch.optim.LBFGS = optimizer) -> Tensor:
                optimizer.zero_grad()
                return loss(penalty)

            optimizer.step(closure)
            rest -= 1
            taken = optimizer.state[loss.solution]["n_iter"]
            self.shortened |= taken >= iterations < MAX_PROBE_ITERATIONS
            yield penalty, loss.solution.detach().clone()
