"""The head of a frozen backbone: multinomial logistic regression on features, its penalty by cross-validation.

Features are standardised, and the standardisation is folded into the weights afterwards, so the result is an
ordinary last layer: it exports, calibrates, explains and trains on like any other.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from ..errors import DataError
from ..runtime import permutation

PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003)
"""Squared norms of the weights (standardised features) in the mean loss, from the strongest: a path is warm-started."""

FOLDS = 5
MAX_ITERATIONS = 60
"""L-BFGS iterations for each penalty of the path."""


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A last layer and how its penalty was chosen."""

    weight: Float[Tensor, "K D"]
    bias: Float[Tensor, " K"]
    penalty: float
    losses: dict[float, float]
    """Penalty -> mean cross-entropy (nats) of images left out, by cross-validation; empty where none was made."""
    accuracy: float | None
    """Of images left out, at the chosen penalty; None where no cross-validation was made."""


def fit_linear_probe(
    features: Float[ndarray, "N D"],
    labels: Int[ndarray, " N"],
    n_classes: int,
    *,
    seed: int = 0,
    weights: Float[ndarray, " N"] | None = None,
) -> LinearProbe:
    """The logistic regression that cross-validation prefers, fitted to all images.

    ``weights`` are of the images, such as class weights; all are 1 where none are given. With fewer than two images of
    some class there is nothing to leave out: the strongest penalty is taken. Raises DataError where a class has no
    image.
    """
    counts = np.bincount(labels, minlength=n_classes)
    if (counts == 0).any():
        raise DataError(f"Class number {int(counts.argmin())} has no image to fit the last layer to. Add images.")
    x = torch.from_numpy(features).float()
    mean, std = x.mean(0), x.std(0, correction=0).clamp_min(1e-6)
    x, y = (x - mean) / std, torch.from_numpy(labels).long()
    basis = None
    if len(x) < x.shape[1]:  # the penalised solution lies in the span of the images: the same answer, sooner
        basis = torch.linalg.qr(x.T)[0]  # (D, N)
        x = x @ basis
    images = torch.ones(len(y)) if weights is None else torch.from_numpy(weights).float()
    losses: dict[float, float] = {}
    accuracy, penalty = None, PENALTIES[0]
    folds = min(FOLDS, int(counts.min()))
    if folds >= 2:
        fold = _stratified_folds(labels, folds, seed)
        shown = images * (torch.arange(folds)[:, None] != fold).float()  # (F, N)
        rates = {}
        for candidate, found in _regularisation_path(x, y, shown, n_classes):
            logits = torch.einsum("nd,fdk->fnk", x, found[:, :-1]) + found[:, -1:]
            left_out = logits[fold, torch.arange(len(y))]
            losses[candidate] = float(
                (F.cross_entropy(left_out, y, reduction="none") * images).sum() / images.sum()
            )
            rates[candidate] = (left_out.argmax(1) == y).double().mean().item()
            if losses[candidate] > 1.02 * min(losses.values()):  # the loss has one valley: the rest is worse
                break
        penalty = min(losses, key=lambda one: losses[one])
        accuracy = rates[penalty]
    *_, (penalty, found) = _regularisation_path(x, y, images[None], n_classes, until=penalty)
    standardised = found[0, :-1] if basis is None else basis @ found[0, :-1]
    weight = (standardised / std[:, None]).T
    return LinearProbe(weight.contiguous(), found[0, -1] - weight @ mean, penalty, losses, accuracy)


def _stratified_folds(labels: Int[ndarray, " N"], folds: int, seed: int) -> Int[Tensor, " N"]:
    """The fold of each image: classes are spread evenly over the folds."""
    order = permutation(len(labels), seed, 77)
    order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), np.int64)
    fold[order] = np.arange(len(labels)) % folds
    return torch.from_numpy(fold)


def _regularisation_path(
    x: Float[Tensor, "N D"],
    y: Int[Tensor, " N"],
    shown: Float[Tensor, "F N"],
    n_classes: int,
    until: float = PENALTIES[-1],
):
    """(penalty, weights with the bias as last row (F, D + 1, K)) of each penalty from the strongest, all folds together.

    The loss of each fold is the weighted mean cross-entropy of its images plus penalty * |weights|^2 / 2.
    """
    solution = torch.zeros(len(shown), x.shape[1] + 1, n_classes, requires_grad=True)
    target = F.one_hot(y, n_classes).float()
    share = shown / shown.sum(1, keepdim=True)
    for penalty in PENALTIES:
        optimizer = torch.optim.LBFGS(
            [solution],
            max_iter=MAX_ITERATIONS,
            history_size=10,
            line_search_fn="strong_wolfe",
            tolerance_grad=1e-5,
        )

        def closure(penalty: float = penalty, optimizer: torch.optim.LBFGS = optimizer) -> Tensor:
            optimizer.zero_grad()
            flat = solution[:, :-1].permute(1, 0, 2).flatten(1)  # (D, F K): one product for all folds
            logits = (x @ flat).unflatten(1, (len(shown), n_classes)) + solution[:, -1]
            nll = -(F.log_softmax(logits, 2) * target[:, None]).sum(2)  # (N, F)
            loss = (nll * share.T).sum() + penalty / 2 * solution[:, :-1].square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        yield penalty, solution.detach().clone()
        if penalty <= until:
            return
