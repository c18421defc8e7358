"""A service from the other side: the answers of a classifier that runs elsewhere, by HTTP."""

import base64
import io
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import urllib3
from jaxtyping import UInt8
from numpy import ndarray
from urllib3.exceptions import HTTPError, LocationParseError, MaxRetryError
from urllib3.util import parse_url

from ..classifier import ImageInput
from ..errors import ServiceError
from ..types import Prediction

MAX_REQUEST_IMAGES, MAX_REQUEST_BYTES = 16, 4_000_000
"""Images that one request carries at most, and bytes of them; a larger image goes by itself."""

MAX_CONCURRENT_REQUESTS = 4
"""Requests under way at a time."""

MAX_RESPONSE_BYTES = 64_000_000
"""Longest answer that is read."""

UNREADABLE_PREFIX = "The image cannot be read: "
"""How a service begins to say why it declines a request of one image."""

MAX_RETRY_AFTER_SECONDS = 30
"""Seconds between two attempts at most, whatever the service asks for in Retry-After."""


@dataclass(frozen=True)
class Reply(Prediction):
    """The answer of a service for one image."""

    id: str | None = None
    """What ``feedback`` refers to; None where the image could not be read."""
    release: int | None = None
    """The number of the release that answered; None where the service has no releases."""


class DeclinedError(ServiceError):
    """The service answered, and says no."""

    def __init__(self, status: int, detail: str, text: str):
        super().__init__(text)
        self.status, self.detail = status, detail


@dataclass(frozen=True)
class _Upload:
    """An image on its way: its name, and its bytes or why there are none."""

    name: str
    data: bytes
    error: str | None = None


class _BoundedRetry(urllib3.Retry):
    """Attempts with growing pauses; a service may ask for longer ones, not for hours."""

    def get_retry_after(self, response: urllib3.BaseHTTPResponse) -> float | None:
        """Seconds the service asks to wait, bounded."""
        try:
            asked = super().get_retry_after(response)
        except HTTPError:  # a header that makes no sense
            return None
        return None if asked is None else min(asked, MAX_RETRY_AFTER_SECONDS)


