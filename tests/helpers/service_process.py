"""A service in a process of its own, for the tests that need a real one."""

import atexit
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from shutil import rmtree

import torch

import helpers.warm_exporter  # noqa: F401
from sightline.classifier import Classifier
from sightline.models import build, parse_architecture
from sightline.preprocessing import Normalise, Preprocessing
from sightline.serving.publishing import publish
from sightline.types import Geometry

CODE = "import sys; from sightline.cli import main; sys.exit(main())"


def classifier(*, classes=("cat", "dog", "owl"), size=32, channels=3, seed=0, threshold=0.0):
    """Random weights and strong contrast: it answers different images differently."""
    torch.manual_seed(seed)
    plan = parse_architecture("lenet5", classes=len(classes), channels=channels, size=(size, size))
    steps = Preprocessing([Normalise([0.5] * channels, [0.05] * channels)])
    geometry = Geometry(size=(size, size), channels=channels)
    made = Classifier(
        steps, build(plan), architecture=plan, classes=classes, geometry=geometry, threshold=threshold
    )
    return made.eval()


@cache
def site_of_two() -> Path:
    """A site with two releases of ``classifier(threshold=0.6)``, the first of which answers: to be copied."""
    folder = Path(tempfile.mkdtemp(prefix="sightline-listening-"))
    atexit.register(rmtree, folder)
    bundle = classifier(threshold=0.6).save(folder / "bundle")
    for number in (1, 2):
        publish(folder / "site", bundle, promote=number == 1)
    return folder / "site"


class Service:
    """``sightline serve`` at work."""

    def __init__(self, process, port, log):
        self.process, self.port, self.log = process, port, log

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method, path, body=None, **headers):
        """Status, headers and body of one answer."""
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            line.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = line.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            line.close()

    def peak_mb(self):
        """Most memory it ever had, in MB (10^6 bytes)."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in text.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6

    def output(self):
        """All that it printed."""
        return Path(self.log).read_text(errors="replace")


def free_port():
    """A port of the loopback that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def listening(path, *words, port=None, **settings):
    """Serve a site, run, bundle or file; ended politely, then for certain."""
    port = port or free_port()
    with tempfile.NamedTemporaryFile(prefix="service-", suffix=".log") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", CODE, "serve", str(path), "--port", str(port), *map(str, words)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | settings,
            start_new_session=True,
        )
        service = Service(process, port, log.name)
        try:
            _wait(service)
            yield service
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _wait(service):
    until = time.monotonic() + 60
    while time.monotonic() < until and service.process.poll() is None:
        try:
            if service.ask("GET", "/readyz")[0] == 200:
                return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"the service did not start: {service.output()[-2000:]}")
