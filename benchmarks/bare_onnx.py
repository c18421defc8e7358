"""What is served, and what onnxruntime does with it when no service stands before it."""

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

PEERS = Path(__file__).parent / "peers"
BATCHES = (1, 8, 32)


def site_of(run: Path, work: Path) -> Path:
    """A site with the classifier published in it, once."""
    site = work / f"site-{run.name}"
    if not (site / "current").exists():
        from sightline.serving import publish

        publish(site, run)
    return site


def onnx_of(site: Path) -> Path:
    """The file that everyone answers with."""
    from sightline.serving import current_release

    file = current_release(site).onnx
    if file is None:
        sys.exit("This classifier cannot be exported to ONNX, so nobody else could serve it.")
    return file


def labels(file: Path, images: list[bytes]) -> list[str]:
    """What the file says of each image."""
    model, decode = _answering(file, 1)
    return [answer["label"] for answer in model.answers([decode(data) for data in images])]


def _answering(file: Path, threads: int) -> tuple[Any, Callable[[bytes], Any]]:
    sys.path.insert(0, str(PEERS))
    from answering import Model, decode

    return Model(str(file), threads), decode


def bare(file: Path, images: list[bytes], seconds: float) -> dict[str, float]:
    """Images/s without any service: by onnxruntime alone, and with decoding and ranking; and one image's time."""
    found: dict[str, float] = {}
    whole: dict[int, float] = {}
    for threads in (1, 2):
        model, decode = _answering(file, threads)
        pixels = [decode(data) for data in images]
        for size in BATCHES:
            batch = pixels[:size]
            found[f"run, {threads} threads, batch {size}"] = size * rate_of(partial(model.answers, batch), seconds)
        whole[threads] = rate_of(partial(answer_one, model, decode, images[0]), seconds)
        found[f"decode and run, {threads} threads, batch 1"] = whole[threads]
    found["decode and run, two sessions at once"] = at_once(file, images, seconds)
    return found | {"one image, ms": 1e3 / max(whole.values())}


def at_once(file: Path, images: list[bytes], seconds: float) -> float:
    """Images/s of two sessions of one thread, each in a thread of its own: what two cores can do."""
    asked = [partial(answer_one, *_answering(file, 1), images[0]) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        return sum(pool.map(lambda one: rate_of(one, seconds), asked))


def answer_one(model: Any, decode: Callable[[bytes], Any], data: bytes) -> None:
    """What must be done for one request, without the request."""
    model.answers([decode(data)])


def rate_of(what: Callable[[], object], seconds: float) -> float:
    """How often it can be done in a second."""
    for _ in range(5):
        what()
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        what()
        count += 1
    return count / (time.perf_counter() - began)
