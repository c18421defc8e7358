"""The verb ``compress``: a run becomes a smaller one, healed, measured beside the original, and kept as a run."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import progress
from ..classifier import Classifier
from ..errors import OutputError, RecipeError, RequirementNotMet
from ..files import atomic_replace, explain_write_errors, write_json, write_text
from ..inference import match_labels
from ..training import INHERIT, Recipe, Run, RunFolder, architecture_word, check_run_folder, create_run_folder
from .comparison import SizeComparison, compare_with_original
from .distil import Distil
from .fine_tuning import FineTuning
from .opening import open_original
from .pipeline import Compressor, Original, PipelineResult, dry_run, format_step, parse_steps, run_pipeline
from .target import Target, TargetSearch, TargetSearchResult

COMPRESSION_FILE = "compression.json"

WORK_FOLDER = "unfinished"
"""Folder of what is not finished, in the run that is being made."""


@dataclass(frozen=True, eq=False)
class CompressionResult:
    """A smaller classifier, its run, and what was measured of both."""

    run: Run
    original: Path
    result: PipelineResult
    comparison: SizeComparison
    notes: tuple[str, ...]
    search: TargetSearchResult | None = None
    """Where a target was given."""

    def require(self) -> None:
        """Raise Refused where the target was not met: the best that was found is kept in the run all the same."""
        if self.search is not None and not self.search.is_met:
            raise RequirementNotMet(f"{self.search.sentence()} It is kept in '{self.run.folder}'.")

    def as_json(self) -> dict[str, Any]:
        """What ``compression.json`` holds."""
        return {
            "parent": str(self.original),
            "by": [format_step(step) for step in self.result.steps],
            **self.comparison.as_json(),
            "healing": [dict(one) for one in self.result.facts],
            "target": None if self.search is None else self.search.as_json(),
            "notes": list(self.notes),
        }


def compress(
    run: Path | str,
    data: str | None = None,
    *,
    by: str | Compressor | Sequence[str | Compressor],
    out: Path | str,
    target: str | Sequence[str] = (),
    allowance: float = 0.01,
    healing: FineTuning | None = None,
    device: str = "auto",
    overwrite: bool = False,
) -> CompressionResult:
    """Make a smaller classifier of a run's (or a bundle's, with ``data``), and keep it as a run at ``out``.

    ``by`` are compressors in order, each healed before the next. A ``target`` such as ``latency=0.5x`` sets their
    strength; at most ``allowance`` of accuracy on validation may go (0.01 is a point). The same call again goes on
    with what was stopped. Both are measured on the test images; see ``CompressionResult.require``. Raises SightlineError,
    each with its remedy, before any long work where it cannot be done.
    """
    steps, wanted = parse_steps(by), Target.parse(target) if target else None
    out, plan = Path(out), healing or FineTuning()
    _check_output(out, Path(run), allowance, overwrite=overwrite)
    parent = open_original(run, data, device=device)
    match_labels(parent.classifier, parent.splits.test)  # what cannot be measured at the end is said now
    workshop = out / WORK_FOLDER
    request = _request_key(parent, steps, wanted, allowance, plan)
    going_on = _is_resuming(workshop, request)
    if not going_on:
        dry_run(parent, steps)  # what is refused is refused now, and an old run is not given up for it
    _prepare_output(out, request, going_on=going_on, overwrite=overwrite)
    search = None
    if wanted is None:
        made = run_pipeline(parent, steps, plan, workshop)
    else:
        search = TargetSearch(parent, steps, wanted, allowance, plan, workshop).run()
        progress.notify(search.sentence())
        made = search.best.result
    return _publish(parent, made, search, out)


def _check_output(out: Path, run: Path, allowance: float, *, overwrite: bool) -> None:
    """Raise SightlineError for what can be known to fail."""
    if not 0 <= allowance < 1:
        raise RecipeError(
            f"The allowance is {allowance:g}: it is a share of the images, such as 0.01 for one point."
        )
    if out.resolve() == run.resolve() or out.resolve() in run.resolve().parents:
        raise OutputError(f"'{out}' is where the original is. Choose another --out.")
    if not (out / WORK_FOLDER / "request.json").is_file():
        check_run_folder(out, overwrite=overwrite)


def _request_key(
    parent: Original, steps: Sequence[Compressor], target: Target | None, allowance: float, healing: FineTuning
) -> str:
    """A key of all that the result depends on."""
    facts = [
        parent.recipe.to_toml(),
        parent.splits.train.fingerprint,
        json.dumps(parent.classifier.config(), sort_keys=True),
        *(repr(tensor.double().sum().item()) for tensor in parent.classifier.state_dict().values()),
        *map(repr, steps),
        f"{target} {allowance if target else ''}",
        repr(healing),
    ]
    return hashlib.blake2b("\n".join(facts).encode(), digest_size=16).hexdigest()


def _is_resuming(workshop: Path, request: str) -> bool:
    """Whether this very work was begun there."""
    file = workshop / "request.json"
    return file.is_file() and json.loads(file.read_text(encoding="utf-8")).get("request") == request


def _prepare_output(out: Path, request: str, *, going_on: bool, overwrite: bool) -> None:
    """Make the place, or say that work there goes on; OutputError where it holds something else unfinished."""
    workshop = out / WORK_FOLDER
    if going_on:
        progress.notify(f"Going on with what '{out}' has unfinished.")
        return
    if (workshop / "request.json").is_file():
        if not overwrite:
            raise OutputError(
                f"'{out}' holds unfinished work that was asked for otherwise. Give the same command again to go "
                "on with it, choose another --out, or add --overwrite."
            )
        with explain_write_errors(out):
            shutil.rmtree(out)
    create_run_folder(out, "", overwrite=overwrite)
    with atomic_replace(workshop) as temporary:
        temporary.mkdir()
        write_json(temporary / "request.json", {"request": request})


def _publish(
    parent: Original, made: PipelineResult, search: TargetSearchResult | None, out: Path
) -> CompressionResult:
    """Measure both, write the run, and clear the workshop away."""
    table = compare_with_original(parent.classifier, made.classifier, parent.splits.test)
    notes = [*parent.notes, *(note for facts in made.facts for note in facts["notes"])]
    if parent.classifier.threshold or parent.classifier.answers:
        notes.append(
            "The threshold for 'unknown' and the conformal sets were the original's, and are left behind: set "
            f"them anew with sightline evaluate {out} --risk 0.01 --keep."
        )
    classifier, recipe = _with_provenance(parent, made), _run_recipe(parent, made)
    facts = _training_facts(made, classifier)
    run = Run(out, recipe, classifier, parent.splits, facts, tuple(notes))
    found = CompressionResult(run, parent.folder, made, table, tuple(notes), search)
    _write_run(found, made.folder)
    return found


def _with_provenance(parent: Original, made: PipelineResult) -> Classifier:
    """The classifier with word of where it comes from, and without what was calibrated on other answers."""
    classifier, images = made.classifier, parent.splits.train
    taught = any(isinstance(step, Distil) for step in made.steps)
    before = {} if taught else parent.classifier.provenance  # fresh weights have no ancestors
    classifier.threshold, classifier.answers = 0.0, {}
    classifier.provenance = {
        **before,
        "data": Path(parent.recipe.data or "").name,
        "data_fingerprint": images.fingerprint,
        "train_images": len(images),
        "split_seed": parent.recipe.data_seed,
        "parent": parent.folder.resolve().name,
        "compressed": [*before.get("compressed", ()), *map(format_step, made.steps)],
    }
    return classifier


def _run_recipe(parent: Original, made: PipelineResult) -> Recipe:
    """What reads the run's images again, and by which its last healing went."""
    student = next((step.to for step in made.steps if isinstance(step, Distil)), None)
    normalize = "fitted" if made.recipe.normalize in (None, INHERIT) else made.recipe.normalize
    return made.recipe.replace(
        data=parent.recipe.data,
        model=student or parent.recipe.model or architecture_word(parent.classifier.architecture),
        weights=None,
        normalize=normalize,
        epochs=made.recipe.epochs or 0,
    )


