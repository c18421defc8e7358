"""``publish``: a run is copied, exported, compared and checksummed, and only then becomes a numbered release."""

import json
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from .. import runtime
from ..classifier import Classifier, find_bundle
from ..data import load_dataset, nested_subset
from ..errors import BundleError, ChoiceError, DataError, RecipeError, ReleaseError, RequirementNotMet
from ..evidence import read_report
from ..exported_model import open_exported
from ..files import atomic_replace, checksum, explain_write_errors, write_json
from ..formats import FLOAT_LIMITS, INT8_LIMITS, MAX_COMPARED_IMAGES, TorchRunner, compare_answers, write_exported
from ..models import MEMORY_FOLDER, copy_bundle
from ..sources import find, shapes
from ..types import Dataset, Splits
from .references import write_reference
from .releases import (
    AUDIT_FILE,
    BUNDLE_FOLDER,
    ONNX_FILE,
    RELEASE_FILE,
    RELEASE_FORMAT,
    Release,
    append_audit,
    current_user,
    lock_releases,
    release_files,
    release_folder,
    release_numbers,
    set_current,
    timestamp,
)

STALE_SECONDS = 86_400
"""Age at which the temporary folder of a killed publisher is removed."""

N_DRAWN_IMAGES = 64
"""Drawn pictures to compare an exported file on if there are no labelled images."""


def publish(
    site: Path | str,
    run: Path | str,
    *,
    promote: bool = True,
    with_memory: bool = False,
    note: str = "",
    images: Path | str | None = None,
    by: str | None = None,
) -> Release:
    """Publish the classifier of a run, bundle or release under the next number, and ``promote`` it.

    Its ONNX file is compared with it on ``images``, the run's validation images, or drawn pictures. A bundle with
    a memory (statistics and hashes of past images) is published only ``with_memory``. Nothing is published if this
    raises: BundleError for a damaged classifier, RequirementNotMet if the file answers otherwise, ReleaseError for
    a memory without ``with_memory``, OutputError if the site cannot be written.
    """
    site, run = Path(site), Path(run)
    if (site / "recipe.toml").is_file() or (site / "config.json").is_file():
        raise ReleaseError(f"'{site}' is a run or a bundle, not a site: name another folder for the releases.")
    if run.is_file():
        raise ReleaseError(f"'{run}' is a file: publish the run or bundle it was exported from.")
    bundle = find_bundle(run)
    if (bundle / MEMORY_FOLDER).is_dir() and not with_memory:
        raise ReleaseError(
            f"'{run}' holds a memory: statistics of the images it learned from, and their hashes. To publish it "
            "with the classifier, add --with-memory."
        )
    folder = site / "releases"
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob(".*"):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
        holder = Path(tempfile.mkdtemp(prefix=".new-", dir=folder))
    work = holder / "release"  # mkdtemp's folder is private, a release is as readable as the site
    try:
        with explain_write_errors(folder):
            work.mkdir()
            copy_bundle(bundle, work / BUNDLE_FOLDER)
        classifier = Classifier.load(work / BUNDLE_FOLDER)  # the copy: what is checked is what answers
        measured: dict[str, Any] = {}
        with suppress(ValueError):  # a damaged report.json
            measured = read_report(run).get("evaluation") or {}
        measured = {**measured, **(measured.get("efficiency") or {})}
        facts = {
            "format": RELEASE_FORMAT,
            "time": timestamp(),
            "by": by or current_user(),
            "source": str(run),
            "note": note,
            "sightline": runtime.version(),
            "classes": list(classifier.classes),
            "metrics": {name: value for name, value in measured.items() if isinstance(value, int | float | str)},
        }
        given = None if images is None else load_dataset(find(images, several=False), classifier.geometry)
        splits = _open_splits(run) if given is None else None
        facts["onnx"] = _export_onnx(classifier, work / ONNX_FILE, *_comparison_images(given, splits, run, images))
        facts["reference"] = write_reference(classifier, work, given, splits)
        facts["files"] = {name: checksum(path) for name, path in sorted(release_files(work).items())}
        with lock_releases(site):
            number = max(_used_numbers(site), default=0) + 1
            facts = {"number": number, **facts}
            path = release_folder(site, number)
            with atomic_replace(path) as temporary:
                work.rename(temporary)
                write_json(temporary / RELEASE_FILE, facts)
                for file in temporary.rglob("*"):
                    if file.is_file():
                        file.chmod(0o444)
            published = Release(number, path, facts)
            append_audit(site, "publish", number, by, source=facts["source"], note=note)
            if promote:
                set_current(site, published, "promote", by)
        return published
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def _used_numbers(site: Path) -> set[int]:
    """Return every number that a release has or had: none is used twice."""
    used = set(release_numbers(site))
    log = site / AUDIT_FILE
    if log.is_file():
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                used.add(int(json.loads(line)["release"]))
            except (ValueError, KeyError, TypeError):
                continue  # a line cut short by a full disk
    return used


