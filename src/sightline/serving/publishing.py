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
from ..classifier import Classifier, bundle_of
from ..data.dataset import load
from ..errors import BundleError, ChoiceError, DataError, RecipeError, Refused, ReleaseError
from ..evaluation.growth import nested
from ..files import checksum, explaining, replacing, write_json
from ..formats.handover import MOST
from ..formats.members import write
from ..formats.parity import EXACT, INT8, InTorch, compared
from ..models.exported import Exported, open_exported
from ..sources.builtin import shapes
from ..sources.source import find
from ..types import Dataset
from .releases import (
    AUDIT,
    BUNDLE,
    FACTS,
    FORMAT,
    ONNX,
    Release,
    audit,
    folder_of,
    held,
    locked,
    now,
    numbers,
    point,
    whoami,
)

_FORGOTTEN = 86_400
"""Seconds after which what a killed publisher left is swept away."""

_SANITY = 64
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
    bundle = _bundle(site, run, with_memory=with_memory)
    folder = site / "releases"
    with explaining(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        holder = Path(tempfile.mkdtemp(prefix=".new-", dir=folder))
    work = holder / "release"  # the holder is its owner's only, a release is as readable as the site
    try:
        with explaining(folder):
            work.mkdir()
            shutil.copytree(bundle, work / BUNDLE)
        classifier = Classifier.load(work / BUNDLE)  # the copy: what is checked is what answers
        facts = {
            "format": FORMAT,
            "time": now(),
            "by": by or whoami(),
            "source": str(run),
            "note": note,
            "sightline": runtime.version(),
            "classes": list(classifier.classes),
            "metrics": _metrics(run),
            "onnx": _exported(classifier, work / ONNX, run, images),
        }
        facts["files"] = {name: checksum(path) for name, path in sorted(held(work).items())}
        return _numbered(site, work, facts, by, promoted=promote)
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def _bundle(site: Path, run: Path, *, with_memory: bool) -> Path:
    if (site / "recipe.toml").is_file() or (site / "config.json").is_file():
        raise ReleaseError(f"'{site}' is a run or a bundle, not a site: name another folder for the releases.")
    if run.is_file():
        raise ReleaseError(f"'{run}' is a file: publish the run or bundle it was exported from.")
    bundle = bundle_of(run)
    if (bundle / "memory").is_dir() and not with_memory:
        raise ReleaseError(
            f"'{run}' holds a memory: images it learned from, of people perhaps. Publish it --with-memory."
        )
    return bundle


def _numbered(site: Path, work: Path, facts: Mapping[str, Any], by: str | None, *, promoted: bool) -> Release:
    """The finished folder under the next number."""
    with locked(site):
        number = max(_used(site), default=0) + 1
        path = folder_of(site, number)
        with replacing(path) as temporary:
            work.rename(temporary)
            write_json(temporary / FACTS, {"number": number, **facts})
            for file in temporary.rglob("*"):
                if file.is_file():
                    file.chmod(0o444)
        made = Release(number, path, {"number": number, **facts})
        audit(site, "publish", number, by, source=facts["source"], note=facts["note"])
        if promoted:
            point(site, made, "promote", by)
    return made


def _used(site: Path) -> set[int]:
    """Every number that a release has or had: none is given twice."""
    used = set(numbers(site))
    log = site / AUDIT
    if log.is_file():
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                used.add(int(json.loads(line)["release"]))
            except (ValueError, KeyError, TypeError):
                continue  # a line cut short by a full disk
    return used


def _sweep(folder: Path) -> None:
    """Remove what killed publishers left, once it is a day old."""
    for path in folder.glob(".*"):
        if time.time() - path.stat().st_mtime > _FORGOTTEN:
            shutil.rmtree(path, ignore_errors=True)


def _metrics(run: Path) -> dict[str, Any]:
    """What was measured on the run's test images, the plain numbers of it."""
    path = run / "report.json"
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("test", {})
    except ValueError:
        return {}
    return {name: value for name, value in found.items() if isinstance(value, int | float | str)}


# the file, and whether it gives the same answers


def _exported(classifier: Classifier, path: Path, run: Path, images: Path | str | None) -> dict[str, Any]:
    """Write ``model.onnx`` and compare it; or why there is none. Raises Refused where its answers differ."""
    try:
        write(classifier, path)
    except Refused as error:
        return {"file": None, "why": str(error)}
    runner = open_exported(path, threads=1)
    limits = EXACT if classifier.network.rounding is None else INT8
    found = _compared(classifier, runner, run, images)
    if not (found["agreement"] >= limits.agreement and found["largest_difference"] <= limits.difference):
        raise Refused(
            f"The exported file gives other answers than the classifier: the same class for "
            f"{found['agreement']:.2%} of {found['n']:,} images (at least {limits.agreement:.1%}), probabilities "
            f"up to {found['largest_difference']:.2g} apart (at most {limits.difference:g}). Nothing is published."
        )
    return {"file": ONNX, "int8": classifier.network.rounding is not None, **found}


def _compared(classifier: Classifier, runner: Exported, run: Path, images: Path | str | None) -> dict[str, Any]:
    dataset, sample = _labelled(classifier, run, images)
    if dataset is None:
        drawn = _drawn(classifier)
        ours, theirs = InTorch(classifier).probabilities(drawn), runner.probabilities(drawn)
        agree = float((ours.argmax(1) == theirs.argmax(1)).mean())
        apart = float(np.nan_to_num(np.abs(ours - theirs), nan=1.0).max())
        return {"n": len(drawn), "sample": sample, "agreement": agree, "largest_difference": apart}
    if len(dataset) > MOST:
        dataset = dataset.subset(nested(dataset.labels, MOST / len(dataset), 0))
    found = compared(classifier, runner, dataset)
    numbers = {name: found[name].value for name in ("accuracy", "accuracy_before")}
    return {"n": len(dataset), "sample": sample, **found, **numbers}


def _labelled(classifier: Classifier, run: Path, images: Path | str | None) -> tuple[Dataset | None, str]:
    """Labelled images to compare on, and what they are; or why there are none, and what stands in for them."""
    if images is not None:
        return load(find(images, several=False), classifier.geometry), f"images of '{images}'"
    if not (run / "recipe.toml").is_file():
        return None, "drawn pictures, as a bundle has no images of its own"
    from ..training.run import reopen

    try:
        return reopen(run, device="cpu").splits.val, "validation images of the run"
    except (DataError, RecipeError, BundleError, ChoiceError):
        return None, "drawn pictures, as the images of the run are not there any more, or changed"


def _drawn(classifier: Classifier) -> UInt8[ndarray, "N H W C"]:
    """Circles, squares, stars and triangles at the working size."""
    height, width, channels = classifier.geometry.shape
    pictures = shapes(_SANITY, max(8, height, width)).images[:, :height, :width]
    return pictures if channels == 3 else pictures[..., :1]
