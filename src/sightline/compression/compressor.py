"""What a compressor is, the run or bundle it is applied to, and the fine-tuning that follows it."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from .. import runtime
from ..classifier import Classifier
from ..ensembles import recalibrate_norms
from ..errors import DataError, Interrupted
from ..inference import predict_logits
from ..models import NETWORKS
from ..runs import open_moved_run, open_run, trained_on
from ..sources import absolute_place
from ..training import (
    INHERIT,
    LINEAR_PROBE_LR_FACTOR,
    PRETRAINED,
    Objective,
    Recipe,
    RunFolder,
    architecture_word,
    build_method,
    choose_execution,
    default_network,
    fit_temperature,
    prepare,
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
        return base.replace(precision=None, memory_format=None, cpu_replicas=None, fused_kernels=None)


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
    if not len(splits.val):
        raise DataError(
            "This run has no validation images to judge fine-tuning by: use --epochs 0, or train with --val-fraction."
        )
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
    """Fit the temperature on validation, if any, in place; the facts are those of a training of 0 epochs."""
    accuracy = None
    if len(splits.val):
        logits, labels = predict_logits(classifier, splits.val)
        classifier.temperature = round(fit_temperature(logits, labels), 6)
        accuracy = float((logits.argmax(1) == labels).double().mean())
    facts = {
        "epochs": 0,
        "best_epoch": 0,
        "stopped_early": None,
        "seconds": 0.0,
        "images_per_second": None,
        "peak_memory_mb": round(runtime.peak_memory_mb(), 1),
        "temperature": classifier.temperature,
        "val_accuracy": accuracy,
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


@dataclass(frozen=True, eq=False)
class Original:
    """The classifier to compress, with the images it is fine-tuned and tested on."""

    folder: Path
    """The run or bundle, as the user named it."""
    classifier: Classifier
    recipe: Recipe
    splits: Splits
    notes: tuple[str, ...] = ()


class Compressor(ABC):
    """A change that makes a smaller classifier: ``(classifier, splits) -> classifier``.

    A member is usually a frozen dataclass whose fields are the arguments of its word, as in ``channels:0.4``. It
    must define ``__call__``; what the pipeline asks besides (how to train the result, by which objective, whether
    it can be made stronger) has defaults here. One line in ``COMPRESSORS`` makes it a word of ``--by``.
    """

    fresh: ClassVar[bool] = False
    """Whether the result has new weights instead of the original's: such a compressor comes first, its training is
    kept in any case, and the result has no ancestors."""

    @property
    def name(self) -> str:
        """Its word in ``COMPRESSORS``; the class name in lower case unless overridden."""
        return type(self).__name__.lower()

    @abstractmethod
    def __call__(self, classifier: Classifier, data: Splits, /) -> Classifier:
        """Return a smaller classifier and leave the given one unchanged; it may look at training images."""

    def training(self, original: Original, settings: FineTuning) -> Recipe:
        """The recipe that trains the result, of 0 epochs for none. Default: a short fine-tuning."""
        return settings.fine_tuning_recipe(original.recipe)

    def objective(self, original: Original, labels: Objective) -> Objective:
        """The loss of that training, given the recipe's own loss ``labels``, which is the default."""
        del original
        return labels

    def at_strength(self, strength: float) -> "Compressor | None":
        """The same compressor taking away the share ``strength``, in (0, 1); None where it has no strength."""
        del strength
        return None

    def word(self) -> str:
        """The word that makes it again, without the arguments that have their default value."""
        words = [self.name]
        for field in fields(self) if is_dataclass(self) else ():
            value = vars(self)[field.name]
            if field.default is MISSING or value != field.default or field.metadata.get("always_shown"):
                words.append(f"{field.name}={str(value).replace(' ', '')}")
        return ":".join(words)


