"""How the learning rate moves: ``TrainingProgress -> factor on the peak``. To add one, write it and name it in SCHEDULES.

Every member takes ``warmup``, the share of the run in which the rate rises to its peak.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from ..checks import check_int, check_number
from ..choose import choose
from ..errors import RecipeError


@dataclass(frozen=True)
class TrainingProgress:
    """Where a run is, as far as a schedule may know."""

    epoch: float
    """Epochs done, the fraction of the one under way included."""
    epochs: int
    """Epochs of the whole run."""
    val_losses: Sequence[float] = ()
    """Validation loss after each finished epoch."""

    @property
    def fraction(self) -> float:
        """Share of the run that is done, in [0, 1]."""
        return self.epoch / max(self.epochs, 1)


Schedule = Callable[[TrainingProgress], float]
"""A factor on the peak learning rate, in [0, 1]."""


@dataclass(frozen=True)
class OneCycle:
    """From 1/25 of the peak up along a cosine for ``warmup``, then down to 1e-4 of it (Smith & Topin 2018)."""

    warmup: float = 0.2

    def __call__(self, moment: TrainingProgress) -> float:
        """The factor."""
        if moment.fraction < self.warmup:
            return _interpolate_cosine(1 / 25, 1.0, moment.fraction / self.warmup)
        return _interpolate_cosine(1.0, 1e-4, (moment.fraction - self.warmup) / (1 - self.warmup))


@dataclass(frozen=True)
class Cosine:
    """(1 + cos(pi t)) / 2 over what follows the warm-up (Loshchilov & Hutter 2017, eq. 5)."""

    warmup: float = 0.2

    def __call__(self, moment: TrainingProgress) -> float:
        """The factor."""
        return _warmup_factor(self.warmup, moment) * _interpolate_cosine(
            1.0, 0.0, _fraction_after_warmup(self.warmup, moment)
        )


@dataclass(frozen=True)
class Linear:
    """In a straight line from the peak to ``end`` of it over what follows the warm-up."""

    end: float = 0.0
    warmup: float = 0.2

    def __post_init__(self) -> None:
        check_number("end", self.end, 0, 1)

    def __call__(self, moment: TrainingProgress) -> float:
        """The factor."""
        return _warmup_factor(self.warmup, moment) * (
            1 + (self.end - 1) * _fraction_after_warmup(self.warmup, moment)
        )


@dataclass(frozen=True)
class Constant:
    """The peak, from the warm-up on."""

    warmup: float = 0.2

    def __call__(self, moment: TrainingProgress) -> float:
        """The factor."""
        return _warmup_factor(self.warmup, moment)


@dataclass(frozen=True)
class StepDecay:
    """gamma^floor(epoch / every): a drop every so many epochs (formulas of He et al. 2015, and most papers)."""

    every: int = 10
    gamma: float = 0.1
    warmup: float = 0.2

    def __post_init__(self) -> None:
        check_int("every", self.every, 1)
        check_number("gamma", self.gamma, 0, 1)

    @property
    def first_drop(self) -> int:
        """Epochs before the first change."""
        return self.every

    def __call__(self, moment: TrainingProgress) -> float:
        """The factor."""
        return _warmup_factor(self.warmup, moment) * self.gamma ** math.floor(moment.epoch / self.every + 1e-9)


@dataclass(frozen=True)
class Exponential:
    """gamma^epoch, continuously."""

    gamma: float = 0.9
    warmup: float = 0.2

    def __post_init__(self) -> None:
        check_number("gamma", self.gamma, 0, 1)

    def __call__(self, moment: TrainingProgress) -> float:
        """The factor."""
        return _warmup_factor(self.warmup, moment) * self.gamma**moment.epoch


@dataclass(frozen=True)
class Plateau:
    """Times ``gamma`` whenever the validation loss has not fallen for ``patience`` epochs.

    A fall counts where it is more than ``threshold`` of the lowest loss so far. Nothing is remembered:
    the history of losses says it all, so a resumed run goes on exactly.
    """

    gamma: float = 0.1
    patience: int = 3
    threshold: float = 1e-3
    warmup: float = 0.2

    def __post_init__(self) -> None:
        check_int("patience", self.patience, 1)
        check_number("gamma", self.gamma, 0, 1)
        check_number("threshold", self.threshold, 0, 1)

    @property
    def first_drop(self) -> int:
        """Epochs before the first change."""
        return self.patience + 1

    def __call__(self, moment: TrainingProgress) -> float:
        """The factor."""
        drops, waited, best = 0, 0, math.inf
        for loss in moment.val_losses:
            if loss < best * (1 - self.threshold):
                best, waited = loss, 0
            else:
                waited += 1
            if waited >= self.patience:
                drops, waited = drops + 1, 0
        return _warmup_factor(self.warmup, moment) * self.gamma**drops


SCHEDULES: Mapping[str, Callable[..., Schedule]] = {
    "one-cycle": OneCycle,
    "cosine": Cosine,
    "linear": Linear,
    "step": StepDecay,
    "exponential": Exponential,
    "plateau": Plateau,
    "constant": Constant,
}


def parse_schedule(word: str, warmup: float, epochs: int | None = None) -> Schedule:
    """The schedule a word names, such as ``step:every=30:gamma=0.1``.

    Raises ChoiceError for a word that names none, and RecipeError for one that would never act in ``epochs``.
    """
    made = choose({name: partial(make, warmup=warmup) for name, make in SCHEDULES.items()}, word, "schedule")
    if epochs and isinstance(made, StepDecay | Plateau) and made.first_drop >= epochs:
        raise RecipeError(
            f"The schedule '{word}' first changes the rate after {made.first_drop} epochs, and the run has "
            f"{epochs}: give it a smaller number, or the run more --epochs."
        )
    return made


def _warmup_factor(warmup: float, moment: TrainingProgress) -> float:
    return min(1.0, moment.fraction / warmup) if warmup else 1.0


def _fraction_after_warmup(warmup: float, moment: TrainingProgress) -> float:
    """Share of what follows the warm-up that is done."""
    return max(0.0, moment.fraction - warmup) / (1 - warmup)


def _interpolate_cosine(start: float, end: float, t: float) -> float:
    """Cosine interpolation, flat at both ends."""
    return end + (start - end) * (1 + math.cos(math.pi * t)) / 2
