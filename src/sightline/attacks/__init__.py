"""The smallest change that breaks an answer: ``(classifier, images, labels, eps) -> images (B C H W)``.

Pixels are in [0, 1] and eps is in pixels; normalisation is the classifier's own affair. An attack is a frozen
value: ``PGD(steps=40)(classifier, images, labels, 8 / 255)``. It leaves no trace in the classifier.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ..choose import choose, suggest
from ..errors import ChoiceError
from .apgd import APGD
from .base import BALLS, Attack, Ball, check_eps, check_norm, format_eps, parse_eps, random_like
from .gradient import FGSM, PGD, gradient_ascent, loss_gradient
from .losses import cross_entropy_loss, is_correct, require_gradient
from .noise import RandomNoise
from .rays import RayS
from .universal import Universal, UniversalPerturbation

__all__ = [
    "APGD",
    "ATTACKS",
    "BALLS",
    "FGSM",
    "PGD",
    "Attack",
    "Ball",
    "RandomNoise",
    "RayS",
    "Universal",
    "UniversalPerturbation",
    "check_eps",
    "check_norm",
    "cross_entropy_loss",
    "format_eps",
    "gradient_ascent",
    "is_correct",
    "loss_gradient",
    "make_attack",
    "parse_eps",
    "random_like",
    "require_gradient",
]


ATTACKS: Mapping[str, Callable[..., Attack]] = {
    "noise": RandomNoise,
    "fgsm": FGSM,
    "pgd": PGD,
    "apgd": APGD,
    "rays": RayS,
    "universal": Universal,
}
"""Name -> the attack, its own arguments after colons: ``pgd:40:restarts=5``."""


def make_attack(by: str | Attack, **fields: Any) -> Attack:
    """The attack a word names, with these fields of its own where they are not None: ``attack_of("pgd",
    steps=20)``.

    Raises ChoiceError for a name nobody knows, a value that cannot be, or a field this attack has not.
    """
    made: Any = choose(ATTACKS, by, "attack")
    given = {name: value for name, value in fields.items() if value is not None}
    known = [field.name for field in dataclasses.fields(made)]
    for name in given:
        if name not in known:
            raise ChoiceError(f"The attack {by} has no {name}. {suggest(name, known)}")
    try:
        return dataclasses.replace(made, **given)
    except ValueError as error:
        raise ChoiceError(f"The attack {by} cannot be made: {error}.") from error
