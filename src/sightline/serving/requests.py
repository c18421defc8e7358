"""Requests to classify images and their answers: limits, parsing of bodies, and the JSON that goes back."""

import binascii
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from numpy import ndarray

from ..checks import is_int
from ..data import MAX_IMAGE_PIXELS
from ..errors import ServiceError

if TYPE_CHECKING:
    from ..journal import SketchInputs

MAX_TOP_CLASSES = 1000
"""Classes that one prediction may list."""

MAX_SUBJECT_LENGTH = 200
"""Characters of a subject."""

MAX_BOUNDARY_LENGTH = 200
"""Bytes of a multipart boundary."""

REQUEST_FIELDS = ("image", "images", "subject", "top", "heat")
"""Fields of a JSON body."""

IMAGE_SIGNATURES = {
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
    b"BM": "image/bmp",
    b"II*\0": "image/tiff",
    b"MM\0*": "image/tiff",
    b"II+\0": "image/tiff",
    b"MM\0+": "image/tiff",
}
"""Content type by first bytes; ``sniff_type`` adds WebP and the PNM family."""


class RequestError(Exception):
    """An HTTP status and one sentence: why a request, or one of its images, gets no prediction."""

    def __init__(self, status: int, detail: str):
        super().__init__(detail)
        self.status = status
        self.detail = detail


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """How much one request may send, and how many requests may wait."""

    body_mb: float = 20.0
    """Size of a request's body, in MB (10^6 bytes)."""
    pixels: int = 50_000_000
    """Pixels of one image, according to its header."""
    images: int = 64
    """Images in one request."""
    queue: int = 256
    """Requests that may wait for an answer; the next one is refused (503)."""

    def __post_init__(self):
        """Raise ValueError for limits that would refuse everything."""
        if not 0.001 <= self.body_mb <= 1000:
            raise ValueError(f"--max-body-mb is {self.body_mb:g}: it must be from 0.001 to 1000")
        if not 1 <= self.pixels <= MAX_IMAGE_PIXELS:
            raise ValueError(f"--max-pixels is {self.pixels}: it must be from 1 to {MAX_IMAGE_PIXELS:,}")
        if not 1 <= self.images <= 10_000:
            raise ValueError(f"--max-images is {self.images}: it must be from 1 to 10,000")
        if not 1 <= self.queue <= 100_000:
            raise ValueError(f"--queue is {self.queue}: it must be from 1 to 100,000")

    @property
    def max_body_bytes(self) -> int:
        """Bytes of one request's body."""
        return int(self.body_mb * 1e6)

    @property
    def max_decode_bytes(self) -> int:
        """Bytes that decoding one image may take: 250 MB, or as many more as the allowed pixels take in a JPEG."""
        return max(250_000_000, 5 * self.pixels)

    @property
    def max_buffered_bytes(self) -> int:
        """Bytes of all requests that are being read or wait."""
        return max(64_000_000, 2 * self.max_body_bytes)


def build_limits(**values: float) -> RequestLimits:
    """Return limits from the values of command-line flags; raise ServiceError for impossible ones."""
    try:
        return RequestLimits(**values)  # type: ignore[arg-type]  counts come as whole numbers
    except ValueError as error:
        raise ServiceError(f"{error}.") from error


@dataclass(slots=True)
class PredictRequest:
    """A request to classify images."""

    images: list[bytes]
    """Encoded image files."""
    subject: str | None = None
    """Whom or what the images show: the key of an erasure."""
    source: str | None = None
    """Where the image came from: a file name."""
    top: int = 5
    """Classes to list, from 1 to ``MAX_TOP_CLASSES``."""
    heat: bool = False
    """Whether to add heat maps."""


@dataclass(frozen=True, slots=True)
class RankedPrediction:
    """The prediction for one image."""

    label: str
    """Most probable class, also when the classifier abstains."""
    confidence: float
    """Probability of ``label``, in [0, 1]."""
    abstained: bool
    top: list[tuple[str, float]]
    """The most probable classes with their probabilities, best first."""
    pixels: ndarray
    """The decoded image, uint8 (H W C): what a heat map is drawn on."""
    sketch_inputs: "SketchInputs | None" = None
    """What the journal keeps of the answer for monitoring is made of this; None without a reference."""


# Parsing


