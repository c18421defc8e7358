"""What the service is asked and what it answers: requests are taken apart, answers become one JSON text."""

import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from .limits import Limits, Refusal

MOST_TOP = 1000
"""Classes that an answer may list."""

LONGEST = 200
"""Characters of a subject."""

FIELDS = ("image", "images", "subject", "top", "heat")


@dataclass(slots=True)
class Asked:
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
class Answer:
    """The answer for one image."""

    label: str
    """The likeliest class: a guess where the service abstained."""
    confidence: float
    abstained: bool
    top: list[tuple[str, float]]
    """The likeliest classes with their probabilities, best first."""


def dumps(value: Any) -> bytes:
    """Compact JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def asked(headers: Mapping[bytes, bytes], query: bytes, body: bytes, limits: Limits) -> Asked:
    """A request taken apart by its content type; raises Refusal (400, 413, 415, 422) in one sentence."""
    declared = headers.get(b"content-type", b"").decode("latin-1")
    kind = declared.partition(";")[0].strip().lower()
    if headers.get(b"content-encoding", b"identity") != b"identity":
        raise Refusal(415, "Send the body without a content encoding.")
    if not body:
        raise Refusal(400, "The body is empty: send an image.")
    if kind == "application/json":
        found = _of_json(body)
    elif kind == "multipart/form-data":
        found = _of_form(body, declared, limits)
    elif kind in ("", "application/octet-stream") or kind.startswith("image/"):
        found = Asked([body], [kind])
    else:
        raise Refusal(
            415,
            "Send an image (Content-Type: image/jpeg, image/png, ...), multipart/form-data or application/json.",
        )
    if subject := headers.get(b"sightline-subject"):
        found.subject = subject_of(_text(subject))
    if query:
        _by_query(found, query)
    if len(found.images) > limits.images:
        raise Refusal(413, f"A request may have {limits.images} images, and this one has {len(found.images)}.")
    return found


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _by_query(found: Asked, query: bytes) -> None:
    for name, value in parse_qsl(_text(query), keep_blank_values=True):
        if name not in ("top", "heat"):
            raise Refusal(422, "A query may have top and heat, and nothing else.")
        _set(found, name, value)


def _set(found: Asked, name: str, value: str) -> None:
    """A field that came as text."""
    match name:
        case "top":
            found.top = top_of(int(value) if value.isascii() and value.isdigit() and len(value) < 9 else None)
        case "heat":
            words = {"true": True, "1": True, "false": False, "0": False}
            found.heat = heat_of(words.get(value.lower()))
        case _:
            found.subject = subject_of(value)


def top_of(value: Any) -> int:
    """Raises Refusal for what is no number of classes."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST_TOP:
        raise Refusal(422, f"The field top must be a whole number from 1 to {MOST_TOP}.")
    return value


def heat_of(value: Any) -> bool:
    """Raises Refusal for what is neither true nor false."""
    if not isinstance(value, bool):
        raise Refusal(422, "The field heat must be true or false.")
    return value


def subject_of(value: Any) -> str | None:
    """Raises Refusal for what names nobody."""
    if value is None or value == "":
        return None
    if not isinstance(value, str) or len(value) > LONGEST or not value.isprintable():
        raise Refusal(422, f"The field subject must be a text of at most {LONGEST} printable characters.")
    return value


def _of_json(body: bytes) -> Asked:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "The body is not JSON.") from error
    if not isinstance(value, dict):
        raise Refusal(422, 'The body must be a JSON object such as {"image": "<base64>"}.')
    if unknown := [name for name in value if name not in FIELDS]:
        raise Refusal(422, f"There is no field {unknown[0][:40]!r}; the fields are {', '.join(FIELDS)}.")
    if ("image" in value) == ("images" in value):
        raise Refusal(422, 'Give one image as "image" or several as "images", in base64.')
    texts = value["images"] if "images" in value else [value["image"]]
    if not isinstance(texts, list) or not texts:
        raise Refusal(422, "The field images must be a list of at least one image in base64.")
    found = Asked([])
    for text in texts:
        data, kind = _of_base64(text)
        found.images.append(data)
        found.types.append(kind)
    if "top" in value:
        found.top = top_of(value["top"])
    if "heat" in value:
        found.heat = heat_of(value["heat"])
    found.subject = subject_of(value.get("subject"))
    return found


def _of_base64(text: Any) -> tuple[bytes, str]:
    """The bytes of an image and what it was declared to be: a data URL is taken too."""
    if not isinstance(text, str):
        raise Refusal(422, "An image in JSON must be a text in base64.")
    kind = ""
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise Refusal(422, "A data URL must be in base64.")
        kind = head[5:].partition(";")[0].strip().lower()
    try:
        return binascii.a2b_base64(text, strict_mode=True), kind
    except (binascii.Error, ValueError) as error:
        raise Refusal(422, "An image is not valid base64.") from error


def _of_form(body: bytes, declared: str, limits: Limits) -> Asked:
    """Every part with a file name is an image; text fields are subject, top and heat."""
    from python_multipart.multipart import parse_options_header

    boundary = parse_options_header(declared)[1].get(b"boundary")
    if not boundary or len(boundary) > LONGEST:
        raise Refusal(400, "The multipart body has no boundary.")
    found = Asked([])
    for name, file, kind, data in Form(limits.images + len(FIELDS)).parts(body, boundary):
        if file:
            found.images.append(data)
            found.types.append(kind)
        elif name in ("subject", "top", "heat"):
            _set(found, name, _text(data))
        else:
            raise Refusal(422, f"There is no text field {name[:40]!r}; send images as files with a file name.")
    if not found.images:
        raise Refusal(422, "The form has no file.")
    return found


class Form:
    """Reads the parts of a multipart body that is wholly in memory."""

    def __init__(self, most: int):
        self.most = most
        """Parts, at most."""
        self.found: list[tuple[str, bool, str, bytes]] = []

    def parts(self, body: bytes, boundary: bytes) -> list[tuple[str, bool, str, bytes]]:
        """Name, whether it is a file, declared type and content of each; raises Refusal where it is malformed."""
        from python_multipart.exceptions import FormParserError
        from python_multipart.multipart import MultipartParser

        ended: list[bool] = []
        parser = MultipartParser(boundary, self._callbacks() | {"on_end": lambda: ended.append(True)})
        try:
            parser.write(body)
            parser.finalize()
        except FormParserError as error:
            raise Refusal(400, "The multipart body is malformed.") from error
        if not ended:
            raise Refusal(400, "The multipart body is cut short.")
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
            raise Refusal(413, "The form has too many parts.")
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
        name = _text(options.get(b"name", b""))
        self.found.append((name, b"filename" in options, kind, b"".join(self.data)))


def row(id: str, answer: Answer) -> dict[str, Any]:
    """An answer as the JSON of a prediction."""
    return {
        "id": id,
        "label": answer.label,
        "confidence": answer.confidence,
        "abstained": answer.abstained,
        "top": answer.top,
        "error": None,
    }


def unread(error: str) -> dict[str, Any]:
    """An image that could not be read, among others that could."""
    return {"id": None, "label": None, "confidence": None, "abstained": False, "top": [], "error": error}


def worst(refusals: Sequence[Refusal]) -> Refusal:
    """What a request is told of which no image could be read: the reason they share, or 422."""
    first = refusals[0]
    if len(refusals) == 1:
        return Refusal(first.status, f"The image cannot be read: {first.detail}.")
    status = first.status if all(one.status == first.status for one in refusals) else 422
    return Refusal(status, f"None of the {len(refusals)} images can be read; of the first, {first.detail}.")
