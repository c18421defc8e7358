"""What compression cost is learnt again: norms are measured anew, then a short training; kept where it helps."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .. import runtime
from ..classifier import Classifier
from ..data import iterate_batches
from ..ensembles import update_bn
from ..errors import Interrupted
from ..inference import predict_logits, validate
from ..training import (
    AdversarialLoss,
    Objective,
    Recipe,
    RunFolder,
    autotune,
    build_method,
    defaults,
    fit_temperature,
    refine,
)
from ..types import Splits

FINE_TUNING_SHARE, MIN_FINE_TUNING_EPOCHS, MAX_FINE_TUNING_EPOCHS = 0.25, 2, 10
"""A healing takes this share of the epochs that the classifier was trained for, so many at least and at most."""

DEFAULT_FINE_TUNING_EPOCHS = 4
"""Epochs of a healing where nobody knows how long the classifier was trained."""

FINE_TUNING_LR_FACTOR = 0.2
"""A healing's peak learning rate, over that of the training before it: the network knows its task already."""

STUDENT_CLIP_GRAD = 1.0
"""Longest gradient of a fresh network that learns from a teacher, unless the original had a bound of its own:
softened answers pull up to T times as hard as labels, which throws a network without norms out of its training."""

INT8_TRAINING: Mapping[str, Any] = {
    "precision": "float32",
    "memory_format": "contiguous",
    "replicas": 1,
    "weight_decay": 0.0,
}
"""How int8 is trained through its rounding: in plain arithmetic, and nothing pulls its gains to zero."""


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """How a compressed classifier is trained on; what is None follows from the recipe of the original."""

    epochs: int | None = None
    """Of each healing, and of the training of a distilled network; 0 heals nothing but norms."""
    lr: float | None = None
    seed: int = 0

    def fine_tuning_recipe(self, recipe: Recipe) -> Recipe:
        """The training of a network that knows its task and lost a little: few epochs at a low rate."""
        assert recipe.lr is not None
        few = (
            min(MAX_FINE_TUNING_EPOCHS, max(MIN_FINE_TUNING_EPOCHS, math.ceil(FINE_TUNING_SHARE * recipe.epochs)))
            if recipe.epochs
            else DEFAULT_FINE_TUNING_EPOCHS
        )
        usual = (
            recipe.lr
            * FINE_TUNING_LR_FACTOR
            / (defaults.LINEAR_PROBE_LR_FACTOR if recipe.freeze == "backbone" else 1)
        )
        epochs = few if self.epochs is None else self.epochs
        lr = float(f"{usual:.4g}") if self.lr is None else self.lr
        return self._base_recipe(recipe).replace(epochs=epochs, lr=lr)

    def full_training_recipe(self, recipe: Recipe, model: str, images: int) -> Recipe:
        """The training of a fresh network ``model``; epochs are None where they follow from the budget."""
        plain = self._base_recipe(recipe).replace(
            model=model,
            lr=self.lr,
            epochs=self.epochs or recipe.epochs or None,
            clip=recipe.clip or STUDENT_CLIP_GRAD,
        )
        chosen = {choice.field: choice.value for choice in defaults.default_network(plain, train_images=images)}
        return plain.replace(lr=chosen.get("lr", self.lr))

    def _base_recipe(self, recipe: Recipe) -> Recipe:
        """The recipe without what belongs to how the original began; its images stay split as they are."""
        return recipe.replace(
            weights=None,
            normalize=None if recipe.normalize == "start" else recipe.normalize,
            freeze="none",
            layer_decay=1.0,
            start_size=None,
            ema=0.0,
            patience=0,
            processes=1,
            split_seed=recipe.data_seed,
            seed=self.seed,
        )


@dataclass(frozen=True)
class FineTuned:
    """A classifier after its healing, and what that took."""

    classifier: Classifier
    facts: Mapping[str, Any]
    """As ``training.json`` holds them."""
    notes: tuple[str, ...] = ()


def recalibrate_norms(classifier: Classifier, splits: Splits) -> tuple[Classifier, bool]:
    """A copy whose norms are measured anew on training images, where that lowers the loss on validation."""
    anew = copy.deepcopy(classifier)
    better = update_bn(anew, splits.train) and (
        validate(anew, splits.val)[0] < validate(classifier, splits.val)[0]
    )
    return (anew, True) if better else (copy.deepcopy(classifier), False)


def fine_tune(
    classifier: Classifier,
    splits: Splits,
    recipe: Recipe,
    folder: RunFolder,
    *,
    objective: Objective,
    fresh: bool = False,
) -> FineTuned:
    """Heal a copy of ``classifier``: its norms, then ``refine`` by a complete recipe; the better one is kept.

    ``fresh`` is for a network that knows nothing yet: what training gives is kept. ``folder`` holds the
    checkpoint; an interrupted healing goes on from it. The temperature is fitted on validation either way.
    """
    start, anew = (copy.deepcopy(classifier), False) if fresh else recalibrate_norms(classifier, splits)
    notes = ("The statistics of its norms were measured anew.",) if anew else ()
    if not recipe.epochs:
        return fit_temperature_only(start, splits, notes)
    before = validation_score(start, splits, objective)
    trained = copy.deepcopy(start)
    facts = refine_or_resume(trained, splits, recipe, folder, objective)
    if fresh or validation_score(trained, splits, objective) >= before:
        return FineTuned(trained, facts, notes)
    worse = "Training on made it no better on validation, so it is kept as it was before."
    kept = fit_temperature_only(start, splits, (*notes, worse))
    return FineTuned(kept.classifier, {**facts, **kept.facts, "seconds": facts["seconds"]}, kept.notes)


def fit_temperature_only(classifier: Classifier, splits: Splits, notes: tuple[str, ...] = ()) -> FineTuned:
    """The classifier with its temperature fitted on validation, and the facts of a training that was none."""
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
    """Accuracy on validation, then low loss, as the epochs of a training are compared."""
    asked = objective.validate if isinstance(objective, AdversarialLoss) else validate
    loss, accuracy = asked(classifier, splits.val)
    return accuracy, -loss


def refine_or_resume(
    classifier: Classifier, splits: Splits, recipe: Recipe, folder: RunFolder, objective: Objective
) -> dict[str, Any]:
    """Train in place; goes on where a checkpoint is."""
    autotune.to_memory_format(classifier, recipe.memory_format or "contiguous")
    method = build_method(recipe, splits, classifier.device, objective)
    try:
        return refine(classifier, recipe, splits, method, folder, resume=folder.checkpoint.is_file())
    except Interrupted as error:
        raise Interrupted("Stopped; nothing is lost. Give the same command again to go on.") from error


def with_execution_plan(recipe: Recipe, classifier: Classifier, splits: Splits, objective: Objective) -> Recipe:
    """The recipe with precision, layout and replicas that are fast here, and epochs that fit its budget if open.

    What the original was trained in is kept; where it was not trained by us, or nobody knows, it is measured.
    """
    assert recipe.batch_size is not None
    if recipe.epochs == 0 or (recipe.epochs is not None and autotune.has_execution_mode(recipe)):
        return autotune.with_default_execution(recipe)
    first = next(iter(iterate_batches(splits.train, recipe.batch_size, device=classifier.device)))
    measured = autotune.measure_throughput(classifier, recipe, objective, first)
    if recipe.epochs is None:
        rate = measured.images_per_second
        recipe = recipe.replace(
            epochs=defaults.default_epochs(recipe, train_images=len(splits.train), images_per_second=rate).value
        )
    return measured.mode.apply_to(recipe)