def sniff_type(data: bytes) -> str | None:
    """Return the content type by the first bytes; None if it is no image format that is read."""
    for start, kind in IMAGE_SIGNATURES.items():
        if data.startswith(start):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data[:1] == b"P" and data[1:2] in (b"1", b"2", b"3", b"4", b"5", b"6") and data[2:3].isspace():
        return "image/x-portable-anymap"
    return None


def parse_request(
    headers: Mapping[bytes, bytes], query: bytes, body: bytes, limits: RequestLimits
) -> PredictRequest:
    """Parse a request; raise RequestError (400, 413, 415, 422).

    The content decides what a body is, since many clients declare a type by the file's ending or none at all.
    """
    declared = headers.get(b"content-type", b"").decode("latin-1")
    kind = declared.partition(";")[0].strip().lower()
    if headers.get(b"content-encoding", b"identity") != b"identity":
        raise RequestError(415, "Send the body without a content encoding.")
    if not body:
        raise RequestError(400, "The body is empty: send an image.")
    if kind == "multipart/form-data":
        request = _parse_form(body, declared, limits)
    elif sniff_type(body) is not None:
        request = PredictRequest([body])
    elif kind == "application/json" or body[:64].lstrip()[:1] == b"{":
        request = _parse_json(body)
    elif kind in ("", "application/octet-stream", "binary/octet-stream") or kind.startswith("image/"):
        request = PredictRequest([body])  # the decoder says why it is not an image
    else:
        raise RequestError(
            415,
            "Send an image (Content-Type: image/jpeg, image/png, ...), multipart/form-data or application/json.",
        )
    if subject := headers.get(b"sightline-subject"):
        request.subject = parse_subject(_decode_text(subject))
    if query:
        for name, value in parse_qsl(_decode_text(query), keep_blank_values=True):
            if name not in ("top", "heat"):
                raise RequestError(422, "The query may contain top and heat, and nothing else.")
            _set_text_field(request, name, value)
    if len(request.images) > limits.images:
        count = len(request.images)
        raise RequestError(413, f"A request may have {limits.images} images, and this one has {count}.")
    return request


def parse_top(value: Any) -> int:
    """Return the number of classes to list; raise RequestError if it is none."""
    if not is_int(value) or not 1 <= value <= MAX_TOP_CLASSES:
        raise RequestError(422, f"The field top must be a whole number from 1 to {MAX_TOP_CLASSES}.")
    return value


def parse_heat(value: Any) -> bool:
    """Return whether heat maps are wanted; raise RequestError if it is neither true nor false."""
    if not isinstance(value, bool):
        raise RequestError(422, "The field heat must be true or false.")
    return value


def parse_subject(value: Any) -> str | None:
    """Return the subject, None for an empty one; raise RequestError if it is not a short printable text."""
    if value is None or value == "":
        return None
    if not isinstance(value, str) or len(value) > MAX_SUBJECT_LENGTH or not value.isprintable():
        raise RequestError(
            422, f"The field subject must be a text of at most {MAX_SUBJECT_LENGTH} printable characters."
        )
    return value


def _set_text_field(request: PredictRequest, name: str, value: str) -> None:
    """Set a field whose value came as text."""
    match name:
        case "top":
            number = int(value) if value.isascii() and value.isdigit() and len(value) < 9 else None
            request.top = parse_top(number)
        case "heat":
            words = {"true": True, "1": True, "false": False, "0": False}
            request.heat = parse_heat(words.get(value.lower()))
        case _:
            request.subject = parse_subject(value)


def _decode_text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


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
    request = PredictRequest([])
    for text in texts:
        if not isinstance(text, str):
            raise RequestError(422, "An image in JSON must be a text in base64.")
        request.images.append(_decode_base64(text))
    if "top" in value:
        request.top = parse_top(value["top"])
    if "heat" in value:
        request.heat = parse_heat(value["heat"])
    request.subject = parse_subject(value.get("subject"))
    return request


def _decode_base64(text: str) -> bytes:
    """The bytes of base64: also a data URL, the URL-safe alphabet, with white space, or without its padding."""
    text = text.strip()
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise RequestError(422, "A data URL must be in base64.")
    with suppress(ValueError):
        return binascii.a2b_base64(text, strict_mode=True)
    plain = "".join(text.split()).rstrip("=").replace("-", "+").replace("_", "/")
    with suppress(ValueError):
        data = binascii.a2b_base64(plain + "=" * (-len(plain) % 4), strict_mode=True)
        # Bits may not be left over: a path such as /etc/passwd has the letters of base64, but not its end.
        if binascii.b2a_base64(data, newline=False).rstrip(b"=") == plain.encode():
            return data
    raise RequestError(422, "An image is not valid base64.")


