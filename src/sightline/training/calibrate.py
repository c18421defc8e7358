"""The temperature of a trained classifier, fitted on its validation images."""

import math

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

TEMPERATURE_PRIOR = 0.5
"""Standard deviation of the prior on log T: a small validation set without an error would ask for T = 0."""


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
