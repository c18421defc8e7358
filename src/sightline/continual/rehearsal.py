"""Strategies that show remembered images again: replay, GDumb, DER++ and ER-ACE."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from ..batches import Batch
from ..checks import check_number
from ..classifier import Classifier
from ..data import concat
from ..inference import embed, predict_logits
from ..layers import get_head
from ..runtime import make_generator
from ..training import Method, Plan, as_objective
from ..types import Dataset
from .exemplars import Reservoir
from .strategy import Past, Strategy, Task, draw_balanced, make_batch, mix_images, new_batches, remember_images

_SECOND, _NOISE = 85, 87  # streams of random numbers


@dataclass(frozen=True)
class NaiveFineTuning(Strategy):
    """Train on the new images alone: what forgetting is measured against."""

    def method(self, task: Task) -> Method:
        """Cross-entropy of new images."""
        batches, steps = new_batches(task)
        return Method(as_objective(task.plain_loss), batches, steps)


@dataclass(frozen=True)
class Retraining(Strategy):
    """Train from random weights on all images so far, without balancing the classes: the upper bound.

    Arguments:
        passes: passes over all images, as a multiple of the epochs in which the others learn the new ones.
    """

    passes: int = 5
    needs_images: ClassVar[bool] = True
    from_scratch: ClassVar[bool] = True
    repeats_training: ClassVar[bool] = True

    def adjust(self, plan: Plan) -> Plan:
        """More epochs: every training begins at random weights."""
        assert plan.recipe.epochs is not None
        return plan.replace(epochs=self.passes * plan.recipe.epochs)

    def method(self, task: Task) -> Method:
        """Cross-entropy of all images."""
        return _train_on(task, concat([task.past.images, task.new]) if len(task.past) else task.new)

    def remember(self, task: Task) -> Past:
        """All images, however many."""
        return remember_images(task, lambda labels, *_: np.arange(len(labels)))


@dataclass(frozen=True)
class GDumb(Strategy):
    """Train from random weights on a class-balanced memory alone, by its authors' recipe (Prabhu et al. 2020).

    SGD with warm restarts from a rate of 0.05 to 0.0005, momentum 0.9, batches of 16, images shifted by up to 4 pixels
    where the plan has no augmentation of its own.

    Arguments:
        passes: passes over the memory; 128 for the digits and 256 for CIFAR-10 in the paper.
        cutmix: whether half of the images have a box of another one; not for digits.
    """

    passes: int = 128
    cutmix: bool = False
    needs_images: ClassVar[bool] = True
    from_scratch: ClassVar[bool] = True

    def adjust(self, plan: Plan) -> Plan:
        """The authors' recipe."""
        shift = f"shift:{min(4, (plan.recipe.size or 28) // 7)}"
        augment = (*(plan.recipe.augment or (shift,)), *(("cutmix:p=0.5",) if self.cutmix else ()))
        return plan.replace(
            optimizer="sgd", momentum=0.9, weight_decay=1e-6, lr=0.05, batch_size=16, clip_grad=10.0,
            schedule="restarts", warmup=1 / self.passes, epochs=self.passes, augment=augment,
        )  # fmt: skip

    def method(self, task: Task) -> Method:
        """Cross-entropy of the images that the memory holds after this task."""
        return _train_on(task, self.remember(task).images)


def _train_on(task: Task, images: Dataset) -> Method:
    batches, steps = new_batches(replace(task, new=images, online=False), 1.0)
    return Method(as_objective(task.plain_loss), batches, steps)


def joint_logits(classifier: Classifier, batch: Batch) -> tuple[Float[Tensor, "B K"], Float[Tensor, "b K"] | None]:
    """Logits of the new and of the remembered images, of one pass: norms see the mixture of both."""
    if batch.beside is None:
        return classifier(batch.pixels).float(), None
    both = classifier(torch.cat([batch.pixels, batch.beside.pixels])).float()
    return both[: len(batch)], both[len(batch) :]


