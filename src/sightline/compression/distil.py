"""A smaller network learns from a classifier's answers instead of from labels alone: distillation."""

import copy
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .. import runtime
from ..checks import check_number, check_positive
from ..classifier import Classifier
from ..data import to_tensor
from ..models import build, parse_architecture
from ..preprocessing import Preprocessing, fit_preprocessing
from ..training import ADAPTATION_IMAGES, CrossEntropy, LogitLoss, Objective, kl_divergence
from ..types import Batch, Dataset, Splits


@dataclass(frozen=True)
class Distil:
    """A fresh, smaller network that learns from the classifier's answers.

    ``to`` is the network's word (``lenet5``, ``fastcnn:width=0.25``); ``temperature`` softens the answers, and
    ``alpha`` is their weight beside the labels (Hinton, Vinyals and Dean 2015, arXiv 1503.02531).
    """

    to: str = "lenet5"
    temperature: float = field(default=4.0, kw_only=True)
    alpha: float = field(default=0.9, kw_only=True)
    seed: int = field(default=0, kw_only=True)
    """Of the fresh weights."""

    heals: ClassVar[bool] = True
    """It is nothing without the training that follows."""

    def __post_init__(self) -> None:
        """Raise ValueError for a temperature or alpha that cannot be, ChoiceError for a network nobody knows."""
        check_distillation(self.temperature, self.alpha)
        parse_architecture(self.to, classes=2, channels=3, size=(32, 32))

    def __call__(self, classifier: Classifier, data: Splits) -> Classifier:
        """The student before its training: same classes, same pixels, fresh weights.

        It takes over the teacher's preprocessing, or fits one to the training images where the teacher has none of
        its own, as an ensemble.
        """
        known = classifier.geometry
        plan = parse_architecture(
            self.to, classes=len(classifier.classes), channels=known.channels, size=known.size
        )
        preprocessing = _student_preprocessing(classifier, data.train)
        runtime.seed_torch(self.seed)
        network = build(plan)
        sample = np.sort(runtime.permutation(len(data.train), self.seed)[:ADAPTATION_IMAGES])
        with torch.no_grad():
            network.init_from_data(preprocessing(to_tensor(data.train[sample])))
        student = Classifier(
            preprocessing,
            network,
            architecture=plan,
            classes=classifier.classes,
            geometry=known,
            provenance=classifier.provenance,
        )
        return student.to(classifier.device)

    def objective(self, teacher: Classifier, labels: Objective) -> "DistillationLoss":
        """What the student minimises; ``labels`` is the loss that its own labels enter by."""
        return DistillationLoss(teacher, labels, temperature=self.temperature, alpha=self.alpha)


def distil(to: str = "lenet5", temperature: float = 4.0, alpha: float = 0.9, **arguments: Any) -> Distil:
    """A fresh, smaller network that learns from the classifier's answers; other arguments are the network's own.

    >>> distil("fastcnn", width=0.25, alpha=0.5)
    Distil(to='fastcnn:width=0.25', temperature=4.0, alpha=0.5, seed=0)
    """
    word = ":".join([to, *(f"{name}={str(value).replace(' ', '')}" for name, value in arguments.items())])
    return Distil(word, temperature=temperature, alpha=alpha)


@dataclass(frozen=True, eq=False)
class DistillationLoss:
    """alpha T^2 KL(softmax(z_teacher / T) || softmax(z / T)) + (1 - alpha) loss(z, labels), mean over the batch.

    T^2 keeps the first part's gradient as large as the second's while logits are small beside T (Hinton et al.
    2015, section 2); else it is up to T times as large. The teacher sees the very pixels that the student does,
    augmentation included, in eval mode and without gradients.
    """

    teacher: Classifier
    labels: Objective = field(default_factory=CrossEntropy)
    """The loss of the labels, hard or soft."""
    temperature: float = 4.0
    alpha: float = 0.9

    def __post_init__(self) -> None:
        """Raise ValueError for a temperature or alpha that cannot be."""
        check_distillation(self.temperature, self.alpha)
        self.teacher.eval()

    def __call__(self, classifier: Classifier, batch: Batch) -> Float[Tensor, ""]:
        """The mean loss over the batch."""
        with torch.no_grad():
            taught = self.teacher(batch.pixels).float()
        logits = classifier(batch.pixels).float()
        pull = kl_divergence(logits / self.temperature, taught / self.temperature).mean() * self.temperature**2
        if self.alpha == 1:
            return pull
        if isinstance(self.labels, LogitLoss):
            own = self.labels.from_logits(logits, batch.labels)
        else:  # a loss that looks at pixels of its own making
            own = self.labels(classifier, batch)
        return self.alpha * pull + (1 - self.alpha) * own


def check_distillation(temperature: object, alpha: object) -> None:
    """Raise ValueError for a temperature that is not above 0, or an alpha outside [0, 1]."""
    check_positive("temperature", temperature)
    check_number("alpha", alpha, 0, 1)


def _student_preprocessing(classifier: Classifier, images: Dataset) -> Preprocessing:
    if classifier.preprocessing.config():
        return copy.deepcopy(classifier.preprocessing).cpu()
    return fit_preprocessing(images, "fitted", classifier.geometry.channels)
