"""iCaRL: exemplars chosen by herding, old answers distilled, the nearest mean of exemplars answers."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..batches import Batch
from ..classifier import Classifier
from ..data import concat
from ..layers import get_head, head_kind
from ..training import Method
from .exemplars import herd
from .rehearsal import Retraining
from .statistics import FeatureStatistics
from .strategy import Past, Strategy, Task, fill_head, with_new_head


@dataclass(frozen=True)
class ICaRL(Strategy):
    """Incremental classifier and representation learning (Rebuffi et al. 2017, arXiv 1611.07725).

    Each class has a sigmoid: its target is 0 or 1 for the classes of this task, the old classifier's answer for
    earlier ones. Each class keeps ``memory_size / K`` exemplars, most important first, and answers by their mean.
    """

    needs_images: ClassVar[bool] = True

    def method(self, task: Task) -> Method:
        """The binary cross-entropy over all classes, of new and remembered images as often as they are there."""
        previous, old = task.previous, list(task.old_classes)
        if previous is not None:
            previous.eval()

        def objective(classifier: Classifier, batch: Batch) -> Tensor:
            logits = classifier(batch.pixels).float()
            target = F.one_hot(batch.labels, logits.shape[1]).float()
            if previous is not None:
                with torch.no_grad():
                    target[:, old] = old_answers(previous, batch.pixels)[:, old]
            return F.binary_cross_entropy_with_logits(logits, target)

        return replace(Retraining().method(task), objective=objective)

    def remember(self, task: Task) -> Past:
        """The first of the old exemplars of each class, and new ones by herding."""
        past, new = task.past, task.new
        classes = np.union1d(past.images.labels, new.labels)
        each = max(1, task.memory_size // len(classes))
        features = task.embed(task.classifier, new)
        kept = [np.flatnonzero(past.images.labels == k)[:each] for k in np.unique(past.images.labels)]
        chosen = [
            own[herd(features[own], each)] for own in (np.flatnonzero(new.labels == k) for k in task.new_classes)
        ]
        old, fresh = (np.concatenate([np.zeros(0, np.int64), *part]) for part in (kept, chosen))
        number = 1 + max(past.tasks, default=-1)
        images = new.subset(fresh)
        if len(past):
            images = concat([past.images.subset(old), images])
        return replace(
            past, images=images, tasks=np.concatenate([past.tasks[old], np.full(len(fresh), number)]), logits=None
        )

    def answer(self, task: Task, remembered: Past) -> Classifier:
        """The classifier with the means of the exemplars as its last layer."""
        found = with_new_head(task.classifier, task.classifier.classes, "prototypes", normalise=True)
        features = task.embed(task.classifier, remembered.images)
        features = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
        labels, classes = remembered.images.labels, task.classifier.classes
        statistics, rows = FeatureStatistics.of(features, labels, classes).with_images()
        means = torch.from_numpy(statistics.means)
        fill_head(found, rows, 2 * means, -means.square().sum(1))
        return found


def old_answers(previous: Classifier, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B k"]:
    """What an old classifier says of each class: sigmoids, or probabilities where its head is of class means."""
    kind, _ = head_kind(get_head(previous.network))
    return torch.sigmoid(previous(pixels).float()) if kind == "linear" else previous.probabilities(pixels)
