"""Combiners: one classifier made of several, by the mean of their answers or of their weights."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from math import exp, fsum, log
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import swa_utils

from .. import progress
from ..classifier import Classifier
from ..data import Shuffle, iterate_batches
from ..errors import BundleError, DataError
from ..features import backbone_fingerprint
from ..inference import predict_logits, validate
from ..models import Architecture, EnsembleMember, EnsembleNetwork
from ..preprocessing import Preprocessing
from ..training import fit_temperature
from ..types import Dataset, Splits

MAX_NORM_IMAGES = 5_000
"""Training images that batch norms are re-estimated on, at most."""


@dataclass(frozen=True, eq=False)
class Combination:
    """The classifier made of several, and the members that are in it."""

    classifier: Classifier
    member_indices: tuple[int, ...]
    """Indices of the members that are in it."""
    notes: tuple[str, ...]
    """Remarks, a sentence each."""


@runtime_checkable
class Combiner(Protocol):
    """``(classifiers, images, names) -> Combination``: makes one classifier of several."""

    def __call__(
        self, classifiers: Sequence[Classifier], images: Splits | None, names: Sequence[str]
    ) -> Combination:
        """Combine; ``images`` are measured on where there are some, ``names`` name the classifiers in messages."""
        ...


@dataclass(frozen=True)
class Mean:
    """The mean of the members' calibrated probabilities; members may differ in network and preprocessing.

    ``refit`` fits one more temperature to the mean, on validation images that no member was trained on.
    """

    refit: bool = False

    def __call__(
        self, classifiers: Sequence[Classifier], images: Splits | None, names: Sequence[str]
    ) -> Combination:
        """All members with equal weight, in one network."""
        for one, name in zip(classifiers, names, strict=True):
            if not one.network.differentiable:
                raise BundleError(f"'{name}' is a classical baseline, not a network: combine networks only.")
        first = classifiers[0]
        orders = [[one.classes.index(name) for name in first.classes] for one in classifiers]
        configs = [
            {
                "architecture": one.architecture.config(),
                "preprocessing": one.preprocessing.config(),
                "temperature": one.temperature,
                "order": order,
            }
            for one, order in zip(classifiers, orders, strict=True)
        ]
        pixels = {"channels": first.geometry.channels, "size": list(first.geometry.size)}
        plan = Architecture("ensemble", {"classes": len(first.classes), **pixels, "members": configs})
        members = [
            EnsembleMember(copy.deepcopy(one.preprocessing), copy.deepcopy(one.network), one.temperature, order)
            for one, order in zip(classifiers, orders, strict=True)
        ]
        made = Classifier(
            Preprocessing(),
            EnsembleNetwork(members),
            architecture=plan,
            classes=first.classes,
            geometry=first.geometry,
        ).eval()
        notes: tuple[str, ...] = ()
        if self.refit and (images is None or not len(images.val)):
            raise DataError("mean:refit=True needs validation images that no member was trained on: leave it out.")
        if self.refit and images is not None:
            made.temperature = _fit_temperature(made, images.val)
            notes = (
                f"A temperature of {made.temperature:g} was fitted to the mean, on {len(images.val):,} images.",
            )
        return Combination(made, tuple(range(len(names))), notes)


@dataclass(frozen=True)
class Soup:
    """The mean of the members' weights (Wortsman et al. 2022): as fast as one of them.

    For classifiers of one network that were trained from the same weights; batch norms are re-estimated on
    training images where that lowers the validation loss.
    """

    def __call__(
        self, classifiers: Sequence[Classifier], images: Splits | None, names: Sequence[str]
    ) -> Combination:
        """All members with equal weight."""
        check_averageable(classifiers, names)
        made, notes = _make_soup(classifiers, images)
        return Combination(made, tuple(range(len(names))), notes)


@dataclass(frozen=True)
class GreedySoup:
    """A soup of the members that do not lower its validation accuracy (Wortsman et al. 2022, recipe 1).

    Members are tried in the order of their own validation accuracy, the best first.
    """

    def __call__(
        self, classifiers: Sequence[Classifier], images: Splits | None, names: Sequence[str]
    ) -> Combination:
        """The chosen members with equal weight."""
        check_averageable(classifiers, names)
        if images is None or not len(images.val):
            raise DataError(
                "greedy-soup chooses members by validation accuracy, and there are no validation images: use soup."
            )
        alone = [validate(one, images.val)[1] for one in classifiers]
        order = sorted(range(len(classifiers)), key=lambda i: -alone[i])
        kept, best = order[:1], alone[order[0]]
        with progress.progress_bar("Trying members", len(order) - 1) as advance:
            for place in order[1:]:
                soup, _ = _average_weights([classifiers[i] for i in (*kept, place)], images)
                if (accuracy := validate(soup, images.val)[1]) >= best:
                    kept, best = [*kept, place], accuracy
                advance()
        members = [classifiers[i] for i in kept]
        made, notes = _make_soup(members, images)
        said = f"{len(kept)} of {len(names)} members are in the soup: {', '.join(names[i] for i in kept)}."
        return Combination(made, tuple(kept), (said, *notes))


def combine_classifiers(
    classifiers: Sequence[Classifier],
    combiner: Combiner,
    *,
    images: Splits | None = None,
    names: Sequence[str] | None = None,
) -> Combination:
    """Check that the classifiers go together, combine them, and note in the provenance what all have in common."""
    names = names or [f"classifier {number}" for number in range(1, len(classifiers) + 1)]
    check_compatible(classifiers, names)
    made = combiner(classifiers, images, names)
    first, *others = (one.provenance for one in classifiers)
    common = {key: value for key, value in first.items() if all(one.get(key) == value for one in others)}
    chosen = [names[i] for i in made.member_indices]
    made.classifier.provenance = {**common, **made.classifier.provenance, "members": chosen}
    return made


def check_compatible(classifiers: Sequence[Classifier], names: Sequence[str]) -> None:
    """Raise BundleError unless there are two or more, with the same classes and geometry."""
    if len(classifiers) < 2:
        raise BundleError("It takes at least two classifiers to combine: name another run or bundle.")
    first = classifiers[0]
    for one, name in zip(classifiers[1:], names[1:], strict=True):
        if other := set(one.classes) ^ set(first.classes):
            raise BundleError(
                f"'{name}' and '{names[0]}' have different classes (only one of them has '{min(other)}'), so they "
                "cannot be combined."
            )
        if one.geometry != first.geometry:
            pairs = zip(vars(first.geometry).items(), vars(one.geometry).values(), strict=True)
            (field, mine), its = next((pair, its) for pair, its in pairs if pair[1] != its)
            raise BundleError(
                f"'{name}' reads images differently from '{names[0]}' ({field} {its} instead of {field} {mine}), "
                "so they cannot be combined: train both with the same size, channels, resizing and window."
            )


def check_averageable(classifiers: Sequence[Classifier], names: Sequence[str]) -> None:
    """Raise BundleError unless weights can be averaged: the same network, preprocessing and initial weights."""
    first = classifiers[0]
    tensors = first.preprocessing.state_dict()
    for one, name in zip(classifiers[1:], names[1:], strict=True):
        fitted = one.preprocessing.state_dict()
        prepared = one.preprocessing.config() == first.preprocessing.config() and all(
            torch.equal(value, fitted[key]) for key, value in tensors.items()
        )
        faults = {
            "another network": one.architecture.config() == first.architecture.config(),
            "another preprocessing": prepared,
            "the classes in another order": one.classes == first.classes,
        }
        for fault, fine in faults.items():
            if not fine:
                raise BundleError(
                    f"'{name}' has {fault} than '{names[0]}', so their weights cannot be averaged: use --by mean."
                )
    if not common_ancestors(classifiers):
        raise BundleError(
            "These classifiers were not trained from the same weights (--weights), so their weights cannot be "
            "averaged: use --by mean."
        )


def common_ancestors(classifiers: Sequence[Classifier]) -> list[str]:
    """Fingerprints of the weights that all classifiers were trained from (or have), the nearest first."""
    lines = [[backbone_fingerprint(one.network), *one.provenance.get("ancestors", ())] for one in classifiers]
    return [each for each in lines[0] if all(each in line for line in lines[1:])]


def _average_weights(classifiers: Sequence[Classifier], images: Splits | None) -> tuple[Classifier, bool]:
    """The first classifier with the mean of all weights, and whether its batch norms were re-estimated."""
    made = copy.deepcopy(classifiers[0]).eval()
    states = [one.state_dict() for one in classifiers]
    with torch.no_grad():
        for name, value in made.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.stack([state[name].double() for state in states]).mean(0))
    if images is None or not len(images.val):
        return made, False
    return recalibrate_norms(made, images)


def recalibrate_norms(classifier: Classifier, splits: Splits) -> tuple[Classifier, bool]:
    """A copy, its batch norms re-estimated on training images if that lowers the validation loss; and whether."""
    updated = copy.deepcopy(classifier)
    if update_bn(updated, splits.train) and validate(updated, splits.val)[0] < validate(classifier, splits.val)[0]:
        return updated, True
    return copy.deepcopy(classifier), False


def update_bn(classifier: Classifier, images: Dataset, *, batch_size: int = 128) -> bool:
    """Re-estimate the running statistics of batch norms on images, in place; returns whether there are any.

    ``torch.optim.swa_utils.update_bn`` on at most ``MAX_NORM_IMAGES`` images, without augmentation and with
    dropout
    off: the plain mean over batches.
    """
    if len(images) < 2 or not any(
        isinstance(m, _BatchNorm) and m.track_running_stats for m in classifier.modules()
    ):
        return False
    size = min(batch_size, len(images))
    shuffled = iterate_batches(images, size, order=Shuffle(0), device=classifier.device, drop_last=True)
    pixels = (batch.pixels for batch in islice(shuffled, max(1, MAX_NORM_IMAGES // size)))
    with torch.no_grad():
        swa_utils.update_bn(pixels, _OnlyNormsTrain(classifier.eval()))
    return True


class _OnlyNormsTrain(nn.Module):
    """A classifier whose ``train`` switches its batch norms only: torch's ``update_bn`` would turn dropout on."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.training = False

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits."""
        return self.classifier(pixels)

    def train(self, mode: bool = True) -> "_OnlyNormsTrain":
        """Switch the batch norms."""
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.train(mode)
        return self


def _make_soup(members: Sequence[Classifier], images: Splits | None) -> tuple[Classifier, tuple[str, ...]]:
    """A soup with its temperature, and remarks on its batch norms and temperature."""
    made, recalibrated = _average_weights(members, images)
    made.provenance = {"ancestors": common_ancestors(members)}
    measured = images is not None and len(images.val) > 0
    notes = []
    if recalibrated and images is not None:
        count = min(MAX_NORM_IMAGES, len(images.train))
        notes.append(f"The statistics of its batch norms were re-estimated on {count:,} training images.")
    elif any(isinstance(m, _BatchNorm) for m in made.modules()):
        why = "re-estimated ones had a higher validation loss" if measured else "there were no validation images"
        notes.append(f"The statistics of its batch norms are the members' mean: {why}.")
    if measured and images is not None:
        made.temperature = _fit_temperature(made, images.val)
    else:
        made.temperature = exp(fsum(log(one.temperature) for one in members) / len(members))
        notes.append("Its temperature is the members' mean: there were no validation images to fit it to.")
    return made, tuple(notes)


def _fit_temperature(classifier: Classifier, images: Dataset) -> float:
    return round(fit_temperature(*predict_logits(classifier, images)), 6)
