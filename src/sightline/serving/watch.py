"""A folder as a live source: what a camera or a device drops there is classified and remembered."""

import json
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from ..errors import DataError
from .answers import Asked
from .limits import Refusal
from .log import say
from .service import Service

LOOK = 0.3
"""Seconds between looks; a file is complete when two of them found the same size."""

TOGETHER = 32
"""Files in one look's work, at most."""

UNFINISHED = (".part", ".partial", ".tmp", ".crdownload")
"""Endings of files that are still being written."""

Seen = tuple[int, int]
"""Bytes, and the time of the last change."""


def write_line(value: dict[str, Any]) -> None:
    """One JSON object a line on stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


class Watch:
    """Looks into a folder until it is stopped; files that are there already are left alone."""

    def __init__(self, service: Service, folder: Path, tell: Callable[[dict[str, Any]], None] = write_line):
        if not folder.is_dir():
            raise DataError(
                f"There is no folder '{folder}' to watch. Make it first, or name another with --watch."
            )
        self._service = service
        self._folder = folder
        self._tell = tell
        self._stop = threading.Event()
        self._coming: dict[str, Seen] = {}
        """Files of the last look whose size may still change."""
        self._done = self._found()
        say("watching", folder=str(folder), left=len(self._done))

    def run(self) -> None:
        """Look again and again until ``stop``."""
        while not self._stop.wait(LOOK):
            try:
                self.look()
            except Exception as error:  # a share that is away for a while: the next look may be better
                say("watching failed", folder=str(self._folder), error=f"{type(error).__name__}: {error}")

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()

    def look(self) -> int:
        """Classify what is new and complete; how many that were."""
        found = self._found()
        self._done = {name: seen for name, seen in self._done.items() if name in found}
        new = {name: seen for name, seen in found.items() if self._done.get(name) != seen}
        ready = [name for name, seen in new.items() if self._coming.get(name) == seen and seen[0]][:TOGETHER]
        self._coming = new
        self._classify(ready, new)
        return len(ready)

    def _found(self) -> dict[str, Seen]:
        """The files of the folder; links are not followed."""
        found = {}
        for path in self._folder.iterdir():
            if path.name.startswith(".") or path.name.lower().endswith(UNFINISHED) or path.is_symlink():
                continue
            if path.is_file():
                status = path.stat()
                found[path.name] = (status.st_size, status.st_mtime_ns)
        return found

    def _classify(self, names: Iterable[str], seen: dict[str, Seen]) -> None:
        waiting: list[tuple[str, Future[Any]]] = []
        for name in names:
            try:
                waiting.append((name, self._ask(name, seen[name][0])))
            except Refusal as error:
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
            except Refusal as error:
                if error.status == 503:
                    del self._done[name]  # it could not be written down: at the next look
                else:
                    self._tell({"file": name, "error": error.detail})

    def _ask(self, name: str, size: int) -> "Future[Any]":
        if size > self._service.limits.body:
            raise Refusal(
                413, f"The file is larger than {self._service.limits.body_mb:g} MB, which is refused unread."
            )
        data = (self._folder / name).read_bytes()
        return self._service.batcher.submit(Asked([data], [""], source=name))