def _export_onnx(classifier: Classifier, path: Path, dataset: Dataset | None, sample: str) -> dict[str, Any]:
    """Write ``model.onnx`` and compare its answers; return the result, or why there is no file.

    Raise RequirementNotMet if the answers differ.
    """
    try:
        write_exported(classifier, path)
    except RequirementNotMet as error:
        return {"file": None, "why": str(error)}
    runner = open_exported(path, threads=1)
    if dataset is None:
        height, width, channels = classifier.geometry.shape
        drawn = shapes(N_DRAWN_IMAGES, max(8, height, width)).images[:, :height, :width, :channels]
        ours, theirs = TorchRunner(classifier).probabilities(drawn), runner.probabilities(drawn)
        found: dict[str, Any] = {
            "n": len(drawn),
            "sample": sample,
            "agreement": float((ours.argmax(1) == theirs.argmax(1)).mean()),
            "largest_difference": float(np.nan_to_num(np.abs(ours - theirs), nan=1.0).max()),
        }
    else:
        if len(dataset) > MAX_COMPARED_IMAGES:
            dataset = dataset.subset(nested_subset(dataset.labels, MAX_COMPARED_IMAGES / len(dataset), 0))
        compared = compare_answers(classifier, runner, dataset)
        accuracies = {name: compared[name].value for name in ("accuracy", "accuracy_before")}
        found = {"n": len(dataset), "sample": sample, **compared, **accuracies}
    int8 = classifier.network.rounding is not None
    limits = INT8_LIMITS if int8 else FLOAT_LIMITS
    if not (found["agreement"] >= limits.agreement and found["largest_difference"] <= limits.difference):
        raise RequirementNotMet(
            f"The exported file gives other answers than the classifier: the same class for "
            f"{found['agreement']:.2%} of {found['n']:,} images (at least {limits.agreement:.1%}), probabilities "
            f"up to {found['largest_difference']:.2g} apart (at most {limits.difference:g}). Nothing is published."
        )
    return {"file": ONNX_FILE, "int8": int8, **found}


def _open_splits(run: Path) -> Splits | None:
    """Return the images of a run; None if it has none, or they are not there any more, or changed."""
    if not (run / "recipe.toml").is_file():
        return None
    from ..training import reopen

    try:
        return reopen(run, device="cpu").splits
    except (DataError, RecipeError, BundleError, ChoiceError):
        return None


def _comparison_images(
    given: Dataset | None, splits: Splits | None, run: Path, images: Path | str | None
) -> tuple[Dataset | None, str]:
    """Return labelled images to compare on and their description, or None and why drawn pictures replace them."""
    if given is not None:
        return given, f"images of '{images}'"
    if splits is None and (run / "recipe.toml").is_file():
        return None, "drawn pictures, as the images of the run are not there any more, or changed"
    if splits is None:
        return None, "drawn pictures, as a bundle has no images of its own"
    if not len(splits.val):
        return splits.train.labelled, "training images of the run"
    return splits.val, "validation images of the run"