@dataclass(frozen=True)
class Replay(Strategy):
    """Train on new and remembered images together, one cross-entropy over both (Chaudhry et al. 2019, 1902.10486).

    Arguments:
        share: the new images' share of a step, in (0, 1). Default: every class is shown equally often, and one of which
            there are both old and new images, half and half.
        reservoir: whether a uniform sample of all images is remembered, instead of equally many of each class.
        shrink: factor of the weights before training; below 1, they also get normal noise of 0.01. A network that
            continues from old weights may generalise worse than one trained from scratch, which this repairs (Ash and
            Adams 2020, arXiv 1910.08475, who take 0.6).
        tune_head: whether the last layer is fitted again after training, on un-augmented images with equal weights of
            the classes (Castro et al. 2018, arXiv 1807.09536, section 4.2).
    """

    share: float | None = None
    reservoir: bool = False
    shrink: float = 1.0
    tune_head: bool = False
    needs_images: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_number("shrink", self.shrink, 0, 1)

    def begin(self, task: Task) -> None:
        """Shrink and perturb, where asked."""
        if self.shrink < 1 and task.previous is not None:
            shrink_and_perturb(task.classifier, self.shrink, task.plan.recipe.seed)

    def finish(self, task: Task) -> None:
        """Batch-norm statistics of the mixture; then the last layer, where asked."""
        super().finish(task)
        if self.tune_head and len(task.past):
            fit_balanced_head(task.classifier, mix_images(task))

    def new_share(self, task: Task) -> float:
        """The new images' share of a step."""
        if self.share is not None:
            return self.share
        old, new = np.unique(task.past.images.labels), task.new_classes
        return (len(new) - len(np.intersect1d(old, new)) / 2) / max(1, len(np.union1d(old, new)))

    def method(self, task: Task) -> Method:
        """Cross-entropy of both, each image of equal weight."""

        def objective(classifier: Classifier, batch: Batch) -> Tensor:
            new, past = joint_logits(classifier, batch)
            if past is None or batch.beside is None:
                return task.cross_entropy(new, batch.labels)
            return task.cross_entropy(torch.cat([new, past]), torch.cat([batch.labels, batch.beside.labels]))

        return Method(as_objective(objective), *new_batches(task, self.new_share(task)))

    def remember(self, task: Task) -> Past:
        """A balanced sample, or a uniform one."""
        if not self.reservoir:
            return super().remember(task)

        def draw(labels: ndarray, size: int, seed: int) -> ndarray:
            held = len(task.past)
            sample = Reservoir(size, seed, positions=range(held), seen=task.past.seen)
            sample.add(range(held, len(labels)))
            return np.sort(np.array(sample.positions, np.int64))

        return remember_images(task, draw)


PERTURBATION = 0.01
"""Standard deviation of the noise after shrinking (Ash and Adams 2020)."""


def shrink_and_perturb(classifier: Classifier, shrink: float, seed: int) -> None:
    """``theta <- shrink theta + noise`` for every weight, in place."""
    generator = make_generator(seed, _NOISE)
    with torch.no_grad():
        for parameter in classifier.network.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * PERTURBATION
            parameter.mul_(shrink).add_(noise.to(parameter))


HEAD_PENALTY = 0.01
"""Weight of the squared distance from the trained last layer while it is fitted again."""


