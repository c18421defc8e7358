"""Sites, images and servers that the tests of the service share."""

import atexit
import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

import numpy as np
import torch
import urllib3
from PIL import Image
from torch import nn

from sightline.classifier import Classifier
from sightline.data import load_dataset
from sightline.models import build, parse_architecture
from sightline.preprocessing import JpegFilter, Normalise, Preprocessing
from sightline.serving.publishing import publish
from sightline.types import Geometry

CLASSES = ("circle", "square", "star", "triangle")
GEOMETRY = Geometry(size=(16, 16), channels=3)


def classifier(*, seed: int = 0, steps=(), word: str = "small-cnn") -> Classifier:
    """A small network with random weights whose answers differ; it abstains from half of the pictures."""
    torch.manual_seed(seed)
    plan = parse_architecture(word, classes=len(CLASSES), channels=3, size=GEOMETRY.size)
    network = build(plan)
    with torch.no_grad():
        network.train()(torch.rand(32, 3, *GEOMETRY.size))
    nn.init.normal_(network.head.weight, 0, 0.5)
    normal = Normalise([0.5] * 3, [0.3] * 3)
    made = Classifier(
        Preprocessing([*steps, normal]),
        network,
        architecture=plan,
        classes=CLASSES,
        geometry=GEOMETRY,
        temperature=1.3,
    ).eval()
    made.threshold = float(np.median([one.confidence for one in made.predict(pictures())]))
    return made


@cache
def site_of_two() -> Path:
    """A site whose release 1 answers by onnxruntime and release 2, otherwise, by torch: to be copied."""
    folder = Path(mkdtemp(prefix="sightline-site-"))
    atexit.register(rmtree, folder)
    for number, made in enumerate((classifier(), classifier(seed=1, steps=[JpegFilter(90)])), start=1):
        publish(folder / "site", made.save(folder / f"bundle{number}"), promote=number == 1)
    return folder / "site"


def encoded(pixels: np.ndarray, kind: str = "PNG", **options) -> bytes:
    """Pixels as a file of this kind."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


@cache
def pictures() -> tuple[bytes, ...]:
    """Twelve images of various kinds and sizes."""
    drawn = load_dataset("shapes:12", Geometry(size=(40, 48), channels=3))[:]
    kinds = [("PNG", {}), ("JPEG", {"quality": 90}), ("GIF", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {})]
    return tuple(encoded(one, kinds[k % 6][0], **kinds[k % 6][1]) for k, one in enumerate(drawn))


@contextmanager
def serving(*words, env=None):
    """``sightline serve WORDS`` as a separate process, once it answers: its start report, the process, and its URL."""
    command = [sys.executable, "-c", "import sys; from sightline.cli import main; sys.exit(main())", "serve"]
    process = subprocess.Popen(
        [*command, *map(str, words), "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | (env or {}),
    )
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield Served(process, json.loads(line))
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


class Served:
    """A running server."""

    def __init__(self, process, started):
        self.process, self.started = process, started
        self.url = started["url"]
        self.http = urllib3.PoolManager(retries=False, maxsize=16, timeout=30)
        self.log = ""

    def get(self, path, **headers):
        return self.http.request("GET", self.url + path, headers=headers)

    def post(self, path, body=b"", **headers):
        return self.http.request("POST", self.url + path, body=body, headers=headers)

    def stop(self, how=signal.SIGTERM):
        """Stop it; its exit code. ``log`` holds what it logged, ``out`` what it printed since."""
        self.process.send_signal(how)
        self.out, self.log = self.process.communicate(timeout=60)
        return self.process.returncode


def until(condition, seconds=20.0):
    """Wait until something holds; whether it came to."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    return condition()