def open_original(run: Path | str, data: str | None = None, *, device: str = "auto") -> Original:
    """Open a run with the images it was trained, validated and tested on; or with ``data``, split as its recipe
    says.

    A bundle without its run needs ``data``. Raises DataError where the images are missing, were decoded with
    another geometry or show other classes, and what reading a run or a classifier raises.
    """
    folder = Path(run)
    if folder.suffix.lower() in (".onnx", ".pt2"):
        raise DataError(
            f"'{run}' is an exported file, whose network cannot be changed: compress the run it was exported from."
        )
    if data is None:
        remedy = f"name images to calibrate and fine-tune it on: sightline compress {run} DATA"
        whole = open_run(run, device=device, remedy=remedy)
        return Original(folder, whole.classifier.eval(), whole.recipe, whole.splits)
    if (whole := open_moved_run(run, data, device=device)) is not None:
        return Original(folder, whole.classifier.eval(), whole.recipe, whole.splits)
    classifier = Classifier.load(run).to(runtime.resolve_device(device))
    has_run = (folder / "recipe.toml").is_file()
    recipe = RunFolder(folder).read_recipe() if has_run else recipe_from_classifier(classifier)
    plan, splits, notes = prepare(
        resolve(
            recipe.replace(
                data=absolute_place(str(data)),
                weights=None,
                freeze="none",
                normalize=None if recipe.normalize == INHERIT else recipe.normalize,
            )
        )
    )
    check_images_fit(classifier, splits, data)
    if not has_run and trained_on(run, splits.test).any():
        notes = (
            *notes,
            f"This classifier was trained on images of '{data}'. Without its run it is not known which of them "
            "were held out, so both accuracies are too optimistic.",
        )
    return Original(folder, classifier, plan.recipe.replace(freeze=recipe.freeze), splits, notes)


def recipe_from_classifier(classifier: Classifier) -> Recipe:
    """A recipe that reads images as the classifier does; DataError where no recipe can."""
    geometry = classifier.geometry
    if geometry.size[0] != geometry.size[1] or not geometry.exif:
        raise DataError(
            "Runs only support square images with EXIF orientation applied, but this classifier expects "
            f"{geometry.size[0]} x {geometry.size[1]} pixels: compress the run it was trained in."
        )
    architecture = classifier.architecture
    return Recipe(
        model=architecture_word(architecture) if architecture.name in NETWORKS else None,
        from_scratch=True,  # nothing is trained: no published weights are looked for
        method="gradient",
        size=geometry.size[0],
        channels=geometry.channels,
        resize_mode=geometry.resize_mode,
        crop_fraction=None if geometry.crop_fraction == 1 else geometry.crop_fraction,
        interpolation=geometry.interpolation,
        window=None if geometry.window is None else f"{geometry.window[0]:g}:{geometry.window[1]:g}",
        epochs=0,
    )


def check_images_fit(classifier: Classifier, splits: Splits, data: str = "the images") -> None:
    """Raise DataError for images of another geometry or of other classes than the classifier's."""
    if splits.train.geometry != classifier.geometry:
        raise DataError(
            f"'{data}' was decoded as {splits.train.geometry}, but the classifier expects {classifier.geometry}: "
            "load the images with the classifier's geometry."
        )
    if splits.train.classes != classifier.classes:
        other = sorted({*splits.train.classes} ^ {*classifier.classes})
        what = f"not the same: {', '.join(map(repr, other[:5]))}" if other else "in another order"
        raise DataError(
            f"The classes of '{data}' and of the classifier are {what}. Name images of the same classes."
        )


def example_input(classifier: Classifier, count: int = 2) -> Float[Tensor, "B C H W"]:
    """``count`` images of random pixels after the preprocessing, on the CPU: an input of the network."""
    height, width = classifier.geometry.size
    shape = (count, classifier.geometry.channels, height, width)
    pixels = torch.rand(shape, generator=runtime.make_generator(0))
    with torch.no_grad():
        return copy.deepcopy(classifier.preprocessing).cpu().eval()(pixels)
