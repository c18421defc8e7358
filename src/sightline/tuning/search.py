"""Search methods: which values are tried next, and which trials are stopped early. The work is Optuna's."""

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
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
    """A sampler, a pruner and, for a finite search, its points."""

    prunes: bool
    """Whether it stops trials early."""

    def sampler(self, seed: int) -> "BaseSampler":
        """The Optuna sampler that proposes a value."""
        ...

    def pruner(self, epochs: int) -> "BasePruner":
        """The Optuna pruner; `epochs` is the maximum of a trial."""
        ...

    def points(self, space: SearchSpace) -> Sequence[Mapping[str, Any]] | None:
        """Every point that a finite search tries; None if it samples as many as it is asked for."""
        ...


class _Sampling:
    """Base of methods that sample values and train every trial to its end."""

    prunes = False

    def pruner(self, epochs: int) -> "BasePruner":
        """No pruning."""
        from optuna.pruners import NopPruner

        del epochs
        return NopPruner()

    def points(self, space: SearchSpace) -> Sequence[Mapping[str, Any]] | None:
        """None: it samples."""
        del space
        return None


@dataclass(frozen=True)
class RandomSearch(_Sampling):
    """Uniform random values from each range (Bergstra and Bengio 2012)."""

    def sampler(self, seed: int) -> "BaseSampler":
        """Independent draws."""
        from optuna.samplers import RandomSampler

        return RandomSampler(seed=seed)


@dataclass(frozen=True)
class GridSearch(RandomSearch):
    """Every combination once, in random order; ends when all are done."""

    def points(self, space: SearchSpace) -> Sequence[Mapping[str, Any]]:
        """Every combination of the grid values of each dimension."""
        return space.grid_points()


@dataclass(frozen=True)
class TPESearch(_Sampling):
    """Tree-structured Parzen estimator (Bergstra et al. 2011): samples where good trials are dense."""

    startup: int = 10
    """Random trials before the model is used."""

    def __post_init__(self) -> None:
        check_int("startup", self.startup, 1)

    def sampler(self, seed: int) -> "BaseSampler":
        """One model per field; running trials count as poor, so that workers spread out."""
        from optuna.exceptions import ExperimentalWarning
        from optuna.samplers import TPESampler

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return TPESampler(n_startup_trials=self.startup, seed=seed, multivariate=False, constant_liar=True)


@dataclass(frozen=True)
class HyperbandSearch(TPESearch):
    """TPE that stops most trials early, by successive halving in several brackets (Li et al. 2018)."""

    prunes = True
    eta: int = 3
    """One trial in `eta` continues at each rung."""
    least: int = 1
    """Minimum epochs of every trial."""

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
    """TPE that stops a trial whose best value is below the median at its epoch (Golovin et al. 2017)."""

    prunes = True
    after: int = 5
    """Finished trials before any is stopped."""
    least: int = 1
    """Minimum epochs of every trial."""

    def __post_init__(self) -> None:
        TPESearch.__post_init__(self)
        check_int("after", self.after, 1)
        check_int("least", self.least, 1)

    def pruner(self, epochs: int) -> "BasePruner":
        """The median rule."""
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
"""Name -> search method; arguments follow after colons: ``hyperband:eta=3:least=2``."""


def parse_search(by: str | SearchMethod) -> SearchMethod:
    """The search method that a word such as `tpe:startup=5` names. Raises ChoiceError."""
    return choose(SEARCHES, by, "search")


def search_word(search: SearchMethod) -> str:
    """The word, with all arguments, that `parse_search` reads.

    >>> search_word(TPESearch())
    'tpe:startup=10'
    """
    name = next((name for name, kind in SEARCHES.items() if kind is type(search)), type(search).__name__)
    return ":".join([name, *(f"{argument}={value}" for argument, value in vars(search).items())])


def sample_values(
    trial: "Trial",
    space: SearchSpace,
    search: SearchMethod,
    *,
    seed: int,
    index: int,
    point: Mapping[str, Any] | None = None,
) -> None:
    """Give the trial a value for each dimension: those of `point`, else sampled ones. Existing values stay.

    The seed of each draw is a function of seed, index of the trial and name, so that a search that was interrupted
    proposes what an uninterrupted one would.
    """
    from optuna.exceptions import ExperimentalWarning
    from optuna.samplers import PartialFixedSampler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        for name, each in space.ranges.items():
            text = ",".join(map(str, (seed, index, name)))
            digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
            sampler = search.sampler(int.from_bytes(digest, "little"))
            trial.study.sampler = sampler if point is None else PartialFixedSampler(dict(point), sampler)
            each.suggest(trial, name)


def remaining_points(
    search: SearchMethod, space: SearchSpace, seed: int, tried: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]] | None:
    """Points of a finite search that were not tried, in an order drawn from the seed; None if it samples."""
    points = search.points(space)
    if points is None:
        return None
    new = [point for point in points if point not in tried]
    return [new[place] for place in runtime.permutation(len(new), seed)]
