"""A classifier becomes a file for someone else's program, and is handed over only if its answers are the same."""

from pathlib import Path

import torch

from .. import progress
from ..classifier import Classifier, find_bundle
from ..comparison import nested_subset
from ..data import load
from ..errors import DataError, OutputError
from ..evaluation import match_labels, test_split
from ..files import atomic_replace
from ..sources import find
from ..training import reopen
from ..types import Dataset
from .module import check_exportable
from .parity import Parity, TorchRunner, compare_answers, measure_latencies
from .registry import get_format

MAX_COMPARED_IMAGES = 2000
"""Images compared, unless told otherwise."""

EXPORT_STEPS = 4
"""Of the progress bar: images, file, answers, times."""


def export(
    run: Path | str | Classifier,
    out: Path | str,
    *,
    to: str = "onnx",
    data: Path | str | Dataset | None = None,
    limit: int | None = MAX_COMPARED_IMAGES,
    overwrite: bool = False,
) -> Parity:
    """Write a run's or bundle's classifier as a file, and compare it with the classifier on labelled images.

    They are the run's validation images, or those of ``data``: about ``limit`` of them, each class in its share.
    Raises Refused for what the format cannot hold and where the answers differ: then nothing is kept. OutputError
    where ``out`` is taken or cannot be written; DataError where there are no images to compare on.
    """
    out = Path(out)
    form = get_format(to, out)
    _check_file_free(out, overwrite=overwrite)
    with progress.progress_bar("Exporting", EXPORT_STEPS) as advance:
        classifier, images, what = _open_images(run, data)
        classifier = classifier.to(torch.device("cpu")).eval()
        check_exportable(classifier)
        match_labels(classifier, images)  # says what does not fit before any work
        images, sample = _sample_images(images, limit, what)
        advance()
        with atomic_replace(out) as temporary:
            form.write(classifier, temporary)
            advance()
            runner = form.open(temporary)
            found = compare_answers(classifier, runner, images)
            advance()
            times = measure_latencies({"before": TorchRunner(classifier), "after": runner}, images[:32])
            parity = Parity(
                path=str(out),
                to=to,
                int8=classifier.network.rounding is not None,
                n=len(images),
                sample=sample,
                latency=times["after"],
                latency_before=times["before"],
                size_mb=_size_bytes(temporary) / 1e6,
                **found,
            )
            parity.require()
            del runner
        advance()
    return parity


def _check_file_free(out: Path, *, overwrite: bool) -> None:
    if out.exists() and not overwrite:
        raise OutputError(f"'{out}' exists already. Choose another --out, or add --overwrite to replace it.")


def _open_images(
    run: Path | str | Classifier, data: Path | str | Dataset | None
) -> tuple[Classifier, Dataset, str]:
    """The classifier, the images to compare on, and what these are."""
    if data is None:
        if isinstance(run, Classifier) or Path(run).is_file() or (Path(run) / "config.json").is_file():
            named = "This classifier" if isinstance(run, Classifier) else f"'{run}'"
            raise DataError(f"{named} has no images of its own to compare the file on: name some with --data.")
        find_bundle(run)  # says what is missing
        whole = reopen(run, device="cpu")
        return whole.classifier, whole.splits.val, "validation images"
    classifier = run if isinstance(run, Classifier) else Classifier.load(run)
    if isinstance(data, Dataset):
        return classifier, data, "images"
    return classifier, test_split(load(find(data, several=False), classifier.geometry)), f"images of '{data}'"


def _sample_images(images: Dataset, limit: int | None, what: str) -> tuple[Dataset, str]:
    if limit is not None and limit < 1:
        raise DataError(f"--limit is {limit}: it must be at least 1 image.")
    if limit is None or limit >= len(images):
        return images, f"All {len(images):,} {what}."
    some = images.subset(nested_subset(images.labels, limit / len(images), 0))
    return some, f"{len(some):,} of the {len(images):,} {what}, each class in its share."


def _size_bytes(path: Path) -> int:
    """Bytes of a file, or of a folder's files."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()))
