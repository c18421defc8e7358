"""Strategies that hold on to old weights or old answers, without images: EWC and LwF."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..batches import Batch
from ..classifier import Classifier, frozen_eval
from ..data import to_tensor
from ..runtime import permutation
from ..training import Method, as_objective, kl_divergence
from ..types import Dataset
from .strategy import Past, Strategy, Task, new_batches

ANCHOR = ".anchor"
"""Ending of the name under which the product of Fisher information and weights is remembered."""

MAX_FISHER_BYTES = 64_000_000
"""Bytes of the per-sample gradients that are held at once."""


@dataclass(frozen=True)
class EWC(Strategy):
    """Elastic weight consolidation: weights that old answers depend on are held (Kirkpatrick et al. 2017).

    ``CE + lambda / 2 sum_t sum_i F_ti (theta_i - theta_ti)^2``, F_t the diagonal Fisher information after task t. The
    sum over tasks needs only the sums of F_t and of F_t theta_t.

    Arguments:
        weight: lambda; its scale depends on the network, from 1 to 1e5.
        decay: factor of the older tasks' F when one is added, with the newest weights as the only anchor (online EWC:
            Schwarz et al. 2018); None keeps an anchor for each task.
        images: new images that F is computed on; 500 are enough.

    Where any class may come (class-incremental) it is no better than chance on old classes: use replay or ``lda``.
    """

    weight: float = 1000.0
    decay: float | None = None
    images: int = 500

    def method(self, task: Task) -> Method:
        """Cross-entropy of new images plus the penalty."""
        fisher, device = task.past.fisher, task.classifier.device
        if not fisher and task.previous is not None and len(task.past):  # the first lesson by this strategy
            before = replace(
                task, classifier=task.previous, new=task.past.images, past=replace(task.past, fisher={})
            )
            fisher = self.remember(before).fisher
        anchors = {
            name: (value.to(device), fisher[name + ANCHOR].to(device))
            for name, value in fisher.items()
            if not name.endswith(ANCHOR)
        }

        assert task.plan.recipe.lr is not None
        limit = 1 / task.plan.recipe.lr  # a step along a steeper penalty would overshoot its minimum, and diverge

        def penalty(classifier: Classifier) -> Tensor:
            total = torch.zeros((), device=device)
            for name, parameter in classifier.network.named_parameters():
                if name in anchors:
                    # rows of classes that came later have no information
                    information, product = (pad_rows(one, parameter) for one in anchors[name])
                    centre = product / information.clamp_min(torch.finfo(torch.float32).tiny)
                    held = (self.weight * information).clamp_max(limit)
                    total = total + (held * (parameter - centre).square()).sum()
            return total / 2

        def objective(classifier: Classifier, batch: Batch) -> Tensor:
            loss = task.cross_entropy(classifier(batch.pixels).float(), batch.labels)
            return loss + penalty(classifier) if anchors else loss

        return Method(as_objective(objective), *new_batches(task))

    def remember(self, task: Task) -> Past:
        """The sums, with this task's Fisher information."""
        chosen = permutation(len(task.new), task.plan.recipe.seed, 86)[: self.images]
        fresh = fisher_diagonal(task.classifier, task.new.subset(np.sort(chosen)), task)
        found: dict[str, Tensor] = {}
        for name, parameter in task.classifier.network.named_parameters():
            if name not in fresh:
                continue
            now, value = fresh[name], parameter.detach().cpu()
            before = task.past.fisher.get(name, torch.zeros(()))
            product = task.past.fisher.get(name + ANCHOR, torch.zeros(()))
            before, product = pad_rows(before, value), pad_rows(product, value)
            if self.decay is None:
                found[name], found[name + ANCHOR] = before + now, product + now * value
            else:
                found[name] = self.decay * before + now
                found[name + ANCHOR] = found[name] * value
        return replace(super().remember(task), fisher=found)


