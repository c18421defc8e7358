"""``adapt``: a run and unlabelled target images become a run for another world, or reasons why not."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import runtime
from ..classifier import Classifier
from ..data import load_dataset
from ..errors import DataError, OutputError, RequirementNotMet
from ..files import write_json, write_text
from ..inference import match_labels, predict_correct
from ..metrics import paired_difference, wilson
from ..runs import find_for_run, open_run
from ..sources import find_unlabelled, hide_query
from ..training import Run, RunFolder, check_run_folder, create_run_folder
from ..types import Dataset, Interval
from .judging import Judgement, judge

ADAPTATION_FILE = "adaptation.json"


Adapter = Callable[[Classifier, Dataset], Classifier]
"""``(classifier, target images) -> classifier``: an adapted copy. It must not look at labels."""


@dataclass(frozen=True, eq=False)
class AdaptResult:
    """The adapted run, what the labelled images say of it, and the source's own images before and after."""

    run: Run | None
    """The new run; None where a bundle was adapted, and where the adaptation hurts and nothing is kept."""
    place: Path | None
    """Where the adapted classifier is; None where nothing is kept."""
    parent: Path
    by: str
    images: int
    """Target images whose statistics were taken."""
    judgement: Judgement | None
    source_test: tuple[Interval, Interval, Interval] | None
    """Accuracy on the source's test images before, after, and the difference; None where there are none."""
    sentences: tuple[str, ...]

    @property
    def verified(self) -> bool:
        """Whether labelled target images prove that it helps."""
        return self.judgement is not None and self.judgement.verdict == "helps"

    def require_help(self) -> None:
        """Raise RequirementNotMet where labelled target images prove that the adaptation hurts."""
        if self.place is None and self.judgement is not None:
            change = self.judgement.differences["adapted"]
            raise RequirementNotMet(
                f"The adaptation changes accuracy on {change.n:,} labelled target images by {100 * change.value:+.1f} "
                f"points [{100 * change.low:.1f}, {100 * change.high:.1f}], so nothing is kept: fine-tune on labelled "
                "images (sightline learn), or see what changed (sightline check SOURCE TARGET)."
            )

    def as_json(self) -> dict[str, Any]:
        """The contents of ``adaptation.json``."""
        names = ("before", "after", "difference")
        return {
            "parent": str(self.parent),
            "by": self.by,
            "images": self.images,
            "kept": self.place is not None,
            "verified": self.verified,
            "target": None if self.judgement is None else self.judgement.as_json(),
            "source": None
            if self.source_test is None
            else {name: one.as_json() for name, one in zip(names, self.source_test, strict=True)},
            "sentences": list(self.sentences),
        }


def adapt_run(
    parent: Path,
    unlabelled: Path | str,
    labelled: Path | str | None,
    adapter: Adapter,
    word: str,
    *,
    out: Path | None,
    seed: int,
    device: str,
    overwrite: bool,
) -> AdaptResult:
    """Adapt a run (or a bundle without its run) and write the result: see ``adaptation.adapt``."""
    if out is not None and out.resolve() == parent.resolve():
        raise OutputError(f"'{out}' is the run itself, which is never changed: choose another --out.")
    check_run_folder(out, overwrite=overwrite)
    run = open_source(parent, device)
    source = Classifier.load(parent).to(runtime.resolve_device(device)) if run is None else run.classifier.eval()
    few = None if labelled is None else load_dataset(find_for_run(parent, labelled), source.geometry)
    if few is not None:
        match_labels(source, few)  # refuse other classes before any work
    images, notes = read_target(unlabelled, source, run, few)
    adapted = adapter(source, images)
    judgement = None if few is None else judge(source, adapted, few, seed)
    tested = None
    if run is not None and len(run.splits.test):
        before, after = (predict_correct(one, run.splits.test) for one in (source, adapted))
        tested = (
            wilson(float(before.sum()), len(before)),
            wilson(float(after.sum()), len(after)),
            paired_difference(after, before),
        )
    result = AdaptResult(
        None, None, parent, word, len(images), judgement, tested, (*notes, *describe(judgement, source))
    )
    if judgement is not None and judgement.verdict == "hurts":
        return result
    step = {"from": parent.resolve().name, "by": word, "images": len(images), "verified": result.verified}
    step |= {"target": Path(hide_query(str(unlabelled))).name, "target_fingerprint": images.fingerprint}
    known = source.provenance
    adapted.provenance = {
        **known,
        "parent": parent.resolve().name,
        "adapted": [*known.get("adapted", ()), step],
    }
    folder = create_run_folder(out, f"{parent.resolve().name}-adapted", overwrite=overwrite)
    if run is None:
        adapted.save(folder.bundle)
        return replace(result, place=folder.bundle)
    result = replace(result, place=folder.path, run=write_adapted_run(folder, run, adapted, result))
    write_json(folder.path / ADAPTATION_FILE, result.as_json())
    return result