def _training_facts(made: PipelineResult, classifier: Classifier) -> Mapping[str, Any]:
    """``training.json`` of all healings together, the last one's where they cannot be added."""
    totals = {name: sum(one[name] for one in made.facts) for name in ("epochs", "seconds")}
    last = {name: value for name, value in made.facts[-1].items() if name not in ("step", "notes")}
    rates = [one["images_per_second"] for one in made.facts if one["images_per_second"]]
    return {
        **last,
        **totals,
        "seconds": round(totals["seconds"], 3),
        "images_per_second": rates[-1] if rates else None,
        "temperature": classifier.temperature,
    }


def _write_run(found: CompressionResult, last: Path) -> None:
    """The run folder; what makes it a run, its recipe, comes last."""
    out, folder = found.run.folder, RunFolder(found.run.folder)
    found.run.classifier.save(folder.bundle)
    if (last / "history.csv").is_file():
        with atomic_replace(out / "history.csv") as temporary:
            shutil.copyfile(last / "history.csv", temporary)
    write_json(out / "training.json", dict(found.run.facts))
    write_json(out / COMPRESSION_FILE, found.as_json())
    folder.write_header(found.run.recipe, found.run.splits, found.notes)
    words = ",".join(format_step(step) for step in found.result.steps)
    head = f"# Made by `sightline compress {found.original} --by {words}`: this recipe is its last training's.\n"
    write_text(out / "recipe.toml", head + found.run.recipe.to_toml())
    with explain_write_errors(out):
        shutil.rmtree(out / WORK_FOLDER)
