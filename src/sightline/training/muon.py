"""Muon: momentum whose update is orthogonal (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).

The momentum of a kernel, as a matrix of outputs by inputs, is replaced by the nearest matrix whose singular values are
equal, so that a step moves all directions alike. Torch has it for matrices only.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..checks import check_int, check_number
from .optimizers import AdamW, ParameterGroups, without_compile

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic a x + b x^3 + c x^5, whose slope at 0 is so large that five steps bring singular values near 1."""

RMS_OF_ADAM = 0.2
"""Root mean square of an update of AdamW. Ours gets it too, so that rates of one suit the other (Liu et al. 2025, arXiv
2502.16982, section 2.2)."""


def orthogonalise(matrix: Float[Tensor, "M N"], steps: int = 5) -> Float[Tensor, "M N"]:
    """The matrix with singular values near 1 (0.7 to 1.2) instead of its own, by the iteration of Newton and Schulz.

    Every step multiplies X by a polynomial of its Gram matrix X X^T. All these polynomials commute, so they are
    multiplied in the smaller dimension first, and X once at the end: for a wide matrix a fraction of the usual work.
    """
    wide = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp(min=1e-7)
    gram, (a, b, c) = wide @ wide.T, COEFFICIENTS
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    product = identity
    for step in range(steps):
        factor = torch.addmm(identity, gram, gram, beta=a, alpha=c).add_(gram, alpha=b)
        product = factor @ product
        if step + 1 < steps:
            gram = factor @ gram @ factor
    wide = product @ wide
    return wide if len(matrix) <= matrix.shape[1] else wide.T


class _Muon(without_compile(torch.optim.AdamW)):
    """AdamW, but in groups with ``orthogonal`` the update is the orthogonalised momentum."""

    @torch.no_grad()
    def step(self) -> None:
        """One step."""
        for group in self.param_groups:
            if not group["orthogonal"]:
                continue
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)
                    parameter.grad = None  # AdamW passes it over
        super().step()

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """Decay and move one parameter."""
        state, (momentum, _), lr = self.state[parameter], group["betas"], group["lr"]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        average = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        matrix = gradient.lerp(average, momentum).flatten(1)
        update = orthogonalise(matrix.float(), group["newton_steps"]).reshape(parameter.shape)
        # What never had a gradient, as the weights that were pruned, stays.
        update = update.where(average != 0, 0)
        parameter.mul_(1 - lr * group["weight_decay"])
        parameter.add_(update, alpha=-lr * RMS_OF_ADAM * max(matrix.shape) ** 0.5)


@dataclass(frozen=True, kw_only=True)
class Muon(AdamW):
    """Orthogonal updates for kernels and hidden matrices, with ``momentum``; AdamW for the head, biases and norms."""

    beta1: float = 0.9
    steps: int = 5
    default_lr: ClassVar[float] = 4e-3
    by_stage: ClassVar[bool] = True
    kind: ClassVar[type[Any]] = _Muon

    def __post_init__(self) -> None:
        """Raise ValueError for a beta outside [0, 1) or fewer than one step."""
        super().__post_init__()
        check_number("beta1", self.beta1, 0, below=1)
        check_int("steps", self.steps, 1)

    def __call__(
        self, groups: ParameterGroups, *, lr: float, momentum: float, fused: bool
    ) -> torch.optim.Optimizer:
        """Muon over these groups; those of stage 0 are the head."""
        split: ParameterGroups = []
        for group in groups:
            hidden = group["stage"] > 0
            # One row, as of a transformer's positions and class token, has no directions to make equal.
            kernels = [p for p in group["params"] if hidden and p.ndim > 1 and len(p) > 1]
            rest = [p for p in group["params"] if not (hidden and p.ndim > 1 and len(p) > 1)]
            split += [
                group | {"params": rest, "orthogonal": False},
                group
                | {
                    "params": kernels,
                    "orthogonal": True,
                    "betas": (momentum, self.beta2),
                    "newton_steps": self.steps,
                },
            ]
        split = [group for group in split if group["params"]]
        return self.kind(split, lr=lr, betas=(self.beta1, self.beta2), fused=fused)