class Client:
    """A service at a URL, asked as a ``Classifier`` is: ``Client(url).predict(files)``.

    ``key`` is never shown. Whatever is asked may be asked again, so lost connections, full queues (503, after the
    pause the service asks for) and gateways without their service are tried ``retries`` times more. Safe to share
    between threads.
    """

    def __init__(self, url: str, *, key: str | None = None, timeout: float = 30.0, retries: int = 3):
        self.url, self.timeout = _check_url(url), timeout
        headers = {"Accept": "application/json", "User-Agent": "sightline"}
        if key is not None:
            headers["Authorization"] = f"Bearer {_check_key(key)}"
        self._keyed = key is not None
        again = _BoundedRetry(
            total=retries,
            redirect=False,  # a key goes where it was meant to, and nowhere else
            status_forcelist=(502, 503, 504),
            allowed_methods=None,
            backoff_factor=0.1,
            backoff_jitter=0.1,
            raise_on_status=False,
        )
        self._pool = urllib3.PoolManager(
            maxsize=MAX_CONCURRENT_REQUESTS,
            block=True,
            headers=headers,
            retries=again,
            timeout=urllib3.Timeout(connect=min(timeout, 10), read=timeout),
        )

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()

    # The verbs of the service.

    def predict(
        self, images: ImageInput | Iterable[ImageInput], *, top: int = 5, subject: str | None = None
    ) -> list[Reply]:
        """The ``top`` likeliest classes of each image, in order, as ``Classifier.predict`` gives them.

        ``images`` are files, their bytes, or uint8 arrays (H W C). One that cannot be read is a Reply with its
        ``error``. ``subject`` is whom the images are of: the journal can then forget them. Raises ServiceError.
        """
        if isinstance(images, str | Path | bytes) or (isinstance(images, ndarray) and images.ndim == 3):
            images = [images]
        return list(self.stream_predictions(images, top=top, subject=subject))

    def stream_predictions(
        self, images: Iterable[ImageInput], *, top: int = 5, subject: str | None = None
    ) -> Iterator[Reply]:
        """``predict`` one by one, in order, several requests at a time; no more are held than are under way."""
        waiting: deque[Future[list[Reply]]] = deque()
        with ThreadPoolExecutor(MAX_CONCURRENT_REQUESTS) as pool:
            try:
                for packet in _split_into_requests(images):
                    waiting.append(pool.submit(self._predict_batch, packet, top, subject))
                    if len(waiting) > MAX_CONCURRENT_REQUESTS:
                        yield from waiting.popleft().result()
                while waiting:
                    yield from waiting.popleft().result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def feedback(self, id: str, label: str) -> bool:
        """Tell what the image of this prediction truly shows; whether that was known already.

        Raises ServiceError (``DeclinedError`` with status 404 or 422) for a prediction or a class nobody knows.
        """
        return bool(self._post("/feedback", {"id": id, "label": label})["already"])

    def classes(self) -> tuple[str, ...]:
        """The names it tells apart."""
        found = self._get("/classes")
        return tuple(found["classes"] if isinstance(found, Mapping) else found)

    def model(self) -> dict[str, Any]:
        """What the service says of its classifier."""
        return self._get("/model")

    def releases(self) -> dict[str, Any]:
        """The releases there are, and which one answers."""
        return self._get("/releases")

    def promote(self, number: int) -> dict[str, Any]:
        """Let this release answer from now on."""
        return self._post(f"/releases/{int(number)}/promote", {})

    def predictions(self, **only: object) -> dict[str, Any]:
        """What the journal holds, newest first: ``limit``, ``before``, ``label``, ``release``, ``abstained``, ...

        The names are those of ``GET /predictions``; one that is None is left out.
        """
        return self._get(
            "/predictions", {name: _query_text(value) for name, value in only.items() if value is not None}
        )

    def ready(self) -> bool:
        """Whether the service is there and takes images; asks once, never raises."""
        try:
            with self._pool.request("GET", f"{self.url}/readyz", retries=False, preload_content=False) as answer:
                return answer.status == 200
        except HTTPError:
            return False

    # How they are asked.

    def _predict_batch(self, packet: Sequence[_Upload], top: int, subject: str | None) -> list[Reply]:
        """The replies of one packet; where the service declines several images at once, they go in halves."""
        sent = [item for item in packet if item.error is None]
        try:
            rows = iter(self._post_images(sent, top, subject) if sent else [])
        except DeclinedError as error:
            if error.status not in (413, 415, 422):
                raise
            if len(packet) > 1:
                half = len(packet) // 2
                parts = (self._predict_batch(part, top, subject) for part in (packet[:half], packet[half:]))
                return [reply for part in parts for reply in part]
            if error.status != 413 and not error.detail.startswith(UNREADABLE_PREFIX):
                raise
            return [
                Reply(
                    packet[0].name,
                    None,
                    None,
                    error=error.detail.removeprefix(UNREADABLE_PREFIX).removesuffix("."),
                )
            ]
        return [_failed(item) if item.error else next(rows) for item in packet]

    def _post_images(self, items: Sequence[_Upload], top: int, subject: str | None) -> list[Reply]:
        if len(items) == 1 and subject is None:  # as it is: a third shorter than in JSON
            found = self._request("POST", f"/predict?top={top}", items[0].data, "application/octet-stream")
        else:
            images = [base64.b64encode(item.data).decode("ascii") for item in items]
            found = self._post("/predict", {"images": images, "top": top, "subject": subject})
        rows = found.get("predictions") if isinstance(found, Mapping) else None
        if not isinstance(rows, list) or len(rows) != len(items):
            raise self._unexpected_response()
        try:
            return [
                _parse_reply(item.name, row, found.get("release")) for item, row in zip(items, rows, strict=True)
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._unexpected_response() from error

    def _get(self, path: str, query: Mapping[str, str] | None = None) -> Any:
        return self._request("GET", path + (f"?{urlencode(query)}" if query else ""))

    def _post(self, path: str, value: Mapping[str, Any]) -> Any:
        given = {name: each for name, each in value.items() if each is not None}
        return self._request("POST", path, json.dumps(given).encode(), "application/json")

    def _request(self, method: str, path: str, body: bytes | None = None, kind: str | None = None) -> Any:
        """The JSON that the service answers. Raises ServiceError in a sentence."""
        headers = {**self._pool.headers, **({"Content-Type": kind} if kind else {})}
        try:
            answer = self._pool.request(method, self.url + path, body=body, headers=headers, preload_content=False)
            with answer:
                data, status = answer.read(MAX_RESPONSE_BYTES, decode_content=True), answer.status
        except HTTPError as error:
            raise ServiceError(f"The service at {self.url} {_explain_http_error(error, self.timeout)}") from error
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            found = None
        if status != 200:
            raise self._declined_error(status, found)
        if found is None:
            raise self._unexpected_response()
        return found

    def _declined_error(self, status: int, found: Any) -> ServiceError:
        detail = found.get("detail") if isinstance(found, Mapping) else None
        if not isinstance(detail, str):
            return self._unexpected_response(status)
        detail = _sanitize_text(detail)
        if status == 401:
            given = "does not take this key" if self._keyed else "asks for a key"
            text = f"The service at {self.url} {given}: name one with --key-file or in SIGHTLINE_KEY."
        elif status == 403:
            text = (
                f"The service at {self.url} does not allow this key what was asked: take one with the right scope."
            )
        elif status == 503:
            text = f"The service at {self.url} cannot answer now: {detail} Try again later."
        else:
            text = f"The service at {self.url} declines: {detail}"
        return DeclinedError(status, detail, text)

    def _unexpected_response(self, status: int = 200) -> ServiceError:
        said = "an answer of another kind" if status == 200 else f"HTTP {status} without a reason"
        return ServiceError(f"What answers at {self.url} is no service of Sightline: {said}. Look at the URL.")


def read_api_key(file: Path | None) -> str | None:
    """The key in this file, or else in the environment variable SIGHTLINE_KEY; None where there is neither.

    Raises ServiceError where the file cannot be read. A key is no argument: others could see it.
    """
    if file is None:
        return os.environ.get("SIGHTLINE_KEY") or None
    try:
        return file.read_text(encoding="ascii").strip()
    except OSError as error:
        raise ServiceError(f"The key file '{file}' cannot be read: {(error.strerror or '').lower()}.") from error
    except UnicodeDecodeError as error:
        raise ServiceError(f"The file '{file}' holds no key: keys begin with sl_.") from error


def _check_url(url: str) -> str:
    """The URL without a slash at its end; raises ServiceError for what is none, or holds a secret."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ServiceError("That is no URL of a service: write it like http://127.0.0.1:8000.")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ServiceError(
            "A service's URL has no name, password or query: a key goes into --key-file or SIGHTLINE_KEY."
        )
    try:
        parse_url(url)
    except LocationParseError as error:
        raise ServiceError("That is no URL of a service: write it like http://127.0.0.1:8000.") from error
    return f"{parts.scheme}://{parts.netloc}{quote(parts.path.rstrip('/'), safe='/%')}"


def _check_key(key: str) -> str:
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ServiceError(
            "The key is empty or has characters that no key has: copy it again; keys begin with sl_."
        )
    return key


def _split_into_requests(images: Iterable[ImageInput]) -> Iterator[list[_Upload]]:
    """The images in the portions they are sent in."""
    packet: list[_Upload] = []
    for item in map(_load_upload, images):
        size = sum(len(other.data) for other in packet)
        if packet and (len(packet) == MAX_REQUEST_IMAGES or size + len(item.data) > MAX_REQUEST_BYTES):
            yield packet
            packet = []
        packet.append(item)
    if packet:
        yield packet


def _load_upload(image: ImageInput) -> _Upload:
    if isinstance(image, bytes):
        return _Upload("", image, None if image else "the file is empty (zero bytes)")
    if isinstance(image, ndarray):
        return _Upload("", _encode_png(image))
    try:
        data = Path(image).read_bytes()
    except OSError as error:
        return _Upload(str(image), b"", error.strerror)
    return _Upload(str(image), data, None if data else "the file is empty (zero bytes)")


def _failed(item: _Upload) -> Reply:
    return Reply(item.name, None, None, error=item.error)


def _encode_png(image: UInt8[ndarray, "H W C"]) -> bytes:
    from PIL import Image as pillow

    stream = io.BytesIO()
    pillow.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(stream, "png", compress_level=1)
    return stream.getvalue()


def _parse_reply(name: str, row: Mapping[str, Any], release: int | None) -> Reply:
    if row.get("error") is not None:
        return Reply(name, None, None, error=_sanitize_text(str(row["error"])), release=release)
    top = tuple((str(label), float(share)) for label, share in row["top"])
    return Reply(
        name,
        str(row["label"]),
        float(row["confidence"]),
        top=top,
        abstained=bool(row["abstained"]),
        id=row.get("id"),
        release=release,
    )


def _query_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _sanitize_text(text: str) -> str:
    """What a stranger says, fit for a terminal: one line, no control characters, not long."""
    return "".join(c if c.isprintable() else " " for c in text)[:500]


def _explain_http_error(error: HTTPError, timeout: float) -> str:
    """What went wrong on the way, in words."""
    causes = list(_iterate_causes(error))
    kinds = {type(one).__name__ for one in causes}
    if kinds & {"ReadTimeoutError", "ConnectTimeoutError", "TimeoutError"}:
        return f"gave no answer within {timeout:g} seconds. Try again, or with fewer or smaller images."
    if "NameResolutionError" in kinds:
        return "has a name that nobody knows. Look at the URL."
    if kinds & {"SSLError", "SSLCertVerificationError"}:
        return "does not prove that it is the one it says it is (TLS). Ask whoever runs it for its certificate."
    if kinds & {"ConnectionRefusedError", "NewConnectionError"}:
        return "does not answer: nothing listens there. Start it with: sightline serve RUN"
    return "broke the connection off. Try again; its log says why."


def _iterate_causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came of; urllib3 keeps the last attempt's as the reason of its own."""
    while error is not None:
        yield error
        error = error.reason if isinstance(error, MaxRetryError) else error.__cause__ or error.__context__
