"""What is searched: fields of a recipe, each with a range of numbers or a choice of values."""

import ast
import dataclasses
import itertools
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, no_type_check

from ..choose import suggest
from ..errors import RecipeError
from ..training.recipe import Recipe

if typing.TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

WIDE = 10
"""A range whose ends differ by this factor or more is searched in logarithms, unless ``lin`` is said."""

POINTS = 5
"""Values a grid takes from a range that does not say how many."""

KEPT = 0.5
"""Share of its width that a range keeps when it is narrowed."""

FIXED = dict.fromkeys(
    ("data", "limit", "val", "test", "group", "seed", "split_seed"),
    "it decides on which images the trials are judged",
) | {
    "budget": "it is the time of the whole search",
    "processes": "a trial runs in one process; --workers runs several trials at once",
}
"""Fields that cannot be searched, and why."""


@no_type_check  # it checks its own fields, and says it better
@dataclass(frozen=True)
class Between:
    """Numbers from ``low`` to ``high``, both included; whole ones where both ends are whole.

    ``log`` None searches logarithms where high / low is 10 or more. ``points`` is how many values a grid takes.
    """

    low: float
    high: float
    log: bool | None = None
    points: int | None = None

    def __post_init__(self) -> None:
        for end in (self.low, self.high):
            if isinstance(end, bool) or not isinstance(end, int | float) or not math.isfinite(end):
                raise ValueError(f"its ends must be numbers, not {end!r}")
        if self.low >= self.high:
            why = "empty" if self.low == self.high else "reversed"
            raise ValueError(f"the range {self.low}..{self.high} is {why}: the lower end comes first")
        if self.log is None:
            object.__setattr__(self, "log", self.low > 0 and self.high / self.low >= WIDE)
        if self.log and self.low <= 0:
            raise ValueError(f"logarithms need a range above 0, not {self.low}..{self.high}")
        if self.points is not None and (not isinstance(self.points, int) or self.points < 2):
            raise ValueError(f"a grid takes 2 points or more of a range, not {self.points}")

    def __str__(self) -> str:
        number = "" if self.points is None else f":{self.points}"
        return f"{self.low}..{self.high}:{'log' if self.log else 'lin'}{number}"

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def examples(self) -> tuple[Any, ...]:
        """Values that tell whether the range is possible."""
        return self.low, self.high

    def grid(self) -> tuple[Any, ...]:
        """The values a grid takes: evenly spaced on the searched scale, both ends included."""
        count = self.points or POINTS
        if self.whole and self.points is None and self.high - self.low < POINTS:
            low, high = self.examples
            return tuple(range(low, high + 1))
        low, high = self._scaled(self.low), self._scaled(self.high)
        inner = (self._unscaled(low + (high - low) * i / (count - 1)) for i in range(1, count - 1))
        # A grid's 0.01 is 0.01, whatever the logarithm made of it.
        tidy = (round(value) if self.whole else float(f"{value:.9g}") for value in inner)
        return tuple(sorted({self.low, *tidy, self.high}))

    def narrowed(self, best: float) -> "Between":
        """Half as wide on the searched scale, round ``best``, within the old ends; whole ones round outwards."""
        low, high, middle = self._scaled(self.low), self._scaled(self.high), self._scaled(best)
        reach = (high - low) * KEPT / 2
        below, above = self._unscaled(middle - reach), self._unscaled(middle + reach)
        if self.whole:
            below, above = math.floor(below), math.ceil(above)
        return dataclasses.replace(
            self, low=max(self.low, min(below, best)), high=min(self.high, max(above, best))
        )

    def _scaled(self, value: float) -> float:
        return math.log(value) if self.log else float(value)

    def _unscaled(self, place: float) -> float:
        return math.exp(place) if self.log else place

    def distribution(self) -> "BaseDistribution":
        """The same for Optuna."""
        from optuna.distributions import FloatDistribution, IntDistribution

        kind = IntDistribution if self.whole else FloatDistribution
        return kind(*self.examples, log=bool(self.log))

    def suggest(self, trial: "Trial", name: str) -> Any:
        """The trial's value, sampled where it has none yet."""
        ask = trial.suggest_int if self.whole else trial.suggest_float
        return ask(name, *self.examples, log=bool(self.log))


