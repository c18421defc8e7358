"""``learn``: a run and new labelled images become a run that knows both, compared with the alternatives."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import progress
from ..classifier import Classifier
from ..errors import OutputError
from ..evaluation import quantiles_json, threshold_for_coverage
from ..features import backbone_fingerprint
from ..files import atomic_replace, explain_write_errors, write_json, write_text
from ..inference import predict_logits, to_probabilities
from ..models import Memory
from ..pictures import contact_sheet
from ..sources import (
    EXEMPLARS_FOLDER,
    JOINED_SUFFIX,
    absolute_place,
    erase_exemplars,
    read_places,
    write_joined,
)
from ..training import Recipe, Run, RunFolder, check_run_folder, create_run_folder
from .changes import Changes, find_label_rule, make_lesson
from .lesson import Lesson, Outcome, are_right, choose_outcome, learn_by
from .memory import Sums, keep_exemplars, sum_features, write_summed
from .strategy import Past, Strategy

LEARNING_FILE, FLIPS_FILE, WORK_FOLDER = "learning.json", "negative_flips.png", "unfinished"

MAX_SHOWN_FLIPS = 40
"""Images on the contact sheet of negative flips."""


@dataclass(frozen=True, eq=False)
class LearnResult:
    """The new run, and every strategy that was tried."""

    run: Run
    parent: Path
    chosen: str
    outcomes: tuple[Outcome, ...]
    sentences: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The contents of ``learning.json``."""
        return {
            "parent": str(self.parent),
            "chosen": self.chosen,
            "classes": list(self.run.classifier.classes),
            "outcomes": [one.as_json() for one in self.outcomes],
            "sentences": list(self.sentences),
        }


def learn_run(
    parent: Path,
    original: Run,
    sums: Sums | None,
    changes: Changes,
    strategies: Mapping[str, Strategy],
    candidates: Sequence[str],
    *,
    memory: int,
    out: Path | None,
    seed: int,
    overwrite: bool,
) -> LearnResult:
    """Learn by every strategy, and write the best of the ``candidates`` as a run: see ``continual.learn``.

    ``original`` and ``sums`` are what ``open_past`` found of the run ``parent``.
    """
    lesson, notes, forgotten = make_lesson(original, sums, changes, memory=memory, seed=seed)
    folder = _begin_folder(parent, out, overwrite=overwrite)
    for note in notes:
        progress.notify(note)
    outcomes, classifiers, remembered = [], {}, {}
    for word, strategy in strategies.items():
        work = folder.path / WORK_FOLDER / word.replace(":", "_")
        outcome, classifiers[word], remembered[word] = learn_by(strategy, word, lesson, work)
        outcomes.append(outcome)
    eligible = [one for one in outcomes if one.strategy in candidates]
    chosen = choose_outcome(eligible, {word: classifiers[word] for word in candidates}, lesson.splits.val)
    classifier, past = classifiers[chosen.strategy], remembered[chosen.strategy]
    recalibrate(classifier, lesson)
    recipe = _recipe_of(original, changes, folder.path)
    known = original.classifier.provenance
    step = {
        "from": parent.resolve().name,
        "by": chosen.strategy,
        "new_images": len(lesson.new.train),
        "classes": list(classifier.classes),
    }
    classifier.provenance = {
        **known,
        "data": Path(recipe.data or "").name,
        "data_fingerprint": lesson.splits.train.fingerprint,
        "train_images": len(lesson.splits.train),
        "parent": parent.resolve().name,
        "learned": [*known.get("learned", ()), step],
    }
    kept = _keep_past(classifier, lesson, past, recipe, folder.path, changes.keep_images)
    facts = {
        "epochs": 0,
        "best_epoch": 0,
        "stopped_early": None,
        "seconds": round(chosen.seconds, 3),
        "images_per_second": None,
        "temperature": classifier.temperature,
        "val_accuracy": float(are_right(classifier, lesson.splits.val).mean()) if len(lesson.splits.val) else None,
        "remarks": [],
    }
    new_run = Run(folder.path, recipe, classifier, lesson.splits, facts, notes)
    sentences = (*_sentences(chosen, outcomes, original, changes.forget), *kept)
    found = LearnResult(new_run, parent, chosen.strategy, tuple(outcomes), sentences)
    _write_run(found, lesson, chosen)
    for place in {parent.resolve().parent, folder.path.resolve().parent} if forgotten else ():
        erase_exemplars(place, forgotten)
    return found


def _keep_past(
    classifier: Classifier, lesson: Lesson, past: Past, recipe: Recipe, folder: Path, keep_images: bool | None
) -> tuple[str, ...]:
    """Put into the bundle's memory, and next to the run, what later lessons need; returns what a reader must know."""
    sums = None
    if keep_images is not None or past.statistics is not None:
        unchanged = backbone_fingerprint(lesson.before.network) == backbone_fingerprint(classifier.network)
        ridge = keep_images is not None or past.ridge is not None
        if lesson.sums is None:
            sums = sum_features(classifier, lesson.splits.train.labelled, ridge=ridge)
        elif unchanged:
            sums = lesson.sums + sum_features(classifier, lesson.new.train.labelled, ridge=ridge)
    hashes: dict[str, list[str]] = {}
    if keep_images and recipe.data is not None:
        hashes = keep_exemplars(folder, recipe, lesson.splits, lesson.memory_size, lesson.seed)
    if sums is not None:
        classifier.provenance = {**classifier.provenance, "sums_of": backbone_fingerprint(classifier.network)}
        write_summed(folder, sums)
    classifier.memory = Memory(
        statistics={} if sums is None else sums.tensors(), fisher=past.fisher, exemplars=hashes
    )
    if keep_images:
        count = sum(map(len, hashes.values()))
        return (
            f"{count:,} images, and others to validate and test on, are kept in '{folder.parent / EXEMPLARS_FOLDER}'.",
        )
    if keep_images is False and sums is not None:
        return ("The run keeps sums over features: the images may be deleted.",)
    if lesson.sums is not None and sums is None:
        return ("The network changed, so the sums over images that are gone do not fit it: the run keeps none.",)
    return ()


