"""The family of objectives, and how a recipe's words make one of it.

To add an objective, write it in its file and add one line here.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..choose import choose, suggest
from ..errors import ChoiceError, RecipeError
from .adversarial import FastAdversarial, PGDAdversarial, Trades
from .losses import (
    M3CE,
    MCE,
    CrossEntropy,
    Focal,
    LargeMarginMCE,
    M3CECEc,
    M3CECEcNormalised,
    Objective,
)
from .metric_losses import ArcFace, Contrastive, CosFace, SupCon, Triplet
from .recipe import Recipe

OBJECTIVES: Mapping[str, Callable[..., Objective]] = {
    "cross-entropy": CrossEntropy,
    "focal": Focal,
    "m3ce": M3CE,
    "m3ce-cec": M3CECEc,
    "m3ce-cec-normalised": M3CECEcNormalised,
    "mce": MCE,
    "large-margin-mce": LargeMarginMCE,
    "contrastive": Contrastive,
    "triplet": Triplet,
    "supcon": SupCon,
    "cosface": CosFace,
    "arcface": ArcFace,
    "adversarial": PGDAdversarial,
    "fast-adversarial": FastAdversarial,
    "trades": Trades,
}
"""The words of ``loss``, with arguments after colons: ``focal:gamma=3``."""


def parse_objective(recipe: Recipe) -> Objective:
    """The recipe's loss without class weights; RecipeError where it takes no field that the recipe sets."""
    own = {"label_smoothing": recipe.label_smoothing or None, "weight": recipe.loss_weight}
    own = {name: value for name, value in own.items() if value is not None}
    weighed = {} if recipe.class_weights == "none" else {"class_weights": None}
    fields = {"weight": "loss_weight"}

    def make(name: str, *words: Any, **named: Any) -> Objective:
        takes = inspect.signature(OBJECTIVES[name]).parameters
        for argument in named:
            if argument not in takes:
                raise ChoiceError(f"The loss '{name}' has no argument '{argument}'. {suggest(argument, takes)}")
        for argument in {**own, **weighed}:
            if argument not in takes:
                able = [n for n, each in OBJECTIVES.items() if argument in inspect.signature(each).parameters]
                raise RecipeError(
                    f"The loss {name} has no use for {fields.get(argument, argument)}: leave it out, or choose one of "
                    f"{', '.join(able)}."
                )
        return OBJECTIVES[name](*words, **own, **named)

    return choose({name: partial(make, name) for name in OBJECTIVES}, recipe.loss, "loss")
