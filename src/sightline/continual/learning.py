"""``learn``: a run and new labelled images become a run that knows both, compared with the alternatives."""

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import progress
from ..choose import suggest
from ..classifier import Classifier
from ..data import hash_file, load_dataset, split
from ..errors import DataError, OutputError, RecipeError
from ..evaluation import quantiles_json, threshold_for_coverage
from ..files import atomic_replace, explain_write_errors, write_json, write_text
from ..inference import predict_logits, to_probabilities
from ..models import Memory
from ..pictures import contact_sheet
from ..runs import open_run
from ..sources import JOINED_SUFFIX, USUAL_LABELS, find, list_images, read_places, write_joined
from ..training import Recipe, Run, RunFolder, check_run_folder, create_run_folder
from ..types import UNLABELLED, Dataset, Splits
from .lesson import Lesson, Outcome, are_right, choose_outcome, learn_by
from .strategy import Strategy, grow, regroup_head

LEARNING_FILE, FLIPS_FILE, WORK_FOLDER = "learning.json", "negative_flips.png", "unfinished"

HELD_OUT_SHARES = (0.15, 0.15)
"""Shares of new images for validation and test, where they come without splits of their own."""

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
    run: Path | str,
    new_data: Path | str | None,
    strategies: Mapping[str, Strategy],
    candidates: Sequence[str],
    *,
    rename: Mapping[str, str],
    remove: Sequence[str],
    forget: Path | str | None,
    memory: int,
    out: Path | None,
    seed: int,
    device: str,
    overwrite: bool,
) -> LearnResult:
    """Learn by every strategy, and write the best of the ``candidates`` as a run: see ``continual.learn``."""
    parent = Path(run)
    if new_data is None and not rename and not remove and forget is None:
        raise RecipeError(f"There is nothing to learn: name new images, as in sightline learn {run} NEW_IMAGES.")
    original = open_run(parent, device=device, remedy="name its run")
    lesson, notes = make_lesson(original, new_data, rename, remove, forget, memory=memory, seed=seed)
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
    sums = past.statistics if strategies[chosen.strategy].computes_head else None
    classifier.memory = Memory(statistics={} if sums is None else sums.tensors(), fisher=past.fisher)
    recalibrate(classifier, lesson)
    recipe = _recipe_of(original, new_data, rename, remove, folder.path)
    known = original.classifier.provenance
    step = {"by": chosen.strategy, "new_images": len(lesson.new.train), "classes": list(classifier.classes)}
    classifier.provenance = {
        **known,
        "data": Path(recipe.data or "").name,
        "data_fingerprint": lesson.splits.train.fingerprint,
        "train_images": len(lesson.splits.train),
        "parent": parent.resolve().name,
        "learned": [*known.get("learned", ()), step],
    }
    facts = {
        "epochs": 0,
        "best_epoch": 0,
        "stopped_early": None,
        "seconds": round(chosen.seconds, 3),
        "images_per_second": None,
        "temperature": classifier.temperature,
        "val_accuracy": float(are_right(classifier, lesson.splits.val).mean()),
        "remarks": [],
    }
    new_run = Run(folder.path, recipe, classifier, lesson.splits, facts, notes)
    sentences = _sentences(chosen, outcomes, original, forget)
    found = LearnResult(new_run, parent, chosen.strategy, tuple(outcomes), sentences)
    _write_run(found, lesson, chosen)
    return found


def make_lesson(
    original: Run,
    new_data: Path | str | None,
    rename: Mapping[str, str],
    remove: Sequence[str],
    forget: Path | str | None,
    *,
    memory: int,
    seed: int,
) -> tuple[Lesson, tuple[str, ...]]:
    """Old and new images with the classes after learning, the classifier with a head for them, and notes."""
    classifier, splits = original.classifier, original.splits
    for name in rename:
        if name not in classifier.classes:
            raise DataError(f"There is no class '{name}' to rename. {suggest(name, classifier.classes)}")
    renamed = [rename.get(name, name) for name in classifier.classes]
    for name in remove:
        if name not in renamed:
            raise DataError(f"There is no class '{name}' to remove. {suggest(name, renamed)}")
    kept = tuple(name for name in dict.fromkeys(renamed) if name not in remove)
    new, notes = (None, ()) if new_data is None else load_new_images(new_data, classifier, kept, seed)
    classes = tuple(dict.fromkeys((*kept, *(() if new is None else new.train.classes))))
    if len(classes) < 2:
        raise DataError(f"Only the class '{', '.join(classes)}' would be left: a classifier needs two.")
    gone = frozenset[int]()
    if forget is not None:
        gone = _digests_of(forget, classifier)
        found = sum(int(np.isin(part.digests, [*gone]).sum()) for part in (splits.train, splits.val, splits.test))
        if not found:
            raise DataError(f"None of the images of '{forget}' are among those of '{original.folder}'.")
        notes = (*notes, f"{found:,} images of '{forget}' are taken out of the data.")
    old = _adapt(splits, renamed, classes, gone)
    empty = old.train.subset(np.zeros(0, np.int64))
    fresh = Splits(empty, empty, empty)
    if new is not None:
        fresh = _adapt(new, new.train.classes, classes, gone)
    counts = old.train.counts + fresh.train.counts
    if bare := [name for name, count in zip(classes, counts, strict=True) if not count]:
        raise DataError(
            f"No training image of '{bare[0]}' would be left: remove the class too (--remove {bare[0]}), or add images."
        )
    groups = [[row for row, name in enumerate(renamed) if name == one] for one in kept]
    previous = regroup_head(classifier, kept, groups)
    before = copy.deepcopy(classifier)
    before.classes = tuple(renamed)
    lesson = Lesson(
        old=old,
        new=fresh,
        classifier=grow(previous, classes),
        previous=previous,
        before=before,
        old_classes=tuple(range(len(kept))),
        recipe=original.recipe,
        memory_size=memory,
        seed=seed,
    )
    return lesson, tuple(notes)