@no_type_check
@dataclass(frozen=True)
class Among:
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
    def examples(self) -> tuple[Any, ...]:
        """Every value."""
        return self.values

    def grid(self) -> tuple[Any, ...]:
        """Every value."""
        return self.values

    def narrowed(self, best: Any) -> "Among":
        """The same: there is nothing between values."""
        del best
        return self

    def distribution(self) -> "BaseDistribution":
        """The same for Optuna."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.values)

    def suggest(self, trial: "Trial", name: str) -> Any:
        """The trial's value, sampled where it has none yet."""
        return trial.suggest_categorical(name, self.values)


Range = Between | Among
Over = Mapping[str, Range | str] | Iterable[str]


@dataclass(frozen=True)
class Space:
    """Named ranges; a name is a field of the recipe, or ``field.argument`` for an argument of the word in it."""

    ranges: Mapping[str, Range]

    def recipe(self, base: Recipe, values: Mapping[str, Any]) -> Recipe:
        """The base recipe with these values in their places. Raises RecipeError where one is impossible."""
        recipe = base.replace(**{name: value for name, value in values.items() if "." not in name})
        for name, value in values.items():
            field, _, argument = name.partition(".")
            if argument:
                recipe = recipe.replace(**{field: _with(vars(recipe)[field], argument, value)})
        return recipe

    def narrowed(self, best: Mapping[str, Any]) -> "Space":
        """Every range narrowed round the best values."""
        return Space({name: each.narrowed(best[name]) for name, each in self.ranges.items()})

    def points(self) -> list[dict[str, Any]]:
        """Every combination of the ranges' grids."""
        grids = (each.grid() for each in self.ranges.values())
        return [dict(zip(self.ranges, point, strict=True)) for point in itertools.product(*grids)]

    def middle(self) -> dict[str, Any]:
        """One point that is dear rather than cheap: the middle choices, the upper ends."""
        return {name: each.examples[len(each.examples) // 2] for name, each in self.ranges.items()}

    def words(self) -> dict[str, str]:
        """The ranges as ``read`` takes them."""
        return {name: str(each) for name, each in self.ranges.items()}


def read(over: Over, base: Recipe) -> Space:
    """The space that words such as ``lr=1e-4..1e-1`` or ranges by name describe, checked against the recipe.

    Raises RecipeError for a field nobody knows or that cannot be searched, a range that is empty, reversed or not
    of the field's type, and a name or value that the recipe or the network refuses.
    """
    pairs = over.items() if isinstance(over, Mapping) else [_pair(word) for word in over]
    ranges: dict[str, Range] = {}
    for given, said in pairs:
        name = given.replace("-", "_")
        _check_field(name)
        if name in ranges:
            raise RecipeError(f"'{name}' is searched twice: give one range for it.")
        try:
            if not isinstance(said, str | Between | Among):
                raise ValueError(f"it is {said!r}, not a range")
            found = _parsed(name, said) if isinstance(said, str) else said
            ranges[name] = _floats(name, found)
        except ValueError as error:
            raise RecipeError(f"The range of {name} cannot be used: {error}. {_HOW}") from error
    if not ranges:
        raise RecipeError(f"Say what to search. {_HOW}")
    space = Space(ranges)
    _check_values(space, base)
    return space


def worded(words: Mapping[str, str]) -> Space:
    """The space that ``Space.words`` wrote down."""
    return Space({name: _floats(name, _parsed(name, word)) for name, word in words.items()})


_HOW = "Write --over lr=1e-4..1e-1 for a range, --over batch_size=32,64,128 for a choice."


def _pair(word: str) -> tuple[str, str]:
    name, equals, said = word.partition("=")
    if not equals:
        raise RecipeError(f"'{word}' does not say what to search. {_HOW}")
    return name.strip().replace("-", "_"), said


def _check_field(name: str) -> None:
    known = {f.name: f for f in dataclasses.fields(Recipe)}
    field, dot, argument = name.partition(".")
    if field not in known:
        able = [each for each in known if each not in FIXED]
        raise RecipeError(f"A recipe has no field '{field}' to search. {suggest(field, able)}")
    if field in FIXED:
        raise RecipeError(f"'{field}' cannot be searched: {FIXED[field]}.")
    if dot and (str not in _kinds(field) or not argument):
        raise RecipeError(f"'{name}' cannot be searched: {field} takes no arguments. Write {field}=...")


def _kinds(field: str) -> tuple[Any, ...]:
    """The types a field may have; the values of a Literal stand for themselves."""
    (kind,) = (f.type for f in dataclasses.fields(Recipe) if f.name == field)
    parts = typing.get_args(kind) if isinstance(kind, types.UnionType) or _is_union(kind) else (kind,)
    found: list[Any] = []
    for part in parts:
        found += typing.get_args(part) if typing.get_origin(part) is typing.Literal else [part]
    return tuple(found)


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) is typing.Union  # what Literal | None makes


def _parsed(name: str, text: str) -> Range:
    """``low..high``, with ``:log``, ``:lin`` or ``:points`` after it, or values between commas."""
    ends, *options = text.strip().split(":")
    low, dots, high = ends.partition("..")
    if dots and _is_number(low) and _is_number(high):
        return _between(low, high, options)
    plain = "." not in name and (str in _kinds(name) or tuple[str, ...] in _kinds(name))
    if dots and not plain:
        raise ValueError(f"the ends of a range are numbers, not '{low}' and '{high}'")
    return Among(tuple(part.strip() if plain else _literal(part) for part in _apart(text) if part.strip()))


def _between(low: str, high: str, options: list[str]) -> Between:
    log: bool | None = None
    points: int | None = None
    for option in options:
        if option in ("log", "lin"):
            log = option == "log"
        elif option.isdigit():
            points = int(option)
        else:
            raise ValueError(f"after a range comes log, lin or a number of points, not '{option}'")
    return Between(ast.literal_eval(low.strip()), ast.literal_eval(high.strip()), log, points)


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*", text))


def _apart(text: str) -> list[str]:
    """The parts between commas, but not those inside brackets: ``mlp:hidden=(256,128),lenet5`` has two."""
    return re.split(r",(?![^(\[]*[)\]])", text)


def _literal(text: str) -> Any:
    """A number or truth value where the text is one, else the text."""
    text = text.strip()
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return ast.literal_eval(text) if _is_number(text) else text


def _floats(name: str, found: Range) -> Range:
    """A field of real numbers is searched in real numbers, though its ends were written as whole ones."""
    if "." in name or float not in _kinds(name):
        return found
    if isinstance(found, Between):
        return dataclasses.replace(found, low=float(found.low), high=float(found.high))
    return Among(tuple(float(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in found.values))


def _check_values(space: Space, base: Recipe) -> None:
    """Every end and value is one the recipe takes, each alone: the recipe itself says what is wrong."""
    from ..training.assemble import check_names

    check_names(base)
    for name, each in space.ranges.items():
        field, _, argument = name.partition(".")
        if argument and vars(base)[field] is None:
            raise RecipeError(f"Say whose argument '{argument}' is: add --{field} NAME.")
        for value in each.examples:
            check_names(space.recipe(base, {name: value}))


def _with(word: str, argument: str, value: Any) -> str:
    """The word with one argument set.

    >>> _with("enhanced:dropout=0.3:residual=False", "dropout", 0.1)
    'enhanced:residual=False:dropout=0.1'
    """
    parts = [part for part in word.split(":") if part.partition("=")[0].strip() != argument]
    return ":".join([*parts, f"{argument}={value}"])


@dataclass(frozen=True)
class Preset:
    """A recipe to start from, what to search, and how."""

    recipe: Recipe
    over: Mapping[str, str]
    by: str

    def with_words(self, words: Iterable[str]) -> dict[str, str]:
        """Its ranges, those of the words in the place of its own."""
        return {**self.over, **dict(_pair(word) for word in words)}


SPACES: Mapping[str, Preset] = {
    "table3": Preset(
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
"""Name -> a space; table3 is Table III of source papers 003 and 004, all 243 combinations, with their Adam."""
