"""Which learning rate to begin with: the range test of Smith (2015, arXiv 1506.01186, section 3.3)."""

import copy
import math
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path

import numpy as np

from .. import runtime
from ..classifier import Classifier
from ..errors import TrainingError
from ..types import Findings, Remark
from . import autotune
from .freezing import Freezer
from .gradients import build_gradients
from .optimizers import build_optimizer
from .plan import build_classifier, build_method, build_objective, validate_recipe
from .recipe import Recipe
from .refinement import Method
from .run import prepare

LOSS_SMOOTHING = 0.9
"""Share of the running mean that a step keeps."""

DIVERGENCE_FACTOR = 4.0
"""The test ends where the loss is so many times its lowest."""


@dataclass(frozen=True)
class LRFinderResult:
    """Learning rates tried, rising by a constant factor, and the loss at each."""

    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    """Smoothed training losses."""
    suggestion: float
    """The rate at which the loss falls fastest per doubling of the rate."""

    def findings(self) -> Findings:
        """For JSON and people."""
        text = (
            f"The loss falls fastest at a rate of {self.suggestion:g}: for a peak, try from there up to "
            f"the rate of the lowest loss, {self.lrs[int(np.argmin(self.losses))]:g} (--lr)."
        )
        values = {"suggestion": self.suggestion, "rates": self.lrs, "losses": self.losses}
        return Findings("learning rate", values, (Remark("note", text),))


def find_lr(data: str | Path | None, recipe: Recipe | None = None, *, device: str = "auto") -> LRFinderResult:
    """``run_lr_range_test`` for a recipe that is not yet resolved; nothing is kept but the decoded images.

    Raises as ``train`` does.
    """
    recipe = (recipe or Recipe()).replace(data=None if data is None else str(data))
    validate_recipe(recipe)
    recipe, splits, _ = prepare(recipe)
    recipe = autotune.with_default_execution(recipe)
    where = runtime.resolve_device(device)
    classifier, _ = build_classifier(recipe, splits, where)
    objective = build_objective(recipe, splits.train.counts)
    return run_lr_range_test(classifier, recipe, build_method(recipe, splits, where, objective))


def run_lr_range_test(
    classifier: Classifier,
    recipe: Recipe,
    method: Method,
    *,
    low: float = 1e-5,
    high: float = 10.0,
    steps: int = 100,
) -> LRFinderResult:
    """Train a copy for at most ``steps`` steps while the rate rises from ``low`` to ``high``, exponentially.

    The classifier itself is left as it is. Raises TrainingError where not even the lowest rates give a loss.
    """
    own = autotune.to_memory_format(copy.deepcopy(classifier), recipe.memory_format or "contiguous").train()
    moves = build_optimizer(own, recipe.replace(lr=low))
    Freezer(own, recipe)(autotune.ALL_UNFROZEN)
    worked = build_gradients(own, bfloat16=recipe.precision == "bfloat16", pieces=recipe.accumulate)
    rates, losses, running = [], [], 0.0
    endless = chain.from_iterable(method.batches(epoch, 0) for epoch in count())
    for step, batch in enumerate(islice(endless, steps)):
        rate = low * (high / low) ** (step / max(steps - 1, 1))
        for group in moves.param_groups:
            group["lr"] = rate * group["lr_factor"]
        loss = float(worked(method.objective, batch))
        moves.step()
        moves.zero_grad(set_to_none=True)
        running = LOSS_SMOOTHING * running + (1 - LOSS_SMOOTHING) * loss
        smooth = running / (1 - LOSS_SMOOTHING ** (step + 1))
        if not math.isfinite(loss) or (losses and smooth > DIVERGENCE_FACTOR * min(losses)):
            break
        rates.append(rate)
        losses.append(smooth)
    if len(losses) < 5:
        raise TrainingError("The loss is not finite even at tiny learning rates: check images, weights and loss.")
    return LRFinderResult(tuple(rates), tuple(losses), _find_steepest_lr(rates, losses))


def _find_steepest_lr(rates: list[float], losses: list[float]) -> float:
    """Where the loss falls fastest per factor of the rate, before its lowest point, looked at over some steps.

    The first steps are left out: their mean is that of a few batches.
    """
    width = max(2, len(losses) // 12)
    lowest = max(int(np.argmin(losses)), 3 * width)
    falls = [losses[i + width] - losses[i - width] for i in range(2 * width, min(lowest, len(losses) - width))]
    middle = 2 * width + int(np.argmin(falls)) if falls else len(losses) // 2
    return float(f"{rates[middle]:.1e}")
