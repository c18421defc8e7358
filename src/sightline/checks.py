"""Checks of arguments: each error names the argument, the values it accepts and the value it got.

A check returns the value. It raises ValueError, which ``choose`` turns into a ChoiceError for a member named by a
user, or the ``error`` that its caller names. True and False are not numbers.
"""

import math
from collections.abc import Collection
from typing import Any, TypeGuard

from .choose import suggest
from .errors import SightlineError


def is_int(value: object) -> TypeGuard[int]:
    """Whether ``value`` is a whole number of type int; True and False are not.

    >>> is_int(3), is_int(3.0), is_int(True)
    (True, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Whether ``value`` is an int or a float; True and False are not, infinity and NaN are."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_int(
    name: str,
    value: object,
    least: int | None = None,
    most: int | None = None,
    *,
    error: type[Exception] = ValueError,
) -> int:
    """``value`` if it is a whole number from ``least`` to ``most``, both included; raises ``error`` otherwise.

    >>> check_int("steps", 2.5, 1)
    Traceback (most recent call last):
    ValueError: steps must be a whole number of at least 1, not 2.5
    """
    if not is_int(value) or (least is not None and value < least) or (most is not None and value > most):
        raise _failure(error, f"{name} must be a whole number{_describe_range(least, most)}, not {value!r}")
    return value


def check_number(
    name: str,
    value: object,
    least: float | None = None,
    most: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
    error: type[Exception] = ValueError,
) -> float:
    """``value`` if it is a finite number in the range; raises ``error`` otherwise.

    ``least`` and ``most`` are included in the range, ``above`` and ``below`` are not.

    >>> check_number("beta", 1, 0, below=1)
    Traceback (most recent call last):
    ValueError: beta must be a number of at least 0 and below 1, not 1
    """
    if (
        not is_number(value)
        or not math.isfinite(value)
        or (least is not None and value < least)
        or (most is not None and value > most)
        or (above is not None and value <= above)
        or (below is not None and value >= below)
    ):
        wanted = _describe_range(least, most, above, below)
        raise _failure(error, f"{name} must be a number{wanted}, not {value!r}")
    return value


def check_positive(
    name: str, value: object, most: float | None = None, *, error: type[Exception] = ValueError
) -> float:
    """``value`` if it is a finite number above 0 and at most ``most``; raises ``error`` otherwise."""
    return check_number(name, value, above=0, most=most, error=error)


def check_choice(name: str, value: Any, choices: Collection[Any]) -> Any:
    """``value`` if it is one of ``choices``; else ValueError with the nearest of them.

    >>> check_choice("fill", "egde", ["zero", "edge"])
    Traceback (most recent call last):
    ValueError: fill must be one of zero, edge, not 'egde'. Did you mean 'edge'?
    """
    if value in choices:
        return value
    words = [str(choice) for choice in choices]
    hint = suggest(str(value), words)
    near = f". {hint}" if hint.startswith("Did") else ""
    raise ValueError(f"{name} must be one of {', '.join(words)}, not {value!r}{near}")


def _describe_range(
    least: float | None, most: float | None, above: float | None = None, below: float | None = None
) -> str:
    """The range as the end of a phrase: `` from 0 to 1``, `` above 0 and at most 16``; nothing without bounds."""
    if least is not None and most is not None:
        return f" from {_format(least)} to {_format(most)}"
    bounds = (("of at least", least), ("above", above), ("at most", most), ("below", below))
    known = [f"{words} {_format(bound)}" for words, bound in bounds if bound is not None]
    return " " + " and ".join(known) if known else ""


def _format(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


def _failure(error: type[Exception], text: str) -> Exception:
    """The error with its text: a clause for ValueError, a sentence for an error that users read."""
    return error(text + "." if issubclass(error, SightlineError) else text)