def recalibrate(classifier: Classifier, lesson: Lesson) -> None:
    """Fit the old classifier's threshold, at its coverage, and conformal quantiles to the new probabilities.

    The old threshold would abstain on new classes.
    """
    val, before = lesson.splits.val, lesson.before
    if not len(lesson.old.val):  # nothing to fit them to: as they were they would abstain on new classes
        classifier.threshold, classifier.answers = 0.0, {}
        return
    probabilities = to_probabilities(predict_logits(classifier, val)[0], classifier.temperature)
    if before.threshold:
        was = to_probabilities(predict_logits(before, lesson.old.val)[0], before.temperature).max(1)
        right = probabilities.argmax(1) == val.labels
        coverage = max(0.01, float((was >= before.threshold).mean()))
        classifier.threshold = threshold_for_coverage(probabilities.max(1), right, coverage).value
    if before.answers:
        classifier.answers = quantiles_json(probabilities, val.labels)


def _begin_folder(parent: Path, out: Path | None, *, overwrite: bool) -> RunFolder:
    """The new run's folder; one in which learning from this run was interrupted is used again."""
    if out is not None and out.resolve() == parent.resolve():
        raise OutputError(f"'{out}' is the run itself, which is never changed: choose another --out.")
    name, own = f"{parent.resolve().name}-learned", str(parent.resolve())
    for place in [out] if out else sorted(Path("runs").glob(f"{name}*")):
        marker = place / WORK_FOLDER / "parent.json"
        if marker.is_file() and json.loads(marker.read_text(encoding="utf-8")) == own:
            progress.notify(f"Continuing in '{place}'.")
            return RunFolder(place)
    check_run_folder(out, overwrite=overwrite)
    folder = create_run_folder(out, name, overwrite=overwrite)
    with atomic_replace(folder.path / WORK_FOLDER) as temporary:
        temporary.mkdir()
        write_json(temporary / "parent.json", own)
    return folder


def _recipe_of(original: Run, changes: Changes, folder: Path) -> Recipe:
    """The run's recipe, with where all images lie now: the old place, or a file that names the old and the new ones."""
    recipe, new_data, rename, remove = original.recipe, changes.new_data, changes.rename, changes.remove
    recipe = recipe.replace(weights=None)
    if new_data is None and (recipe.data is None or not (rename or remove)):
        return recipe
    places, names, without = [(recipe.data or "", recipe.label_rule)], dict(rename), list(remove)
    if recipe.data is None:
        places, names, without = [], {}, []
    elif recipe.data.endswith(JOINED_SUFFIX):
        places, known, gone = read_places(Path(recipe.data))
        names = {**{a: rename.get(b, b) for a, b in known.items()}, **rename}
        without = [*gone, *remove]
    if new_data is not None:
        place = absolute_place(str(new_data)) or ""
        places = [*places, (place, find_label_rule(recipe, new_data))]
    file = write_joined(folder.resolve() / f"images{JOINED_SUFFIX}", places, names=names, without=without)
    return recipe.replace(data=str(file), path_column=None, label_column=None, label_pattern=None)


def _sentences(
    chosen: Outcome, outcomes: Sequence[Outcome], original: Run, forget: Path | str | None
) -> tuple[str, ...]:
    """What a reader must know about the choice."""
    found = [f"Kept: {chosen.strategy}, the best on validation images of old and new classes beyond noise."]
    if chosen.negative_flips:
        found.append(
            f"{chosen.negative_flips:,} test images that were right before are wrong now: {FLIPS_FILE} shows them."
        )
    naive = next((one for one in outcomes if one.strategy == "finetune" and one is not chosen), None)
    if naive is not None and naive.old is not None and chosen.old is not None:
        found.append(
            f"Training on the new images alone would leave {naive.old.value:.1%} of old test images right "
            f"({chosen.old.value:.1%} now)."
        )
    if forget is not None and not original.classifier.provenance.get("weights"):
        found.append(
            "The last layer is what it would be without the forgotten images, but the layers before it were trained "
            "on them: only --by retrain takes all their influence away."
        )
    return tuple(found)


def _write_run(found: LearnResult, lesson: Lesson, chosen: Outcome) -> None:
    """Write the run folder; ``recipe.toml``, which makes it a run, comes last."""
    run, folder = found.run, RunFolder(found.run.folder)
    run.classifier.save(folder.bundle)
    write_json(folder.path / "training.json", dict(run.facts))
    write_json(folder.path / LEARNING_FILE, found.as_json())
    if len(chosen.flipped):
        images = lesson.old.test.subset(chosen.flipped[:MAX_SHOWN_FLIPS])
        answers = predict_logits(run.classifier, images)[0].argmax(1).tolist()
        truth, said = [images.classes[k] for k in images.labels], [run.classifier.classes[k] for k in answers]
        sheet = contact_sheet(list(images[:]), truth, notes=said)
        with atomic_replace(folder.path / FLIPS_FILE) as temporary:
            sheet.save(temporary, format="PNG")
    folder.write_header(run.recipe, run.splits, (*run.notes, *found.sentences))
    head = "# Made by `sightline learn`: the recipe of the run it began with, and where all images lie now.\n"
    write_text(folder.path / "recipe.toml", head + run.recipe.to_toml())
    with explain_write_errors(folder.path):
        shutil.rmtree(folder.path / WORK_FOLDER, ignore_errors=True)
