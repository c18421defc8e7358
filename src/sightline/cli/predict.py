"""The verb that uses a classifier: predict."""

import csv
import json as json_module
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, runtime_checkable

from cyclopts import Parameter

from ..errors import ChoiceError, DataError, RecipeError
from .output import Device, Json

if TYPE_CHECKING:
    from ..classifier import Classifier, ImageInput
    from ..types import Prediction

PredictionFormat = Literal["text", "jsonl", "csv", "json"]


@runtime_checkable
class TextStream(Protocol):
    """Stdout, a file, or whatever stands in for them."""

    def write(self, text: str, /) -> object:
        """Take this text."""
        ...


_IMAGE_WORD = Parameter(allow_leading_hyphen=True)  # so that - is stdin


def predict(
    run: Annotated[Path | None, _IMAGE_WORD] = None,
    /,
    *images: Annotated[str, _IMAGE_WORD],
    top: int = 3,
    form: PredictionFormat = "text",
    out: Path | None = None,
    unknown_below: float | None = None,
    sets: float | None = None,
    per_class: Annotated[bool, Parameter(negative=())] = False,
    url: str | None = None,
    key_file: Path | None = None,
    subject: str | None = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Name what is in images: files, folders, globs, or - for a list (or one image) on stdin.

    Parameters
    ----------
    run: Path
        A run or bundle folder, or an exported .onnx file; left out with --url.
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
    url: str
        Ask the service at this URL (sightline serve) instead of a classifier on this machine.
    key_file: Path
        With --url: a file that holds the key. Default: the environment variable SIGHTLINE_KEY, if any.
    subject: str
        With --url: whom the images are of, so that the service's journal can forget them.
    """
    from ..files import atomic_replace

    if top < 1:
        raise RecipeError(f"--top is {top}: it must be a whole number of at least 1.")
    _check_flags(run, url, sets, key_file or subject)
    named = iter([image for word in _image_words(run, images, url) for image in _find_images(word)])
    if url is None:
        answers, extra = _predict_locally(str(run), named, device, top, unknown_below, sets, per_class)
    else:
        answers, extra = _predict_remotely(url, named, key_file, subject, top, unknown_below)
    form = "json" if json else form
    if out is None:
        _write_predictions(sys.stdout, answers, form, top, extra)
    else:
        with atomic_replace(out) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
            _write_predictions(stream, answers, form, top, extra)


def _check_flags(run: Path | None, url: str | None, sets: float | None, of_services: object) -> None:
    """Raise ChoiceError for flags that do not go together."""
    if run is None and url is None:
        raise ChoiceError("Say which classifier: a run, a bundle, a file or --url. See: sightline predict --help")
    if url is None and of_services:
        raise ChoiceError("--key-file and --subject are for a service: give its --url too.")
    if url is not None and sets is not None:
        raise ChoiceError("--sets needs the classifier itself, not a service: leave --url or --sets out.")


def _image_words(run: Path | None, images: Sequence[str], url: str | None) -> Sequence[str]:
    """What was said of images; with a URL the first word is one of them, no classifier."""
    first = [] if url is None or run is None else [str(run)]
    return (*first, *images) or ("-",)


def _predict_locally(
    run: str,
    images: "Iterable[ImageInput]",
    device: str,
    top: int,
    unknown_below: float | None,
    sets: float | None,
    per_class: bool,
) -> tuple[Iterable["Prediction"], list[str]]:
    """The answers of a classifier on this machine, and which columns they have besides."""
    from .. import runtime
    from ..classifier import Classifier

    if run.startswith("-") and not Path(run).exists():
        raise ChoiceError(f"There is no option '{run}'. See: sightline predict --help")
    classifier = Classifier.load(run).to(runtime.resolve_device(device))
    classifier.threshold = _check_threshold(unknown_below, classifier.threshold)
    extra = [*(["abstained"] if classifier.threshold else []), *(["among"] if sets is not None else [])]
    return _iter_predictions(classifier, images, top, sets, per_class), extra


def _predict_remotely(
    url: str,
    images: "Iterable[ImageInput]",
    key_file: Path | None,
    subject: str | None,
    top: int,
    unknown_below: float | None,
) -> tuple[Iterable["Prediction"], list[str]]:
    """The answers of a service; their ids are what feedback refers to."""
    from ..serving import Client, read_api_key

    threshold = None if unknown_below is None else _check_threshold(unknown_below, 0.0)
    answers = Client(url, key=read_api_key(key_file)).stream_predictions(images, top=top, subject=subject)
    if threshold is not None:
        answers = (replace(one, abstained=(one.confidence or threshold) < threshold) for one in answers)
    return answers, ["abstained", "id"]


def _check_threshold(asked: float | None, own: float) -> float:
    if asked is None:
        return own
    if not 0 <= asked <= 1:
        raise RecipeError(f"--unknown-below is {asked:g}: it must be a confidence from 0 to 1, such as 0.8.")
    return asked


def _iter_predictions(
    classifier: "Classifier", images: "Iterable[ImageInput]", top: int, alpha: float | None, per_class: bool
) -> Iterable["Prediction"]:
    """Predictions, at an error rate alpha with the conformal set of each, by what the bundle holds."""
    if alpha is None:
        return classifier.iter_predictions(images, top=top)
    from ..evaluation import add_sets, load_sets

    every = len(classifier.classes)
    sets = load_sets(classifier.answers, every, alpha, per_class=per_class)
    return add_sets(classifier.iter_predictions(images, top=every), sets, classifier.classes, top)


def _find_images(word: str) -> list[str | bytes]:
    """The images a word means; a folder gives the images in it. Raises DataError where there are none."""
    from ..sources import list_images

    if word == "-":
        return _read_stdin()
    if word.startswith("-") and not Path(word).exists():
        raise ChoiceError(f"There is no option '{word}'. See: sightline predict --help")
    if not (found := list_images(word)):
        raise DataError(f"No image was found at '{word}'. Give image files, folders of them, or a pattern.")
    return [*found]


def _read_stdin() -> list[str | bytes]:
    if sys.stdin.isatty():
        raise DataError("Say which images: files, folders or patterns; or pipe a list of files, or one image, in.")
    data = sys.stdin.buffer.read()
    if b"\0" in data[:1024]:  # no list of names holds a zero byte; every image does
        return [data]
    names = [line for line in data.decode("utf-8", "surrogateescape").splitlines() if line.strip()]
    if not names:
        raise DataError("Nothing came from stdin: pipe in a list of image files, or one image.")
    return [*names]


def _write_predictions(
    stream: TextStream, answers: Iterable["Prediction"], form: str, top: int, extra: Sequence[str]
) -> None:
    if form == "json":
        rows = [_prediction_json(answer) for answer in answers]
        stream.write(json_module.dumps({"n": len(rows), "predictions": rows}, ensure_ascii=False) + "\n")
    elif form == "jsonl":
        for answer in answers:
            stream.write(json_module.dumps(_prediction_json(answer), ensure_ascii=False) + "\n")
    elif form == "csv":
        writer = csv.writer(stream)
        heads = [f"{what}_{rank}" for rank in range(2, top + 1) for what in ("label", "confidence")]
        writer.writerow(["file", "label", "confidence", *heads, "error", *extra])
        for answer in answers:
            more = [cell for pair in answer.top[1:] for cell in pair]
            more += [""] * (len(heads) - len(more))
            cells = asdict(answer) | {"abstained": int(answer.abstained), "among": ";".join(answer.among or ())}
            row = [answer.file, answer.label, answer.confidence, *more, answer.error]
            writer.writerow([*row, *(cells[name] for name in extra)])
    else:
        for answer in answers:
            stream.write(_prediction_line(answer) + "\n")


def _prediction_json(answer: "Prediction") -> dict[str, Any]:
    return asdict(answer) | {"top": [{"label": label, "confidence": p} for label, p in answer.top]}


def _prediction_line(answer: "Prediction") -> str:
    if answer.error is not None:
        return f"{answer.file}: could not be read: {answer.error}"
    ranked = [f"{label} {p:.1%}" for label, p in answer.top]
    said, others = ("unknown", ranked) if answer.abstained else (ranked[0], ranked[1:])
    kept = "" if answer.among is None else f"  {{{', '.join(answer.among)}}}"
    return f"{answer.file or '(stdin)'}: {said}" + (f"  ({', '.join(others)})" if others else "") + kept
