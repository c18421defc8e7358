"""The verb predict: classify images."""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, runtime_checkable

from cyclopts import Parameter

from ..errors import ChoiceError, DataError, RecipeError
from .output import DEFAULTS, JSON_ESCAPES, Options, Switch

if TYPE_CHECKING:
    from ..data import ImageInput
    from ..types import Prediction

PredictionFormat = Literal["text", "jsonl", "csv", "json"]

_MANY_IMAGES = 256
"""Images from which a progress bar is shown: to load it takes as long as to answer a few of them."""

IMAGE_WORD = Parameter(allow_leading_hyphen=True)
"""A word that may be - for stdin."""


@runtime_checkable
class TextStream(Protocol):
    """Stdout, a file, or anything else that text is written to."""

    def write(self, text: str, /) -> object:
        """Write this text."""
        ...


def predict(
    run: Annotated[Path | None, IMAGE_WORD] = None,
    /,
    *images: Annotated[str, IMAGE_WORD],
    top: int = 3,
    format: PredictionFormat = "text",
    out: Path | None = None,
    shard: str | None = None,
    threshold: float | None = None,
    alpha: float | None = None,
    per_class: Switch = False,
    precision: Literal["auto", "float32"] = "auto",
    url: str | None = None,
    key_file: Path | None = None,
    subject: str | None = None,
    options: Options = DEFAULTS,
) -> None:
    """Classify images: files, folders, globs, or - for a list (or one image) on stdin.

    Parameters
    ----------
    run: Path
        A run or bundle folder, or an exported .onnx file; left out with --url.
    images: str
        Files, folders, archives, addresses, globs, or - for stdin; an unreadable file gives a row with its error, and
        exit code 2 where none could be read.
    top: int
        Number of classes to print, the most probable first.
    format: str
        Format of the output.
    out: Path
        Write to this file instead of stdout.
    shard: str
        Answer only this part of the images: 3/16 is the third of sixteen by name. An --out that is there is kept.
    threshold: float
        Answer "unknown" below this confidence. Default: the threshold saved in the classifier (evaluate --save).
    alpha: float
        Also print the conformal set of each image at this error rate, such as 0.1 (evaluate --conformal-alpha --save).
    per_class: bool
        With --alpha: hold the error rate within each class.
    precision: str
        auto uses bfloat16 for many images where it is faster: the labels are the same, confidences nearly so.
    url: str
        Ask the service at this URL (sightline serve) instead of a local classifier.
    key_file: Path
        With --url: a file that contains the API key. Default: the environment variable SIGHTLINE_KEY, if set.
    subject: str
        With --url: the person or thing on the images, so that the service can erase them from its journal.
    """
    if top < 1:
        raise RecipeError(f"--top is {top}: it must be a whole number of at least 1.")
    if threshold is not None and not 0 <= threshold <= 1:
        raise RecipeError(f"--threshold is {threshold:g}: it must be a confidence from 0 to 1, such as 0.8.")
    if run is None and url is None:
        raise ChoiceError("Name the classifier: a run, a bundle, a file or --url. See: sightline predict --help")
    if url is None and (key_file or subject):
        raise ChoiceError("--key-file and --subject are for a service: add its --url.")
    if url is not None and alpha is not None:
        raise ChoiceError("--alpha needs a local classifier, not a service: leave out --url or --alpha.")
    part = None if shard is None else parse_shard(shard)
    if part is not None and out is not None and out.exists():
        sys.stderr.write(f"'{out}' is there already: shard {shard} is done. Delete the file to answer it again.\n")
        return
    words = (*([] if url is None or run is None else [str(run)]), *images) or ("-",)
    found = take_shard(list_named_images(words), *(part or (1, 1)))
    predictions: Iterable[Prediction]
    if url is not None:
        from ..serving import Client, read_api_key

        predictions = Client(url, key=read_api_key(key_file)).stream_predictions(found, top=top, subject=subject)
        if threshold is not None:
            predictions = (
                replace(one, abstained=(one.confidence or threshold) < threshold) for one in predictions
            )
        columns = ["abstained", "id"]  # feedback refers to the id
    else:
        predictions, columns = _predict_locally(
            str(run), found, options.device, top, threshold, alpha, per_class, precision
        )
    _write_and_count(out, predictions, len(found), "json" if options.json else format, top, columns)


def parse_shard(text: str) -> tuple[int, int]:
    """Number and count of '3/16'; raises ChoiceError for anything else.

    >>> parse_shard("3/16")
    (3, 16)
    """
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ChoiceError(f"--shard is '{text}': write the number of a part and how many there are, such as 3/16.")
    return int(number), int(count)


