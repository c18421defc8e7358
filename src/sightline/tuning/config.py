"""What a tuning was asked for, as one value that travels to other processes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..training import Recipe
from .search import SearchMethod
from .space import SearchSpace


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """One study, and how far to take it."""

    folder: Path
    url: str
    """SQLAlchemy's address of the database."""
    name: str
    """The study's, in the database."""
    base: Recipe
    """What every trial starts from, settled: size, epochs and pace are the same for all unless searched."""
    space: SearchSpace
    search: SearchMethod
    trials: int
    """Of each round."""
    zoom_rounds: int
    """Rounds after the first, each in a narrower space."""
    budget: float | None
    """Seconds the whole search may take."""
    max_epochs: int
    """The most a trial has."""
    report_interval: int = 1
    """Epochs from one report to the database to the next."""
    device: str

    def build_recipe(self, values: Mapping[str, Any]) -> Recipe:
        """The recipe of a trial with these values."""
        return self.space.apply_to(self.base, values)
