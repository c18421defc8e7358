"""What a tuning was asked for, as one value that travels to other processes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..training.recipe import Recipe
from .search import Search
from .space import Space


@dataclass(frozen=True, kw_only=True)
class Job:
    """One study, and how far to take it."""

    folder: Path
    url: str
    """SQLAlchemy's address of the database."""
    name: str
    """The study's, in the database."""
    base: Recipe
    """What every trial starts from, settled: size, epochs and pace are the same for all unless searched."""
    space: Space
    search: Search
    trials: int
    """Of each round."""
    refine: int
    """Rounds after the first, each in a narrower space."""
    budget: float | None
    """Seconds the whole search may take."""
    epochs: int
    """The most a trial has."""
    every: int = 1
    """Epochs from one report to the database to the next."""
    device: str

    def recipe(self, values: Mapping[str, Any]) -> Recipe:
        """The recipe of a trial with these values."""
        return self.space.recipe(self.base, values)
