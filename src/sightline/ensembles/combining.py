"""Runs are combined, and the result is tested beside its members on images that none of them learnt from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from numpy import ndarray

from .. import metrics, progress, runtime
from ..choose import choose
from ..classifier import Classifier
from ..errors import BundleError, DataError, OutputError
from ..inference import predict_probabilities
from ..runs import open_run, trained_on
from ..training import Run
from ..types import Dataset, Findings, Remark, Splits
from .methods import COMBINERS, check_compatible, combine

COMPARED_METRICS = ("accuracy", "log_loss", "ece")
"""What is compared of a combination and its members."""


def combine_runs(
    folders: Sequence[Path | str],
    by: str = "mean",
    *,
    out: Path | str,
    device: str = "auto",
    overwrite: bool = False,
) -> Findings:
    """Combine the classifiers of runs (or bundles), test the result beside its members, and save it at ``out``.

    Tested on images that no member was trained or validated on: where the runs' images are known. Raises
    OutputError where ``out`` is taken, and what ``combine`` raises.
    """
    _check_output_free(Path(out), overwrite=overwrite)
    choose(COMBINERS, by, "way to combine")
    names = [str(folder) for folder in folders]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise BundleError(f"'{twice}' is named twice: name each run once.")
    runs, notes = _reopen_runs(folders, device)
    where = runtime.resolve_device(device)
    members = [run.classifier for run in runs] or [Classifier.load(folder).to(where) for folder in folders]
    check_compatible(members, names)
    images, said = shared_splits(runs) if runs else (None, ())
    made = combine(members, by, images=images, names=names)
    notes = (*notes, *said, *made.notes)
    tested = {}
    if images is not None and len(images.test):
        tested = compare_with_members(made.classifier, members, images.test, names)
        notes = (*notes, _gain_sentence(tested, len(names)))
    made.classifier.provenance |= {"combined": by, "notes": [*notes], **({"test": tested} if tested else {})}
    made.classifier.save(out)
    values = {
        "run": str(out),
        "by": by,
        "members": names,
        "kept": [names[i] for i in made.member_indices],
        **tested,
    }
    return Findings("combination", values, tuple(Remark("note", note) for note in notes))


def _check_output_free(out: Path, *, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise OutputError(f"'{out}' exists already. Choose another --out, or add --overwrite to replace it.")
    if not (out / "config.json").is_file():
        raise OutputError(f"'{out}' is not a classifier, so it is not overwritten. Choose another --out.")


def _reopen_runs(folders: Sequence[Path | str], device: str) -> tuple[list[Run], tuple[str, ...]]:
    """All runs with their images; or none, and a note that says why, where one comes without its images."""
    try:
        remedy = "the images it was trained on are not known"
        return [open_run(folder, device=device, remedy=remedy) for folder in folders], ()
    except DataError as error:
        return [], (f"The combination was not tested: {error}",)


def shared_splits(runs: Sequence[Run]) -> tuple[Splits, tuple[str, ...]]:
    """The first run's images for measuring on all: without those to test on that another run learnt from.

    Test images that were training or validation images of another run are left out, and validation images
    that were training images of another; equal files are one image.
    """
    own, others = runs[0].splits, runs[1:]
    test, val = own.test, own.val
    for run in others:
        test = test.subset(~trained_on(run, test))
        val = val.subset(~trained_on(run, val, validation=False))
    notes = []
    if lost := len(own.test) - len(test):
        what = "all" if not len(test) else f"{lost:,} of the {len(own.test):,}"
        left = "no image is left to test on" if not len(test) else f"tested on the other {len(test):,}"
        notes.append(
            f"The runs were split differently: {what} test images of '{runs[0].folder}' were training or "
            f"validation images of another member; {left}. Members with one --split-seed share their test images."
        )
    return Splits(own.train, val, test, own.notes), tuple(notes)


def compare_with_members(
    classifier: Classifier, members: Sequence[Classifier], images: Dataset, names: Sequence[str]
) -> dict[str, Any]:
    """A combination and its members on the same test images, each difference paired image by image.

    The values hold ``n``, what is ``SHOWN`` with intervals, ``rows`` (the same of each member, and the
    ``difference`` in accuracy to it) and ``gain``, the difference to the members' mean.
    """
    with progress.progress_bar("Testing", len(members) + 1) as advance:
        found, right = _test_classifier(classifier, images)
        advance()
        rows, rights = [], []
        for name, member in zip(names, members, strict=True):
            row, its = _test_classifier(member, images)
            difference = metrics.paired_difference(right, its).as_json()
            rows.append({"member": name, **row, "difference": difference})
            rights.append(its)
            advance()
    gain = metrics.paired_difference(right, np.mean(rights, axis=0))
    return {"n": len(images), **found, "rows": rows, "gain": gain.as_json()}


def _test_classifier(classifier: Classifier, images: Dataset) -> tuple[dict[str, Any], Bool[ndarray, " N"]]:
    """What is shown of one classifier, and which images it got right."""
    probabilities, labels = predict_probabilities(classifier, images)
    found = metrics.overall_metrics(labels, probabilities)
    values = {name: found[name].value for name in COMPARED_METRICS}
    intervals = {name: found[name].as_json() for name in COMPARED_METRICS}
    return {**values, "intervals": intervals}, probabilities.argmax(1) == labels


def _gain_sentence(tested: Mapping[str, Any], members: int) -> str:
    gain = tested["gain"]
    edges = " to ".join(f"{gain[edge] * 100:+.2f}" for edge in ("low", "high"))
    sure = gain["low"] > 0 or gain["high"] < 0
    said = (
        f"On {tested['n']:,} test images its accuracy is {tested['accuracy']:.2%}, {gain['value'] * 100:+.2f} "
        f"points against the mean of the {members} classifiers (95 % interval: {edges})"
    )
    return f"{said}." if sure else f"{said}: this test cannot tell them apart."
