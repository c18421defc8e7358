"""What a web server or an object store has below an address, listed and copied through fsspec, within bounds."""

import hashlib
import html
import os
import re
import shutil
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from .. import progress
from ..errors import DataError
from .source import is_junk

DRIVERS = {
    "http": "aiohttp",
    "https": "aiohttp",
    "memory": "fsspec",
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "hf": "huggingface_hub",
}
"""How an address may begin, and the package that fsspec opens it with."""
MAX_REMOTE_BYTES = 200_000_000_000
"""Bytes that one address may bring: as much as a tar may be when it is decompressed."""
MAX_REMOTE_FILES = 5_000_000
"""Files of one address: a server may list folders without end."""
MAX_FOLDER_DEPTH = 16
"""Folders inside folders of a web server's lists."""
MAX_INDEX_BYTES = 64_000_000
"""Bytes of a web server's list of one folder: half a million files."""
_BLOCK_BYTES = 1 << 20
_TRIES = 3
"""Times that a file is asked for whose connection breaks; each goes on where the last one ended."""
_AT_ONCE = 8
"""Files that are copied at the same time."""
_IDENTITIES = ("ETag", "etag", "md5Hash", "blob_id", "LastModified", "Last-Modified", "last_modified", "created")
_LINK = re.compile(r"""<a\s[^>]*?href\s*=\s*["']?([^"'\s>]+)""", re.IGNORECASE)


@dataclass(frozen=True)
class RemoteFile:
    """A file of an address, as the server announces it."""

    name: str
    """Its path below the address, or its own name; checked."""
    path: str
    """What the file system opens it by."""
    size: int | None
    identity: str
    """ETag, checksum or time; empty where the server gives none."""


class RefusedError(Exception):
    """Why an address cannot be used, in words; asking again would not help."""


def open_file_system(scheme: str) -> Any:
    """Fsspec's file system of a kind of address; its options are those of fsspec's own configuration."""
    import fsspec

    options: dict[str, Any] = {}
    if scheme in ("http", "https"):
        options = {"get_client": _make_session, "skip_instance_cache": True}
    try:
        return fsspec.filesystem(scheme, **options)
    except ImportError as error:
        raise DataError(
            f"Addresses that begin with {scheme}:// need another package: pip install {DRIVERS[scheme]}"
        ) from error


async def _make_session(**options: Any) -> Any:
    """A client for web servers that follows no redirect away from the web, and none from https to http."""
    import aiohttp

    async def check_redirect(_session: object, _context: object, step: Any) -> None:
        target = step.response.url.join(type(step.url)(step.response.headers.get("Location", "")))
        if target.scheme not in ("http", "https") or (step.url.scheme, target.scheme) == ("https", "http"):
            raise RefusedError(f"the server redirects from {step.url.scheme} to {target.scheme[:20]}")

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(check_redirect)
    usual = {
        "auto_decompress": False,
        "headers": {"Accept-Encoding": "identity"},
        "timeout": aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60),
        "trust_env": True,  # ~/.netrc, proxies
    }
    return aiohttp.ClientSession(trace_configs=[trace], **(usual | options))


def list_remote(system: Any, scheme: str, address: str) -> tuple[bool, list[RemoteFile]]:
    """Whether the address is a folder, and the files of it, sorted by name."""
    if scheme not in ("http", "https"):
        path = system._strip_protocol(address)
        info = system.info(path)
        if info["type"] != "directory":
            return False, [_describe(info, PurePosixPath(path).name, path)]
        found = system.find(path, detail=True)
        names = [(name[len(path.rstrip("/")) :].lstrip("/"), name, info) for name, info in found.items()]
    else:
        info = system.info(address)
        url = urllib.parse.urlsplit(info.get("url") or address)
        if not url.path.endswith("/"):
            if info.get("mimetype") == "text/html":
                raise RefusedError(
                    "it is a web page: give the address of the file itself, or of a folder, with / at its end"
                )
            name = urllib.parse.unquote(PurePosixPath(url.path).name)
            return False, [_describe(info, name or "data", address)]
        links = _walk_pages(system, info.get("url") or address)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            names = [
                (name, link, info)
                for (name, link), info in zip(links, pool.map(system.info, [x[1] for x in links]), strict=True)
            ]
    if len(names) > MAX_REMOTE_FILES:
        raise RefusedError(f"it has more than {MAX_REMOTE_FILES:,} files")
    files = [_describe(info, name, path) for name, path, info in sorted(names) if not _is_junk_path(name)]
    if not files:
        raise RefusedError("no file is listed there")
    return True, files


