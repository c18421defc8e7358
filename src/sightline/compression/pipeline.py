"""Compressors, one after the other, each healed before the next; what is finished is kept on the way."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from .. import progress
from ..choose import choose
from ..classifier import Classifier
from ..errors import ChoiceError
from ..files import explain_write_errors, write_json, write_text
from ..training import Objective, Recipe, SilentRunFolder, build_objective
from ..types import Splits
from .channels import Channels
from .distil import Distil, distil
from .fine_tuning import INT8_TRAINING, FineTuned, FineTuning, fine_tune, with_execution_plan
from .lowrank import LowRank
from .prune import Prune
from .quantize import Int8


@runtime_checkable
class Compressor(Protocol):
    """A value that makes a smaller classifier of one, and leaves the given one alone."""

    @property
    def heals(self) -> bool:
        """Whether a training should follow."""
        ...

    def __call__(self, classifier: Classifier, data: Splits, /) -> Classifier:
        """The structural step, and what it must measure on training images."""
        ...


COMPRESSORS: Mapping[str, Callable[..., Compressor]] = {  # type: ignore[assignment]  heals never varies in some
    "prune": Prune,
    "channels": Channels,
    "lowrank": LowRank,
    "int8": Int8,
    "distil": distil,
}
"""Name -> the compressor, its own arguments after colons: ``channels:0.4``."""

COMPRESSOR_TYPES: Mapping[str, type] = {
    "prune": Prune,
    "channels": Channels,
    "lowrank": LowRank,
    "int8": Int8,
    "distil": Distil,
}
"""Name -> what that makes."""


def compressor_name(step: object) -> str:
    """The word a compressor goes by; of somebody's own, the name of its type."""
    return next(
        (name for name, kind in COMPRESSOR_TYPES.items() if isinstance(step, kind)), type(step).__name__.lower()
    )


def format_step(step: Any) -> str:
    """The compressor as a word that makes it again, without what is usual.

    >>> called(Distil("lenet5", alpha=0.5))
    'distil:to=lenet5:alpha=0.5'
    """
    if not is_dataclass(step):
        return compressor_name(step)
    told = [f for f in fields(step) if f.default is MISSING or vars(step)[f.name] != f.default or f.name == "to"]
    return ":".join(
        [compressor_name(step), *(f"{f.name}={str(vars(step)[f.name]).replace(' ', '')}" for f in told)]
    )


def parse_steps(by: str | Compressor | Sequence[str | Compressor]) -> list[Compressor]:
    """The compressors meant, in order: objects, words, or words separated by commas.

    Raises ChoiceError for a word nobody knows, one that comes twice, and a network distilled into after others.
    """
    steps: list[Compressor] = []
    for one in [by] if isinstance(by, str) or not isinstance(by, Sequence) else by:
        words = one.split(",") if isinstance(one, str) else [one]
        steps += [choose(COMPRESSORS, word, "compressor") for word in words if word != ""]
    if not steps:
        raise ChoiceError(f"Say how to compress: --by {', '.join(COMPRESSORS)}, or several joined by commas.")
    names = [compressor_name(step) for step in steps]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ChoiceError(f"'{twice}' is named twice: name it once, and stronger.")
    if "distil" in names[1:]:
        raise ChoiceError("'distil' makes a new network, so what comes before it is lost: name it first.")
    return steps


@dataclass(frozen=True, eq=False)
class Original:
    """What is compressed, and the images it is healed and measured on."""

    folder: Path
    """As it was named."""
    classifier: Classifier
    recipe: Recipe
    splits: Splits
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class PipelineResult:
    """The last classifier of a chain and what became of each step."""

    steps: tuple[Compressor, ...]
    classifier: Classifier
    recipe: Recipe
    """By which the last training went; with 0 epochs where there was none."""
    facts: tuple[Mapping[str, Any], ...]
    """Of each step: ``step``, ``notes``, and of its training what ``training.json`` holds."""
    folder: Path
    """Where in the workshop that training is."""


def dry_run(parent: Original, steps: Sequence[Compressor]) -> Classifier:
    """Every step without its healing: in seconds it shows what would be refused, and what the result costs."""
    classifier = parent.classifier
    for step in steps:
        classifier = step(classifier, parent.splits)
    return classifier


