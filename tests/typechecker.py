"""The run-time type checker of the tests: beartype, with an int allowed where a float is asked for (PEP 484)."""

import dataclasses
import functools

from beartype import BeartypeConf, beartype

_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function):
    """Check the arguments and the result of a function, but not those of constructors with checks of their own.

    A constructor that is written by hand, or a data class with a ``__post_init__``, validates its arguments: its
    errors are written for users, and tests must see them. Plain data classes are checked.
    """
    checked = _beartype(function)
    if getattr(function, "__name__", "") != "__init__":
        return checked

    @functools.wraps(function)
    def check_constructor(self, *args, **kwargs):
        if dataclasses.is_dataclass(self) and not hasattr(self, "__post_init__"):
            checked(self, *args, **kwargs)

    return check_constructor
