"""Published weights from a cache or a hub: the cache first, an answer within seconds, never a hang.

``huggingface_hub`` reads ``HF_HOME``, ``HF_HUB_CACHE``, ``HF_ENDPOINT``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE``, and torch
reads ``TORCH_HOME``, so all of them decide here. What arrives is compared with the checksum that was announced.
"""

import hashlib
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.request import urlopen

import torch

from ..errors import DataError
from ..files import atomic_replace, checksum
from ..progress import Advance, progress_bar

HUB_TIMEOUT = 5.0
"""Seconds to wait for the first answer of a host."""

STALL_SECONDS, STALL_BYTES = 15.0, 100_000
"""A download that brings fewer than these bytes in these seconds is stopped."""

CHUNK_BYTES = 1 << 16

T = TypeVar("T")


def fetch_published(name: str, settings: Mapping[str, Any]) -> Path:
    """The file with the published weights of a network of timm, whose pretrained ``settings`` say where they are.

    Raises DataError, with the reason and the ways out, where they are in no cache and cannot be fetched.
    """
    place, cached, reason = settings["hf_hub_id"], _find_cached(settings), ""
    if cached is None:
        try:
            cached = _download_from_hub(place, _hub_file(settings)) if place else _download(settings["url"])
        except Exception as error:  # each library raises its own exceptions
            reason = _explain(error)
    elif _announced_checksum(cached) not in (None, checksum_of_weights(cached)):
        _forget(cached)
        reason = "the file in the cache was damaged, and is removed"
    if cached is None or reason:
        raise DataError(
            f"The published weights of timm's '{name}' cannot be fetched from here: {reason}. Download them elsewhere "
            "and give the file with --weights FILE, or start from random weights with --from-scratch."
        )
    return cached


def cached_checksum(settings: Mapping[str, Any]) -> str | None:
    """The SHA-256 of the cached file with a network's published weights; None where there is none."""
    cached = _find_cached(settings)
    return None if cached is None else checksum_of_weights(cached)


def checksum_of_weights(path: Path) -> str:
    """The SHA-256 of a file, computed once as long as it does not change."""
    return _remembered_checksum(path, path.stat().st_mtime_ns)


@cache
def _remembered_checksum(path: Path, changed: int) -> str:  # noqa: ARG001
    return checksum(path)


def _find_cached(settings: Mapping[str, Any]) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    place, url = settings["hf_hub_id"], settings["url"]
    if place and isinstance(known := try_to_load_from_cache(place, _hub_file(settings)), str):
        return Path(known)
    kept = _torch_cache(url) if url else None
    return kept if kept is not None and kept.is_file() else None


def _hub_file(settings: Mapping[str, Any]) -> str:
    return settings["hf_hub_filename"] or "model.safetensors"


def _torch_cache(url: str) -> Path:
    """Where torch keeps the file of an address."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]


def _announced_checksum(path: Path) -> str | None:
    """The checksum that the hub announced, which names the file in its cache; None for files without one."""
    name = path.resolve().name
    return name if re.fullmatch("[0-9a-f]{64}", name) else None


def _forget(path: Path) -> None:
    for each in {path.resolve(), path}:
        with suppress(OSError):
            each.unlink()


def _download_from_hub(place: str, file: str) -> Path:
    """Ask the hub within ``HUB_TIMEOUT`` whether it has the file, then fetch it into its cache."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.utils import tqdm

    url = hf_hub_url(place, file)
    known = _within(HUB_TIMEOUT, lambda: get_hf_file_metadata(url, timeout=HUB_TIMEOUT))
    with progress_bar(f"Fetching {place}", known.size) as advance:
        watched = _Watch(advance)

        class Bar(tqdm):
            """The library's progress, passed to our bar."""

            def __init__(self, *args: Any, **options: Any):
                super().__init__(*args, **{**options, "disable": True})

            def update(self, n: float | None = 1) -> None:
                """Count ``n`` further bytes."""
                watched.advance(n or 0)

        path = Path(watched.run(lambda: hf_hub_download(place, file, etag_timeout=HUB_TIMEOUT, tqdm_class=Bar)))
    if (announced := _announced_checksum(path)) not in (None, checksum_of_weights(path)):
        _forget(path)
        raise OSError(f"its checksum is not the one that the hub announced, {announced}")
    return path


def _download(url: str) -> Path:
    """Fetch an address of timm into torch's cache; the first eight digits of the checksum are in its name."""
    from huggingface_hub import is_offline_mode

    if is_offline_mode():
        raise OSError("HF_HUB_OFFLINE is set, and they are not in the cache")
    path = _torch_cache(url)
    digest = hashlib.sha256()
    answer = _within(HUB_TIMEOUT, lambda: urlopen(url, timeout=HUB_TIMEOUT))
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        answer,
        progress_bar(f"Fetching {path.name}", answer.length) as advance,
        atomic_replace(path) as temporary,
    ):
        watched = _Watch(advance)

        def copy() -> None:
            with temporary.open("wb") as stream:
                while piece := answer.read(CHUNK_BYTES):
                    digest.update(piece)
                    watched.advance(len(piece))
                    stream.write(piece)

        watched.run(copy)
        found = re.search(r"-([0-9a-f]{8,})\.\w+$", path.name)
        if found and not digest.hexdigest().startswith(found[1]):
            raise OSError(f"its checksum does not begin with {found[1]}, as its name says")
    return path


class _Watch:
    """Runs a download, and stops it when hardly any data arrives."""

    def __init__(self, report: Advance):
        self.report, self.count = report, 0.0

    def advance(self, n: float) -> None:
        """Count ``n`` further bytes."""
        self.count += n
        self.report(n)

    def run(self, download: Callable[[], T]) -> T:
        """What ``download`` returns; TimeoutError where it stalls."""
        return _within(STALL_SECONDS, download, lambda: self.count)


def _within(seconds: float, work: Callable[[], T], count: Callable[[], float] = lambda: 0.0) -> T:
    """What ``work`` returns within ``seconds``, or while ``count`` rises by ``STALL_BYTES`` in each such time.

    In a thread that is left behind on a timeout: no setting of a library bounds the look-up of a name, or an answer
    of one byte a second.
    """
    done: list[T] = []
    failed: list[BaseException] = []

    def target() -> None:
        try:
            done.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    before, until = count(), time.monotonic() + seconds
    while thread.is_alive():
        thread.join(max(0.0, until - time.monotonic()))
        if thread.is_alive() and count() - before < STALL_BYTES:
            raise TimeoutError
        before, until = count(), time.monotonic() + seconds
    if failed:
        raise failed[0]
    return done[0]


def _explain(error: Exception) -> str:
    """Why a file could not be fetched, as the middle of a sentence."""
    status = getattr(getattr(error, "response", None), "status_code", None) or getattr(error, "code", None)
    kind = type(error).__name__
    if "Offline" in kind:
        return "HF_HUB_OFFLINE is set, and they are not in the cache"
    if isinstance(error, TimeoutError) or "Timeout" in kind:
        return f"no answer within {HUB_TIMEOUT:g} s, or hardly any data"
    if status in (401, 403):
        return f"the hub asks for a login ({status}; HF_TOKEN)"
    if status is not None:
        return f"the hub answered {status}" + (", it does not have them" if status == 404 else "")
    text = (str(error) or kind).splitlines()[0].rstrip(".")
    return text if "checksum" in text or "HF_HUB" in text else f"no connection ({text})"
