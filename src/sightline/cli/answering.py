"""The verb that uses a classifier: predict."""

import csv
import json as json_module
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, runtime_checkable

from cyclopts import Parameter

from ..errors import ChoiceError, DataError, RecipeError
from .show import Device, Json

if TYPE_CHECKING:
    from ..classifier import Classifier, Image
    from ..types import Prediction

Form = Literal["text", "jsonl", "csv", "json"]


@runtime_checkable
class Writable(Protocol):
    """Stdout, a file, or whatever stands in for them."""

    def write(self, text: str, /) -> object:
        """Take this text."""
        ...


def predict(
    run: Path,
    /,
    *images: Annotated[str, Parameter(allow_leading_hyphen=True)],  # so that - is stdin
    top: int = 3,
    form: Form = "text",
    out: Path | None = None,
    unknown_below: float | None = None,
    sets: float | None = None,
    per_class: Annotated[bool, Parameter(negative=())] = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Name what is in images: files, folders, globs, or - for a list (or one image) on stdin.

    Parameters
    ----------
    run: Path
        A run or bundle folder, or an exported .onnx file.
    images: str
        Files, folders, globs, or - for stdin; an unreadable file is a row with its error.
    top: int
        How many of the likeliest classes to give.
    form: str
        How to write the answers.
    out: Path
        Write to this file instead of stdout.
    unknown_below: float
        Answer "unknown" where the confidence is lower. Default: the classifier's own threshold (evaluate --keep).
    sets: float
        Also give all classes that remain possible at this error rate, such as 0.1 (evaluate --sets --keep).
    per_class: bool
        With --sets: hold the error rate within each class.
    """
    from .. import runtime
    from ..classifier import Classifier
    from ..files import replacing

    if top < 1:
        raise RecipeError(f"--top is {top}: it must be a whole number of at least 1.")
    classifier = Classifier.load(run).to(runtime.device(device))
    classifier.threshold = _threshold(unknown_below, classifier.threshold)
    named = iter([image for word in images or ("-",) for image in _meant(word)])
    answers = _answers(classifier, named, top, sets, per_class)
    form = "json" if json else form
    extra = [*(["abstained"] if classifier.threshold else []), *(["among"] if sets is not None else [])]
    if out is None:
        _write(sys.stdout, answers, form, top, extra)
    else:
        with replacing(out) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
            _write(stream, answers, form, top, extra)


def _threshold(asked: float | None, own: float) -> float:
    if asked is None:
        return own
    if not 0 <= asked <= 1:
        raise RecipeError(f"--unknown-below is {asked:g}: it must be a confidence from 0 to 1, such as 0.8.")
    return asked


def _answers(
    classifier: "Classifier", images: "Iterable[Image]", top: int, alpha: float | None, per_class: bool
) -> Iterable["Prediction"]:
    """Predictions, at an error rate alpha with the conformal set of each, by what the bundle holds."""
    if alpha is None:
        return classifier.predictions(images, top=top)
    from ..evaluation.conformal import from_part, with_sets

    every = len(classifier.classes)
    sets = from_part(classifier.answers, every, alpha, per_class=per_class)
    return with_sets(classifier.predictions(images, top=every), sets, classifier.classes, top)


def _meant(word: str) -> list[str | bytes]:
    """The images a word means; a folder gives the images in it. Raises DataError where there are none."""
    from ..sources.layout import images_at

    if word == "-":
        return _stdin()
    if word.startswith("-") and not Path(word).exists():
        raise ChoiceError(f"There is no option '{word}'. See: sightline predict --help")
    if not (found := images_at(word)):
        raise DataError(f"No image was found at '{word}'. Give image files, folders of them, or a pattern.")
    return [*found]


def _stdin() -> list[str | bytes]:
    if sys.stdin.isatty():
        raise DataError("Say which images: files, folders or patterns; or pipe a list of files, or one image, in.")
    data = sys.stdin.buffer.read()
    if b"\0" in data[:1024]:  # no list of names holds a zero byte; every image does
        return [data]
    names = [line for line in data.decode("utf-8", "surrogateescape").splitlines() if line.strip()]
    if not names:
        raise DataError("Nothing came from stdin: pipe in a list of image files, or one image.")
    return [*names]


def _write(stream: Writable, answers: Iterable["Prediction"], form: str, top: int, extra: Sequence[str]) -> None:
    if form == "json":
        rows = [_record(answer) for answer in answers]
        stream.write(json_module.dumps({"n": len(rows), "predictions": rows}, ensure_ascii=False) + "\n")
    elif form == "jsonl":
        for answer in answers:
            stream.write(json_module.dumps(_record(answer), ensure_ascii=False) + "\n")
    elif form == "csv":
        writer = csv.writer(stream)
        heads = [f"{what}_{rank}" for rank in range(2, top + 1) for what in ("label", "confidence")]
        writer.writerow(["file", "label", "confidence", *heads, "error", *extra])
        for answer in answers:
            more = [cell for pair in answer.top[1:] for cell in pair]
            more += [""] * (len(heads) - len(more))
            cells = {"abstained": int(answer.abstained), "among": ";".join(answer.among or ())}
            row = [answer.file, answer.label, answer.confidence, *more, answer.error]
            writer.writerow([*row, *(cells[name] for name in extra)])
    else:
        for answer in answers:
            stream.write(_line(answer) + "\n")


def _record(answer: "Prediction") -> dict[str, Any]:
    return asdict(answer) | {"top": [{"label": label, "confidence": p} for label, p in answer.top]}


def _line(answer: "Prediction") -> str:
    if answer.error is not None:
        return f"{answer.file}: could not be read: {answer.error}"
    ranked = [f"{label} {p:.1%}" for label, p in answer.top]
    said, others = ("unknown", ranked) if answer.abstained else (ranked[0], ranked[1:])
    kept = "" if answer.among is None else f"  {{{', '.join(answer.among)}}}"
    return f"{answer.file or '(stdin)'}: {said}" + (f"  ({', '.join(others)})" if others else "") + kept
