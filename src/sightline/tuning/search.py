"""How a space is searched: which point is tried next, and which trial is not worth finishing."""

import hashlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from .. import runtime
from ..checks import check_int
from ..choose import choose
from .space import SearchSpace

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.trial import Trial


@runtime_checkable
class SearchMethod(Protocol):
    """A way of searching: Optuna's sampler and pruner behind one word."""

    prunes: bool
    """Whether it stops trials early."""

    def sampler(self, seed: int) -> "BaseSampler":
        """What proposes a value."""
        ...

    def pruner(self, epochs: int) -> "BasePruner":
        """What stops a trial early; ``epochs`` is the most a trial has."""
        ...


class _WithoutPruning:
    """Every trial is trained to its end."""

    prunes = False

    def pruner(self, epochs: int) -> "BasePruner":
        """None."""
        from optuna.pruners import NopPruner

        del epochs
        return NopPruner()


@dataclass(frozen=True)
class RandomSearch(_WithoutPruning):
    """Each value at random, evenly over its range (Bergstra and Bengio 2012)."""

    def sampler(self, seed: int) -> "BaseSampler":
        """Independent draws."""
        from optuna.samplers import RandomSampler

        return RandomSampler(seed=seed)


@dataclass(frozen=True)
class GridSearch(RandomSearch):
    """Every combination once, in random order; it ends when all are done."""


@dataclass(frozen=True)
class TPESearch(_WithoutPruning):
    """Tree-structured Parzen estimator (Bergstra et al. 2011): where good trials are dense and bad ones not."""

    startup: int = 10
    """Trials at random before it begins to model."""

    def __post_init__(self) -> None:
        check_int("startup", self.startup, 1)

    def sampler(self, seed: int) -> "BaseSampler":
        """One model for each field; running trials count as poor, so that workers spread out."""
        from optuna.exceptions import ExperimentalWarning
        from optuna.samplers import TPESampler

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return TPESampler(n_startup_trials=self.startup, seed=seed, multivariate=False, constant_liar=True)


@dataclass(frozen=True)
class HyperbandSearch(TPESearch):
    """TPE, and most trials stopped early, by several rules at once (Li et al. 2018)."""

    prunes = True
    eta: int = 3
    """Of so many trials at a rung, one goes on."""
    least: int = 1
    """Epochs every trial has."""

    def __post_init__(self) -> None:
        TPESearch.__post_init__(self)
        check_int("eta", self.eta, 2)
        check_int("least", self.least, 1)

    def pruner(self, epochs: int) -> "BasePruner":
        """Successive halving in brackets."""
        from optuna.pruners import HyperbandPruner

        return HyperbandPruner(self.least, max(epochs, self.least), self.eta)


@dataclass(frozen=True)
class MedianStopping(TPESearch):
    """TPE, and a trial stopped whose best so far is below the median of the others at the same epoch."""

    prunes = True
    after: int = 5
    """Finished trials before any is stopped."""
    least: int = 1
    """Epochs every trial has."""

    def __post_init__(self) -> None:
        TPESearch.__post_init__(self)
        check_int("after", self.after, 1)
        check_int("least", self.least, 1)

    def pruner(self, epochs: int) -> "BasePruner":
        """The median rule (Golovin et al. 2017)."""
        from optuna.pruners import MedianPruner

        del epochs
        return MedianPruner(n_startup_trials=self.after, n_warmup_steps=self.least)


SEARCHES: Mapping[str, Callable[..., SearchMethod]] = {
    "grid": GridSearch,
    "random": RandomSearch,
    "tpe": TPESearch,
    "hyperband": HyperbandSearch,
    "median": MedianStopping,
}
"""Name -> a way of searching, with its arguments: ``hyperband:eta=3:least=2``."""


def parse_search(by: str | SearchMethod) -> SearchMethod:
    """The search a word names. Raises ChoiceError."""
    return choose(SEARCHES, by, "search")


def sample_values(trial: "Trial", space: SearchSpace, search: SearchMethod, seed: int) -> None:
    """Give the trial a value for each range: what it has already stays, the rest is sampled.

    Each draw's seed is a pure function of seed, trial and name, so that a search that was stopped anywhere
    proposes what the uninterrupted one would have.
    """
    for name, each in space.ranges.items():
        trial.study.sampler = search.sampler(_draw_seed(seed, trial.number, name))
        each.suggest(trial, name)


def grid_point(space: SearchSpace, seed: int, number: int, tried: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The ``number``-th point of the grid, in an order drawn from the seed; those tried before are left out."""
    new = [point for point in space.grid_points() if point not in tried]
    return new[runtime.permutation(len(new), seed)[number]] if number < len(new) else None


def grid_size(space: SearchSpace, tried: list[dict[str, Any]]) -> int:
    """Points of the grid that were not tried before."""
    return sum(point not in tried for point in space.grid_points())


def _draw_seed(seed: int, *words: object) -> int:
    text = ",".join(str(word) for word in (seed, *words))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")
