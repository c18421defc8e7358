"""Combine runs, and compare the result with its members on images that none of them was trained on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from numpy import ndarray

from .. import metrics, progress, runtime
from ..classifier import Classifier
from ..errors import BundleError, DataError
from ..files import check_output
from ..inference import predict_probabilities
from ..runs import open_run, trained_on
from ..training import Run
from ..types import Dataset, Findings, Remark, Splits
from .methods import Combiner, check_compatible, combine_classifiers

COMPARED_METRICS = ("accuracy", "log_loss", "ece")
"""Metrics in which a combination is compared with its members."""


def combine_folders(
    folders: Sequence[Path | str],
    combiner: Combiner,
    word: str,
    *,
    out: Path | str,
    device: str = "auto",
    overwrite: bool = False,
) -> Findings:
    """Combine the classifiers of run or bundle folders and save the result: see ``ensembles.combine_runs``."""
    check_output(Path(out), overwrite=overwrite, marker="config.json", kind="a classifier")
    names = [str(folder) for folder in folders]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise BundleError(f"'{twice}' is named twice: name each run once.")
    notes: tuple[str, ...] = ()
    try:
        remedy = "the images it was trained on are not known"
        runs = [open_run(folder, device=device, remedy=remedy) for folder in folders]
    except DataError as error:
        runs, notes = [], (f"The combination was not tested: {error}",)
    where = runtime.resolve_device(device)
    members = [run.classifier for run in runs] or [Classifier.load(folder).to(where) for folder in folders]
    check_compatible(members, names)
    images, split_notes = shared_splits(runs) if runs else (None, ())
    made = combine_classifiers(members, combiner, images=images, names=names)
    notes = (*notes, *split_notes, *made.notes)
    tested = {}
    if images is not None and len(images.test):
        tested = compare_with_members(made.classifier, members, images.test, names)
        gain = tested["gain"]
        significant = gain["low"] > 0 or gain["high"] < 0
        sentence = (
            f"On {tested['n']:,} test images its accuracy is {tested['accuracy']:.2%}, {gain['value'] * 100:+.2f} "
            f"points compared with the mean of the {len(names)} classifiers (95 % interval: {gain['low'] * 100:+.2f} "
            f"to {gain['high'] * 100:+.2f}){'' if significant else ', which is not significant'}."
        )
        notes = (*notes, sentence)
    made.classifier.provenance |= {"combined": word, "notes": [*notes], **({"test": tested} if tested else {})}
    made.classifier.save(out)
    chosen = [names[i] for i in made.member_indices]
    values = {"run": str(out), "by": word, "members": names, "kept": chosen, **tested}
    return Findings("combination", values, tuple(Remark("note", note) for note in notes))


def shared_splits(runs: Sequence[Run]) -> tuple[Splits, tuple[str, ...]]:
    """The first run's splits, without images that other runs have seen, and a note where there were such.

    Test images that another run was trained or validated on are left out, and validation images that another was
    trained on; files with equal contents are one image.
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
            f"validation images of another member; {left}. Runs with one --split-seed share their test images."
        )
    return Splits(own.train, val, test, own.notes), tuple(notes)


def compare_with_members(
    classifier: Classifier, members: Sequence[Classifier], images: Dataset, names: Sequence[str]
) -> dict[str, Any]:
    """Compare a combination with its members on the same test images, differences paired by image.

    Returns ``n``, the ``COMPARED_METRICS`` with intervals, ``rows`` (the same for each member, and the
    ``difference`` in accuracy to it) and ``gain``, the difference in accuracy to the members' mean.
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
    """The compared metrics of one classifier, and which images it classifies correctly."""
    probabilities, labels = predict_probabilities(classifier, images)
    found = metrics.overall_metrics(labels, probabilities)
    values = {name: found[name].value for name in COMPARED_METRICS}
    intervals = {name: found[name].as_json() for name in COMPARED_METRICS}
    return {**values, "intervals": intervals}, probabilities.argmax(1) == labels
