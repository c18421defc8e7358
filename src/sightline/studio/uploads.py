"""Uploads in pieces that survive a closed tab and a restarted server, and end as one whole, checked file.

An upload is a folder: ``upload.json`` says what was announced, ``data.part`` holds what has arrived. The size of that
file is the truth about how much there is; nothing is kept in memory.
"""

import hashlib
import re
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import DataError, OutputError
from ..files import explain_write_errors, read_json_object, write_json

UPLOAD_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
"""Archives that are taken; they are read in place and never unpacked."""
UPLOAD_PIECE_BYTES = 4_000_000
"""Bytes of a piece: a lost connection costs no more than one."""
MAX_UPLOAD_NAME_LENGTH = 200
_ID = re.compile(r"[0-9a-f]{16}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class UploadLimits:
    """Bounds of what may be uploaded."""

    max_bytes: int = 50_000_000_000
    """Bytes of one upload."""
    reserve_bytes: int = 1_000_000_000
    """Bytes of the disk that stay free."""
    max_open: int = 20
    """Uploads that may be unfinished at a time."""
    expire_seconds: float = 7 * 86400.0
    """Seconds without a piece after which an unfinished upload is removed."""


@dataclass(frozen=True, kw_only=True)
class Upload:
    """One file on its way here."""

    id: str
    name: str
    """As the browser names it; never used as a path."""
    size: int
    """Bytes that were announced."""
    received: int = 0
    """Bytes that are here: where the next piece begins."""
    sha256: str = ""
    """In hexadecimal, where it was announced before the first piece."""
    by: str = ""
    created: float = 0.0
    """Seconds since 1970."""

    @property
    def suffix(self) -> str:
        """The ending that says what kind of archive it is."""
        return next(end for end in UPLOAD_SUFFIXES if self.name.lower().endswith(end))


class UploadConflict(DataError):
    """A piece that does not fit; ``received`` says where the next one must begin."""

    def __init__(self, text: str, received: int):
        super().__init__(text)
        self.received = received


@dataclass(frozen=True)
class Uploads:
    """The uploads in a folder. Safe to use from several processes."""

    folder: Path
    limits: UploadLimits = UploadLimits()
    free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free
    """How much room a disk has, in bytes."""

    def list(self) -> list[Upload]:
        """The unfinished uploads, the newest first; those without a piece for long are removed."""
        found = []
        for place in self.folder.glob("*/upload.json"):
            with suppress(DataError):
                found.append(self.get(place.parent.name))
        for upload in [*found]:
            file = self.folder / upload.id / "data.part"
            if time.time() - file.stat().st_mtime > self.limits.expire_seconds:
                self.discard(upload.id)
                found.remove(upload)
        return sorted(found, key=lambda upload: -upload.created)

    def get(self, id: str) -> Upload:
        """Read the upload of this id from the disk; raise DataError where there is none."""
        if _ID.fullmatch(id):
            facts = read_json_object(self.folder / id / "upload.json")
            with suppress(OSError, TypeError):
                return replace(Upload(**facts), received=self.part(id).stat().st_size)
        raise DataError("This upload is not here any more: it was finished, given up or too old. Start it again.")

    def part(self, id: str) -> Path:
        """The file of what has arrived."""
        return self.folder / id / "data.part"

    def declare(self, name: str, size: int, *, sha256: str = "", by: str = "") -> Upload:
        """Begin an upload, or return the one of the same name and size that somebody has begun.

        Raises DataError for what is not taken, OutputError where the disk has no room for it.
        """
        name, limits = re.split(r"[/\\]", name)[-1].strip(), self.limits
        if not name.lower().endswith(UPLOAD_SUFFIXES) or not 0 < len(name) <= MAX_UPLOAD_NAME_LENGTH:
            raise DataError(
                f"'{name[:MAX_UPLOAD_NAME_LENGTH]}' is not a zip or tar archive: drop one of those, or the folder "
                "with the images itself."
            )
        if not 0 < size <= limits.max_bytes:
            raise DataError(
                f"'{name}' has {size / 1e9:,.1f} GB: from one byte to {limits.max_bytes / 1e9:,.0f} GB are taken. "
                "Give the studio a folder on this machine instead."
            )
        if sha256 and not _SHA256.fullmatch(sha256):
            raise DataError("The checksum is not a SHA-256 in hexadecimal: leave it out or repair the client.")
        with explain_write_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        waiting = self.list()
        for upload in waiting:
            if (upload.name, upload.size, upload.by) == (name, size, by) and sha256 in ("", upload.sha256):
                return upload
        if len(waiting) >= limits.max_open:
            raise DataError(f"{len(waiting)} uploads are unfinished: finish one or give one up first.")
        promised = sum(upload.size - upload.received for upload in waiting)
        self._check_room(size + promised)
        upload = Upload(id=secrets.token_hex(8), name=name, size=size, sha256=sha256, by=by, created=time.time())
        with explain_write_errors(self.folder):
            (self.folder / upload.id).mkdir()
            self.part(upload.id).touch()
        write_json(self.folder / upload.id / "upload.json", asdict(upload))
        return upload

    def _check_room(self, size: int) -> None:
        free = self.free_bytes(self.folder) - self.limits.reserve_bytes
        if size > free:
            raise OutputError(
                f"The disk has no room for {size / 1e6:,.0f} MB more ({max(0, free) / 1e6:,.0f} MB may be used): "
                "free some space and go on; what has arrived is kept."
            )

    def write(self, id: str, offset: int, piece: bytes) -> Upload:
        """Add a piece that begins at byte ``offset``, and return the upload with it.

        Raises UploadConflict where it begins elsewhere than what is here ends, or another tab is sending; OutputError
        for a full disk. A piece is here whole or not at all.
        """
        upload, part = self.get(id), self.part(id)
        try:
            with FileLock(part.with_name(".lock"), timeout=0):
                received = part.stat().st_size
                if offset != received:
                    raise UploadConflict(f"The next piece begins at byte {received:,}, not {offset:,}.", received)
                if received + len(piece) > upload.size:
                    raise DataError(
                        f"'{upload.name}' has more bytes than the {upload.size:,} that were announced: it changed "
                        "while it was sent. Give this upload up and start again."
                    )
                self._check_room(len(piece))
                with explain_write_errors(part), part.open("r+b") as stream:
                    try:
                        stream.seek(received)
                        stream.write(piece)
                        stream.flush()
                    except OSError:
                        stream.truncate(received)
                        raise
        except Timeout as error:
            raise UploadConflict("Another tab is sending this file.", upload.received) from error
        return replace(upload, received=received + len(piece))

    def finish(self, id: str, target: Path, *, sha256: str = "") -> Path:
        """Move the whole upload to ``target`` plus its suffix, where its checksum is right; return that path.

        Raises UploadConflict where pieces are missing, DataError for another checksum (the upload is then removed:
        it cannot be repaired).
        """
        upload = self.get(id)
        with FileLock(self.part(id).with_name(".lock"), timeout=10):
            if upload.received != upload.size:
                raise UploadConflict(
                    f"{upload.size - upload.received:,} bytes of '{upload.name}' are missing: send them first.",
                    upload.received,
                )
            expected = (sha256 or upload.sha256).lower()
            with self.part(id).open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
            if not expected or found != expected or upload.sha256 not in ("", expected):
                self.discard(id)
                raise DataError(
                    f"'{upload.name}' did not arrive as it was sent (its checksum is wrong), so it was not kept: "
                    "send it again."
                )
            path = target.with_name(target.name + upload.suffix)
            with explain_write_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                self.part(id).replace(path)
        self.discard(id)
        return path

    def discard(self, id: str) -> None:
        """Remove an upload and what has arrived of it."""
        if _ID.fullmatch(id):
            shutil.rmtree(self.folder / id, ignore_errors=True)
