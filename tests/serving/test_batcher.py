"""One queue before the engine: whoever asks gets their own answer, together or alone, or is told to come back."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from helpers.live_server import GEOMETRY, encoded, pictures, site_of_two
from sightline.classifier import Classifier
from sightline.data import decode
from sightline.serving import batch_tuning
from sightline.serving.batch_tuning import BatchTuning
from sightline.serving.batcher import Batcher
from sightline.serving.engine import open_engine
from sightline.serving.limits import RequestError, RequestLimits
from sightline.serving.requests import PredictRequest
from sightline.serving.service import Service, ServiceSettings


@pytest.fixture(scope="module", params=[1, 2], ids=["onnx", "torch"])
def release(request):
    return site_of_two() / "releases" / f"000{request.param}"


@pytest.fixture(scope="module")
def engine(release):
    path = release / "model.onnx"
    return open_engine(
        path if path.is_file() else release / "classifier", bundle=release / "classifier", threads=2
    )


@pytest.fixture
def made():
    """Batchers that are closed at the end."""
    found = []

    def make(work, **options):
        found.append(Batcher(work, **{"runners": 2, "depth": 100, "largest": lambda: 8} | options))
        return found[-1]

    yield make
    for one in found:
        one.close()


def lengths(jobs, alone):
    """Work that can be checked: the lengths of the images, and with how many others they were looked at."""
    return [[len(image) for image in job.asked.images] for job in jobs]


# the engine


ODD = {
    "grey": encoded(np.arange(400, dtype=np.uint8).reshape(20, 20)),
    "16-bit": encoded((np.arange(400, dtype=np.uint16) * 160).reshape(20, 20)),
    "cmyk": encoded(np.full((9, 7, 3), 90, np.uint8), "JPEG", quality=50),
    "one pixel": encoded(np.full((1, 1, 3), 200, np.uint8)),
    "clear": encoded(np.dstack([np.full((8, 8, 3), 10, np.uint8), np.full((8, 8, 1), 9, np.uint8)])),
    "junk": b"no image at all",
    "cut short": encoded(np.full((64, 64, 3), 7, np.uint8), "JPEG")[:200],
    "empty": b"",
}


def test_its_answers_are_those_of_predict(engine, release):
    images = [*pictures(), *ODD.values()]
    ours = engine.answers(images, top=3)
    theirs = Classifier.load(release / "classifier").predict(images, top=3)
    for one, other in zip(ours, theirs, strict=True):
        if other.error is not None:
            assert isinstance(one, str)
            continue
        assert (one.label, one.abstained) == (other.label, other.abstained)
        assert one.confidence == pytest.approx(other.confidence, abs=1e-5)
        assert [name for name, _ in one.top] == [name for name, _ in other.top]
        assert [p for _, p in one.top] == pytest.approx([p for _, p in other.top], abs=1e-5)
    assert len({one.label for one in ours if not isinstance(one, str)}) > 1
    assert any(one.abstained for one in ours if not isinstance(one, str))


def test_together_is_as_one_at_a_time(engine):
    pixels = [decode(image, GEOMETRY) for image in pictures()]
    together = engine.ranked(pixels, [4] * len(pixels), alone=False)
    for one, by_itself in zip(together, (engine.ranked([p], [4])[0] for p in pixels), strict=True):
        assert [name for name, _ in one.top] == [name for name, _ in by_itself.top]
        assert [p for _, p in one.top] == pytest.approx([p for _, p in by_itself.top], abs=1e-6)


def test_several_threads_at_once_get_the_same(engine):
    alone = engine.answers(pictures())
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(engine.answers, [pictures()] * 16):
            assert [one.label for one in found] == [one.label for one in alone]
            assert [one.confidence for one in found] == pytest.approx([one.confidence for one in alone], abs=1e-6)


# the queue


@pytest.mark.parametrize("largest", [1, 3, 8])
@pytest.mark.parametrize("runners", [1, 2, 5])
def test_everyone_gets_their_own_answer(made, largest, runners):
    batcher = made(lengths, runners=runners, largest=lambda: largest, depth=1000)
    chance = np.random.default_rng(0)
    wanted = [[int(n) for n in chance.integers(0, 9, chance.integers(1, 5))] for _ in range(100)]

    async def ask():
        return await asyncio.gather(*(batcher.ask(PredictRequest([b"x" * n for n in one])) for one in wanted))

    assert asyncio.run(ask()) == wanted
    with ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(lambda one: batcher.submit(PredictRequest([b"x" * n for n in one])).result(), wanted)
        )
    assert found == wanted


def test_a_thread_takes_its_share_of_what_waits_and_no_more_than_measured(made):
    taken, gate = [], threading.Event()

    def work(jobs, alone):
        taken.append(len(jobs))
        gate.wait(10)
        return [None] * len(jobs)

    batcher = made(work, runners=2, largest=lambda: 4)
    first = [batcher.submit(PredictRequest([b""])) for _ in range(2)]
    while batcher.waiting:  # both threads are busy now
        time.sleep(0.001)
    rest = [batcher.submit(PredictRequest([b""])) for _ in range(12)]
    gate.set()
    for future in first + rest:
        future.result(10)
    assert sum(taken) == 14
    assert taken[:2] == [1, 1]
    assert max(taken) == 4


def test_an_image_that_nothing_competes_with_has_all_threads(made):
    seen, gate = [], threading.Event()

    def work(jobs, alone):
        seen.append(alone)
        gate.wait(10)
        return [None] * len(jobs)

    batcher = made(work, runners=2)
    one = batcher.submit(PredictRequest([b""]))
    while not seen:
        time.sleep(0.001)
    other = batcher.submit(PredictRequest([b""]))
    while len(seen) < 2:
        time.sleep(0.001)
    gate.set()
    one.result(10), other.result(10)
    assert seen == [True, False]


def test_a_full_queue_says_so_at_once(made):
    gate = threading.Event()

    def work(jobs, alone):
        gate.wait(10)
        return [None] * len(jobs)

    batcher = made(work, runners=1, depth=3, largest=lambda: 1)
    taken = [batcher.submit(PredictRequest([b""]))]
    while batcher.waiting:
        time.sleep(0.001)
    taken += [batcher.submit(PredictRequest([b""])) for _ in range(3)]
    assert batcher.full
    with pytest.raises(RequestError, match="3 requests are waiting") as refused:
        batcher.submit(PredictRequest([b""]))
    assert refused.value.status == 503
    gate.set()
    assert [one.result(10) for one in taken] == [None] * 4


def test_a_fault_is_told_to_those_it_hit_and_to_nobody_else(made):
    def work(jobs, alone):
        if any(image == b"bad" for job in jobs for image in job.asked.images):
            raise RuntimeError("no")
        return [None] * len(jobs)

    batcher = made(work, runners=1, largest=lambda: 1)
    with pytest.raises(RuntimeError, match="no"):
        batcher.submit(PredictRequest([b"bad"])).result(10)
    assert batcher.submit(PredictRequest([b"good"])).result(10) is None


def test_whoever_went_away_holds_nobody_up(made):
    gate = threading.Event()

    def work(jobs, alone):
        gate.wait(10)
        return lengths(jobs, alone)

    batcher = made(work, runners=1)

    async def ask():
        gone, stays = batcher.ask(PredictRequest([b"a"])), batcher.ask(PredictRequest([b"bb"]))
        gone.cancel()
        gate.set()
        return await stays

    assert asyncio.run(ask()) == [2]


def test_closing_answers_what_waits_and_takes_no_more():
    gate = threading.Event()

    def work(jobs, alone):
        gate.wait(10)
        return lengths(jobs, alone)

    batcher = Batcher(work, runners=2, depth=100, largest=lambda: 2)
    waiting = [batcher.submit(PredictRequest([b"x" * n])) for n in range(20)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    gate.set()
    closing.join(10)
    assert [one.result(0) for one in waiting] == [[n] for n in range(20)]
    with pytest.raises(RequestError, match="stopping"):
        batcher.submit(PredictRequest([b""]))


def test_it_waits_for_company_only_where_it_was_asked_to(made):
    def work(jobs, alone):
        return [len(jobs)] * len(jobs)

    batcher = made(work, runners=1, wait=5.0, largest=lambda: 3)
    waiting = [batcher.submit(PredictRequest([b""])) for _ in range(3)]
    assert [one.result(10) for one in waiting] == [3, 3, 3]


# what is measured at the start


class Slow:
    """A network that takes so long for a batch, and for each image in it, by a clock of its own."""

    now = 0.0

    def __init__(self, batch, image):
        self.batch, self.image = batch, image

    def probabilities(self, images):
        Slow.now += self.batch + self.image * len(images)
        return np.zeros((len(images), 2), np.float32)


@pytest.fixture
def clock(monkeypatch):
    """Time passes only while a network answers."""
    monkeypatch.setattr(batch_tuning, "time", SimpleNamespace(perf_counter=lambda: Slow.now))


@pytest.mark.parametrize(("batch", "image", "largest"), [(0.0, 0.05, 1), (0.0005, 0.0, 32), (0.0001, 0.001, 8)])
def test_batches_grow_only_where_that_is_faster(clock, batch, image, largest):
    network = Slow(batch, image)
    found = batch_tuning.tune_batch_size(network, (4, 4, 3))
    assert found.max_batch == largest
    for size, rate in found.images_per_second:
        assert rate == pytest.approx(size / (batch + image * size + batch_tuning.BATCH_OVERHEAD_SECONDS))


def test_a_batch_costs_more_than_its_network(clock):
    fast = Slow(0.0, 0.0005)  # no faster together, but fetched and given back together
    assert batch_tuning.tune_batch_size(fast, (4, 4, 3)).max_batch > 1


def test_the_measurement_ends_in_time(clock):
    for seconds in (1e-5, 1e-3, 0.05, 2.0):
        before, network = Slow.now, Slow(0.0, seconds)
        batch_tuning.tune_batch_size(network, (4, 4, 3))
        assert Slow.now - before <= max(2 * batch_tuning.TUNING_SECONDS, 8 * seconds)


@pytest.mark.parametrize(("one", "every", "best"), [(0.004, 0.001, 1), (0.001, 0.004, 0)])
def test_a_lone_image_goes_to_the_faster(clock, one, every, best):
    runners = [Asking(one), Asking(every)]
    faster = batch_tuning.FasterRunner(*runners)
    image = np.zeros((1, 4, 4, 3), np.uint8)
    for _ in range(2 * batch_tuning.WARMUP_CALLS):
        faster.probabilities(image)
    assert [runner.asked for runner in runners] == [batch_tuning.WARMUP_CALLS, batch_tuning.WARMUP_CALLS]
    assert faster.fastest == best
    for _ in range(1000):
        faster.probabilities(image)
    assert runners[1 - best].asked - batch_tuning.WARMUP_CALLS <= 10


def test_who_is_faster_may_change(clock):
    runners = [Asking(0.001), Asking(0.002)]
    faster = batch_tuning.FasterRunner(*runners)
    image = np.zeros((1, 4, 4, 3), np.uint8)
    for _ in range(100):
        faster.probabilities(image)
    assert faster.fastest == 0
    runners[0].batch = 0.003
    for _ in range(100):
        faster.probabilities(image)
    assert faster.fastest == 1
    runners[0].batch = 0.001
    for _ in range(batch_tuning.PROBE_INTERVAL * batch_tuning.LATENCY_WINDOW):
        faster.probabilities(image)
    assert faster.fastest == 0
    faster.probabilities(np.zeros((3, 4, 4, 3), np.uint8))
    assert runners[0].images == 3


class Asking(Slow):
    """Counts."""

    asked = images = 0

    def __init__(self, batch):
        super().__init__(batch, 0.0)

    def probabilities(self, images):
        self.asked += 1
        self.images = len(images)
        return super().probabilities(images)


def test_what_was_measured_decides():
    path = site_of_two() / "releases" / "0001" / "model.onnx"
    plain = open_engine(path, threads=1, pace=BatchTuning(4))
    assert plain.alone is plain.crowd
    both = open_engine(path, threads=2, pace=BatchTuning(4))
    assert both.alone is not both.crowd
    assert both.pace.max_batch == 4
    image = np.zeros((1, *both.geometry.shape), np.uint8)
    assert np.allclose(both.alone.probabilities(image), plain.alone.probabilities(image), atol=1e-5)


# all of it


def test_a_crowd_gets_the_answers_of_one():
    service = Service(ServiceSettings(path=site_of_two() / "releases" / "0001" / "model.onnx", threads=2)).open()
    try:
        object.__setattr__(service.engine, "pace", BatchTuning(8))
        alone = {image: service.engine.predict_images([image])[0] for image in pictures()}

        async def ask():
            many = [pictures()[k % 12] for k in range(200)]
            return many, await asyncio.gather(
                *(service.batcher.submit_async(PredictRequest([one], [""])) for one in many)
            )

        many, found = asyncio.run(ask())
        for image, text in zip(many, found, strict=True):
            assert f'"label":"{alone[image].label}"'.encode() in text
    finally:
        service.close()


@pytest.mark.parametrize(
    ("data", "declared", "status"),
    [
        (b"", "", 400),
        (b"hello", "", 415),
        (b"\0\0\0\x18ftypheic", "image/heic", 415),
        (pictures()[0], "image/jpeg", 415),
        (pictures()[1], "image/png", 415),
        (pictures()[0][:40], "image/png", 422),
    ],
)
def test_what_is_no_image_is_told_apart(engine, data, declared, status):
    found = engine.read(data, declared, RequestLimits())
    assert isinstance(found, RequestError)
    assert found.status == status


def test_pixels_are_counted_before_any_is_decoded(engine):
    for image in pictures():
        assert isinstance(engine.read(image, "", RequestLimits(pixels=40 * 48)), np.ndarray)
        refused = engine.read(image, "", RequestLimits(pixels=40 * 48 - 1))
        assert isinstance(refused, RequestError)
        assert refused.status == 413
