"""GEM and A-GEM: a step on new images that makes no remembered task worse, to first order."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..batches import Batch
from ..training import Gradients, Method, Objective, TrainingState, as_objective
from .strategy import Strategy, Task, draw_balanced, make_batch, new_batches

_REFERENCE = 84  # stream of random numbers


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


@dataclass(frozen=True)
class GEM(Strategy):
    """Gradient episodic memory: no step may raise the loss of a remembered task (Lopez-Paz and Ranzato 2017).

    Arguments:
        margin, eps: 0.5 and 1e-3 in the published code; with the defaults the projection is exact.

    A step computes the gradient of ``size`` images of every remembered task, and holds one copy of the weights for
    each task.
    """

    size: int = 256
    margin: float = 0.0
    eps: float = 0.0
    needs_images: ClassVar[bool] = True

    def references(self, task: Task, state: TrainingState) -> list[Batch]:
        """The remembered images whose loss must not rise, a batch for each task."""
        numbers = task.past.tasks
        return [
            make_batch(
                task, task.past.images, np.flatnonzero(numbers == one), state.epoch, state.batch, _REFERENCE
            )
            for one in np.unique(numbers)
        ]

    def project(self, gradient: Tensor, past: Tensor) -> Tensor:
        """The gradient of the step, given those of the references (T P)."""
        return project_gem(gradient, past, margin=self.margin, eps=self.eps)

    def method(self, task: Task) -> Method:
        """Cross-entropy of new images, its gradient projected."""
        batches, steps = new_batches(task)

        def step(state: TrainingState, gradients: Gradients, loss_of: Objective, batch: Batch) -> Tensor:
            parameters = [p for p in state.classifier.parameters() if p.requires_grad]

            def gradient_of(images: Batch) -> tuple[Tensor, Tensor]:
                state.optimizer.zero_grad(set_to_none=False)
                loss = gradients(loss_of, images)
                flat = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
                return torch.cat([one.flatten() for one in flat]).clone(), loss

            past = [gradient_of(one)[0] for one in self.references(task, state)] if len(task.past) else []
            gradient, loss = gradient_of(batch)
            if past:
                changed = self.project(gradient.cpu(), torch.stack(past).cpu()).to(gradient.device)
                for parameter, part in zip(
                    parameters, changed.split([p.numel() for p in parameters]), strict=True
                ):
                    parameter.grad = part.view_as(parameter).clone()
            state.apply_gradients()
            return loss

        return Method(as_objective(task.plain_loss), batches, steps, step=step)


@dataclass(frozen=True)
class AGEM(GEM):
    """A-GEM: the mean loss of ``size`` random remembered images must not rise (Chaudhry et al. 2019, 1812.00420)."""

    def references(self, task: Task, state: TrainingState) -> list[Batch]:
        """One batch of all tasks."""
        drawn = draw_balanced(
            task.past.images.labels, min(self.size, len(task.past)), task.plan.recipe.seed, state.step, _REFERENCE
        )
        return [make_batch(task, task.past.images, drawn, state.epoch, state.batch, _REFERENCE)]

    def project(self, gradient: Tensor, past: Tensor) -> Tensor:
        """The gradient without its component against the reference."""
        return project_agem(gradient, past[0])
