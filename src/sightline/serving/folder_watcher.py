"""A folder as a live source: what a camera or a device drops there is classified and remembered."""

import json
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from ..errors import DataError
from .limits import RequestError
from .log import log_event
from .requests import PredictRequest
from .service import Service

FOLDER_POLL_SECONDS = 0.3
"""Seconds between looks; a file is complete when two of them found the same size."""

MAX_FILES_PER_POLL = 32
"""Files in one look's work, at most."""

UNFINISHED_SUFFIXES = (".part", ".partial", ".tmp", ".crdownload")
"""Endings of files that are still being written."""

FileState = tuple[int, int]
"""Bytes, and the time of the last change."""


def print_json_line(value: dict[str, Any]) -> None:
    """One JSON object a line on stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


class FolderWatcher:
    """Looks into a folder until it is stopped; files that are there already are left alone."""

    def __init__(self, service: Service, folder: Path, tell: Callable[[dict[str, Any]], None] = print_json_line):
        if not folder.is_dir():
            raise DataError(
                f"There is no folder '{folder}' to watch. Make it first, or name another with --watch."
            )
        self._service = service
        self._folder = folder
        self._tell = tell
        self._stop = threading.Event()
        self._coming: dict[str, FileState] = {}
        """Files of the last look whose size may still change."""
        self._done = self._list_files()
        log_event("watching", folder=str(folder), left=len(self._done))

    def run(self) -> None:
        """Look again and again until ``stop``."""
        while not self._stop.wait(FOLDER_POLL_SECONDS):
            try:
                self.poll()
            except Exception as error:  # a share that is away for a while: the next look may be better
                log_event("watching failed", folder=str(self._folder), error=f"{type(error).__name__}: {error}")

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()

    def poll(self) -> int:
        """Classify what is new and complete; how many that were."""
        found = self._list_files()
        self._done = {name: seen for name, seen in self._done.items() if name in found}
        new = {name: seen for name, seen in found.items() if self._done.get(name) != seen}
        ready = [name for name, seen in new.items() if self._coming.get(name) == seen and seen[0]][
            :MAX_FILES_PER_POLL
        ]
        self._coming = new
        self._classify(ready, new)
        return len(ready)

    def _list_files(self) -> dict[str, FileState]:
        """The files of the folder; links are not followed."""
        found = {}
        for path in self._folder.iterdir():
            if path.name.startswith(".") or path.name.lower().endswith(UNFINISHED_SUFFIXES) or path.is_symlink():
                continue
            if path.is_file():
                status = path.stat()
                found[path.name] = (status.st_size, status.st_mtime_ns)
        return found

    def _classify(self, names: Iterable[str], seen: dict[str, FileState]) -> None:
        waiting: list[tuple[str, Future[Any]]] = []
        for name in names:
            try:
                waiting.append((name, self._submit(name, seen[name][0])))
            except RequestError as error:
                if error.status == 503:
                    continue  # too many wait: at the next look
                self._tell({"file": name, "error": error.detail})
            except OSError as error:
                self._tell({"file": name, "error": str(error.strerror or error)})
            self._done[name] = seen[name]
        for name, future in waiting:
            try:
                value = json.loads(future.result())
                self._tell({"file": name, "release": value["release"], **value["predictions"][0]})
            except RequestError as error:
                if error.status == 503:
                    del self._done[name]  # it could not be written down: at the next look
                else:
                    self._tell({"file": name, "error": error.detail})

    def _submit(self, name: str, size: int) -> "Future[Any]":
        if size > self._service.limits.max_body_bytes:
            raise RequestError(
                413, f"The file is larger than {self._service.limits.body_mb:g} MB, which is refused unread."
            )
        data = (self._folder / name).read_bytes()
        return self._service.batcher.submit(PredictRequest([data], [""], source=name))