def _adapt(splits: Splits, names: Sequence[str], classes: Sequence[str], gone: frozenset[int]) -> Splits:
    """The images, classes ``names``, labelled by ``classes``; others, and those in ``gone``, are left out."""
    index = {name: label for label, name in enumerate(classes)}
    table = np.array([*(index.get(name, -2) for name in names), UNLABELLED], np.int64)

    def adapt(images: Dataset) -> Dataset:
        labels = table[images.labels]
        kept = np.flatnonzero((labels != -2) & ~np.isin(images.digests, np.array([*gone], np.uint64)))
        return replace(images.subset(kept), labels=labels[kept], classes=tuple(classes))

    return Splits(adapt(splits.train), adapt(splits.val), adapt(splits.test))


def load_new_images(
    data: Path | str, classifier: Classifier, known: Sequence[str], seed: int
) -> tuple[Splits, tuple[str, ...]]:
    """New images, split as they say or by ``HELD_OUT_SHARES``; and notes.

    Raises DataError for a class that differs from one of ``known`` by capitals or spaces alone.
    """
    images = load_dataset(find(data, several=False), classifier.geometry)
    folded = {_fold(name): name for name in known}
    for name in images.classes:
        if name not in known and _fold(name) in folded:
            raise DataError(
                f"'{data}' has a class '{name}', and the classifier knows '{folded[_fold(name)]}': rename the folder; "
                "or, if they are different things, give it a name that differs by more than capitals and spaces."
            )
    notes = [*images.notes]
    if rare := [name for name, count in zip(images.classes, images.counts, strict=True) if count < 3]:
        notes.append(
            f"There are fewer than 3 new images of {', '.join(rare[:5])}: they are learned, but how well cannot be "
            "measured."
        )
    if images.counts.max() < 3:  # nothing can be held out
        empty = images.subset(np.zeros(0, np.int64))
        return Splits(images, empty, empty), tuple(notes)
    val, test = HELD_OUT_SHARES
    parts = split(images, val=val, test=test, seed=seed)
    return parts, (*notes, *parts.notes)


def _digests_of(place: Path | str, classifier: Classifier) -> frozenset[int]:
    """The hashes of the image files below a folder, labelled or not, or of those of an archive or table."""
    files = [Path(name) for name in list_images(str(place))] if Path(place).is_dir() else []
    if not files:
        return frozenset(load_dataset(find(place, several=False), classifier.geometry).digests.tolist())
    return frozenset(int.from_bytes(hash_file(file.read_bytes()), "little") for file in files)


def _fold(name: str) -> str:
    return "".join(name.casefold().split())


def recalibrate(classifier: Classifier, lesson: Lesson) -> None:
    """Fit the old classifier's threshold, at its coverage, and conformal quantiles to the new probabilities.

    The old threshold would abstain on new classes.
    """
    val, before = lesson.splits.val, lesson.before
    probabilities = to_probabilities(predict_logits(classifier, val)[0], classifier.temperature)
    if before.threshold and len(lesson.old.val):
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


def _recipe_of(
    original: Run, new_data: Path | str | None, rename: Mapping[str, str], remove: Sequence[str], folder: Path
) -> Recipe:
    """The run's recipe, with where all images lie now: the old place, or a file that names the old and the new ones."""
    recipe = original.recipe.replace(weights=None)
    if recipe.data is None or (new_data is None and not rename and not remove):
        return recipe
    places, names, without = [(recipe.data, recipe.label_rule)], dict(rename), list(remove)
    if recipe.data.endswith(JOINED_SUFFIX):
        places, known, gone = read_places(Path(recipe.data))
        names = {**{a: rename.get(b, b) for a, b in known.items()}, **rename}
        without = [*gone, *remove]
    if new_data is not None:
        place = str(Path(new_data).resolve()) if Path(new_data).exists() else str(new_data)
        places = [*places, (place, USUAL_LABELS)]
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
