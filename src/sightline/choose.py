"""Members of a family by name, with arguments: what makes ``by="pgd"`` work everywhere.

The arguments follow the name after colons, positional or by name, so that a shell needs no quotes: ``shift:4``,
``rotate:degrees=10``, ``affine:10:scale=0.1``.
"""

import ast
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from .errors import ChoiceError

_Member = TypeVar("_Member")


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known name, or all names.

    >>> suggest("resnet2", ["resnet20", "lenet5"])
    "Did you mean 'resnet20'?"
    >>> suggest("vit", ["resnet20", "lenet5"])
    'Choose one of: lenet5, resnet20.'
    """
    known = sorted(known)
    if not known:
        return "It takes none."
    near = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean '{near[0]}'?" if near else f"Choose one of: {', '.join(known)}."


def lookup(family: Mapping[str, _Member], name: str, what: str) -> _Member:
    """The member called ``name``; raises ChoiceError with a suggestion.

    ``what`` names the family in the message: "model", "augmentation", ...
    """
    if name not in family:
        raise ChoiceError(f"There is no {what} called '{name}'. {suggest(name, family)}")
    return family[name]


def choose(family: Mapping[str, Callable[..., _Member]], by: str | _Member, what: str) -> _Member:
    """``by`` itself if it is an object; otherwise the member of that name, built with its arguments.

    >>> choose({"step": lambda every, gamma=0.1: (every, gamma)}, "step:30:gamma=0.5", "schedule")
    (30, 0.5)
    """
    if not isinstance(by, str):
        return by
    name, *words = by.strip().split(":")
    make = lookup(family, name, what)
    positional = [_parse_literal(word) for word in words if "=" not in word]
    named = {key: _parse_literal(value) for key, _, value in (w.partition("=") for w in words if "=" in w)}
    takes = inspect.signature(make).parameters.values()
    if all(one.kind is not inspect.Parameter.VAR_KEYWORD for one in takes):  # else it checks its own
        known = [one.name for one in takes if one.kind is not inspect.Parameter.VAR_POSITIONAL]
        for argument in named:
            if argument not in known:
                raise ChoiceError(f"The {what} '{name}' has no argument '{argument}'. {suggest(argument, known)}")
    try:
        inspect.signature(make).bind(*positional, **named)  # its error names none of our classes
        return make(*positional, **named)
    except (TypeError, ValueError) as error:
        raise ChoiceError(f"The {what} '{by}' cannot be made: {error}.") from error


def _parse_literal(word: str) -> Any:
    """The number (8/255 is one), tuple or boolean that the word writes; otherwise the word itself."""
    above, slash, below = word.partition("/")
    parts = (_parse_literal(above), _parse_literal(below)) if slash else ()
    if parts and all(isinstance(part, int | float) for part in parts) and parts[1]:
        return parts[0] / parts[1]
    try:
        return ast.literal_eval(word)
    except (ValueError, SyntaxError):
        return word
