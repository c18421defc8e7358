"""Write a classifier as a file for another program, and keep the file only if its answers are the same."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .. import progress
from ..classifier import Classifier
from ..errors import OutputError
from ..files import atomic_replace
from ..inference import match_labels
from ..runs import open_subject
from ..types import Dataset
from .module import check_exportable
from .parity import Parity, Runner, TorchRunner, compare_answers, measure_latencies

MAX_COMPARED_IMAGES = 2000
"""Images that a file is compared on by default."""


@dataclass(frozen=True)
class Format:
    """A kind of file that a classifier can be written as."""

    suffix: str
    """The end of its name; empty for a folder."""
    write: Callable[[Classifier, Path], None]
    """``(classifier, path)``; raises RequirementNotMet for what it cannot hold."""
    open: Callable[[Path], Runner]
    """Opens a file just written, to compare it."""
    summary: str

    def check_path(self, path: Path, word: str) -> None:
        """Raise OutputError where the path does not fit the format, whose word is ``word``."""
        suffix = path.suffix.lower()
        if suffix != self.suffix and (self.suffix or suffix in (".onnx", ".pt2", ".xml")):
            what = f"ends in {self.suffix}" if self.suffix else "is a folder"
            raise OutputError(
                f"'{path}' does not fit --to {word}, which {what}: call it {path.stem}{self.suffix}."
            )


def write_format(classifier: Classifier, path: Path, form: Format, word: str) -> Path:
    """Write a classifier as a file, whole or not at all, without comparing anything."""
    form.check_path(path, word)
    with atomic_replace(path) as temporary:
        form.write(classifier, temporary)
    return path


def export_compared(
    run: Path | str | Classifier,
    out: Path,
    form: Format,
    word: str,
    *,
    data: Path | str | Dataset | None,
    limit: int | None,
    overwrite: bool,
) -> Parity:
    """Write a classifier as a file and compare it: see ``formats.export``."""
    form.check_path(out, word)
    if out.exists() and not overwrite:
        raise OutputError(f"'{out}' exists already. Choose another --out, or add --overwrite to replace it.")
    with progress.progress_bar("Exporting", 4) as advance:  # images, file, answers, latencies
        remedy = "name images to compare the file on with --data"
        subject = open_subject(run, data, split="val", limit=limit, device="cpu", remedy=remedy)
        classifier, images = subject.classifier, subject.images
        check_exportable(classifier)
        match_labels(classifier, images)  # refuse unfit images before any work
        advance()
        with atomic_replace(out) as temporary:
            form.write(classifier, temporary)
            advance()
            runner = form.open(temporary)
            found = compare_answers(classifier, runner, images)
            advance()
            times = measure_latencies({"before": TorchRunner(classifier), "after": runner}, images[:32])
            files = [temporary] if temporary.is_file() else [*temporary.iterdir()]
            parity = Parity(
                path=str(out),
                to=word,
                int8=classifier.network.rounding is not None,
                n=len(images),
                sample=subject.sentence,
                latency=times["after"],
                latency_before=times["before"],
                size_mb=sum(file.stat().st_size for file in files) / 1e6,
                **found,
            )
            parity.require()
            del runner
        advance()
    return parity
