"""What the service is asked and what it answers: requests are taken apart, answers become one JSON text."""

import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from ..checks import is_int
from .limits import RequestError, RequestLimits

MAX_TOP_CLASSES = 1000
"""Classes that an answer may list."""

MAX_SUBJECT_LENGTH = 200
"""Characters of a subject."""

REQUEST_FIELDS = ("image", "images", "subject", "top", "heat")


@dataclass(slots=True)
class PredictRequest:
    """A request to classify images."""

    images: list[bytes]
    types: list[str] = field(default_factory=list)
    """What each was declared to be; empty where nothing was."""
    subject: str | None = None
    """Whom the images show: what an erasure names."""
    source: str | None = None
    """Where the image came from: a file's name."""
    top: int = 5
    heat: bool = False


@dataclass(frozen=True, slots=True)
class RankedPrediction:
    """The answer for one image."""

    label: str
    """The likeliest class: a guess where the service abstained."""
    confidence: float
    abstained: bool
    top: list[tuple[str, float]]
    """The likeliest classes with their probabilities, best first."""


def dump_json(value: Any) -> bytes:
    """Compact JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def parse_request(
    headers: Mapping[bytes, bytes], query: bytes, body: bytes, limits: RequestLimits
) -> PredictRequest:
    """A request taken apart by its content type; raises Refusal (400, 413, 415, 422) in one sentence."""
    declared = headers.get(b"content-type", b"").decode("latin-1")
    kind = declared.partition(";")[0].strip().lower()
    if headers.get(b"content-encoding", b"identity") != b"identity":
        raise RequestError(415, "Send the body without a content encoding.")
    if not body:
        raise RequestError(400, "The body is empty: send an image.")
    if kind == "application/json":
        found = _parse_json(body)
    elif kind == "multipart/form-data":
        found = _parse_form(body, declared, limits)
    elif kind in ("", "application/octet-stream") or kind.startswith("image/"):
        found = PredictRequest([body], [kind])
    else:
        raise RequestError(
            415,
            "Send an image (Content-Type: image/jpeg, image/png, ...), multipart/form-data or application/json.",
        )
    if subject := headers.get(b"sightline-subject"):
        found.subject = parse_subject(_decode_text(subject))
    if query:
        _apply_query(found, query)
    if len(found.images) > limits.images:
        raise RequestError(
            413, f"A request may have {limits.images} images, and this one has {len(found.images)}."
        )
    return found


def _decode_text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _apply_query(found: PredictRequest, query: bytes) -> None:
    for name, value in parse_qsl(_decode_text(query), keep_blank_values=True):
        if name not in ("top", "heat"):
            raise RequestError(422, "A query may have top and heat, and nothing else.")
        _set_text_field(found, name, value)


def _set_text_field(found: PredictRequest, name: str, value: str) -> None:
    """A field that came as text."""
    match name:
        case "top":
            found.top = parse_top(int(value) if value.isascii() and value.isdigit() and len(value) < 9 else None)
        case "heat":
            words = {"true": True, "1": True, "false": False, "0": False}
            found.heat = parse_heat(words.get(value.lower()))
        case _:
            found.subject = parse_subject(value)


def parse_top(value: Any) -> int:
    """Raises Refusal for what is no number of classes."""
    if not is_int(value) or not 1 <= value <= MAX_TOP_CLASSES:
        raise RequestError(422, f"The field top must be a whole number from 1 to {MAX_TOP_CLASSES}.")
    return value


def parse_heat(value: Any) -> bool:
    """Raises Refusal for what is neither true nor false."""
    if not isinstance(value, bool):
        raise RequestError(422, "The field heat must be true or false.")
    return value


def parse_subject(value: Any) -> str | None:
    """Raises Refusal for what names nobody."""
    if value is None or value == "":
        return None
    if not isinstance(value, str) or len(value) > MAX_SUBJECT_LENGTH or not value.isprintable():
        raise RequestError(
            422, f"The field subject must be a text of at most {MAX_SUBJECT_LENGTH} printable characters."
        )
    return value


def _parse_json(body: bytes) -> PredictRequest:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, "The body is not JSON.") from error
    if not isinstance(value, dict):
        raise RequestError(422, 'The body must be a JSON object such as {"image": "<base64>"}.')
    if unknown := [name for name in value if name not in REQUEST_FIELDS]:
        raise RequestError(
            422, f"There is no field {unknown[0][:40]!r}; the fields are {', '.join(REQUEST_FIELDS)}."
        )
    if ("image" in value) == ("images" in value):
        raise RequestError(422, 'Give one image as "image" or several as "images", in base64.')
    texts = value["images"] if "images" in value else [value["image"]]
    if not isinstance(texts, list) or not texts:
        raise RequestError(422, "The field images must be a list of at least one image in base64.")
    found = PredictRequest([])
    for text in texts:
        data, kind = _decode_base64(text)
        found.images.append(data)
        found.types.append(kind)
    if "top" in value:
        found.top = parse_top(value["top"])
    if "heat" in value:
        found.heat = parse_heat(value["heat"])
    found.subject = parse_subject(value.get("subject"))
    return found


def _decode_base64(text: Any) -> tuple[bytes, str]:
    """The bytes of an image and what it was declared to be: a data URL is taken too."""
    if not isinstance(text, str):
        raise RequestError(422, "An image in JSON must be a text in base64.")
    kind = ""
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise RequestError(422, "A data URL must be in base64.")
        kind = head[5:].partition(";")[0].strip().lower()
    try:
        return binascii.a2b_base64(text, strict_mode=True), kind
    except (binascii.Error, ValueError) as error:
        raise RequestError(422, "An image is not valid base64.") from error


def _parse_form(body: bytes, declared: str, limits: RequestLimits) -> PredictRequest:
    """Every part with a file name is an image; text fields are subject, top and heat."""
    from python_multipart.multipart import parse_options_header

    boundary = parse_options_header(declared)[1].get(b"boundary")
    if not boundary or len(boundary) > MAX_SUBJECT_LENGTH:
        raise RequestError(400, "The multipart body has no boundary.")
    found = PredictRequest([])
    for name, file, kind, data in MultipartReader(limits.images + len(REQUEST_FIELDS)).read(body, boundary):
        if file:
            found.images.append(data)
            found.types.append(kind)
        elif name in ("subject", "top", "heat"):
            _set_text_field(found, name, _decode_text(data))
        else:
            raise RequestError(
                422, f"There is no text field {name[:40]!r}; send images as files with a file name."
            )
    if not found.images:
        raise RequestError(422, "The form has no file.")
    return found


class MultipartReader:
    """Reads the parts of a multipart body that is wholly in memory."""

    def __init__(self, most: int):
        self.most = most
        """Parts, at most."""
        self.found: list[tuple[str, bool, str, bytes]] = []

    def read(self, body: bytes, boundary: bytes) -> list[tuple[str, bool, str, bytes]]:
        """Name, whether it is a file, declared type and content of each; raises Refusal where it is malformed."""
        from python_multipart.exceptions import FormParserError
        from python_multipart.multipart import MultipartParser

        ended: list[bool] = []
        parser = MultipartParser(boundary, self._callbacks() | {"on_end": lambda: ended.append(True)})
        try:
            parser.write(body)
            parser.finalize()
        except FormParserError as error:
            raise RequestError(400, "The multipart body is malformed.") from error
        if not ended:
            raise RequestError(400, "The multipart body is cut short.")
        return self.found

    def _callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_part_data": lambda data, start, end: self.data.append(data[start:end]),
            "on_part_end": self._end,
            "on_header_field": lambda data, start, end: self.name.append(data[start:end]),
            "on_header_value": lambda data, start, end: self.value.append(data[start:end]),
            "on_header_end": self._header,
        }

    def _begin(self) -> None:
        if len(self.found) >= self.most:
            raise RequestError(413, "The form has too many parts.")
        self.data: list[bytes] = []
        self.name: list[bytes] = []
        self.value: list[bytes] = []
        self.headers: dict[bytes, bytes] = {}

    def _header(self) -> None:
        self.headers[b"".join(self.name).lower()] = b"".join(self.value)
        self.name, self.value = [], []

    def _end(self) -> None:
        from python_multipart.multipart import parse_options_header

        _, options = parse_options_header(self.headers.get(b"content-disposition", b""))
        kind = self.headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
        name = _decode_text(options.get(b"name", b""))
        self.found.append((name, b"filename" in options, kind, b"".join(self.data)))


def prediction_json(id: str, answer: RankedPrediction) -> dict[str, Any]:
    """An answer as the JSON of a prediction."""
    return {
        "id": id,
        "label": answer.label,
        "confidence": answer.confidence,
        "abstained": answer.abstained,
        "top": answer.top,
        "error": None,
    }


def image_error_json(error: str) -> dict[str, Any]:
    """An image that could not be read, among others that could."""
    return {"id": None, "label": None, "confidence": None, "abstained": False, "top": [], "error": error}


def combined_error(refusals: Sequence[RequestError]) -> RequestError:
    """What a request is told of which no image could be read: the reason they share, or 422."""
    first = refusals[0]
    if len(refusals) == 1:
        return RequestError(first.status, f"The image cannot be read: {first.detail}.")
    status = first.status if all(one.status == first.status for one in refusals) else 422
    return RequestError(status, f"None of the {len(refusals)} images can be read; of the first, {first.detail}.")
