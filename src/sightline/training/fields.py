"""Fields as a user gives them: which were set, what earlier releases called them, and words such as a time."""

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from ..choose import suggest
from ..errors import RecipeError

RENAMED_FIELDS: Mapping[str, str] = {
    "val": "val_fraction",
    "test": "test_fraction",
    "fit": "resize_mode",
    "filter": "interpolation",
    "mirrored": "flip_tta",
    "fair": "fairness_column",
    "fair_by": "fairness_method",
    "clip": "clip_grad",
    "accumulate": "grad_accum_steps",
    "start_size": "progressive_from",
    "ema": "ema_decay",
    "replicas": "cpu_replicas",
    "processes": "devices",
}
"""Old name of a field -> its name."""

RENAMED_VALUES: Mapping[tuple[str, str], str] = {("init", "own"): "default", ("normalize", "start"): "inherit"}
"""(field, old value) -> its value."""

RENAMED_ARGUMENTS: Mapping[str, Mapping[str, str]] = {"loss": {"ramp": "warmup_epochs"}}
"""Field -> old names of arguments in its word, and their names."""


SECONDS_PER_UNIT = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def current_fields(values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The values by today's names of their fields, which are among ``names``.

    Raises RecipeError for an unknown name, suggesting the right one, and for a field under both its names.
    """
    current: dict[str, Any] = {}
    for name, value in values.items():
        new = RENAMED_FIELDS.get(name, name)
        if new not in names:
            raise RecipeError(f"A recipe has no field '{name}'. {suggest(name, names)}")
        if new in current:
            raise RecipeError(f"'{name}' is the old name of '{new}': give only one of them.")
        if isinstance(value, str):
            value = RENAMED_VALUES.get((new, value), value)  # noqa: PLW2901
            for old, argument in RENAMED_ARGUMENTS.get(new, {}).items():
                value = value.replace(f":{old}=", f":{argument}=")  # noqa: PLW2901
        current[new] = value
    return current


class FieldsSet:
    """Keeps which fields of a frozen dataclass were set, if only to their default, through pickle and copy too.

    They are in a slot, so that ``vars`` has the fields alone; the constructor of a subclass fills it.
    """

    __slots__ = ("fields_set",)

    fields_set: frozenset[str]

    def __getstate__(self) -> tuple[dict[str, Any], frozenset[str]]:
        return vars(self), self.fields_set

    def __setstate__(self, state: tuple[dict[str, Any], frozenset[str]]) -> None:
        vars(self).update(state[0])
        object.__setattr__(self, "fields_set", state[1])


def parse_window(text: str | None) -> tuple[float, float] | None:
    """The two values of '0:4095'; None for None and for nonsense.

    >>> parse_window("0:4095")
    (0.0, 4095.0)
    """
    try:
        low, high = map(float, str(text).split(":"))
    except ValueError:
        return None
    return (low, high) if -1e9 < low < high < 1e9 else None


def parse_duration(budget: str) -> float:
    """Seconds in '90s', '10m', '1.5h' or a plain number of seconds.

    >>> parse_duration("1.5m")
    90.0
    """
    match = re.fullmatch(r"\s*([0-9.]+)\s*([smhd]?)\s*", str(budget))
    try:
        amount = float(match[1]) * SECONDS_PER_UNIT[match[2] or "s"] if match else 0.0
    except ValueError:
        amount = 0.0
    if amount <= 0 or not math.isfinite(amount):
        raise RecipeError(f"The recipe's budget is {budget!r}: write a time such as 90s, 10m or 2h.")
    return amount