def _parse_form(body: bytes, declared: str, limits: RequestLimits) -> PredictRequest:
    """Parse a form: subject, top and heat are text fields, every other part is an image.

    An image may lack a file name. The part ``image`` may hold base64, as may any with that transfer encoding.
    """
    from python_multipart.multipart import parse_options_header

    boundary = parse_options_header(declared)[1].get(b"boundary")
    if not boundary or len(boundary) > MAX_BOUNDARY_LENGTH:
        raise RequestError(400, "The multipart body has no boundary.")
    request = PredictRequest([])
    for part in read_multipart(body, boundary, max_parts=limits.images + len(REQUEST_FIELDS)):
        disposition = part.headers.get(b"content-disposition", b"")
        _, options = parse_options_header(disposition)
        name, data = _decode_text(options.get(b"name", b"")), b"".join(part.data)
        is_file = b"filename" in options or b"filename*=" in disposition.lower()
        if name in ("subject", "top", "heat") and not is_file:
            _set_text_field(request, name, _decode_text(data))
        elif part.headers.get(b"content-transfer-encoding", b"").strip().lower() == b"base64":
            request.images.append(_decode_base64(_decode_text(data)))
        elif is_file or sniff_type(data) is not None:
            request.images.append(data)
        elif name in ("image", "images"):
            request.images.append(_decode_base64(_decode_text(data)))
        else:
            raise RequestError(422, f"There is no text field {name[:40]!r}, and its content is not an image.")
    if not request.images:
        raise RequestError(422, "The form has no file.")
    return request


@dataclass(slots=True)
class MultipartPart:
    """One part of a multipart body, as python-multipart's callbacks fill it."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    """Values by lower-case name."""
    data: list[bytes] = field(default_factory=list)
    """Pieces of the content."""


def read_multipart(body: bytes, boundary: bytes, *, max_parts: int) -> list[MultipartPart]:
    """Split a multipart body that is wholly in memory; raise RequestError (400, 413).

    It uses python-multipart's parser directly: Starlette's form would copy every file into a temporary one.
    """
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser

    parts: list[MultipartPart] = []
    name: list[bytes] = []
    value: list[bytes] = []
    ended: list[bool] = []

    def begin_part() -> None:
        if len(parts) >= max_parts:
            raise RequestError(413, "The form has too many parts.")
        parts.append(MultipartPart())

    def end_header() -> None:
        parts[-1].headers[b"".join(name).lower()] = b"".join(value)
        name.clear()
        value.clear()

    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": begin_part,
            "on_header_field": lambda data, start, end: name.append(data[start:end]),
            "on_header_value": lambda data, start, end: value.append(data[start:end]),
            "on_header_end": end_header,
            "on_part_data": lambda data, start, end: parts[-1].data.append(data[start:end]),
            "on_end": lambda: ended.append(True),
        },
    )
    try:
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise RequestError(400, "The multipart body is malformed.") from error
    if not ended:
        raise RequestError(400, "The multipart body is cut short.")
    return parts


# Answers

_COMPACT_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def dump_json(value: Any) -> bytes:
    """Encode a value as compact JSON."""
    return _COMPACT_JSON.encode(value).encode()


def prediction_json(id: str, prediction: RankedPrediction) -> dict[str, Any]:
    """Return the row of an image that was classified."""
    return {
        "id": id,
        "label": prediction.label,
        "confidence": prediction.confidence,
        "abstained": prediction.abstained,
        "top": prediction.top,
        "error": None,
    }


def image_error_json(error: str) -> dict[str, Any]:
    """Return the row of an image that cannot be read, among others that can."""
    return {"id": None, "label": None, "confidence": None, "abstained": False, "top": [], "error": error}


def combined_error(errors: Sequence[RequestError]) -> RequestError:
    """Return the error of a request whose images all failed: with the status they share, or 422."""
    first = errors[0]
    if len(errors) == 1:
        return RequestError(first.status, f"The image cannot be read: {first.detail}.")
    status = first.status if all(one.status == first.status for one in errors) else 422
    return RequestError(status, f"None of the {len(errors)} images can be read; of the first, {first.detail}.")
