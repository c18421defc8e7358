"""A run becomes a release: copied, exported, compared, checksummed, and only then numbered."""

import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from .. import runtime
from ..classifier import Classifier, find_bundle
from ..data import load_dataset, nested_subset
from ..errors import BundleError, ChoiceError, DataError, RecipeError, ReleaseError, RequirementNotMet
from ..evidence import read_report
from ..files import atomic_replace, checksum, explain_write_errors, write_json
from ..formats import FLOAT_LIMITS, INT8_LIMITS, MAX_COMPARED_IMAGES, TorchRunner, compare_answers, write_exported
from ..models import ExportedModel, open_exported
from ..sources import find, shapes
from ..types import Dataset
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

_STALE_SECONDS = 86_400
"""Seconds after which what a killed publisher left is swept away."""

_N_DRAWN_IMAGES = 64
"""Drawn pictures that a file without labelled images is compared on."""


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
    """Publish the classifier of a run, bundle or release under the next number; it answers at once (``promote``).

    Its ONNX file is compared with it on ``images``, the run's validation images, or drawn pictures. Raises
    BundleError for a damaged classifier, Refused where the file answers otherwise, ReleaseError where it has a
    memory and ``with_memory`` is not given, OutputError where the site cannot be written: nothing is published.
    """
    site, run = Path(site), Path(run)
    bundle = _publishable_bundle(site, run, with_memory=with_memory)
    folder = site / "releases"
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _remove_stale(folder)
        holder = Path(tempfile.mkdtemp(prefix=".new-", dir=folder))
    work = holder / "release"  # the holder is its owner's only, a release is as readable as the site
    try:
        with explain_write_errors(folder):
            work.mkdir()
            shutil.copytree(bundle, work / BUNDLE_FOLDER)
        classifier = Classifier.load(work / BUNDLE_FOLDER)  # the copy: what is checked is what answers
        facts = {
            "format": RELEASE_FORMAT,
            "time": timestamp(),
            "by": by or current_user(),
            "source": str(run),
            "note": note,
            "sightline": runtime.version(),
            "classes": list(classifier.classes),
            "metrics": _read_metrics(run),
            "onnx": _export_onnx(classifier, work / ONNX_FILE, run, images),
        }
        facts["files"] = {name: checksum(path) for name, path in sorted(release_files(work).items())}
        return _store_release(site, work, facts, by, promoted=promote)
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def _publishable_bundle(site: Path, run: Path, *, with_memory: bool) -> Path:
    if (site / "recipe.toml").is_file() or (site / "config.json").is_file():
        raise ReleaseError(f"'{site}' is a run or a bundle, not a site: name another folder for the releases.")
    if run.is_file():
        raise ReleaseError(f"'{run}' is a file: publish the run or bundle it was exported from.")
    bundle = find_bundle(run)
    if (bundle / "memory").is_dir() and not with_memory:
        raise ReleaseError(
            f"'{run}' holds a memory: images it learned from, of people perhaps. Publish it --with-memory."
        )
    return bundle


def _store_release(site: Path, work: Path, facts: Mapping[str, Any], by: str | None, *, promoted: bool) -> Release:
    """The finished folder under the next number."""
    with lock_releases(site):
        number = max(_used_numbers(site), default=0) + 1
        path = release_folder(site, number)
        with atomic_replace(path) as temporary:
            work.rename(temporary)
            write_json(temporary / RELEASE_FILE, {"number": number, **facts})
            for file in temporary.rglob("*"):
                if file.is_file():
                    file.chmod(0o444)
        made = Release(number, path, {"number": number, **facts})
        append_audit(site, "publish", number, by, source=facts["source"], note=facts["note"])
        if promoted:
            set_current(site, made, "promote", by)
    return made


