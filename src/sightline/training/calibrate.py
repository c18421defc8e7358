"""Looking at validation: loss and accuracy after each epoch, the temperature at the end."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..classifier import Classifier
from ..data import iterate_batches
from ..types import Dataset

TEMPERATURE_PRIOR = 0.5
"""Standard deviation of the prior on log T: a small validation set without an error would ask for T = 0."""


@torch.inference_mode()
def predict_logits(
    classifier: Classifier, dataset: Dataset, *, batch_size: int = 256
) -> tuple[Float[Tensor, "N K"], Int[Tensor, " N"]]:
    """Logits (on the CPU, float32) and labels of a dataset in order, the classifier in eval mode."""
    classifier.eval()
    logits, labels = [], []
    for batch in iterate_batches(dataset, batch_size, device=classifier.device):
        logits.append(classifier(batch.pixels).float())
        labels.append(batch.labels)
    return torch.cat(logits).cpu(), torch.cat(labels).cpu()


def validate(classifier: Classifier, dataset: Dataset) -> tuple[float, float]:
    """Mean cross-entropy and accuracy on a dataset."""
    logits, labels = predict_logits(classifier, dataset)
    loss = F.cross_entropy(logits, labels).item()
    return loss, (logits.argmax(1) == labels).double().mean().item()


def fit_temperature(logits: Float[Tensor, "N K"], labels: Int[Tensor, " N"]) -> float:
    """The T that minimises the negative log-likelihood of softmax(logits / T) (Guo et al. 2017, section 4.2).

    With a weak prior, log T ~ N(0, 0.5): of no weight for a thousand images, and what keeps T sane for thirty.
    """
    from scipy.optimize import minimize_scalar

    z, y = logits.double().numpy(), labels.numpy()
    z = z - z.max(1, keepdims=True)
    true = z[np.arange(len(y)), y]

    def loss(log_t: float) -> float:
        scale = math.exp(-log_t)
        nll = np.log(np.exp(z * scale).sum(1)) - true * scale
        return float(nll.sum() + (log_t / TEMPERATURE_PRIOR) ** 2 / 2)

    found = minimize_scalar(loss, bounds=(math.log(0.05), math.log(20)), method="bounded")
    return float(math.exp(found.x))