def _is_junk_path(name: str) -> bool:
    return any(is_junk(part) for part in name.split("/") if part not in ("", "..", "."))


def _describe(info: Mapping[str, Any], name: str, path: str) -> RemoteFile:
    """A file by what the server says of it; raises RefusedError where it would land outside of the copy."""
    parts = name.split("/")
    if not name or any(part in ("", ".", "..") for part in parts) or re.search(r"[\\\0]|^\w:", name):
        raise RefusedError(f"it lists a file that would land outside of its copy ({name[:80]!r})")
    identity = next((str(info[key]) for key in _IDENTITIES if info.get(key)), "")
    size = info.get("size")
    return RemoteFile(name, path, None if size is None else int(size), identity)


def _walk_pages(system: Any, root: str) -> list[tuple[str, str]]:
    """Name and address of the files that a web server lists below a folder, in its pages of links."""
    root = root.partition("?")[0]
    found: dict[str, str] = {}
    waiting, seen = [root], {root}
    while waiting:
        folder = waiting.pop()
        with system.open(folder, block_size=0) as stream:
            page = b"".join(_read_blocks(stream, MAX_INDEX_BYTES, "the list of a folder"))
        for link in map(html.unescape, _LINK.findall(page.decode("utf-8", "replace"))):
            url = urllib.parse.urljoin(folder, link.partition("#")[0])
            if not url.startswith(folder) or "?" in url or url == folder:  # a parent, a sorting, another place
                continue
            name = urllib.parse.unquote(url[len(root) :])
            if not url.endswith("/"):
                found[name] = url
            elif url not in seen and not _is_junk_path(name.rstrip("/")):
                if name.count("/") > MAX_FOLDER_DEPTH:
                    raise RefusedError(f"its folders are more than {MAX_FOLDER_DEPTH} deep ({name[:60]}...)")
                seen.add(url)
                waiting.append(url)
            if len(found) + len(seen) > MAX_REMOTE_FILES:
                raise RefusedError(f"it has more than {MAX_REMOTE_FILES:,} files")
    return sorted(found.items())


def _read_blocks(stream: Any, limit: float, what: str) -> Iterator[bytes]:
    total = 0
    while block := stream.read(_BLOCK_BYTES):
        total += len(block)
        if total > limit:
            raise RefusedError(f"{what} is longer than the {limit:,} bytes that are expected")
        yield block


def copy_files(
    system: Any,
    scheme: str,
    files: list[RemoteFile],
    target: Path,
    shown: str,
    earlier: tuple[Path | None, Mapping[str, Any]],
) -> None:
    """Bring every file below ``target``, where an earlier attempt may have left some; DataError where it fails."""
    announced = sum(each.size or 0 for each in files)
    target.mkdir(parents=True, exist_ok=True)
    limit = min(MAX_REMOTE_BYTES, shutil.disk_usage(target).free)
    if announced > limit:
        raise DataError(
            f"'{shown}' has {announced / 1e9:,.1f} GB, more than the {limit / 1e9:,.1f} GB that fit: "
            "SIGHTLINE_CACHE names a folder with more room; or copy a part of it and give its path."
        )
    lock, done = threading.Lock(), 0
    title = f"Downloading {files[0].name if len(files) == 1 else f'{len(files):,} files'} (MB)"
    with progress.progress_bar(title, announced / 1e6 or None) as advance:

        def count(n: int) -> None:
            nonlocal done
            with lock:
                done += n
                advance(n / 1e6)
                if done > limit:
                    raise RefusedError(f"it is longer than the {limit / 1e9:,.1f} GB that fit")

        def bring(file: RemoteFile) -> None:
            path = target / file.name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                return count(file.size or 0)
            folder, known = earlier
            if folder is not None and file.identity and known.get(file.name) == [file.size, file.identity]:
                with suppress(OSError):
                    os.link(folder / file.name, path)
                    return count(file.size or 0)
            return _copy_file(system, scheme, file, path, count)

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            tasks = [pool.submit(bring, each) for each in files]
            for file, task in zip(files, tasks, strict=True):
                try:
                    task.result()
                except BaseException as error:
                    pool.shutdown(cancel_futures=True)
                    if not isinstance(error, Exception) or (isinstance(error, OSError) and error.filename):
                        raise  # Ctrl-C, or a disk that is full
                    reason = explain_error(error, private="?" in shown)
                    name = "" if len(files) == 1 else f" '{file.name}' of"
                    raise DataError(
                        f"The download of{name} '{shown}' failed ({reason}): start again, it continues there."
                    ) from without_key(error, shown)


