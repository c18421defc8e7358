"""A small network from scratch against a pretrained one, where there are many images and they are no photographs.

Each gets half of the budget, and validation decides. The rival trains in a run folder of its own, whose files replace
those of the run where it is better.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from .. import progress
from ..classifier import Classifier
from ..files import write_json
from ..types import Splits
from .budget import Deadline
from .head_first import judge_answers, judge_change
from .plan import Plan
from .recipe import Recipe
from .run_folder import RunFolder

MIN_RIVAL_IMAGES = 2000
"""Training images from which a network from random weights may win."""

MAX_RIVAL_SIDE = 128
"""Pixels of the median short side up to which colour images count as small; grey ones are tried at any size."""

RIVAL_SIDE = 64
"""Working size of the rival."""

RIVAL_SHARE = 0.5
"""Share of the budget that the rival gets."""


def rival_recipe(asked: Recipe, plan: Plan, splits: Splits) -> Recipe | None:
    """The recipe of a small network from random weights, where one may win; ``asked`` is the user's, ``plan`` resolved.

    None where the user chose the network, the method or the epochs, where nothing is left to gain, and for photographs.
    """
    train = splits.train.labelled
    given = asked.model or asked.method or asked.epochs is not None or plan.recipe.devices > 1
    if given or plan.head is None or not plan.recipe.epochs or len(train) < MIN_RIVAL_IMAGES:
        return None
    columns = train.columns
    side = np.median(np.minimum(columns["width"], columns["height"])) if "width" in columns else np.inf
    if plan.recipe.channels != 1 and side > MAX_RIVAL_SIDE:
        return None
    progress.notify(
        "Half of the budget goes to a small network from scratch, because there are many images and they are no "
        "photographs; validation decides (with --model no other is tried)."
    )
    kept = {"split_seed": asked.data_seed, "val_fraction": plan.recipe.val_fraction}
    return asked.replace(from_scratch=True, size=asked.size or min(RIVAL_SIDE, plan.recipe.size or 64), **kept)


def time_for_rival(deadline: Deadline) -> float | None:
    """Seconds for the rival and its test, from now; None where they would go into its test.

    The pretrained network's answers to the validation and test images take longer than the rival plans for.
    """
    share = RIVAL_SHARE * deadline.seconds / 2
    left = deadline.time_left() - min(share, (deadline.val + deadline.test) * deadline.image_seconds)
    return left if left >= share else None


def keep_better(
    folder: RunFolder, classifier: Classifier, splits: Splits, rival: Path, other: Classifier, theirs: Splits
) -> dict[str, Any]:
    """Keep the better of a run and its rival in the run's folder; the facts hold the verdict and both figures.

    The rival must win beyond noise on the same validation images: paired, both calibrated on them.
    """
    before, after = judge_answers(classifier, splits), judge_answers(other, theirs)
    verdict = judge_change("A small network from scratch", "the pretrained one", before, after)
    verdict["pretrained_val_accuracy"] = before[1].double().mean().item()
    facts = folder.read_facts()
    if verdict["kept"]:
        facts |= RunFolder(rival).read_facts()
        for each in rival.iterdir():
            place = folder.path / each.name
            if place.is_dir():
                shutil.rmtree(place)
            each.replace(place)
    shutil.rmtree(rival)
    facts |= {"from_scratch": verdict, "remarks": [*facts["remarks"], verdict["reason"]]}
    folder.write_notes([*folder.read_notes(), verdict["reason"]])
    write_json(folder.path / "training.json", facts)
    folder.log(verdict["reason"])
    return facts
