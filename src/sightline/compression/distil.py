"""Distillation: a smaller network learns from a classifier's answers instead of from labels alone."""

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from .. import runtime
from ..classifier import Classifier
from ..data import concat, load_dataset, to_tensor
from ..errors import DataError
from ..inference import predict_logits
from ..models import build, parse_architecture
from ..preprocessing import fit_preprocessing
from ..sources import find_unlabelled
from ..training import ADAPTATION_IMAGES, DistillationLoss, Objective, Recipe, check_distillation
from ..types import Splits
from .compressor import Compressor, FineTuning, Original


@dataclass(frozen=True)
class Distil(Compressor):
    """A new, smaller network learns from the classifier's answers (Hinton, Vinyals and Dean 2015, arXiv
    1503.02531).

    Args:
        to: the student's word, such as ``lenet5`` or ``fastcnn:width=0.25``.
        temperature: T above 0; both answers are divided by it before they are compared.
        alpha: weight in [0, 1] of the teacher's answers; the labels have 1 - alpha.
        seed: seed of the student's initial weights.
    """

    to: str = field(default="lenet5", metadata={"always_shown": True})
    temperature: float = field(default=4.0, kw_only=True)
    alpha: float = field(default=0.9, kw_only=True)
    seed: int = field(default=0, kw_only=True)

    fresh: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise ValueError for an impossible temperature or alpha, ChoiceError for an unknown network."""
        check_distillation(self.temperature, self.alpha)
        parse_architecture(self.to, classes=2, channels=3, size=(32, 32))

    def __call__(self, classifier: Classifier, data: Splits) -> Classifier:
        """The student before its training: the same classes and geometry, new weights.

        It takes the teacher's preprocessing, or one fitted to the training images where the teacher has none of
        its own, as an ensemble.
        """
        geometry = classifier.geometry
        plan = parse_architecture(
            self.to, classes=len(classifier.classes), channels=geometry.channels, size=geometry.size
        )
        if classifier.preprocessing.config():
            preprocessing = copy.deepcopy(classifier.preprocessing).cpu()
        else:
            preprocessing = fit_preprocessing(data.train, "fitted", geometry.channels)
        runtime.seed_torch(self.seed)
        network = build(plan)
        sample = np.sort(runtime.permutation(len(data.train), self.seed)[:ADAPTATION_IMAGES])
        with torch.no_grad():
            network.init_from_data(preprocessing(to_tensor(data.train[sample])))
        return Classifier(
            preprocessing,
            network,
            architecture=plan,
            classes=classifier.classes,
            geometry=geometry,
            provenance=classifier.provenance,
        ).to(classifier.device)

    def training(self, original: Original, settings: FineTuning) -> Recipe:
        """A whole training of the student, as long as the original's."""
        return settings.full_training_recipe(original.recipe, self.to, len(original.splits.train))

    def objective(self, original: Original, labels: Objective) -> DistillationLoss:
        """The distance from the teacher's answers, and ``labels`` with the weight 1 - alpha."""
        return DistillationLoss(original.classifier, labels, temperature=self.temperature, alpha=self.alpha)


def distil(to: str = "lenet5", temperature: float = 4.0, alpha: float = 0.9, **arguments: Any) -> Distil:
    """A new, smaller network that learns from the classifier's answers; other arguments are the network's own.

    >>> distil("fastcnn", width=0.25, alpha=0.5)
    Distil(to='fastcnn:width=0.25', temperature=4.0, alpha=0.5, seed=0)
    """
    word = ":".join([to, *(f"{name}={str(value).replace(' ', '')}" for name, value in arguments.items())])
    return Distil(word, temperature=temperature, alpha=alpha)


def add_unlabelled_images(original: Original, place: str) -> tuple[Original, dict[str, Any]]:
    """The original with other images among those that a student trains on, and facts about them.

    Their label is the original's own answer. Copies count once, and images of the original's splits not at all, so
    the test stays a test. Raises DataError where none is left.
    """
    splits = original.splits
    others = load_dataset(find_unlabelled(place), splits.train.geometry)
    known = np.concatenate([part.digests for part in (splits.train, splits.val, splits.test)])
    once = np.sort(np.unique(others.digests, return_index=True)[1])
    others = others.subset(once[~np.isin(others.digests[once], known)])
    if not len(others):
        raise DataError(f"Every image of '{place}' is one of the run's own: name a folder of other photos.")
    answers = predict_logits(original.classifier, others)[0].argmax(1).numpy()
    others = replace(others, labels=answers.astype(np.int64), classes=splits.train.classes)
    facts = {
        "data": Path(place).name,
        "images": len(others),
        "data_fingerprint": others.fingerprint,
        "answers": dict(zip(others.classes, others.counts.tolist(), strict=True)),
    }
    return replace(original, splits=replace(splits, train=concat([splits.train, others]))), facts
