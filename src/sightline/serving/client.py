"""A client of the service: a classifier that runs elsewhere, asked over HTTP as ``Classifier.predict`` is."""

import base64
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
from urllib3.exceptions import HTTPError, LocationParseError, MaxRetryError
from urllib3.util import parse_url

from ..data import ImageInput, list_inputs, name_input, read_input
from ..errors import ImageError, ServiceError
from ..types import Prediction

MAX_REQUEST_IMAGES, MAX_REQUEST_BYTES = 16, 4_000_000
"""Images in one request, and bytes of them; a larger image is sent alone."""

MAX_CONCURRENT_REQUESTS = 4

MAX_RESPONSE_BYTES = 64_000_000
"""Bytes of a response that are read."""

UNREADABLE_PREFIX = "The image cannot be read: "
"""Beginning of the service's error for a request whose only image is unreadable."""

MAX_RETRY_AFTER_SECONDS = 30
"""Seconds between two attempts, even if Retry-After asks for more."""

_NOT_A_URL = "That is no URL of a service: write it like http://127.0.0.1:8000."


@dataclass(frozen=True)
class Reply(Prediction):
    """The service's prediction for one image."""

    id: str | None = None
    """The prediction's id, for ``feedback``; None if the image cannot be read."""
    release: int | None = None
    """Number of the release that answered; 0 if the service has no releases."""

    @classmethod
    def from_json(cls, name: str, row: Mapping[str, Any], release: int | None) -> "Reply":
        """The reply in a row of the service's JSON; raise KeyError, TypeError or ValueError for another form."""
        if row.get("error") is not None:
            return cls(name, None, None, error=_sanitize_text(str(row["error"])), release=release)
        return cls(
            name,
            str(row["label"]),
            float(row["confidence"]),
            top=tuple((str(label), float(share)) for label, share in row["top"]),
            abstained=bool(row["abstained"]),
            id=row.get("id"),
            release=release,
        )


class DeclinedError(ServiceError):
    """The service answered with an error status."""

    def __init__(self, status: int, detail: str, text: str):
        super().__init__(text)
        self.status, self.detail = status, detail


@dataclass(frozen=True)
class _Upload:
    """An image to send: its name, and its bytes or why there are none."""

    name: str
    data: bytes
    error: str | None = None


class _BoundedRetry(urllib3.Retry):
    """Retries with growing pauses; a service may ask for longer ones, up to ``MAX_RETRY_AFTER_SECONDS``."""

    def get_retry_after(self, response: urllib3.BaseHTTPResponse) -> float | None:
        """Return the bounded pause that the response asks for."""
        try:
            seconds = super().get_retry_after(response)
        except HTTPError:  # a malformed header
            return None
        return None if seconds is None else min(seconds, MAX_RETRY_AFTER_SECONDS)


