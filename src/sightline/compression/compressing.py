"""The verb on a run: the pipeline (or a search), the comparison with the original, and a new run folder."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import progress
from ..errors import OutputError, RecipeError, RequirementNotMet
from ..files import atomic_replace, explain_write_errors, read_json_object, write_json, write_text
from ..inference import match_labels
from ..training import INHERIT, Run, RunFolder, architecture_word, check_run_folder, create_run_folder
from .comparison import SizeComparison, compare_with_original
from .compressor import Compressor, FineTuning, Original, open_original
from .distil import add_unlabelled_images
from .pipeline import PipelineResult, Target, TargetSearch, TargetSearchResult, dry_run, run_pipeline

COMPRESSION_FILE = "compression.json"

WORK_FOLDER = "unfinished"
"""Folder of the intermediate results, inside the run that is being made."""


@dataclass(frozen=True, eq=False)
class CompressionResult:
    """A smaller classifier, its run, and the comparison with the original."""

    run: Run
    original: Path
    result: PipelineResult
    comparison: SizeComparison
    notes: tuple[str, ...]
    search: TargetSearchResult | None = None
    """Where a target was given."""

    def require_target(self) -> None:
        """Raise RequirementNotMet where the target was not met; the run holds the best candidate all the same."""
        if self.search is not None and not self.search.is_met:
            raise RequirementNotMet(f"{self.search.sentence()} It is saved in '{self.run.folder}'.")

    def as_json(self) -> dict[str, Any]:
        """The contents of ``compression.json``."""
        return {
            "parent": str(self.original),
            "by": [step.word() for step in self.result.steps],
            **self.comparison.as_json(),
            "fine_tuning": [dict(one) for one in self.result.facts],
            "target": None if self.search is None else self.search.as_json(),
            "notes": list(self.notes),
        }


def compress_run(
    run: Path | str,
    data: str | None,
    steps: Sequence[Compressor],
    *,
    out: Path | str,
    target: Target | None = None,
    max_accuracy_drop: float = 0.01,
    settings: FineTuning | None = None,
    unlabelled: str | None = None,
    device: str = "auto",
    overwrite: bool = False,
) -> CompressionResult:
    """Compress a run by ``steps`` and write the result as a run: see ``compression.compress``."""
    out, settings = Path(out), settings or FineTuning()
    if not 0 <= max_accuracy_drop < 1:
        raise RecipeError(
            f"max_accuracy_drop is {max_accuracy_drop:g}: it is a share of the images, such as 0.01 for one point."
        )
    if unlabelled is not None and not steps[0].fresh:
        raise RecipeError(
            "--unlabelled names photos for a new network to learn the original's answers on: use it with --by distil."
        )
    if out.resolve() == Path(run).resolve() or out.resolve() in Path(run).resolve().parents:
        raise OutputError(f"'{out}' is where the original is. Choose another --out.")
    if not (out / WORK_FOLDER / "request.json").is_file():
        check_run_folder(out, overwrite=overwrite)
    original = open_original(run, data, device=device)
    match_labels(original.classifier, original.splits.test)  # refuse unfit images now, not at the end
    taught, transfer = (original, None) if unlabelled is None else add_unlabelled_images(original, unlabelled)
    request = [
        original.recipe.to_toml(),
        taught.splits.train.fingerprint,
        json.dumps(original.classifier.config(), sort_keys=True),
        *(repr(tensor.double().sum().item()) for tensor in original.classifier.state_dict().values()),
        *map(repr, steps),
        f"{target} {max_accuracy_drop if target else ''}",
        repr(settings),
    ]
    key = hashlib.blake2b("\n".join(request).encode(), digest_size=16).hexdigest()
    _prepare_output(out, key, taught, steps, overwrite=overwrite)
    search = None
    if target is None:
        result = run_pipeline(taught, steps, settings, out / WORK_FOLDER)
    else:
        search = TargetSearch(taught, steps, target, max_accuracy_drop, settings, out / WORK_FOLDER).run()
        progress.notify(search.sentence())
        result = search.best.result
    return _publish(original, result, search, out, transfer)


def _prepare_output(
    out: Path, key: str, original: Original, steps: Sequence[Compressor], *, overwrite: bool
) -> None:
    """Create the run folder, or keep one in which a compression with the same ``key`` was interrupted.

    Raises OutputError where it holds an unfinished compression with another key, and what ``steps`` refuse to do:
    an old run is not overwritten for a compression that fails.
    """
    file = out / WORK_FOLDER / "request.json"
    if read_json_object(file).get("request") == key:
        progress.notify(f"Continuing the unfinished compression in '{out}'.")
        return
    dry_run(original, steps)
    if file.is_file():
        if not overwrite:
            raise OutputError(
                f"'{out}' contains an unfinished compression with different settings. Repeat its command to "
                "continue it, choose another --out, or add --overwrite."
            )
        with explain_write_errors(out):
            shutil.rmtree(out)
    create_run_folder(out, "", overwrite=overwrite)
    with atomic_replace(out / WORK_FOLDER) as temporary:
        temporary.mkdir()
        write_json(temporary / "request.json", {"request": key})


def _publish(
    original: Original,
    result: PipelineResult,
    search: TargetSearchResult | None,
    out: Path,
    transfer: dict[str, Any] | None,
) -> CompressionResult:
    """Compare both classifiers, describe the smaller one, write the run, and remove the work folder."""
    classifier, images = result.classifier, original.splits.train
    comparison = compare_with_original(original.classifier, classifier, original.splits.test)
    notes = [*original.notes, *(note for facts in result.facts for note in facts["notes"])]
    if original.classifier.threshold or original.classifier.answers:
        notes.append(
            "The threshold for 'unknown' and the conformal sets were calibrated on the original's answers and are "
            f"dropped: set new ones with sightline evaluate {out} --risk 0.01 --save."
        )
    if transfer is not None:
        notes.append(
            f"It also learned the original's answers to {transfer['images']:,} photos without labels of "
            f"'{transfer['data']}'."
        )
    known = {} if result.model else original.classifier.provenance  # new weights have no ancestors
    classifier.threshold, classifier.answers = 0.0, {}
    classifier.provenance = {
        **known,
        "data": Path(original.recipe.data or "").name,
        "data_fingerprint": images.fingerprint,
        "train_images": len(images),
        "split_seed": original.recipe.data_seed,
        "parent": original.folder.resolve().name,
        "compressed": [*known.get("compressed", ()), *(step.word() for step in result.steps)],
        **({} if transfer is None else {"unlabelled": transfer}),
    }
    recipe = result.recipe.replace(
        data=original.recipe.data,
        **asdict(original.recipe.label_rule),
        model=result.model or original.recipe.model or architecture_word(original.classifier.architecture),
        weights=None,
        normalize="fitted" if result.recipe.normalize in (None, INHERIT) else result.recipe.normalize,
        epochs=result.recipe.epochs or 0,
    )
    rates = [one["images_per_second"] for one in result.facts if one["images_per_second"]]
    facts = {
        **{name: value for name, value in result.facts[-1].items() if name not in ("step", "notes")},
        "epochs": sum(one["epochs"] for one in result.facts),
        "seconds": round(sum(one["seconds"] for one in result.facts), 3),
        "images_per_second": rates[-1] if rates else None,
        "temperature": classifier.temperature,
    }
    run = Run(out, recipe, classifier, original.splits, facts, tuple(notes))
    found = CompressionResult(run, original.folder, result, comparison, tuple(notes), search)
    folder, history = RunFolder(out), result.folder / "history.csv"
    classifier.save(folder.bundle)
    if history.is_file():
        with atomic_replace(out / "history.csv") as temporary:
            shutil.copyfile(history, temporary)
    write_json(out / "training.json", facts)
    write_json(out / COMPRESSION_FILE, found.as_json())
    folder.write_header(recipe, run.splits, found.notes)
    words = ",".join(step.word() for step in result.steps)
    head = f"# Made by `sightline compress {found.original} --by {words}`: the recipe of its last training.\n"
    write_text(out / "recipe.toml", head + recipe.to_toml())  # last: it makes the folder a run
    with explain_write_errors(out):
        shutil.rmtree(out / WORK_FOLDER)
    return found
