"""The smallest change that breaks an answer: ``(classifier, images, labels, eps) -> images (B C H W)``.

Pixels are in [0, 1], and so is eps; the classifier normalises by itself. An attack is a frozen dataclass:
``PGD(steps=40)(classifier, images, labels, 8 / 255)``. It leaves no trace in the classifier.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ..choose import choose, suggest
from ..classifier import Classifier
from ..errors import ChoiceError
from .apgd import APGD
from .base import (
    BALLS,
    Attack,
    Ball,
    check_eps,
    check_norm,
    format_eps,
    is_correct,
    parse_eps,
    random_like,
    require_gradient,
)
from .gradient import FGSM, PGD, cross_entropy_loss, gradient_ascent, loss_gradient
from .noise import RandomNoise
from .rays import RayS
from .universal import Universal, UniversalPerturbation

ATTACKS: Mapping[str, Callable[..., Attack]] = {
    "noise": RandomNoise,
    "fgsm": FGSM,
    "pgd": PGD,
    "apgd": APGD,
    "rays": RayS,
    "universal": Universal,
}
"""Name -> the attack; its own arguments follow after colons: ``pgd:40:restarts=5``."""


def make_attack(by: str | Attack, **fields: Any) -> Attack:
    """The attack that a word names, with those ``fields`` of its own that are not None.

    >>> make_attack("pgd", steps=20, norm=None)
    PGD(steps=20, step=None, restarts=1, norm='linf', loss='cross-entropy', random_start=True, targeted=False, \
early_stop=True, seed=0)

    Raises ChoiceError for an unknown name, an impossible value, or a field that this attack does not have.
    """
    attack: Any = choose(ATTACKS, by, "attack")
    given = {name: value for name, value in fields.items() if value is not None}
    known = [field.name for field in dataclasses.fields(attack) if field.init]
    for name in given:
        if name not in known:
            raise ChoiceError(f"The attack {by} has no {name}. {suggest(name, known)}")
    try:
        return dataclasses.replace(attack, **given)
    except ValueError as error:
        raise ChoiceError(f"The attack {by} cannot be made: {error}.") from error


def find_attack(kind: str, *, norm: str = "linf", **fields: Any) -> Attack | None:
    """The family's first attack of a kind that knows the norm, with those of ``fields`` that it has; or None."""
    for name in ATTACKS:
        attack: Any = make_attack(name)
        settable = {field.name for field in dataclasses.fields(attack) if field.init}
        if attack.kind == kind and (attack.norm == norm or "norm" in settable):
            known = {key: value for key, value in {"norm": norm, **fields}.items() if key in settable}
            return make_attack(name, **known)
    return None


def default_attack(classifier: Classifier, **fields: Any) -> Attack:
    """The standard attack on a classifier: iterative where it has gradients, else by its answers alone."""
    attack = find_attack("iterative" if classifier.differentiable else "decision", **fields)
    assert attack is not None
    return attack
