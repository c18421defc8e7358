"""Services as processes: started, waited for, watched and ended by their ids; and what they are given to serve."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SIGHTLINE = (sys.executable, "-c", "import sys; from sightline.cli import main; sys.exit(main())")
"""Our command line, in a process of its own."""

PATIENCE = 120.0
"""Seconds within which a service must answer."""

QUIET = {"BENTOML_DO_NOT_TRACK": "True", "DO_NOT_TRACK": "1", "LITSERVE_LOG_LEVEL": "ERROR"}
"""Nobody calls home while being measured."""


class NotServing(Exception):
    """A service that did not come up, with its last words."""


@dataclass
class Serving:
    """A service that runs."""

    process: "subprocess.Popen[bytes]"
    port: int
    said: Path
    """Where its output goes."""
    seconds: float = field(default=0.0)
    """From its start to its first answer."""

    def words(self) -> str:
        """What it said last."""
        lines = self.said.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
        return lines[-1][:300]

    def processes(self) -> list[int]:
        """The ids of its processes, children of children too."""
        return family(self.process.pid)

    def memory_mb(self) -> float:
        """Memory of all its processes in MB (10^6 bytes), what they share counted once."""
        return round(sum(map(_share, self.processes())), 1)

    def end(self, *, politely: bool = True) -> int:
        """Ask it to end, or kill it; every process of its group is gone when this returns. Its exit code."""
        if politely and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(60)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # a session of its own: nobody else is in it
        return self.process.wait(60)


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        try:
            children = Path(f"/proc/{one}/task/{one}/children").read_text().split()
        except OSError:
            continue
        found.append(one)
        waiting += map(int, children)
    return found


def _share(pid: int) -> float:
    """The proportional memory of a process, in MB."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return next(int(line.split()[1]) * 1024 / 1e6 for line in text.splitlines() if line.startswith("Pss:"))


def free_port() -> int:
    """A port of the loopback that nobody listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def serving(
    command: Sequence[str | Path],
    probe: bytes,
    *,
    port: int,
    settings: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Iterator[Serving]:
    """Run a service; it is there when ``probe`` (a request's bytes) is answered with 200. Raises NotServing."""
    one = start(command, port=port, settings=settings, cwd=cwd)
    try:
        one.seconds = wait_for(one, probe)
        yield one
    finally:
        one.end()
        one.said.unlink(missing_ok=True)


def start(
    command: Sequence[str | Path], *, port: int, settings: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Serving:
    """Run a service's command, in a session of its own."""
    handle, name = tempfile.mkstemp(prefix="service-", suffix=".log")
    environment = os.environ | QUIET | dict(settings or {})
    process = subprocess.Popen(
        [str(word) for word in command],
        stdout=handle,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=environment,
        cwd=cwd,
        start_new_session=True,
    )
    os.close(handle)
    return Serving(process, port, Path(name))


def wait_for(one: Serving, probe: bytes) -> float:
    """Seconds from now until the first answer with 200."""
    began = time.perf_counter()
    while time.perf_counter() - began < PATIENCE:
        if one.process.poll() is not None:
            raise NotServing(f"it ended: {one.words()}")
        if status_of(one.port, probe) == 200:
            return time.perf_counter() - began
        time.sleep(0.01)
    raise NotServing(f"no answer in {PATIENCE:g} seconds: {one.words()}")


def status_of(port: int, request: bytes) -> int | None:
    """What a request is answered with; None where nobody answers."""
    return answer_of(port, request)[0]


def answer_of(port: int, request: bytes) -> tuple[int | None, bytes]:
    """Status and body of the answer to a request; None where nobody answers."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as one:
            one.sendall(request)
            answer = http.client.HTTPResponse(one)
            answer.begin()
            return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return None, b""


# What is served.


def bodies(archive: Path, work: Path, *, size: int | None = None, count: int = 256) -> Path:
    """A folder of JPEG files of the archive, brought to the working size where one is given."""
    folder = work / f"bodies-{archive.stem}-{size or 'asis'}-{count}"
    if not folder.with_suffix(".done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(archive) as content:
            names = sorted(name for name in content.namelist() if name.lower().endswith((".jpg", ".jpeg")))
            for number, name in enumerate(names[:: max(1, len(names) // count)][:count]):
                data = content.read(name)
                (folder / f"{number:04}.jpg").write_bytes(resized(data, size) if size else data)
        folder.with_suffix(".done").touch()
    return folder


def resized(data: bytes, size: int) -> bytes:
    """A JPEG at size x size, as a JPEG."""
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").resize((size, size)).save(stream, "jpeg", quality=90)
    return stream.getvalue()


def bundle(
    model: str, size: int, data: Path, work: Path, *, int8: bool = False, method: str | None = None
) -> Path:
    """The run or bundle that is served, made once.

    ResNet-20 at 32 pixels has the weights of a third party (``../shared/weights``), ``pretrained`` is the published
    backbone that photos get by default, with a fitted last layer; any other has random weights, which take as long.
    ``method`` "probe" fits the last layer on all training images, so that answers differ.
    """
    word = f"{model}-{size}" + ("-int8" if int8 else "") + (f"-{method}" if method else "")
    folder = work / f"served-{word}"
    if folder.exists():
        return folder
    from sightline.compression import Int8
    from sightline.training import Recipe, train

    third = model == "resnet20" and size == 32
    archive = data / ("cifar10_jpg.zip" if size == 32 else "photos_jpg.zip")
    weights = str(data.parent / "weights" / "resnet20-12fca82f.th") if third else None
    recipe = Recipe(model=model, weights=weights, size=size, normalize="imagenet")
    if model == "pretrained":
        recipe = Recipe(method="probe", size=size)
    elif method is None:
        recipe = recipe.replace(epochs=0, limit=1000 if size == 32 else 200)
    else:
        recipe = recipe.replace(method=method, weights=weights or str(bundle(model, size, data, work)))
    run = train(archive, recipe, out=work / f"served-{word}.making", overwrite=True)
    if int8:
        Int8()(run.classifier, run.splits).save(folder)
    else:
        run.folder.rename(folder)
    return folder


def request_for(data: bytes, kind: str, headers: Sequence[str] = ()) -> bytes:
    """A whole request for an image."""
    from load import request

    return request(data, kind, headers=headers)


def python_environment(found: Mapping[str, Any]) -> dict[str, str]:
    """Settings as environment variables that a peer reads."""
    return {f"PEER_{name.upper()}": str(value) for name, value in found.items()}