def run_pipeline(
    parent: Original, steps: Sequence[Compressor], healing: FineTuning, place: Path
) -> PipelineResult:
    """Every step in turn, each healed before the next; steps that ``place`` holds finished are read back."""
    classifier, last, told = parent.classifier, None, []
    for count in range(1, len(steps) + 1):
        folder = place / _steps_digest(steps[:count])
        classifier, recipe, facts = _run_step(classifier, steps[count - 1], parent, healing, folder)
        told.append(facts)
        if last is None or recipe.epochs:
            last = recipe, folder
    assert last is not None
    return PipelineResult(tuple(steps), classifier, last[0], tuple(told), last[1])


def _steps_digest(steps: Sequence[Compressor]) -> str:
    """A folder's name for the result of these steps."""
    return hashlib.blake2b("\n".join(map(repr, steps)).encode(), digest_size=6).hexdigest()


def _run_step(
    before: Classifier, step: Compressor, parent: Original, healing: FineTuning, place: Path
) -> tuple[Classifier, Recipe, dict[str, Any]]:
    """One step on what came before: (classifier, the recipe that healed it, facts)."""
    device = before.device
    if (place / "done").is_dir():
        facts = json.loads((place / "facts.json").read_text(encoding="utf-8"))
        return Classifier.load(place / "done").to(device), Recipe.from_toml(place / "recipe.toml"), facts
    with explain_write_errors(place):
        place.mkdir(parents=True, exist_ok=True)
    if (place / "begun").is_dir():
        made = Classifier.load(place / "begun").to(device)
    else:
        made = step(before, parent.splits)
        made.save(place / "begun")
    recipe = _training_recipe(step, made, parent, healing, place)
    progress.notify(_describe_training(step, recipe, parent))
    healed = _fine_tune_step(step, made, recipe, parent, place)
    facts = {"step": format_step(step), "notes": [*healed.notes], **healed.facts}
    write_json(place / "facts.json", facts)
    healed.classifier.save(place / "done")
    return healed.classifier, recipe, facts


def _training_recipe(
    step: Compressor, made: Classifier, parent: Original, healing: FineTuning, place: Path
) -> Recipe:
    """By which this step's result is trained: written down, so that going on is exact."""
    file = place / "recipe.toml"
    if file.is_file():
        return Recipe.from_toml(file)
    if isinstance(step, Distil):
        recipe = healing.full_training_recipe(parent.recipe, step.to, len(parent.splits.train))
    else:
        recipe = healing.fine_tuning_recipe(parent.recipe)
    if not parent.recipe.epochs:  # nobody has measured yet what is fast here
        recipe = recipe.replace(precision=None, memory_format=None, replicas=None)
    if isinstance(step, Int8):
        recipe = recipe.replace(**INT8_TRAINING)
    if not step.heals:
        recipe = recipe.replace(epochs=0)
    recipe = with_execution_plan(recipe, made, parent.splits, _training_objective(step, recipe, parent))
    write_text(file, recipe.to_toml())
    return recipe


def _training_objective(step: Compressor, recipe: Recipe, parent: Original) -> Objective:
    """The recipe's loss; the teacher's answers beside it where a network learns from them."""
    labels = build_objective(recipe, parent.splits.train.counts)
    return step.objective(parent.classifier, labels) if isinstance(step, Distil) else labels


def _describe_training(step: Compressor, recipe: Recipe, parent: Original) -> str:
    """What is about to be done."""
    if not recipe.epochs:
        return f"{format_step(step)}: no training follows."
    what = "teaching" if isinstance(step, Distil) else "healing"
    passes = "1 epoch" if recipe.epochs == 1 else f"{recipe.epochs} epochs"
    return f"{format_step(step)}: {what} by {passes} of {len(parent.splits.train):,} images (--epochs)."


def _fine_tune_step(
    step: Compressor, made: Classifier, recipe: Recipe, parent: Original, place: Path
) -> FineTuned:
    """The step's result after its training, whatever that is for this step."""
    folder, objective = SilentRunFolder(place), _training_objective(step, recipe, parent)
    return fine_tune(made, parent.splits, recipe, folder, objective=objective, fresh=isinstance(step, Distil))
