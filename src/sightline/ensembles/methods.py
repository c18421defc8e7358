"""The ways to make one classifier of several: the mean of their answers, or the mean of their weights."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, fsum, log
from typing import Any, Protocol, runtime_checkable

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from .. import progress
from ..choose import choose
from ..classifier import Classifier
from ..data import Shuffle, iterate_batches
from ..errors import BundleError, DataError
from ..inference import predict_logits, validate
from ..models import Architecture, EnsembleMember, EnsembleNetwork
from ..preprocessing import Preprocessing
from ..training import backbone_fingerprint, fit_temperature
from ..types import Dataset, Splits

MAX_NORM_IMAGES = 5_000
"""Training images that the norms of a soup are measured on, at most."""


@dataclass(frozen=True, eq=False)
class Combination:
    """What was made of several classifiers."""

    classifier: Classifier
    member_indices: tuple[int, ...]
    """Places of those that are in it."""
    notes: tuple[str, ...]
    """What is worth knowing, a sentence each."""


@runtime_checkable
class Combiner(Protocol):
    """A way to make one classifier of several, with images to measure on where there are some."""

    def __call__(
        self, classifiers: Sequence[Classifier], images: Splits | None, names: Sequence[str]
    ) -> Combination:
        """The combination; ``names`` are what messages call the classifiers."""
        ...


@dataclass(frozen=True)
class Mean:
    """The mean of the members' calibrated probabilities; members may differ in network and preprocessing.

    ``refit`` fits one more temperature to the mean, on validation images.
    """

    refit: bool = False

    def __call__(
        self, classifiers: Sequence[Classifier], images: Splits | None, names: Sequence[str]
    ) -> Combination:
        """All members with equal weight, in one network."""
        check_are_networks(classifiers, names)
        first = classifiers[0]
        orders = [[one.classes.index(name) for name in first.classes] for one in classifiers]
        configs = [_member_config(one, order) for one, order in zip(classifiers, orders, strict=True)]
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

    For classifiers of one network that were trained from the same weights; norms are measured anew on training
    images where that does better on validation.
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
    """A soup of those members that do not lower its accuracy on validation images, tried from the best one down.

    Wortsman et al. 2022, recipe 1.
    """

    def __call__(
        self, classifiers: Sequence[Classifier], images: Splits | None, names: Sequence[str]
    ) -> Combination:
        """The members that were kept, with equal weight."""
        check_averageable(classifiers, names)
        if images is None or not len(images.val):
            raise DataError("greedy-soup tries its members on validation images, and there are none: use soup.")
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


COMBINERS: Mapping[str, Callable[..., Combiner]] = {"mean": Mean, "soup": Soup, "greedy-soup": GreedySoup}
"""The words of ``--by``."""


def combine(
    classifiers: Sequence[Classifier],
    by: str | Combiner = "mean",
    *,
    images: Splits | None = None,
    names: Sequence[str] | None = None,
) -> Combination:
    """One classifier made of several that tell the same classes apart at the same geometry.

    ``images`` are measured on where the way needs it: norms on its training part, temperature and choices on its
    validation part, which no member may have been trained on. Raises BundleError for
    classifiers that do not go together, ChoiceError for an unknown way, DataError where it lacks images.
    """
    names = names or [f"classifier {number}" for number in range(1, len(classifiers) + 1)]
    way = choose(COMBINERS, by, "way to combine")
    check_compatible(classifiers, names)
    made = way(classifiers, images, names)
    own = made.classifier.provenance
    made.classifier.provenance = {
        **_common_provenance(classifiers),
        **own,
        "members": [names[i] for i in made.member_indices],
    }
    return made


def check_compatible(classifiers: Sequence[Classifier], names: Sequence[str]) -> None:
    """Raise BundleError unless all give the same classes to the same pixels."""
    if len(classifiers) < 2:
        raise BundleError("It takes at least two classifiers to combine: name another run or bundle.")
    first = classifiers[0]
    for one, name in zip(classifiers[1:], names[1:], strict=True):
        if other := set(one.classes) ^ set(first.classes):
            raise BundleError(
                f"'{name}' and '{names[0]}' tell different classes apart (only one of them knows "
                f"'{min(other)}'), so they cannot be combined."
            )
        if one.geometry != first.geometry:
            mine, its = _geometry_difference(first, one)
            raise BundleError(
                f"'{name}' looks at images otherwise than '{names[0]}' ({its} instead of {mine}), so they cannot "
                "be combined: train both with the same --size, --channels, --fit, --filter and --window."
            )


def _geometry_difference(first: Classifier, one: Classifier) -> tuple[str, str]:
    """What of the geometry differs, of both."""
    pairs = zip(vars(first.geometry).items(), vars(one.geometry).values(), strict=True)
    (name, mine), its = next((pair, its) for pair, its in pairs if pair[1] != its)
    return f"{name} {mine}", f"{name} {its}"


def check_averageable(classifiers: Sequence[Classifier], names: Sequence[str]) -> None:
    """Raise BundleError unless the mean of the weights may mean something: one network, one start."""
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
                    f"'{name}' has {fault} than '{names[0]}', so the mean of their weights means nothing: "
                    "use --by mean."
                )
    if not common_ancestors(classifiers):
        raise BundleError(
            "These classifiers were not trained from the same weights (--weights), so the mean of their weights "
            "means nothing: use --by mean."
        )


def check_are_networks(classifiers: Sequence[Classifier], names: Sequence[str]) -> None:
    """Raise BundleError for what is no network, and cannot be kept in tensors."""
    for one, name in zip(classifiers, names, strict=True):
        if not one.network.differentiable:
            raise BundleError(f"'{name}' is a classical baseline, not a network: combine networks only.")


def common_ancestors(classifiers: Sequence[Classifier]) -> list[str]:
    """Fingerprints of the weights that all of them were trained from (or are), the nearest first."""
    lines = [[backbone_fingerprint(one.network), *one.provenance.get("ancestors", ())] for one in classifiers]
    return [each for each in lines[0] if all(each in line for line in lines[1:])]


def _member_config(one: Classifier, order: Sequence[int]) -> dict[str, Any]:
    """What rebuilds a member."""
    return {
        "architecture": one.architecture.config(),
        "preprocessing": one.preprocessing.config(),
        "temperature": one.temperature,
        "order": [*order],
    }


def _common_provenance(classifiers: Sequence[Classifier]) -> dict[str, Any]:
    """What all members tell alike about where they come from."""
    first, *others = (one.provenance for one in classifiers)
    return {key: value for key, value in first.items() if all(one.get(key) == value for one in others)}


def _average_weights(classifiers: Sequence[Classifier], images: Splits | None) -> tuple[Classifier, bool]:
    """The first classifier with the mean of all their weights; whether its norms were measured anew.

    They are on training images, where that does better on validation: it does not always.
    """
    made = copy.deepcopy(classifiers[0]).eval()
    states = [one.state_dict() for one in classifiers]
    with torch.no_grad():
        for name, value in made.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.stack([state[name].double() for state in states]).mean(0))
    if images is None or not len(images.val):
        return made, False
    anew = copy.deepcopy(made)
    better = update_bn(anew, images.train) and validate(anew, images.val)[0] < validate(made, images.val)[0]
    return (anew, True) if better else (made, False)


@torch.no_grad()
def update_bn(classifier: Classifier, images: Dataset, *, batch_size: int = 128) -> bool:
    """Measure the running statistics of batch norms anew on images, in place; whether there are any.

    The plain mean over batches, dropout off, of at most ``MAX_NORM_IMAGES`` images.
    """
    norms = [m for m in classifier.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms or len(images) < 2:
        return False
    classifier.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
        norm.train()
    size = min(batch_size, len(images))
    coming = iterate_batches(images, size, order=Shuffle(0), device=classifier.device, drop_last=True)
    for _, batch in zip(range(max(1, MAX_NORM_IMAGES // size)), coming, strict=False):
        classifier(batch.pixels)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    classifier.eval()
    return True


def _make_soup(members: Sequence[Classifier], images: Splits | None) -> tuple[Classifier, tuple[str, ...]]:
    """A soup with its temperature, and what was measured for it."""
    made, anew = _average_weights(members, images)
    made.provenance = {"ancestors": common_ancestors(members)}
    measured = images is not None and len(images.val) > 0
    notes = []
    if anew and images is not None:
        count = min(MAX_NORM_IMAGES, len(images.train))
        notes.append(f"The statistics of its norms were measured anew, on {count:,} training images.")
    elif any(isinstance(m, _BatchNorm) for m in made.modules()):
        why = "measured anew they did worse on validation" if measured else "there were no images to measure on"
        notes.append(f"The statistics of its norms are the members' mean: {why}.")
    if measured and images is not None:
        made.temperature = _fit_temperature(made, images.val)
    else:
        made.temperature = exp(fsum(log(one.temperature) for one in members) / len(members))
        notes.append("Its temperature is the members' mean: there were no validation images to fit it to.")
    return made, tuple(notes)


def _fit_temperature(classifier: Classifier, images: Dataset) -> float:
    return round(fit_temperature(*predict_logits(classifier, images)), 6)
