"""GEM and A-GEM: a step on new images that makes no remembered task worse, to first order."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def project_gem(
    gradient: Float[Tensor, " P"], past: Float[Tensor, "T P"], *, margin: float = 0.0, eps: float = 0.0
) -> Float[Tensor, " P"]:
    """The gradient nearest to ``gradient`` whose inner product with each row of ``past`` is not negative.

    The dual ``min_v |G'v + g|^2 / 2 + eps |v|^2 / 2, v >= margin`` is solved exactly, as a non-negative least-squares
    problem. The published code has ``margin`` 0.5 and ``eps`` 1e-3, with which a remembered task may get worse by
    ``eps v`` (Lopez-Paz and Ranzato 2017, arXiv 1706.08840, equation 11).
    """
    if not len(past) or not bool((past @ gradient < 0).any()):
        return gradient
    from scipy.optimize import nnls

    g, rows = gradient.double().numpy(), past.double().numpy()
    # the T x T problem: with G G' = L L', |G'v + g|^2 = |L'v + L^-1 G g|^2 + what does not depend on v
    gram = rows @ rows.T + eps * np.eye(len(rows))
    scale = np.sqrt(np.diag(gram).clip(1e-300))
    values, vectors = np.linalg.eigh(gram / np.outer(scale, scale))
    keep = values > values.max() * 1e-14
    root = vectors[:, keep] * np.sqrt(values[keep])  # gram / scale^2 = root root'
    target = -np.linalg.lstsq(root, rows @ g / scale, rcond=None)[0] - root.T @ (margin * scale)
    v = nnls(root.T, target)[0] / scale + margin
    return torch.from_numpy(rows.T @ v + g).to(gradient.dtype)


def project_agem(gradient: Float[Tensor, " P"], reference: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
    """The gradient without its component against ``reference``, the mean gradient of the memory.

    ``g - (g.r / r.r) r`` where ``g.r`` is negative (Chaudhry et al. 2019, arXiv 1812.00420, equation 11).
    """
    product = torch.dot(gradient, reference)
    if product >= 0:
        return gradient
    return gradient - product / torch.dot(reference, reference) * reference