def open_source(parent: Path, device: str) -> Run | None:
    """The run with its images; None for a bundle without its run. Raises DataError where a run's images are gone."""
    if not (parent / "recipe.toml").is_file():
        return None
    try:
        return open_run(parent, device=device)
    except DataError as error:
        raise DataError(
            f"{error} To adapt the classifier without its images, name its bundle: {parent / 'classifier'}"
        ) from error


def read_target(
    place: Path | str, source: Classifier, run: Run | None, few: Dataset | None
) -> tuple[Dataset, tuple[str, ...]]:
    """Every image of ``place`` once, without labels and in the order of their bytes; and notes on what is left out.

    Copies of the run's own images are left out, and of the labelled ones, so that these stay a test. Raises DataError
    where none is left.
    """
    images = load_dataset(find_unlabelled(place), source.geometry)
    first = np.unique(images.digests, return_index=True)[1]  # neither names nor folders may matter
    own = np.zeros(0, np.uint64)
    if run is not None:
        own = np.concatenate([one.digests for one in (run.splits.train, run.splits.val, run.splits.test)])
    known = np.isin(images.digests[first], own)
    judged = np.isin(images.digests[first], own[:0] if few is None else few.digests) & ~known
    notes = [
        f"{count:,} of the {len(images):,} images of '{place}' are {what}: they are left out."
        for count, what in (
            (len(images) - len(first), "copies of others"),
            (int(known.sum()), "the run's own"),
            (int(judged.sum()), "among the labelled ones"),
        )
        if count
    ]
    kept = first[~known & ~judged]
    if not len(kept):
        raise DataError(
            f"Every image of '{place}' is one of the run's own or of the labelled ones: name a folder of other images "
            "of the target."
        )
    return images.subset(kept), (*notes, *images.notes)


def describe(judgement: Judgement | None, source: Classifier) -> tuple[str, ...]:
    """What a reader must know of the result, in sentences."""
    stays = ["the temperature"]
    stays += ["the threshold for 'unknown'"] if source.threshold else []
    stays += ["the conformal sets"] if source.answers else []
    fitted = (
        f"Fitted on source images, and not to the target: {', '.join(stays)}. Do not rely on confidences there until "
        "they are checked on labelled target images (sightline evaluate RUN IMAGES)."
    )
    if judgement is None:
        return (
            f"Unverified: no labelled image says whether it helps. Label 100 target images and add --labelled. "
            f"{fitted}",
        )
    change, n = judgement.differences["adapted"], judgement.n
    points = f"{100 * change.value:+.1f} points [{100 * change.low:.1f}, {100 * change.high:.1f}]"
    said = {
        "helps": f"Verified: on {n:,} labelled target images accuracy changes by {points}. {fitted}",
        "hurts": f"It hurts: on {n:,} labelled target images accuracy changes by {points}.",
        "unclear": f"Unverified: on {n:,} labelled target images accuracy changes by {points}, which may be none. "
        f"{fitted}",
        "too few": f"Unverified: {n:,} labelled target images are too few to say (100 are needed). {fitted}",
    }
    return (said[judgement.verdict],)


def write_adapted_run(folder: RunFolder, source: Run, adapted: Classifier, result: AdaptResult) -> Run:
    """Write the adapted run; ``recipe.toml``, which makes it a run, comes last."""
    recipe = source.recipe.replace(weights=None)
    facts: Mapping[str, Any] = {**source.facts, "epochs": 0, "best_epoch": 0, "val_accuracy": None, "remarks": []}
    which = "Its own test images are the source's: test it on the target with sightline evaluate RUN IMAGES."
    notes = (*result.sentences, which)
    run = Run(folder.path, recipe, adapted, source.splits, facts, notes)
    adapted.save(folder.bundle)
    write_json(folder.path / "training.json", dict(facts))
    folder.write_header(recipe, source.splits, notes)
    head = f"# Made by `sightline adapt --by {result.by}`: the recipe of the run it began with.\n"
    write_text(folder.path / "recipe.toml", head + recipe.to_toml())
    return run
