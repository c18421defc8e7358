"""Fields as a user gives them: which were set, and what names of earlier releases are called today."""

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
