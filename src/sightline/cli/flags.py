"""Flags made from the fields of Recipe: one home for each name, help text and group."""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from ..choose import lookup
from ..errors import RecipeError
from ..training import PRESETS, Recipe, field_descriptions

SHOW_ALL_FLAGS = "--help-all" in sys.argv
"""Whether help shows all flags, not only the dozen most used."""

_GROUPS = ("Data", "Pixels", "Model", "Training", "Machine")


def _make_flags(name: str, *without: str) -> Any:
    """A dataclass with the fields of Recipe, except those named, as flags."""
    flags: list[tuple[str, Any, Any]] = []
    for f in dataclasses.fields(Recipe):
        default = "" if f.default is None or f.default == () else f" [{f.default}]"
        parameter = Parameter(
            help=" ".join(field_descriptions()[f.name].split()) + default,
            group=Group(f.metadata["group"], sort_key=10 + _GROUPS.index(f.metadata["group"])),
            show=f.metadata["common"] or SHOW_ALL_FLAGS,
            consume_multiple=f.name == "augment" or None,
            negative=(),
        )
        kind: Any = f.type
        if f.name not in without:
            flags.append((f.name, Annotated[kind | None, parameter], None))
    return dataclasses.make_dataclass(
        name,
        flags,
        frozen=True,
        kw_only=True,
        # Without a module cyclopts would take it for a class of the standard library and make no flags.
        namespace={"__module__": __name__},
    )


RecipeFlags = _make_flags("RecipeFlags", "data")
"""Every field of Recipe except `data`; None if the flag was not given."""

LABEL_FIELDS = ("path_column", "label_column", "label_pattern")
LabelFlags = _make_flags("LabelFlags", *(f.name for f in dataclasses.fields(Recipe) if f.name not in LABEL_FIELDS))
"""Where the labels of DATA stand, for verbs without the other fields of Recipe."""
NO_LABEL_FLAGS = LabelFlags()

if TYPE_CHECKING:
    Labels = Any  # the dataclass is made at run time, from Recipe
else:
    Labels = Annotated[LabelFlags, Parameter(name="*")]

SharedFlags = _make_flags("SharedFlags", "data", "model")
"""Fields that the networks of a comparison share: --models names each network."""


def recipe_from_flags(flags: object, file: str | None, preset: str | None = None) -> Recipe:
    """Flags over the recipe file or the preset over the defaults."""
    if file and preset:
        raise RecipeError("--recipe and --preset both give the recipe to start from: use one of them.")
    base = lookup(PRESETS, preset, "preset")() if preset else Recipe.from_toml(Path(file)) if file else Recipe()
    return base.replace(**{name: value for name, value in vars(flags).items() if value is not None})
