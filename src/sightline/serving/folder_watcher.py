"""A folder as a live source: images that a camera or a device puts there are classified and journalled."""

import json
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from ..errors import DataError
from .monitor import log_event
from .requests import PredictRequest, RequestError
from .service import PredictResult, Service

FOLDER_POLL_SECONDS = 0.3
"""Seconds between two polls; a file is complete if two of them find the same size."""

MAX_FILES_PER_POLL = 32

UNFINISHED_SUFFIXES = (".part", ".partial", ".tmp", ".crdownload")
"""Suffixes of files that are still being written."""

FileState = tuple[int, int]
"""Size in bytes, and time of the last change in nanoseconds."""


def print_json_line(value: dict[str, Any]) -> None:
    """Write one JSON line to stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


class FolderWatcher:
    """Classifies files that appear or change in a folder; files that are there at the start are left alone."""

    def __init__(self, service: Service, folder: Path, report: Callable[[dict[str, Any]], None] = print_json_line):
        """``report`` gets the JSON of each prediction or error. Raise DataError if there is no such folder."""
        if not folder.is_dir():
            raise DataError(
                f"There is no folder '{folder}' to watch. Make it first, or name another with --watch."
            )
        self._service = service
        self._folder = folder
        self._report = report
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._new: dict[str, FileState] = {}  # of the last poll; their sizes may still change
        self._done = self._list_files()
        log_event("watching", folder=str(folder), left=len(self._done))

    def start(self) -> None:
        """Poll in a thread until ``stop``."""
        self._thread.start()

    def stop(self) -> None:
        """Stop polling, and wait for the last poll to end."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(FOLDER_POLL_SECONDS):
            try:
                self.poll()
            except Exception as error:  # a network share may be away for a while
                log_event("watching failed", folder=str(self._folder), error=f"{type(error).__name__}: {error}")

    def poll(self) -> int:
        """Classify new and complete files; return their number."""
        found = self._list_files()
        self._done = {name: state for name, state in self._done.items() if name in found}
        new = {name: state for name, state in found.items() if self._done.get(name) != state}
        complete = [name for name, state in new.items() if self._new.get(name) == state and state[0]]
        complete = complete[:MAX_FILES_PER_POLL]
        self._new = new
        waiting: list[tuple[str, Future[PredictResult]]] = []
        for name in complete:
            try:
                waiting.append((name, self._submit(name, new[name][0])))
            except RequestError as error:
                if error.status == 503:
                    continue  # the queue is full: at the next poll
                self._report({"file": name, "error": error.detail})
            except OSError as error:
                self._report({"file": name, "error": str(error.strerror or error)})
            self._done[name] = new[name]
        for name, future in waiting:
            try:
                result = future.result()
                assert isinstance(result, bytes)  # no heat maps were asked for
                value = json.loads(result)
                self._report({"file": name, "release": value["release"], **value["predictions"][0]})
            except RequestError as error:
                if error.status == 503:
                    del self._done[name]  # it could not be journalled: at the next poll
                else:
                    self._report({"file": name, "error": error.detail})
        return len(complete)

    def _list_files(self) -> dict[str, FileState]:
        """Return the files in the folder; links are not followed."""
        found = {}
        for path in self._folder.iterdir():
            if path.name.startswith(".") or path.name.lower().endswith(UNFINISHED_SUFFIXES) or path.is_symlink():
                continue
            if path.is_file():
                status = path.stat()
                found[path.name] = (status.st_size, status.st_mtime_ns)
        return found

    def _submit(self, name: str, size: int) -> "Future[PredictResult]":
        limits = self._service.limits
        if size > limits.max_body_bytes:
            raise RequestError(413, f"The file is larger than {limits.body_mb:g} MB, which is refused unread.")
        data = (self._folder / name).read_bytes()
        return self._service.batcher.submit(PredictRequest([data], [""], source=name))
