"""The search space: fields of a recipe, each with a range of numbers or a choice of values."""

import ast
import dataclasses
import itertools
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..checks import check_int, check_number, is_int
from ..choose import suggest
from ..errors import RecipeError
from ..training import RENAMED_FIELDS, Recipe

if typing.TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

LOG_SCALE_RATIO = 10
"""Ratio of the ends from which a range is searched on a log scale by default."""

GRID_POINTS = 5
"""Default number of points that a grid takes of a range."""

ZOOM_FACTOR = 0.5
"""Width of a zoomed range as a share of the range before."""

UNSEARCHABLE_FIELDS = dict.fromkeys(
    ("data", "limit", "train_limit", "val_fraction", "test_fraction", "group", "seed", "split_seed"),
    "it decides on which images trials are judged",
) | {
    "budget": "it is the time of the whole search",
    "devices": "a trial runs in one process; --workers runs several trials at once",
}
"""Field that cannot be searched -> the reason."""


@dataclass(frozen=True)
class NumericRange:
    """Numbers from `low` to `high`, both included; whole numbers if both ends are whole.

    `log` None uses a log scale if high / low is 10 or more. `points` is the number of values that a grid takes.
    """

    low: float
    high: float
    log: bool | None = None
    points: int | None = None

    def __post_init__(self) -> None:
        for end in (self.low, self.high):
            check_number("each end of a range", end)
        if self.low >= self.high:
            why = "empty" if self.low == self.high else "reversed"
            raise ValueError(f"the range {self.low}..{self.high} is {why}: the lower end comes first")
        if self.log is None:
            object.__setattr__(self, "log", self.low > 0 and self.high / self.low >= LOG_SCALE_RATIO)
        if self.log and self.low <= 0:
            raise ValueError(f"logarithms need a range above 0, not {self.low}..{self.high}")
        if self.points is not None:
            check_int("points", self.points, 2)

    def __str__(self) -> str:
        number = "" if self.points is None else f":{self.points}"
        return f"{self.low}..{self.high}:{'log' if self.log else 'lin'}{number}"

    @property
    def is_integer(self) -> bool:
        """Whether the range has only whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def boundary_values(self) -> tuple[Any, ...]:
        """The ends, which must be valid for the range to be valid."""
        return self.low, self.high

    def grid_values(self) -> tuple[Any, ...]:
        """Values of a grid: evenly spaced on the scale of the search, both ends included."""
        count = self.points or GRID_POINTS
        if self.is_integer and self.points is None and self.high - self.low < GRID_POINTS:
            low, high = self.boundary_values
            return tuple(range(low, high + 1))
        low, high = self._scaled(self.low), self._scaled(self.high)
        inner = (self._unscaled(low + (high - low) * i / (count - 1)) for i in range(1, count - 1))
        # Round off what logarithms add: 0.01 stays 0.01.
        tidy = (round(value) if self.is_integer else float(f"{value:.9g}") for value in inner)
        return tuple(sorted({self.low, *tidy, self.high}))

    def narrow_around(self, best: float) -> "NumericRange":
        """The range half as wide around `best`, on the scale of the search, within its ends."""
        low, high, middle = self._scaled(self.low), self._scaled(self.high), self._scaled(best)
        reach = (high - low) * ZOOM_FACTOR / 2
        below, above = self._unscaled(middle - reach), self._unscaled(middle + reach)
        if self.is_integer:
            below, above = math.floor(below), math.ceil(above)
        return dataclasses.replace(
            self, low=max(self.low, min(below, best)), high=min(self.high, max(above, best))
        )

    def _scaled(self, value: float) -> float:
        return math.log(value) if self.log else float(value)

    def _unscaled(self, place: float) -> float:
        return math.exp(place) if self.log else place

    def distribution(self) -> "BaseDistribution":
        """The Optuna distribution."""
        from optuna.distributions import FloatDistribution, IntDistribution

        kind = IntDistribution if self.is_integer else FloatDistribution
        return kind(*self.boundary_values, log=bool(self.log))

    def suggest(self, trial: "Trial", name: str) -> Any:
        """The value of the trial; sampled if it has none yet."""
        ask = trial.suggest_int if self.is_integer else trial.suggest_float
        return ask(name, *self.boundary_values, log=bool(self.log))


@dataclass(frozen=True)
class Categorical:
    """One of these values."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if len(self.values) < 2:
            raise ValueError(f"{', '.join(map(str, self.values)) or 'nothing'} leaves nothing to search")
        if len(set(map(repr, self.values))) < len(self.values):
            raise ValueError(f"a value is named twice in {', '.join(map(str, self.values))}")

    def __str__(self) -> str:
        return ",".join(map(str, self.values))

    @property
    def boundary_values(self) -> tuple[Any, ...]:
        """Every value."""
        return self.values

    def grid_values(self) -> tuple[Any, ...]:
        """Every value."""
        return self.values

    def narrow_around(self, best: Any) -> "Categorical":
        """The same choice: there is nothing between values."""
        del best
        return self

    def distribution(self) -> "BaseDistribution":
        """The Optuna distribution."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.values)

    def suggest(self, trial: "Trial", name: str) -> Any:
        """The value of the trial; sampled if it has none yet."""
        return trial.suggest_categorical(name, self.values)


Dimension = NumericRange | Categorical
SpaceSpec = Mapping[str, Dimension | str] | Iterable[str]


@dataclass(frozen=True)
class SearchSpace:
    """Dimensions by name: a field of the recipe, or ``field.argument`` for an argument of its word."""

    ranges: Mapping[str, Dimension]

    def apply_to(self, base: Recipe, values: Mapping[str, Any]) -> Recipe:
        """The base recipe with these values. Raises RecipeError if one is invalid."""
        recipe = base.replace(**{name: value for name, value in values.items() if "." not in name})
        for name, value in values.items():
            field, _, argument = name.partition(".")
            if argument:
                words = vars(recipe)[field].split(":")
                kept = [word for word in words if word.partition("=")[0].strip() != argument]
                recipe = recipe.replace(**{field: ":".join([*kept, f"{argument}={value}"])})
        return recipe

    def narrow_around(self, best: Mapping[str, Any]) -> "SearchSpace":
        """Every range narrowed around the best values."""
        return SearchSpace({name: each.narrow_around(best[name]) for name, each in self.ranges.items()})

    def grid_points(self) -> list[dict[str, Any]]:
        """Every combination of the grid values."""
        grids = (each.grid_values() for each in self.ranges.values())
        return [dict(zip(self.ranges, point, strict=True)) for point in itertools.product(*grids)]

    def costly_point(self) -> dict[str, Any]:
        """A point that costs more than the average: the middle choices, the upper ends."""
        return {name: each.boundary_values[len(each.boundary_values) // 2] for name, each in self.ranges.items()}

    def to_words(self) -> dict[str, str]:
        """The ranges as words for `parse_space`."""
        return {name: str(each) for name, each in self.ranges.items()}


def parse_space(words: SpaceSpec, base: Recipe) -> SearchSpace:
    """The search space of words such as ``lr=1e-4..1e-1``, or of ranges by field, checked against the recipe.

    Raises RecipeError for a field that does not exist or cannot be searched, for a range that is empty, reversed
    or of another type than the field, and for a value that the recipe or the network refuses.
    """
    from ..training import validate_recipe

    pairs = words.items() if isinstance(words, Mapping) else [_split_pair(word) for word in words]
    known = [f.name for f in dataclasses.fields(Recipe)]
    ranges: dict[str, Dimension] = {}
    for given, text in pairs:
        name = current_name(given.replace("-", "_"))
        field, dot, argument = name.partition(".")
        if field not in known:
            searchable = [each for each in known if each not in UNSEARCHABLE_FIELDS]
            raise RecipeError(f"A recipe has no field '{field}' to search. {suggest(field, searchable)}")
        if field in UNSEARCHABLE_FIELDS:
            raise RecipeError(f"'{field}' cannot be searched: {UNSEARCHABLE_FIELDS[field]}.")
        if dot and (str not in _field_types(field) or not argument):
            raise RecipeError(f"'{name}' cannot be searched: {field} takes no arguments. Write {field}=...")
        if name in ranges:
            raise RecipeError(f"'{name}' is searched twice: give one range for it.")
        try:
            if not isinstance(text, str | NumericRange | Categorical):
                raise ValueError(f"it is {text!r}, not a range")
            found = _parse_dimension(name, text) if isinstance(text, str) else text
            ranges[name] = _as_floats(name, found)
        except ValueError as error:
            raise RecipeError(f"The range of {name} cannot be used: {error}. {_SPACE_EXAMPLE}") from error
    if not ranges:
        raise RecipeError(f"Name what to search. {_SPACE_EXAMPLE}")
    space = SearchSpace(ranges)
    validate_recipe(base)
    for name, each in ranges.items():  # each end and value alone, so that the recipe's own message names it
        field, _, argument = name.partition(".")
        if argument and vars(base)[field] is None:
            raise RecipeError(f"'{argument}' is an argument of a {field}: name it with --{field}.")
        for value in each.boundary_values:
            validate_recipe(space.apply_to(base, {name: value}))
    return space


def space_from_words(words: Mapping[str, str]) -> SearchSpace:
    """The space that `SearchSpace.to_words` wrote."""
    named = {current_name(name): word for name, word in words.items()}
    return SearchSpace({name: _as_floats(name, _parse_dimension(name, word)) for name, word in named.items()})


def current_name(name: str) -> str:
    """The name of a dimension whose field earlier releases called otherwise.

    >>> current_name("ema"), current_name("model.dropout")
    ('ema_decay', 'model.dropout')
    """
    field, dot, argument = name.partition(".")
    return RENAMED_FIELDS.get(field, field) + dot + argument


_SPACE_EXAMPLE = (
    "Write --search-space lr=1e-4..1e-1 for a range, --search-space batch_size=32,64,128 for a choice."
)


def _split_pair(word: str) -> tuple[str, str]:
    name, equals, said = word.partition("=")
    if not equals:
        raise RecipeError(f"'{word}' is not a search range. {_SPACE_EXAMPLE}")
    return name.strip().replace("-", "_"), said


def _field_types(field: str) -> tuple[Any, ...]:
    """The types of a field; the values of a Literal stand for themselves."""
    (kind,) = (f.type for f in dataclasses.fields(Recipe) if f.name == field)
    parts = (
        typing.get_args(kind)
        if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union
        else (kind,)
    )
    found: list[Any] = []
    for part in parts:
        found += typing.get_args(part) if typing.get_origin(part) is typing.Literal else [part]
    return tuple(found)


def _parse_dimension(name: str, text: str) -> Dimension:
    """``low..high``, optionally with ``:log``, ``:lin`` or ``:points``, or values separated by commas."""
    ends, *options = text.strip().split(":")
    low, dots, high = ends.partition("..")
    if dots and _is_number(low) and _is_number(high):
        log: bool | None = None
        points: int | None = None
        for option in options:
            if option in ("log", "lin"):
                log = option == "log"
            elif option.isdigit():
                points = int(option)
            else:
                raise ValueError(f"after a range comes log, lin or a number of points, not '{option}'")
        return NumericRange(ast.literal_eval(low.strip()), ast.literal_eval(high.strip()), log, points)
    plain = "." not in name and (str in _field_types(name) or tuple[str, ...] in _field_types(name))
    if dots and not plain:
        raise ValueError(f"the ends of a range are numbers, not '{low}' and '{high}'")
    choices = re.split(r",(?![^(\[]*[)\]])", text)  # commas in brackets do not separate: mlp:hidden=(64,32)
    return Categorical(tuple(one.strip() if plain else _parse_literal(one) for one in choices if one.strip()))


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*", text))


def _parse_literal(text: str) -> Any:
    """The text as a number or truth value if it is one."""
    text = text.strip()
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return ast.literal_eval(text) if _is_number(text) else text


def _as_floats(name: str, found: Dimension) -> Dimension:
    """The dimension with floats if the field takes floats, though the ends were written as whole numbers."""
    if "." in name or float not in _field_types(name):
        return found
    if isinstance(found, NumericRange):
        return dataclasses.replace(found, low=float(found.low), high=float(found.high))
    return Categorical(tuple(float(v) if is_int(v) else v for v in found.values))


@dataclass(frozen=True)
class TuningPreset:
    """A recipe to start from, a search space and a method."""

    recipe: Recipe
    space: Mapping[str, str]
    by: str

    def override(self, words: Iterable[str]) -> dict[str, str]:
        """Its ranges, with those of the words in place of its own."""
        return {**self.space, **dict(_split_pair(word) for word in words)}


SPACES: Mapping[str, TuningPreset] = {
    "table3": TuningPreset(
        Recipe(model="plain-cnn", optimizer="adam"),
        {
            "lr": "0.001,0.01,0.1",
            "batch_size": "32,64,128",
            "epochs": "10,20,30",
            "model.depth": "5,10,15",
            "model.kernel": "3,5,7",
        },
        "grid",
    )
}
"""Name -> search space; table3 is Table III of source papers 003 and 004: 243 combinations, with Adam."""