def _copy_file(system: Any, scheme: str, file: RemoteFile, path: Path, count: Callable[[int], None]) -> None:
    """Bring one file, checked by its length, in as many tries as a line that breaks may need."""
    part = path.with_name(f"{path.name}.{hashlib.blake2b(file.identity.encode(), digest_size=4).hexdigest()}.part")
    for left in reversed(range(_TRIES)):
        try:
            with part.open("ab") as out:
                begin = out.tell() if file.identity and out.tell() < (file.size or 0) else 0
                stream, begin = _open_at(system, scheme, file, begin)
                out.truncate(begin)
                count(begin)
                with stream:
                    rest = MAX_REMOTE_BYTES if file.size is None else file.size - begin
                    for block in _read_blocks(stream, rest, f"'{file.name}'"):
                        out.write(block)
                        count(len(block))
                if file.size is not None and out.tell() != file.size:
                    raise ConnectionError(f"only {out.tell():,} of {file.size:,} bytes arrived")
                out.flush()
                os.fsync(out.fileno())
            part.replace(path)
            return
        except Exception as error:
            if isinstance(error, RefusedError):
                part.unlink(missing_ok=True)
                raise
            if not left or (isinstance(error, OSError) and error.filename):
                raise
            count(-part.stat().st_size)


def _open_at(system: Any, scheme: str, file: RemoteFile, begin: int) -> tuple[Any, int]:
    """The bytes of a file from ``begin`` on, or from 0 where they cannot be continued; and which of both it is."""
    if scheme not in ("http", "https"):
        stream = system.open(file.path, "rb", block_size=8 * _BLOCK_BYTES)
        stream.seek(begin)
        return stream, begin
    options = {}
    if begin and not file.identity.startswith("W/"):
        headers = {"Range": f"bytes={begin}-", "If-Range": file.identity}
        options = {"headers": {**system.kwargs.get("headers", {}), **headers}}
    stream = system.open(file.path, block_size=0, size=file.size, **options)
    begin = begin if stream.r.status == 206 else 0
    if file.size is not None and stream.r.content_length not in (None, file.size - begin):
        stream.close()
        total = stream.r.content_length + begin
        raise RefusedError(f"the server announced {file.size:,} bytes of '{file.name}', and then {total:,}")
    return stream, begin


def without_key(error: Exception, shown: str) -> Exception | None:
    """The error, unless its text may hold a key."""
    return None if "?" in shown else error


def explain_error(error: BaseException, *, private: bool) -> str:
    """Why an address did not answer, in words that hold no key."""
    while isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    status = getattr(error, "status", None)
    if isinstance(error, RefusedError | DataError):
        return str(error)
    if isinstance(status, int) and status:
        meaning = {401: "it asks who you are", 403: "it refuses access", 404: "there is nothing"}
        return f"the server answers {status}{f', {meaning[status]}' if status in meaning else ''}"
    if isinstance(error, FileNotFoundError):
        return "there is nothing"
    if isinstance(error, TimeoutError):
        return "the server does not answer in time"
    inner = getattr(error, "os_error", error)
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror
    return (
        type(error).__name__ if private else (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    )
