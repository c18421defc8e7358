"""A small network from scratch against a pretrained one, where there are many images and they are no photographs.

Each gets half of the budget, and validation decides. The rival trains in a run folder of its own, whose files replace
those of the run where it is better.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..classifier import Classifier
from ..files import write_json, write_text
from ..sources import absolute_place
from ..types import Dataset, Splits
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

RIVAL_NOTE = (
    "Half of the budget goes to a small network from scratch, because there are many images and they are no "
    "photographs; validation decides (with --model no other is tried)."
)


def rival_recipe(asked: Recipe, plan: Plan, train: Dataset, train_images: int) -> Recipe | None:
    """The recipe of a small network from random weights, where one may win; ``asked`` is the user's, ``plan`` resolved.

    ``train`` has the labelled images to train on, or some of the ``train_images``. None where the user chose the
    network, the method or the epochs, for few images, and for photographs.
    """
    given = asked.model or asked.method or asked.epochs is not None or plan.recipe.devices > 1
    if given or plan.head is None or not plan.head.fine_tunes or train_images < MIN_RIVAL_IMAGES:
        return None
    columns = train.columns
    side = np.median(np.minimum(columns["width"], columns["height"])) if "width" in columns else np.inf
    if plan.recipe.channels != 1 and side > MAX_RIVAL_SIDE:
        return None
    kept = {name: vars(plan.recipe)[name] for name in ("val_fraction", "train_limit")}
    kept["data"] = absolute_place(asked.data)
    return asked.replace(from_scratch=True, size=asked.size or min(RIVAL_SIDE, plan.recipe.size or 64), **kept)


def time_for_rival(deadline: Deadline) -> float | None:
    """Seconds for the rival and its test, from now; None where they would go into its test.

    The pretrained network's answers to the validation and test images take longer than the rival plans for.
    """
    share = RIVAL_SHARE * deadline.seconds / 2
    left = deadline.time_left() - min(share, (deadline.val + deadline.test) * deadline.image_seconds)
    return left if left >= share else None


@dataclass(frozen=True)
class Rival:
    """The second training of a run: its recipe in the run's folder while it is to be tried, and its own folder.

    Each step can be stopped: what is on disk says which comes next.
    """

    run: RunFolder

    @property
    def path(self) -> Path:
        """The folder of its run."""
        return self.run.path / "from-scratch"

    @property
    def _recipe_file(self) -> Path:
        return self.run.path / "from-scratch.toml"

    @property
    def _verdict_file(self) -> Path:
        return self.path / "verdict.json"

    @property
    def is_judged(self) -> bool:
        """Whether only the files of the better one have still to be put in place."""
        return self._verdict_file.exists()

    def write_recipe(self, recipe: Recipe) -> None:
        """Remember that this is to be tried."""
        write_text(self._recipe_file, recipe.to_toml())

    def read_recipe(self) -> Recipe | None:
        """The recipe that is to be tried; None where nothing is."""
        return Recipe.from_toml(self._recipe_file) if self._recipe_file.exists() else None

    def give_up(self, why: str) -> None:
        """Keep the run as it is, and say why the rival was not tried."""
        self._conclude(self.run.read_facts(), f"A small network from scratch was not compared: {why.rstrip('.')}.")

    def judge(self, classifier: Classifier, splits: Splits, other: Classifier, theirs: Splits) -> None:
        """Write which is better: the rival must win beyond noise on the same validation images.

        Both are calibrated on them. The facts are those of the better one, with both figures under ``from_scratch``.
        """
        assert np.array_equal(splits.val.digests, theirs.val.digests)
        before, after = judge_answers(classifier, splits), judge_answers(other, theirs)
        verdict = judge_change("A small network from scratch", "the pretrained one", before, after)
        verdict["pretrained_val_accuracy"] = before[1].double().mean().item()
        facts = self.run.read_facts() | (RunFolder(self.path).read_facts() if verdict["kept"] else {})
        write_json(self._verdict_file, facts | {"from_scratch": verdict})

    def settle(self) -> dict[str, Any]:
        """Put the files of the better one in the run's place, and remove the others; returns its facts."""
        facts = json.loads(self._verdict_file.read_text(encoding="utf-8"))
        if facts["from_scratch"]["kept"]:
            for each in [one for one in self.path.iterdir() if one != self._verdict_file]:
                place = self.run.path / each.name
                if place.is_dir():
                    shutil.rmtree(place)
                each.replace(place)
        return self._conclude(facts, facts["from_scratch"]["reason"])

    def _conclude(self, facts: dict[str, Any], reason: str) -> dict[str, Any]:
        facts |= {"remarks": [*facts["remarks"], reason]}
        notes = self.run.read_notes()
        self.run.write_notes([*notes, *([] if reason in notes else [reason])])
        write_json(self.run.path / "training.json", facts)
        self._recipe_file.unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)
        self.run.log(reason)
        return facts
