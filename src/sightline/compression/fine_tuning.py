"""Fine-tuning after compression: norms are recalibrated, then a short training follows; kept where it helps."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .. import runtime
from ..classifier import Classifier
from ..ensembles import recalibrate_norms
from ..errors import Interrupted
from ..inference import predict_logits
from ..training import (
    INHERIT,
    LINEAR_PROBE_LR_FACTOR,
    PRETRAINED,
    Objective,
    Recipe,
    RunFolder,
    build_method,
    choose_execution,
    default_network,
    fit_temperature,
    refine,
    resolve,
    to_memory_format,
)
from ..types import Splits

FINE_TUNING_SHARE, MIN_FINE_TUNING_EPOCHS, MAX_FINE_TUNING_EPOCHS = 0.25, 2, 10
"""Share of the original's epochs that a fine-tuning takes, and its limits in epochs."""

DEFAULT_FINE_TUNING_EPOCHS = 4
"""Epochs of a fine-tuning where the original's epochs are unknown."""

FINE_TUNING_LR_FACTOR = 0.2
"""Peak learning rate of a fine-tuning, as a multiple of the original training's."""

STUDENT_CLIP_GRAD = 1.0
"""Maximum gradient norm of a student, unless the original had a limit of its own: softened answers pull up to T
times as hard as labels, which makes the training of a network without norms diverge."""


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """How a compressed classifier is trained; None takes the value from the original's recipe."""

    epochs: int | None = None
    """Epochs of each fine-tuning, and of a student's training; 0 recalibrates norms only."""
    lr: float | None = None
    """Peak learning rate."""
    seed: int = 0

    def fine_tuning_recipe(self, recipe: Recipe) -> Recipe:
        """A short training at a low rate, for a network that lost a little; ``recipe`` is the original's."""
        assert recipe.lr is not None
        epochs, lr = DEFAULT_FINE_TUNING_EPOCHS, recipe.lr * FINE_TUNING_LR_FACTOR
        if recipe.epochs:
            share = math.ceil(FINE_TUNING_SHARE * recipe.epochs)
            epochs = min(MAX_FINE_TUNING_EPOCHS, max(MIN_FINE_TUNING_EPOCHS, share))
        if recipe.freeze == "backbone":
            lr /= LINEAR_PROBE_LR_FACTOR
        return self._base_recipe(recipe).replace(
            epochs=epochs if self.epochs is None else self.epochs,
            lr=float(f"{lr:.4g}") if self.lr is None else self.lr,
        )

    def full_training_recipe(self, recipe: Recipe, model: str, images: int) -> Recipe:
        """A whole training of a fresh network; epochs are None where the budget sets them."""
        base = self._base_recipe(recipe).replace(
            model=model,
            quality=None,
            freeze_norms=False,
            normalize=None if recipe.normalize in (INHERIT, PRETRAINED) else recipe.normalize,
            lr=self.lr,
            epochs=self.epochs or recipe.epochs or None,
            clip_grad=recipe.clip_grad or STUDENT_CLIP_GRAD,
        )
        chosen = {choice.field: choice.value for choice in default_network(resolve(base), train_images=images)}
        return base.replace(lr=chosen.get("lr", self.lr))

    def _base_recipe(self, recipe: Recipe) -> Recipe:
        """The original's recipe, without how its training began and with the same split."""
        base = recipe.replace(
            weights=None,
            normalize=None if recipe.normalize == INHERIT else recipe.normalize,
            method="gradient",
            freeze="none",
            layer_decay=1.0,
            progressive_from=None,
            ema_decay=0.0,
            patience=0,
            devices=1,
            split_seed=recipe.data_seed,
            seed=self.seed,
        )
        if recipe.epochs:
            return base
        # Not trained by us: the fastest precision, memory format and replicas are not known yet.
        return base.replace(precision=None, memory_format=None, cpu_replicas=None)


@dataclass(frozen=True)
class FineTuned:
    """A fine-tuned classifier and the facts of its training."""

    classifier: Classifier
    facts: Mapping[str, Any]
    """The values of ``training.json``."""
    notes: tuple[str, ...] = ()


def fine_tune(
    classifier: Classifier,
    splits: Splits,
    recipe: Recipe,
    folder: RunFolder,
    *,
    objective: Objective,
    fresh: bool = False,
) -> FineTuned:
    """Recalibrate the norms of a copy, train it with ``refine``, and return the better of before and after.

    ``recipe`` must be complete; with 0 epochs only norms and temperature change. ``folder`` holds the checkpoint,
    from which an interrupted training continues. With ``fresh`` (new weights) norms are left alone and the trained
    network is returned in any case. The temperature is fitted on the validation images.
    """
    start, recalibrated = (copy.deepcopy(classifier), False) if fresh else recalibrate_norms(classifier, splits)
    notes = ("The statistics of its batch norms were re-estimated.",) if recalibrated else ()
    if not recipe.epochs:
        return fit_temperature_only(start, splits, notes)
    before = validation_score(start, splits, objective)
    trained = to_memory_format(copy.deepcopy(start), recipe.memory_format or "contiguous")
    plan = resolve(recipe, objective=objective)
    method = build_method(plan, splits, trained.device)
    try:
        facts = refine(trained, plan, splits, method, folder, resume=folder.checkpoint.is_file())
    except Interrupted as error:
        raise Interrupted("Stopped; nothing is lost. Repeat the same command to continue.") from error
    if fresh or validation_score(trained, splits, objective) >= before:
        return FineTuned(trained, facts, notes)
    worse = "Fine-tuning lowered its accuracy on validation, so it is kept as it was before."
    kept = fit_temperature_only(start, splits, (*notes, worse))
    return FineTuned(kept.classifier, {**facts, **kept.facts, "seconds": facts["seconds"]}, kept.notes)


def fit_temperature_only(classifier: Classifier, splits: Splits, notes: tuple[str, ...] = ()) -> FineTuned:
    """Fit the temperature on validation, in place; the facts are those of a training of 0 epochs."""
    logits, labels = predict_logits(classifier, splits.val)
    classifier.temperature = round(fit_temperature(logits, labels), 6)
    facts = {
        "epochs": 0,
        "best_epoch": 0,
        "stopped_early": None,
        "seconds": 0.0,
        "images_per_second": None,
        "peak_memory_mb": round(runtime.peak_memory_mb(), 1),
        "temperature": classifier.temperature,
        "val_accuracy": float((logits.argmax(1) == labels).double().mean()),
    }
    return FineTuned(classifier, facts, notes)


def validation_score(classifier: Classifier, splits: Splits, objective: Objective) -> tuple[float, float]:
    """(validation accuracy, minus validation loss): the order in which training compares epochs."""
    loss, accuracy = objective.validate(classifier, splits.val)
    return accuracy, -loss


def with_execution_plan(recipe: Recipe, classifier: Classifier, splits: Splits, objective: Objective) -> Recipe:
    """Fill in precision, memory format and replicas, and epochs that fit the budget where they are None.

    The original's values are kept; what it does not say is measured on one batch.
    """
    plan, _ = choose_execution(resolve(recipe, objective=objective), classifier, splits.train)
    return plan.recipe