def fit_balanced_head(classifier: Classifier, images: Dataset) -> None:
    """Minimise the cross-entropy of the last layer, with equal weights of the classes, near where it is; in place."""
    head = get_head(classifier.network)
    features = torch.from_numpy(embed(classifier, images)).to(classifier.device)
    labels = torch.from_numpy(images.labels).to(classifier.device)
    weights = torch.zeros(len(classifier.classes), device=classifier.device)
    present = labels.unique()
    weights[present] = 1 / torch.bincount(labels).float()[present]
    trained = [p for p in head.parameters() if p.requires_grad]
    centre = [p.detach().clone() for p in trained]
    optimizer = torch.optim.LBFGS(trained, max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(head(features), labels, weight=weights)
        pull = sum(((p - c).square().sum() for p, c in zip(trained, centre, strict=True)), torch.zeros(()))
        loss = loss + HEAD_PENALTY / 2 * pull
        loss.backward()
        return loss

    optimizer.step(closure)
    optimizer.zero_grad(set_to_none=True)


@dataclass(frozen=True)
class ERACE(Replay):
    """Replay in which new images compete only with the classes in their batch (Caccia et al. 2022, arXiv 2104.05025).

    Otherwise the classes that come in push those of the memory away, whose images are few. New classes meet old ones
    in the replayed images, which are drawn from what the memory holds after this task.
    """

    share: float | None = 0.5

    def method(self, task: Task) -> Method:
        """The cross-entropy of new images over their own classes, plus that of remembered ones over all."""

        def objective(classifier: Classifier, batch: Batch) -> Tensor:
            new, past = joint_logits(classifier, batch)
            if past is None or batch.beside is None:
                return task.cross_entropy(new, batch.labels)
            absent = torch.ones(new.shape[1], dtype=torch.bool, device=new.device)
            absent[batch.labels.unique()] = False
            own = F.cross_entropy(new.masked_fill(absent, float("-inf")), batch.labels)
            return own + task.cross_entropy(past, batch.beside.labels)

        pool = self.remember(task).images if len(task.past) else None
        return Method(as_objective(objective), *new_batches(task, self.new_share(task), pool))


@dataclass(frozen=True)
class DarkReplay(Replay):
    """DER++: remembered images also keep the logits they had when they entered (Buzzega et al. 2020, arXiv 2004.07211).

    ``CE(new) + alpha MSE(logits of a draw, those remembered) + beta CE(another draw)``. Logits are compared only on
    the classes that existed when they were remembered.
    """

    share: float | None = 0.5
    alpha: float = 0.2
    beta: float = 0.5

    def method(self, task: Task) -> Method:
        """The three terms; without remembered logits the first and the last."""
        inner, steps = new_batches(task, self.new_share(task))
        stored, past = task.past.logits, task.past.images
        if (
            stored is None and task.previous is not None and len(past)
        ):  # remembered before this strategy was chosen
            stored = predict_logits(task.previous, past)[0]

        def batches(epoch: int, start: int):  # adds a second draw of remembered images to each batch
            for step, batch in enumerate(inner(epoch, start), start):
                if batch.beside is None:
                    yield batch
                    continue
                drawn = draw_balanced(past.labels, len(batch.beside), task.plan.recipe.seed, epoch, step, _SECOND)
                second = make_batch(task, past, drawn, epoch, step, _SECOND)
                yield replace(batch, beside=replace(batch.beside, beside=second))

        def objective(classifier: Classifier, batch: Batch) -> Tensor:
            first = batch.beside
            if first is None or first.beside is None:
                return task.cross_entropy(classifier(batch.pixels).float(), batch.labels)
            second = first.beside
            every = classifier(torch.cat([batch.pixels, first.pixels, second.pixels])).float()
            new, dark, labelled = every.split([len(batch), len(first), len(second)])
            loss = task.cross_entropy(new, batch.labels) + self.beta * task.cross_entropy(labelled, second.labels)
            if stored is None:
                return loss
            target = stored[first.index.cpu()].to(dark.device)
            known = ~target.isnan()
            return loss + self.alpha * F.mse_loss(dark[:, : target.shape[1]][known], target[known])

        return Method(as_objective(objective), batches, steps)

    @torch.inference_mode()
    def remember(self, task: Task) -> Past:
        """A balanced sample, with the logits that the classifier gives its un-augmented images now."""
        found = super().remember(task)
        logits, _ = predict_logits(task.classifier, found.images)
        if task.past.logits is not None:  # images that were remembered before keep their logits
            rows = {key: row for row, key in enumerate(task.past.images.digests.tolist())}
            for place, key in enumerate(found.images.digests.tolist()):
                if (row := rows.get(key)) is not None:
                    old = task.past.logits[row]
                    logits[place] = float("nan")
                    logits[place, : len(old)] = old
        return replace(found, logits=logits.clone())