def pad_rows(values: Tensor, like: Tensor) -> Tensor:
    """``values`` with rows of 0 appended up to the shape of ``like``; 0 everywhere where it has no dimension."""
    if values.shape == like.shape:
        return values
    padded = torch.zeros_like(like)
    if values.ndim:
        padded[: len(values)] = values
    return padded


def fisher_diagonal(
    classifier: Classifier, images: Dataset, task: Task | None = None
) -> dict[str, Float[Tensor, "..."]]:
    """The diagonal of the Fisher information of the network's weights, by name, the mean over ``images``.

    ``F_i = E_x sum_c p(c | x) (d log p(c | x) / d theta_i)^2``: exact over the classes, for each image alone, in eval
    mode. (Squares of the gradient of a batch's mean are something else.) In task-incremental learning p is over the
    classes of the image's task.
    """
    network, preprocessing = classifier.network, classifier.preprocessing
    parameters = {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}
    buffers = {name: b.detach() for name, b in network.named_buffers()}
    count = sum(p.numel() for p in parameters.values())
    chunk = max(1, min(32, MAX_FISHER_BYTES // (4 * max(1, count))))

    def log_probability(values: Mapping[str, Tensor], x: Tensor, allowed: Tensor, wanted: Tensor) -> Tensor:
        logits = torch.func.functional_call(network, {**values, **buffers}, (x[None],))[0].float()
        logp = logits.masked_fill(~allowed, float("-inf")).log_softmax(0)
        return torch.where(wanted, logp, 0).sum()

    gradients = torch.func.vmap(torch.func.grad_and_value(log_probability), in_dims=(None, 0, 0, 0))
    totals = {name: torch.zeros_like(p) for name, p in parameters.items()}
    classes = torch.arange(len(classifier.classes))
    labels = torch.from_numpy(images.labels)
    allowed = None if task is None else task.columns(labels)
    if allowed is None:
        allowed = torch.ones(len(images), len(classes), dtype=torch.bool)
    with frozen_eval(classifier), torch.no_grad():
        for start in range(0, len(images), chunk):
            rows = np.arange(start, min(start + chunk, len(images)))
            x = preprocessing(to_tensor(images[rows], classifier.device))
            here = allowed[rows].to(x.device)
            for label in classes[here.any(0).cpu()]:
                named = (classes == label).to(x.device).expand(len(x), -1)
                grads, logp = gradients(parameters, x, here, named)
                p = torch.where(here[:, label], logp.exp(), torch.zeros_like(logp))
                for name, each in grads.items():
                    squares = each.square().nan_to_num(0)  # a class that may not be has no gradient
                    totals[name] += torch.einsum("b,b...->...", p, squares)
    return {name: (value / len(images)).cpu() for name, value in totals.items()}


@dataclass(frozen=True)
class LwF(Strategy):
    """Learning without forgetting: on new images, old classes keep the answers they had (Li and Hoiem 2016).

    ``CE + weight T^2 KL(old softmax(z / T) || new)`` over the old classes (arXiv 1606.09282); in task-incremental
    learning over those of each old task.
    """

    weight: float = 1.0
    temperature: float = 2.0

    def method(self, task: Task) -> Method:
        """Cross-entropy of new images plus the distance from the old answers."""
        previous, t = task.previous, self.temperature
        groups: list[Any] = [list(group) for group in task.groups[:-1]] or [list(task.old_classes)]
        if previous is not None:
            previous.eval()

        def objective(classifier: Classifier, batch: Batch) -> Tensor:
            logits = classifier(batch.pixels).float()
            loss = task.cross_entropy(logits, batch.labels)
            if previous is None:
                return loss
            with torch.no_grad():
                old = previous(batch.pixels).float()
            for group in groups:
                pull = kl_divergence(logits[:, group] / t, old[:, group] / t).mean()
                loss = loss + self.weight * t**2 * pull
            return loss

        return Method(as_objective(objective), *new_batches(task))