def take_shard(images: "Sequence[ImageInput]", number: int, count: int) -> "Sequence[ImageInput]":
    """Part ``number`` of ``count``, in order: the parts one after the other are all images, none twice.

    Raises DataError where there are fewer images than parts.
    """
    if count > len(images):
        raise DataError(f"--shard asks for {count} parts of {len(images)} images: ask for fewer parts.")
    return images[len(images) * (number - 1) // count : len(images) * number // count]


def _write_and_count(
    out: Path | None, predictions: Iterable["Prediction"], images: int, kind: str, top: int, columns: Sequence[str]
) -> None:
    """Write predictions to a file or stdout; raises DataError afterwards where no image could be read."""
    from ..files import atomic_replace
    from ..progress import image_progress

    readable: Counter[bool] = Counter()
    hidden = images >= _MANY_IMAGES and (out is not None or not sys.stdout.isatty())

    def counted() -> Iterator["Prediction"]:
        with image_progress("Classifying images", images) if hidden else nullcontext() as advance:
            for one in predictions:
                readable[one.error is None] += 1
                yield one
                if advance is not None:
                    advance()

    if out is None:
        write_predictions(sys.stdout, counted(), kind, top, columns)
    else:
        # Names of files may have bytes that are not UTF-8, which Python keeps as lone surrogates.
        with (
            atomic_replace(out) as temporary,
            temporary.open("w", newline="", encoding="utf-8", errors=JSON_ESCAPES) as stream,
        ):
            write_predictions(stream, counted(), kind, top, columns)
    if not readable[True]:
        count = readable.total()
        what = "The image could not be read" if count == 1 else f"None of the {count:,} images could be read"
        raise DataError(f"{what}: correct the names or the files by the reasons in the output.")


def _predict_locally(
    run: str,
    images: "Sequence[ImageInput]",
    device: str,
    top: int,
    threshold: float | None,
    alpha: float | None,
    per_class: bool,
    precision: Literal["auto", "float32"],
) -> tuple[Iterable["Prediction"], list[str]]:
    """Predictions of a classifier on this machine, and the additional columns that they have."""
    if run.startswith("-") and not Path(run).exists():
        raise ChoiceError(f"There is no option '{run}'. See: sightline predict --help")
    if alpha is None and device in ("auto", "cpu") and Path(run).is_file():  # an exported file: without torch
        from ..exported_model import open_exported
        from ..predictions import predict_exported

        model = open_exported(run, threads=1 if len(images) > 1 else None)
        model = model if threshold is None else replace(model, threshold=threshold)
        return predict_exported(model, images, top=top), ["abstained"] if model.threshold else []
    from .. import runtime
    from ..classifier import Classifier

    classifier = Classifier.load(run).to(runtime.resolve_device(device))
    if threshold is not None:
        classifier.threshold = threshold
    columns = [*(["abstained"] if classifier.threshold else []), *(["among"] if alpha is not None else [])]
    if alpha is None:
        return classifier.iter_predictions(images, top=top, precision=precision), columns
    from ..evaluation import add_sets, load_sets

    every = len(classifier.classes)
    sets = load_sets(classifier.answers, every, alpha, per_class=per_class)
    predictions = classifier.iter_predictions(images, top=every, precision="float32")  # sets need all classes
    return add_sets(predictions, sets, classifier.classes, top), columns


def list_named_images(words: Iterable[str]) -> "list[ImageInput]":
    """The images that words name, one word after the other; raises DataError for a word that names none."""
    return [image for word in words for image in _find_images(word)]


def _find_images(word: str) -> "list[ImageInput]":
    """The images that a word names: a file, those of a folder, archive, address or pattern; for - those of stdin.

    Raises DataError if there are none.
    """
    from ..sources import find_images

    if word == "-":
        if sys.stdin.isatty():
            raise DataError(
                "Name the images: files, folders or patterns; or pipe in a list of files, or one image."
            )
        data = sys.stdin.buffer.read()
        if b"\0" in data[:1024]:  # a list of names contains no zero byte; every image does
            return [data]
        names = [line for line in data.decode("utf-8", "surrogateescape").splitlines() if line.strip()]
        if not names:
            raise DataError("Stdin is empty: pipe in a list of image files, or one image.")
        return [*names]
    if word.startswith("-") and not Path(word).exists():
        raise ChoiceError(f"There is no option '{word}'. See: sightline predict --help")
    found: list[Any] = find_images(word)
    if not found:
        raise DataError(f"No image was found at '{word}'. Give image files, folders of them, or a pattern.")
    return [*found]


def write_predictions(
    stream: TextStream, predictions: Iterable["Prediction"], kind: str, top: int, columns: Sequence[str]
) -> None:
    """Write predictions as text, JSON, JSON lines or CSV; `columns` are the additional ones of the CSV."""
    from ..files import write_csv_rows

    if kind == "json":
        rows = [_prediction_json(one) for one in predictions]
        stream.write(json.dumps({"n": len(rows), "predictions": rows}, ensure_ascii=False) + "\n")
    elif kind == "jsonl":
        for one in predictions:
            stream.write(json.dumps(_prediction_json(one), ensure_ascii=False) + "\n")
    elif kind == "csv":
        heads = [f"{what}_{rank}" for rank in range(2, top + 1) for what in ("label", "confidence")]
        write_csv_rows(stream, [["file", "label", "confidence", *heads, "error", *columns]])
        write_csv_rows(stream, (_csv_row(one, len(heads), columns) for one in predictions))
    else:
        for one in predictions:
            if one.error is not None:
                stream.write(f"{one.file}: could not be read: {one.error}\n")
                continue
            ranked = [f"{label} {p:.1%}" for label, p in one.top]
            first, others = ("unknown", ranked) if one.abstained else (ranked[0], ranked[1:])
            more = f"  ({', '.join(others)})" if others else ""
            conformal_set = "" if one.among is None else f"  {{{', '.join(one.among)}}}"
            stream.write(f"{one.file or '(stdin)'}: {first}{more}{conformal_set}\n")


def _csv_row(one: "Prediction", width: int, columns: Sequence[str]) -> list[object]:
    """One prediction: ``width`` cells for all classes but the first, and the additional columns."""
    more = [cell for pair in one.top[1:] for cell in pair]
    cells = vars(one) | {"abstained": int(one.abstained), "among": ";".join(one.among or ())}
    own = [one.file, one.label, one.confidence, *more, *[""] * (width - len(more)), one.error]
    return [*own, *(cells[name] for name in columns)]


def _prediction_json(one: "Prediction") -> dict[str, Any]:
    return vars(one) | {"top": [{"label": label, "confidence": p} for label, p in one.top]}
