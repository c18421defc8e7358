"""A classifier becomes a file for someone else's program, and is handed over only if its answers are the same."""

from pathlib import Path

from .. import progress
from ..classifier import Classifier
from ..errors import OutputError
from ..files import atomic_replace
from ..inference import match_labels
from ..runs import open_subject
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
        remedy = "name images to compare the file on with --data"
        subject = open_subject(run, data, split="val", limit=limit, device="cpu", remedy=remedy)
        classifier, images = subject.classifier, subject.images
        check_exportable(classifier)
        match_labels(classifier, images)  # before any work
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
                sample=subject.sentence,
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


def _size_bytes(path: Path) -> int:
    """Bytes of a file, or of a folder's files."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()))
