"""What keeps its weights while the rest of a network learns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ..checks import check_int
from ..choose import choose
from ..classifier import Classifier
from ..errors import RecipeError
from ..layers import Network
from ..models import find_stages
from .recipe import Recipe
from .transfer import is_pretrained


@runtime_checkable
class FreezeSchedule(Protocol):
    """Which stages keep their weights: always the first so many, counted from the pixels."""

    def n_frozen(self, names: Sequence[str], epoch: int) -> int:
        """How many of the stages ``names`` rest in this epoch (the first is 0); the head is the last of them."""
        ...

    def first_change(self) -> int:
        """The first epoch in which something else rests than in the one before; 0 where nothing ever changes."""
        ...


@dataclass(frozen=True)
class NoFreezing:
    """All of the network learns from the first step."""

    def n_frozen(self, names: Sequence[str], epoch: int) -> int:  # noqa: ARG002
        """None."""
        return 0

    def first_change(self) -> int:
        """Never changes."""
        return 0


@dataclass(frozen=True)
class FreezeBackbone:
    """All but the head rests: a linear probe."""

    def n_frozen(self, names: Sequence[str], epoch: int) -> int:  # noqa: ARG002
        """All but the last."""
        return len(names) - 1

    def first_change(self) -> int:
        """Never changes."""
        return 0


@dataclass(frozen=True)
class UntilEpoch:
    """All but the head rests for the first ``epochs`` epochs; then all learns."""

    epochs: int

    def __post_init__(self):
        check_int("epochs", self.epochs, 1)

    def n_frozen(self, names: Sequence[str], epoch: int) -> int:
        """All but the last, or none."""
        return len(names) - 1 if epoch < self.epochs else 0

    def first_change(self) -> int:
        """When all begins to learn."""
        return self.epochs


@dataclass(frozen=True)
class UpToStage:
    """The stages up to this one rest: their number from the pixels, or the name of the last."""

    stage: int | str

    def __post_init__(self):
        if not isinstance(self.stage, str):
            check_int("stage", self.stage, 1)

    def n_frozen(self, names: Sequence[str], epoch: int) -> int:  # noqa: ARG002
        """Up to the stage; raises RecipeError where the network has none such before its head."""
        able = [*names[:-1]]
        if self.stage in able:
            return able.index(self.stage) + 1
        if isinstance(self.stage, int) and self.stage <= len(able):
            return self.stage
        raise RecipeError(
            f"The recipe's freeze is 'stage:{self.stage}', but the network's stages before the head are "
            f"{', '.join(able) or 'none'}: name one of them, or a number from 1 to {len(able)}."
        )

    def first_change(self) -> int:
        """Never changes."""
        return 0


@dataclass(frozen=True)
class GradualUnfreezing:
    """The head learns first; every ``epochs`` epochs the last stage that rests joins in (Howard & Ruder 2018)."""

    epochs: int

    def __post_init__(self):
        check_int("epochs", self.epochs, 1)

    def n_frozen(self, names: Sequence[str], epoch: int) -> int:
        """One fewer every so many epochs."""
        return max(0, len(names) - 1 - epoch // self.epochs)

    def first_change(self) -> int:
        """When the first stage joins the head."""
        return self.epochs


FREEZE_SCHEDULES: Mapping[str, Callable[..., FreezeSchedule]] = {
    "none": NoFreezing,
    "backbone": FreezeBackbone,
    "until": UntilEpoch,
    "stage": UpToStage,
    "staged": GradualUnfreezing,
}
"""The words of ``--freeze``."""


def parse_freezing(recipe: Recipe) -> FreezeSchedule:
    """The recipe's word as a value; raises ChoiceError where it names none."""
    return choose(FREEZE_SCHEDULES, recipe.freeze, "way to freeze")


def check_freezing(recipe: Recipe, network: Network | None = None) -> None:
    """Refuse what would rest for ever, or for no reason; with the network at hand, a stage that it has not.

    Raises RecipeError.
    """
    how = parse_freezing(recipe)
    if isinstance(how, NoFreezing):
        return
    if recipe.weights is None and not is_pretrained(recipe):
        raise RecipeError(
            f"The recipe's freeze is '{recipe.freeze}', which keeps the weights as they start, and they start "
            "random: give --weights to start from, or leave --freeze out."
        )
    if recipe.epochs and how.first_change() >= recipe.epochs:
        raise RecipeError(
            f"The recipe's freeze is '{recipe.freeze}', but the training ends after {recipe.epochs} epochs: "
            "choose fewer, or freeze backbone to train only the head."
        )
    if network is not None:
        how.n_frozen([stage.name for stage in find_stages(network)], 0)


class Freezer:
    """Keeps the resting stages of a classifier as they are: no gradients, norms and dropout as in eval mode."""

    def __init__(self, classifier: Classifier, recipe: Recipe) -> None:
        self.freezing = parse_freezing(recipe)
        still = isinstance(self.freezing, NoFreezing)
        self.stages = () if still else find_stages(classifier.network)
        self.trained = [[p for p in stage.parameters() if p.requires_grad] for stage in self.stages]

    def __call__(self, epoch: int) -> None:
        """Set the stages for this epoch; the classifier has just been put into training mode."""
        count = self.freezing.n_frozen([stage.name for stage in self.stages], epoch)
        for number, (stage, trained) in enumerate(zip(self.stages, self.trained, strict=True)):
            for parameter in trained:
                parameter.requires_grad_(number >= count)
            if number < count:
                for module in stage.modules:
                    module.eval()

    def unfreeze(self) -> None:
        """All can learn again: what comes after this training decides for itself."""
        for trained in self.trained:
            for parameter in trained:
                parameter.requires_grad_()
