"""Compressors one after the other, each fine-tuned before the next, in a way that can be continued."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import progress
from ..choose import choose
from ..classifier import Classifier
from ..errors import ChoiceError
from ..files import explain_write_errors, write_json, write_text
from ..training import Recipe, SilentRunFolder, resolve
from .compressor import Compressor, Original
from .fine_tuning import FineTuning, fine_tune, with_execution_plan


def parse_steps(
    family: Mapping[str, Callable[..., Compressor]], by: str | Compressor | Sequence[str | Compressor]
) -> list[Compressor]:
    """The compressors that ``by`` names, in order: objects, words of ``family``, or words separated by commas.

    Raises ChoiceError for an unknown word, a compressor named twice, and one with new weights after others.
    """
    steps: list[Compressor] = []
    for one in [by] if isinstance(by, str) or not isinstance(by, Sequence) else by:
        # int8:heals= is the name of int8:fine_tune= in earlier releases
        words = one.replace(":heals=", ":fine_tune=").split(",") if isinstance(one, str) else [one]
        steps += [choose(family, word, "compressor") for word in words if word != ""]
    if not steps:
        raise ChoiceError(f"Say how to compress: --by {', '.join(family)}, or several joined by commas.")
    names = [step.name for step in steps]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ChoiceError(f"'{twice}' is named twice: name it once, with a larger amount.")
    if late := next((step.name for step in steps[1:] if step.fresh), None):
        raise ChoiceError(f"'{late}' makes a new network, so the steps before it would be lost: name it first.")
    return steps


@dataclass(frozen=True, eq=False)
class PipelineResult:
    """The last classifier of a pipeline, and what each step did."""

    steps: tuple[Compressor, ...]
    classifier: Classifier
    recipe: Recipe
    """The recipe of the last training; of 0 epochs where no step was trained."""
    model: str | None
    """The network's word in the recipe of a step with new weights; None where the network is still the
    original's."""
    facts: tuple[Mapping[str, Any], ...]
    """For each step ``step``, ``notes``, and the values of ``training.json``."""
    folder: Path
    """The work folder of the last training."""


def dry_run(original: Original, steps: Sequence[Compressor]) -> Classifier:
    """Apply every step without fine-tuning: in seconds it shows what is refused and what the result costs."""
    classifier = original.classifier
    for step in steps:
        classifier = step(classifier, original.splits)
    return classifier


def run_pipeline(
    original: Original, steps: Sequence[Compressor], settings: FineTuning, folder: Path
) -> PipelineResult:
    """Apply every step, each fine-tuned before the next; a step that is finished in ``folder`` is read back."""
    classifier, model, last, facts = original.classifier, None, None, []
    for count, step in enumerate(steps, 1):
        digest = hashlib.blake2b("\n".join(map(repr, steps[:count])).encode(), digest_size=6).hexdigest()
        classifier, recipe, found = _run_step(classifier, step, original, settings, folder / digest)
        facts.append(found)
        if step.fresh:
            model = recipe.model
        if last is None or recipe.epochs:
            last = recipe, folder / digest
    assert last is not None
    return PipelineResult(tuple(steps), classifier, last[0], model, tuple(facts), last[1])


def _run_step(
    before: Classifier, step: Compressor, original: Original, settings: FineTuning, folder: Path
) -> tuple[Classifier, Recipe, dict[str, Any]]:
    """Apply one step and fine-tune it: (classifier, the recipe of its training, facts).

    The changed classifier (``begun``), the recipe, the checkpoint and the result (``done``) are written as they
    come, so that an interrupted step continues exactly.
    """
    device, train = before.device, original.splits.train
    if (folder / "done").is_dir():
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        return Classifier.load(folder / "done").to(device), Recipe.from_toml(folder / "recipe.toml"), facts
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if (folder / "begun").is_dir():
        changed = Classifier.load(folder / "begun").to(device)
    else:
        changed = step(before, original.splits)
        changed.save(folder / "begun")
    known = (folder / "recipe.toml").is_file()
    recipe = Recipe.from_toml(folder / "recipe.toml") if known else step.training(original, settings)
    objective = step.objective(original, resolve(recipe).fit_to(train).objective)
    if not known:
        recipe = with_execution_plan(recipe, changed, original.splits, objective)
        write_text(folder / "recipe.toml", recipe.to_toml())
    what = "training a new network" if step.fresh else "fine-tuning"
    passes = "1 epoch" if recipe.epochs == 1 else f"{recipe.epochs} epochs"
    plan = f"{what} for {passes} on {len(train):,} images (--epochs)" if recipe.epochs else "no training follows"
    progress.notify(f"{step.word()}: {plan}.")
    tuned = fine_tune(
        changed, original.splits, recipe, SilentRunFolder(folder), objective=objective, fresh=step.fresh
    )
    facts = {"step": step.word(), "notes": [*tuned.notes], **tuned.facts}
    write_json(folder / "facts.json", facts)
    tuned.classifier.save(folder / "done")
    return tuned.classifier, recipe, facts
