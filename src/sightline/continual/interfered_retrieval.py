"""MIR: replay of the remembered images that the coming step would harm most."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..batches import Batch
from ..classifier import Classifier
from ..inference import predict_logits
from ..training import Gradients, Method, Objective, TrainingState, as_objective
from .rehearsal import Replay, joint_logits
from .strategy import Task, draw_balanced, make_batch, new_batches

_MIR_CANDIDATES = 83  # a stream of random numbers


@dataclass(frozen=True)
class MIR(Replay):
    """Replay of those remembered images whose loss the coming step would raise most (Aljundi et al. 2019).

    Of ``candidates`` random remembered images, those with the largest rise after a virtual step on the new images
    alone are shown (arXiv 1908.04742, algorithm 1).

    Arguments:
        since_start: whether a rise counts from the loss that the image had when this task began, where that is lower
            than now: what was forgotten is shown first. The paper's second criterion, which its Split MNIST uses.
    """

    share: float | None = 0.5
    candidates: int = 50
    since_start: bool = True

    def method(self, task: Task) -> Method:
        """Cross-entropy of new images plus that of the chosen ones."""
        batches, steps = new_batches(task, self.new_share(task))
        first_losses = None
        if self.since_start and task.previous is not None and len(task.past):
            first_losses = image_losses(task, *predict_logits(task.classifier, task.past.images))

        def objective(classifier: Classifier, batch: Batch) -> Tensor:
            new, past = joint_logits(classifier, batch)
            loss = task.cross_entropy(new, batch.labels)
            if past is None or batch.beside is None:
                return loss
            return loss + task.cross_entropy(past, batch.beside.labels)

        def step(state: TrainingState, gradients: Gradients, loss_of: Objective, batch: Batch) -> Tensor:
            if batch.beside is not None:
                count = len(batch.beside)
                drawn = draw_balanced(
                    task.past.images.labels, self.candidates, task.plan.recipe.seed, state.step, _MIR_CANDIDATES
                )
                pool = make_batch(task, task.past.images, drawn, state.epoch, state.batch, _MIR_CANDIDATES)
                before, after = virtual_losses(state, gradients, loss_of, replace(batch, beside=None), pool, task)
                if first_losses is not None:
                    before = torch.minimum(before, first_losses.to(before.device)[pool.index])
                rise = after - before
                batch = replace(batch, beside=take(pool, rise.topk(min(count, len(pool))).indices))
            loss = gradients(loss_of, batch)
            state.apply_gradients()
            return loss

        return Method(as_objective(objective), batches, steps, step=step)


def image_losses(task: Task, logits: Float[Tensor, "C K"], labels: Int[Tensor, " C"]) -> Float[Tensor, " C"]:
    """The cross-entropy of each image over the classes that it may be taken for."""
    allowed = task.columns(labels)
    if allowed is not None:
        logits = logits.masked_fill(~allowed.to(logits.device), float("-inf"))
    return F.cross_entropy(logits, labels, reduction="none")


def virtual_losses(
    state: TrainingState, gradients: Gradients, objective: Objective, batch: Batch, pool: Batch, task: Task
) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"]]:
    """The loss of each image of ``pool`` before and after a plain gradient step on ``batch``, which is undone."""
    classifier, lr = state.classifier, state.optimizer.param_groups[0]["lr"]

    @torch.no_grad()
    def losses() -> Tensor:
        return image_losses(task, classifier(pool.pixels).float(), pool.labels)

    gradients(objective, batch)
    classifier.eval()  # two passes with the same statistics
    before = losses()
    moved = [(p, p.detach().clone()) for p in classifier.parameters() if p.grad is not None]
    with torch.no_grad():
        for parameter, _ in moved:
            parameter.sub_(lr * parameter.grad)
        after = losses()
        for parameter, value in moved:
            parameter.copy_(value)
    classifier.train()
    state.optimizer.zero_grad(set_to_none=True)
    return before, after


def take(batch: Batch, positions: Tensor) -> Batch:
    """Some images of a batch."""
    return replace(
        batch, pixels=batch.pixels[positions], labels=batch.labels[positions], index=batch.index[positions]
    )
