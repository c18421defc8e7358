"""How wrong the answers to images of known classes are: ``(logits (B K), labels (B)) -> losses (B)``.

All of them see softmax(z) only through log-sums, so that a confident answer loses no digits: 1 - p is never
computed. The strongest rival of the true class k is r = argmax over j != k, the first one where several tie; its
choice counts as constant in the gradient.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

PerSampleLoss = Callable[[Float[Tensor, "B K"], Int[Tensor, " B"]], Float[Tensor, " B"]]


def cross_entropy_per_sample(logits: Float[Tensor, "B K"], labels: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """-log p_k."""
    return F.cross_entropy(logits, labels, reduction="none")


def mean_cross_entropy(
    logits: Float[Tensor, "B K"],
    labels: Int[Tensor, " B"] | Float[Tensor, "B K"],
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Cross-entropy of hard or soft labels, each class's terms weighted, over the number of images."""
    if class_weights is None:
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    weights = torch.tensor(class_weights, device=logits.device, dtype=logits.dtype)
    total = F.cross_entropy(logits, labels, weights, label_smoothing=label_smoothing, reduction="sum")
    return total / len(logits)


def focal_per_sample(
    logits: Float[Tensor, "B K"], labels: Int[Tensor, " B"], *, gamma: float
) -> Float[Tensor, " B"]:
    """-(1 - p_k)^gamma log p_k: Lin et al. 2017 (arXiv 1708.02002), for several classes."""
    log_other = _mask_true_class(logits, labels).logsumexp(1) - logits.logsumexp(1)
    return torch.exp(gamma * log_other) * cross_entropy_per_sample(logits, labels)


def m3ce_per_sample(
    logits: Float[Tensor, "B K"], labels: Int[Tensor, " B"], *, gamma: float
) -> Float[Tensor, " B"]:
    """(1 + d)^gamma with d = p_r - p_k, in [0, 2^gamma]: the max-margin minimum classification error.

    log(1 + d) = logaddexp(logsumexp over j != k of log p_j, log p_r). On answers that are very wrong its gradient
    vanishes, and classes other than k and r are pushed up while d > 0: see ``M3CECEc``.
    """
    others = _mask_true_class(logits.log_softmax(1), labels)
    rival = others.gather(1, others.argmax(1, keepdim=True)).squeeze(1)
    return torch.exp(gamma * torch.logaddexp(others.logsumexp(1), rival))


def mce_per_sample(
    logits: Float[Tensor, "B K"], labels: Int[Tensor, " B"], *, eta: float, xi: float, theta: float
) -> Float[Tensor, " B"]:
    """sigmoid(xi d + theta), d = -z_k + 1/eta log(mean over j != k of exp(eta z_j)).

    Juang and Katagiri 1992; Juang, Chou and Lee 1997. A large ``eta`` makes d the distance to the rival alone.
    """
    own = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    mean = (eta * _mask_true_class(logits, labels)).logsumexp(1) - torch.tensor(float(logits.shape[1] - 1)).log()
    return torch.sigmoid(xi * (mean / eta - own) + theta)


def soft_target_loss(
    criterion: PerSampleLoss, logits: Float[Tensor, "B K"], labels: Int[Tensor, " B"] | Float[Tensor, "B K"]
) -> Float[Tensor, " B"]:
    """The criterion of hard labels; of soft ones (mixup) sum_c q_c criterion(z, c), over the classes of each."""
    if labels.ndim == 1:
        return criterion(logits, labels)
    images, classes = labels.nonzero(as_tuple=True)
    losses = labels[images, classes] * criterion(logits[images], classes)
    return logits.new_zeros(len(logits)).index_add(0, images, losses)


def _mask_true_class(logits: Float[Tensor, "B K"], labels: Int[Tensor, " B"]) -> Float[Tensor, "B K"]:
    """The logits with the true class's at minus infinity."""
    return logits.scatter(1, labels.unsqueeze(1), float("-inf"))
