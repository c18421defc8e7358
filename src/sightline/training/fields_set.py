"""Which fields of a frozen dataclass were set by somebody, if only to their default."""

from typing import Any


class FieldsSet:
    """Keeps the names of the fields that were set, through pickle and copy too.

    They are in a slot, so that ``vars`` has the fields alone; the constructor of a subclass fills it.
    """

    __slots__ = ("fields_set",)

    fields_set: frozenset[str]

    def __getstate__(self) -> tuple[dict[str, Any], frozenset[str]]:
        return vars(self), self.fields_set

    def __setstate__(self, state: tuple[dict[str, Any], frozenset[str]]) -> None:
        vars(self).update(state[0])
        object.__setattr__(self, "fields_set", state[1])