class Client:
    """A service at ``url``: ``Client(url).predict(files)``; thread-safe.

    ``key`` is an API key, ``timeout`` is in seconds. Every request can be repeated safely, so lost connections,
    full queues (503, after the pause the service asks for) and failing gateways are retried ``retries`` times.
    Raise ServiceError for an invalid URL or key.
    """

    def __init__(self, url: str, *, key: str | None = None, timeout: float = 30.0, retries: int = 3):
        self.url, self.timeout = _check_url(url), timeout
        headers = {"Accept": "application/json", "User-Agent": "sightline"}
        if key is not None:
            if not key or not key.isascii() or not key.isprintable() or " " in key:
                raise ServiceError(
                    "The key is empty or has characters that no key has: copy it again; keys begin with sl_."
                )
            headers["Authorization"] = f"Bearer {key}"
        self._has_key = key is not None
        retry = _BoundedRetry(
            total=retries,
            redirect=False,  # another host must not receive the key
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
            retries=retry,
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

    # The verbs of the service

    def predict(
        self, images: ImageInput | Iterable[ImageInput], *, top: int = 5, subject: str | None = None
    ) -> list[Reply]:
        """Return the ``top`` most probable classes of each image, in order.

        ``images`` is what ``Classifier.predict`` takes. An unreadable one is a Reply with an ``error``. ``subject``
        is whom or what they show, for a later erasure from the journal. Raise ServiceError, or DataError for
        anything else than an image.
        """
        return list(self.stream_predictions(images, top=top, subject=subject))

    def stream_predictions(
        self, images: ImageInput | Iterable[ImageInput], *, top: int = 5, subject: str | None = None
    ) -> Iterator[Reply]:
        """Yield what ``predict`` returns; several requests run at a time, and only their images are in memory."""
        waiting: deque[Future[list[Reply]]] = deque()
        with ThreadPoolExecutor(MAX_CONCURRENT_REQUESTS) as pool:
            try:
                for uploads in _split_into_requests(list_inputs(images)):
                    waiting.append(pool.submit(self._predict_batch, uploads, top, subject))
                    if len(waiting) > MAX_CONCURRENT_REQUESTS:
                        yield from waiting.popleft().result()
                while waiting:
                    yield from waiting.popleft().result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def feedback(self, id: str, label: str) -> bool:
        """Report the right label of a prediction; return whether it was the latest correction already.

        Raise ServiceError: DeclinedError with status 404 or 422 for an unknown prediction or class.
        """
        return bool(self._post("/feedback", {"id": id, "label": label})["already"])

    def classes(self) -> tuple[str, ...]:
        """Return the class names."""
        return tuple(self._get("/classes")["classes"])

    def model(self) -> dict[str, Any]:
        """Return the service's description of its classifier."""
        return self._get("/model")

    def releases(self) -> dict[str, Any]:
        """Return the releases, and the current one."""
        return self._get("/releases")

    def promote(self, number: int) -> dict[str, Any]:
        """Make a release the current one."""
        return self._post(f"/releases/{int(number)}/promote", {})

    def predictions(self, **conditions: object) -> dict[str, Any]:
        """Return rows of the journal, newest first.

        Conditions are those of ``GET /predictions``: ``limit``, ``before``, ``label``, ``release``, ``abstained``,
        ``corrected``, ``since``, ``until``; None is no condition.
        """
        given = {name: value for name, value in conditions.items() if value is not None}
        words = {
            name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in given.items()
        }
        return self._get("/predictions", words)

    def ready(self) -> bool:
        """Return whether the service answers now; one attempt, never raises."""
        try:
            with self._pool.request("GET", f"{self.url}/readyz", retries=False, preload_content=False) as response:
                return response.status == 200
        except HTTPError:
            return False

    # Requests

    def _predict_batch(self, uploads: Sequence[_Upload], top: int, subject: str | None) -> list[Reply]:
        """Return the replies of one request; if the service declines several images at once, halve the request."""
        sent = [one for one in uploads if one.error is None]
        try:
            replies = iter(self._post_images(sent, top, subject) if sent else [])
        except DeclinedError as error:
            if error.status not in (413, 415, 422):
                raise
            if len(uploads) > 1:
                half = len(uploads) // 2
                halves = (self._predict_batch(part, top, subject) for part in (uploads[:half], uploads[half:]))
                return [reply for part in halves for reply in part]
            if error.status != 413 and not error.detail.startswith(UNREADABLE_PREFIX):
                raise
            reason = error.detail.removeprefix(UNREADABLE_PREFIX).removesuffix(".")
            return [Reply(uploads[0].name, None, None, error=reason)]
        return [Reply(one.name, None, None, error=one.error) if one.error else next(replies) for one in uploads]

    def _post_images(self, uploads: Sequence[_Upload], top: int, subject: str | None) -> list[Reply]:
        if len(uploads) == 1 and subject is None:  # raw bytes: a third shorter than in JSON
            found = self._request("POST", f"/predict?top={top}", uploads[0].data, "application/octet-stream")
        else:
            images = [base64.b64encode(one.data).decode("ascii") for one in uploads]
            found = self._post("/predict", {"images": images, "top": top, "subject": subject})
        rows = found.get("predictions") if isinstance(found, Mapping) else None
        if not isinstance(rows, list) or len(rows) != len(uploads):
            raise self._unexpected_response()
        try:
            return [
                Reply.from_json(one.name, row, found.get("release"))
                for one, row in zip(uploads, rows, strict=True)
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._unexpected_response() from error

    def _get(self, path: str, query: Mapping[str, str] | None = None) -> Any:
        return self._request("GET", path + (f"?{urlencode(query)}" if query else ""))

    def _post(self, path: str, value: Mapping[str, Any]) -> Any:
        given = {name: each for name, each in value.items() if each is not None}
        return self._request("POST", path, json.dumps(given).encode(), "application/json")

    def _request(self, method: str, path: str, body: bytes | None = None, kind: str | None = None) -> Any:
        """Return the response's JSON; raise ServiceError in one sentence."""
        headers = {**self._pool.headers, **({"Content-Type": kind} if kind else {})}
        try:
            response = self._pool.request(
                method, self.url + path, body=body, headers=headers, preload_content=False
            )
            with response:
                data, status = response.read(MAX_RESPONSE_BYTES, decode_content=True), response.status
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
        text = f"The service at {self.url} declines: {detail}"
        if status == 401:
            reason = "does not accept this key" if self._has_key else "asks for a key"
            text = f"The service at {self.url} {reason}: name one with --key-file or in SIGHTLINE_KEY."
        elif status == 403:
            text = f"The service at {self.url} does not allow this with this key: use one with the right scope."
        elif status == 503:
            text = f"The service at {self.url} cannot answer now: {detail} Try again later."
        return DeclinedError(status, detail, text)

    def _unexpected_response(self, status: int = 200) -> ServiceError:
        what = "its answer has another form" if status == 200 else f"it sends HTTP {status} without a reason"
        return ServiceError(f"What answers at {self.url} is no service of Sightline: {what}. Check the URL.")


def read_api_key(file: Path | None) -> str | None:
    """Return the key in a file, or else in the environment variable SIGHTLINE_KEY; None if there is neither.

    A key is never a command-line argument, which other users could see. Raise ServiceError if the file is
    unreadable.
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
    """Return the URL without a slash at its end; raise ServiceError if it is none, or contains a secret."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ServiceError(_NOT_A_URL)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ServiceError(
            "A service's URL has no name, password or query: a key goes into --key-file or SIGHTLINE_KEY."
        )
    try:
        parse_url(url)
    except LocationParseError as error:
        raise ServiceError(_NOT_A_URL) from error
    return f"{parts.scheme}://{parts.netloc}{quote(parts.path.rstrip('/'), safe='/%')}"


def _split_into_requests(images: Iterable[ImageInput]) -> Iterator[list[_Upload]]:
    """Yield the images in the portions of one request."""
    uploads: list[_Upload] = []
    size = 0
    for image in images:
        upload = _Upload(name_input(image), b"", "the file is empty (zero bytes)")
        try:
            if data := read_input(image, compress_level=1):
                upload = _Upload(upload.name, data)
        except ImageError as error:
            upload = _Upload(upload.name, b"", str(error))
        if uploads and (len(uploads) == MAX_REQUEST_IMAGES or size + len(upload.data) > MAX_REQUEST_BYTES):
            yield uploads
            uploads, size = [], 0
        uploads.append(upload)
        size += len(upload.data)
    if uploads:
        yield uploads


def _sanitize_text(text: str) -> str:
    """Make foreign text fit for a terminal: one line, no control characters, at most 500 characters."""
    return "".join(c if c.isprintable() else " " for c in text)[:500]


def _explain_http_error(error: HTTPError, timeout: float) -> str:
    """Say what went wrong, by the types of the error and its causes."""
    kinds: set[str] = set()
    cause: BaseException | None = error
    while cause is not None:  # urllib3 keeps the last attempt's error as the reason of its own
        kinds.add(type(cause).__name__)
        cause = cause.reason if isinstance(cause, MaxRetryError) else cause.__cause__ or cause.__context__
    if kinds & {"ReadTimeoutError", "ConnectTimeoutError", "TimeoutError"}:
        return f"gave no answer within {timeout:g} seconds. Try again, or with fewer or smaller images."
    if "NameResolutionError" in kinds:
        return "has an unknown host name. Check the URL."
    if kinds & {"SSLError", "SSLCertVerificationError"}:
        return "has a TLS certificate that cannot be verified. Ask its operator for the certificate."
    if kinds & {"ConnectionRefusedError", "NewConnectionError"}:
        return "does not answer: nothing listens there. Start it with: sightline serve RUN"
    return "closed the connection. Try again; its log has the reason."