def _used_numbers(site: Path) -> set[int]:
    """Every number that a release has or had: none is given twice."""
    used = set(release_numbers(site))
    log = site / AUDIT_FILE
    if log.is_file():
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                used.add(int(json.loads(line)["release"]))
            except (ValueError, KeyError, TypeError):
                continue  # a line cut short by a full disk
    return used


def _remove_stale(folder: Path) -> None:
    """Remove what killed publishers left, once it is a day old."""
    for path in folder.glob(".*"):
        if time.time() - path.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def _read_metrics(run: Path) -> dict[str, Any]:
    """What was measured on the run's test images, the plain numbers of it."""
    try:
        found = read_report(run).get("evaluation") or {}
    except ValueError:
        return {}
    found = {**found, **(found.get("efficiency") or {})}
    return {name: value for name, value in found.items() if isinstance(value, int | float | str)}


# the file, and whether it gives the same answers


def _export_onnx(classifier: Classifier, path: Path, run: Path, images: Path | str | None) -> dict[str, Any]:
    """Write ``model.onnx`` and compare it; or why there is none. Raises Refused where its answers differ."""
    try:
        write_exported(classifier, path)
    except RequirementNotMet as error:
        return {"file": None, "why": str(error)}
    runner = open_exported(path, threads=1)
    limits = FLOAT_LIMITS if classifier.network.rounding is None else INT8_LIMITS
    found = _compare_answers(classifier, runner, run, images)
    if not (found["agreement"] >= limits.agreement and found["largest_difference"] <= limits.difference):
        raise RequirementNotMet(
            f"The exported file gives other answers than the classifier: the same class for "
            f"{found['agreement']:.2%} of {found['n']:,} images (at least {limits.agreement:.1%}), probabilities "
            f"up to {found['largest_difference']:.2g} apart (at most {limits.difference:g}). Nothing is published."
        )
    return {"file": ONNX_FILE, "int8": classifier.network.rounding is not None, **found}


def _compare_answers(
    classifier: Classifier, runner: ExportedModel, run: Path, images: Path | str | None
) -> dict[str, Any]:
    dataset, sample = _comparison_images(classifier, run, images)
    if dataset is None:
        drawn = _draw_shapes(classifier)
        ours, theirs = TorchRunner(classifier).probabilities(drawn), runner.probabilities(drawn)
        agree = float((ours.argmax(1) == theirs.argmax(1)).mean())
        apart = float(np.nan_to_num(np.abs(ours - theirs), nan=1.0).max())
        return {"n": len(drawn), "sample": sample, "agreement": agree, "largest_difference": apart}
    if len(dataset) > MAX_COMPARED_IMAGES:
        dataset = dataset.subset(nested_subset(dataset.labels, MAX_COMPARED_IMAGES / len(dataset), 0))
    found = compare_answers(classifier, runner, dataset)
    numbers = {name: found[name].value for name in ("accuracy", "accuracy_before")}
    return {"n": len(dataset), "sample": sample, **found, **numbers}


def _comparison_images(classifier: Classifier, run: Path, images: Path | str | None) -> tuple[Dataset | None, str]:
    """Labelled images to compare on, and what they are; or why there are none, and what stands in for them."""
    if images is not None:
        return load_dataset(find(images, several=False), classifier.geometry), f"images of '{images}'"
    if not (run / "recipe.toml").is_file():
        return None, "drawn pictures, as a bundle has no images of its own"
    from ..training import reopen

    try:
        return reopen(run, device="cpu").splits.val, "validation images of the run"
    except (DataError, RecipeError, BundleError, ChoiceError):
        return None, "drawn pictures, as the images of the run are not there any more, or changed"


def _draw_shapes(classifier: Classifier) -> UInt8[ndarray, "N H W C"]:
    """Circles, squares, stars and triangles at the working size."""
    height, width, channels = classifier.geometry.shape
    pictures = shapes(_N_DRAWN_IMAGES, max(8, height, width)).images[:, :height, :width]
    return pictures if channels == 3 else pictures[..., :1]
