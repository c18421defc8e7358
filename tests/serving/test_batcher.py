"""The engine and the queue before it: every request gets its own answer, in a batch or alone, or a 503."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from helpers.live_server import encoded, pictures, site_of_two, until
from sightline.classifier import Classifier
from sightline.exported_model import NetworkOutputs
from sightline.serving import engine as tuning
from sightline.serving.batcher import Batcher
from sightline.serving.engine import BatchTuning, open_engine
from sightline.serving.requests import PredictRequest, RequestError, RequestLimits
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

    def make(answer, **options):
        found.append(Batcher(answer, **{"runners": 2, "depth": 100, "max_batch": lambda: 8} | options))
        return found[-1]

    yield make
    for one in found:
        one.close()


def predict(engine, images, *, top=5, exclusive=True):
    """The engine's result for each image, one request each."""
    found = engine.predict(
        [PredictRequest([one], top=top) for one in images], RequestLimits(), exclusive=exclusive
    )
    return [result for (result,) in found]


def lengths(jobs, exclusive):
    """Answers that can be checked: the lengths of the images."""
    return [[len(image) for image in job.request.images] for job in jobs]


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


def test_predictions_equal_classifier_predict(engine, release):
    images = [*pictures(), *ODD.values()]
    ours = predict(engine, images, top=3)
    theirs = Classifier.load(release / "classifier").predict(images, top=3)
    for one, other in zip(ours, theirs, strict=True):
        if other.error is not None:
            assert isinstance(one, RequestError)
            continue
        assert (one.label, one.abstained) == (other.label, other.abstained)
        assert one.confidence == pytest.approx(other.confidence, abs=1e-5)
        assert [name for name, _ in one.top] == [name for name, _ in other.top]
        assert [p for _, p in one.top] == pytest.approx([p for _, p in other.top], abs=1e-5)
    assert len({one.label for one in ours if not isinstance(one, RequestError)}) > 1
    assert any(one.abstained for one in ours if not isinstance(one, RequestError))


def test_a_batch_gives_the_answers_of_single_images(engine):
    batch = predict(engine, pictures(), top=4, exclusive=False)
    for one, single in zip(batch, (predict(engine, [image], top=4)[0] for image in pictures()), strict=True):
        assert [name for name, _ in one.top] == [name for name, _ in single.top]
        assert [p for _, p in one.top] == pytest.approx([p for _, p in single.top], abs=1e-6)
        assert np.array_equal(one.pixels, single.pixels)


def test_results_are_grouped_by_request(engine):
    first, second, third, fourth = pictures()[:4]
    requests = [
        PredictRequest([first, b"junk", second], top=1),
        PredictRequest([b""]),
        PredictRequest([third, fourth]),
    ]
    with ThreadPoolExecutor(2) as pool:
        found = engine.predict(requests, RequestLimits(), pool)
    assert [[isinstance(one, RequestError) for one in many] for many in found] == [
        [False, True, False], [True], [False, False]
    ]  # fmt: skip
    assert [len(one.top) for one in (found[0][0], found[0][2], *found[2])] == [1, 1, 4, 4]
    labels = [one.label for one in predict(engine, [first, second, third, fourth])]
    assert [one.label for one in (found[0][0], found[0][2], *found[2])] == labels


def test_several_threads_at_once_get_the_same_answers(engine):
    alone = predict(engine, pictures())
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: predict(engine, pictures()), range(16)):
            assert [one.label for one in found] == [one.label for one in alone]
            assert [one.confidence for one in found] == pytest.approx([one.confidence for one in alone], abs=1e-6)


# the queue


@pytest.mark.parametrize("largest", [1, 3, 8])
@pytest.mark.parametrize("runners", [1, 2, 5])
def test_every_request_gets_its_own_answer(made, largest, runners):
    batcher = made(lengths, runners=runners, max_batch=lambda: largest, depth=1000)
    chance = np.random.default_rng(0)
    wanted = [[int(n) for n in chance.integers(0, 9, chance.integers(1, 5))] for _ in range(100)]

    async def ask():
        return await asyncio.gather(
            *(batcher.submit_async(PredictRequest([b"x" * n for n in one])) for one in wanted)
        )

    assert asyncio.run(ask()) == wanted
    with ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(lambda one: batcher.submit(PredictRequest([b"x" * n for n in one])).result(), wanted)
        )
    assert found == wanted


def test_a_thread_takes_its_share_and_at_most_the_largest_batch(made):
    taken, gate = [], threading.Event()

    def answer(jobs, exclusive):
        taken.append(len(jobs))
        gate.wait(10)
        return [None] * len(jobs)

    batcher = made(answer, runners=2, max_batch=lambda: 4)
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


def test_a_request_without_competition_is_exclusive(made):
    seen, gate = [], threading.Event()

    def answer(jobs, exclusive):
        seen.append(exclusive)
        gate.wait(10)
        return [None] * len(jobs)

    batcher = made(answer, runners=2)
    one = batcher.submit(PredictRequest([b""]))
    while not seen:
        time.sleep(0.001)
    other = batcher.submit(PredictRequest([b""]))
    while len(seen) < 2:
        time.sleep(0.001)
    gate.set()
    one.result(10), other.result(10)
    assert seen == [True, False]


def test_a_caller_answers_in_its_own_thread_where_nothing_competes(made):
    seen, gate = [], threading.Event()

    def answer(jobs, exclusive):
        seen.append((threading.current_thread(), exclusive))
        if jobs[0].request.images == [b"wait"]:
            gate.wait(10)
        return [RequestError(415, "no") if image == b"bad" else image for image in jobs[0].request.images]

    batcher = made(answer, runners=1, max_batch=lambda: 1)
    here, image, wait = threading.current_thread(), PredictRequest([b"image"]), PredictRequest([b"wait"])
    assert batcher.answer_now(image, time.perf_counter()) == b"image"
    assert seen == [(here, True)]
    with pytest.raises(RequestError, match="no"):
        batcher.answer_now(PredictRequest([b"bad"]), time.perf_counter())
    answered = batcher.submit(wait)
    while len(seen) < 3:
        time.sleep(0.001)
    assert batcher.answer_now(image, time.perf_counter()) is None  # its only thread answers
    waiting = batcher.submit(image)
    gate.set()
    assert (answered.result(10), waiting.result(10)) == (b"wait", b"image")
    assert [thread is here for thread, _ in seen] == [True, True, False, False]
    assert until(lambda: batcher.answer_now(image, time.perf_counter()) == b"image")
    batcher.close()
    assert batcher.answer_now(image, time.perf_counter()) is None


def test_closing_waits_for_a_caller_that_answers(made):
    began, gate = threading.Event(), threading.Event()

    def answer(jobs, exclusive):
        began.set()
        gate.wait(10)
        return lengths(jobs, exclusive)

    batcher = made(answer)
    with ThreadPoolExecutor(2) as pool:
        found = pool.submit(batcher.answer_now, PredictRequest([b"x"]), time.perf_counter())
        assert began.wait(10)
        closing = pool.submit(batcher.close)
        for thread in batcher._threads:
            thread.join(10)
        assert not closing.done()
        gate.set()
        closing.result(10)
        assert found.done()
        assert found.result() == [1]


def test_a_full_queue_refuses_at_once(made):
    gate = threading.Event()

    def answer(jobs, exclusive):
        gate.wait(10)
        return [None] * len(jobs)

    batcher = made(answer, runners=1, depth=3, max_batch=lambda: 1)
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


def test_an_exception_reaches_only_its_own_batch(made):
    def answer(jobs, exclusive):
        if any(image == b"bad" for job in jobs for image in job.request.images):
            raise RuntimeError("no")
        return [None] * len(jobs)

    batcher = made(answer, runners=1, max_batch=lambda: 1)
    with pytest.raises(RuntimeError, match="no"):
        batcher.submit(PredictRequest([b"bad"])).result(10)
    assert batcher.submit(PredictRequest([b"good"])).result(10) is None


def test_a_cancelled_request_does_not_block_others(made):
    gate = threading.Event()

    def answer(jobs, exclusive):
        gate.wait(10)
        return lengths(jobs, exclusive)

    batcher = made(answer, runners=1)

    async def ask():
        gone, stays = batcher.submit_async(PredictRequest([b"a"])), batcher.submit_async(PredictRequest([b"bb"]))
        gone.cancel()
        gate.set()
        return await stays

    assert asyncio.run(ask()) == [2]


def test_close_answers_what_waits_and_refuses_the_rest():
    gate = threading.Event()

    def answer(jobs, exclusive):
        gate.wait(10)
        return lengths(jobs, exclusive)

    batcher = Batcher(answer, runners=2, depth=100, max_batch=lambda: 2)
    waiting = [batcher.submit(PredictRequest([b"x" * n])) for n in range(20)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    gate.set()
    closing.join(10)
    assert [one.result(0) for one in waiting] == [[n] for n in range(20)]
    with pytest.raises(RequestError, match="stopping"):
        batcher.submit(PredictRequest([b""]))


def test_wait_fills_the_batch(made):
    def answer(jobs, exclusive):
        return [len(jobs)] * len(jobs)

    batcher = made(answer, runners=1, wait=5.0, max_batch=lambda: 3)
    waiting = [batcher.submit(PredictRequest([b""])) for _ in range(3)]
    assert [one.result(10) for one in waiting] == [3, 3, 3]


# batch tuning


class SlowRunner:
    """A network that takes so long for a batch, and for each image in it, by a clock of its own."""

    now = 0.0

    def __init__(self, batch, image):
        self.batch, self.image = batch, image

    def probabilities(self, images):
        SlowRunner.now += self.batch + self.image * len(images)
        return np.zeros((len(images), 2), np.float32)

    def outputs(self, images):
        return NetworkOutputs(self.probabilities(images))


@pytest.fixture
def clock(monkeypatch):
    """Time passes only while a network answers."""
    monkeypatch.setattr(tuning, "time", SimpleNamespace(perf_counter=lambda: SlowRunner.now))


@pytest.mark.parametrize(("batch", "image", "max_batch"), [(0.0, 0.05, 1), (0.0005, 0.0, 32), (0.0001, 0.001, 8)])
def test_batches_grow_only_where_that_is_faster(clock, batch, image, max_batch):
    network = SlowRunner(batch, image)
    found = tuning.tune_batch_size(network, (4, 4, 3))
    assert found.max_batch == max_batch
    for size, rate in found.images_per_second:
        assert rate == pytest.approx(size / (batch + image * size + tuning.BATCH_OVERHEAD_SECONDS))


def test_the_overhead_of_a_batch_is_included(clock):
    fast = SlowRunner(0.0, 0.0005)  # no faster together, but fetched and given back together
    assert tuning.tune_batch_size(fast, (4, 4, 3)).max_batch > 1


def test_tuning_ends_in_time(clock):
    for seconds in (1e-5, 1e-3, 0.05, 2.0):
        before, network = SlowRunner.now, SlowRunner(0.0, seconds)
        tuning.tune_batch_size(network, (4, 4, 3))
        assert SlowRunner.now - before <= max(2 * tuning.TUNING_SECONDS, 8 * seconds)


@pytest.mark.parametrize(("one", "every", "best"), [(0.004, 0.001, 1), (0.001, 0.004, 0)])
def test_single_images_go_to_the_faster_runner(clock, one, every, best):
    runners = [CountingRunner(one), CountingRunner(every)]
    faster = tuning.FasterRunner(*runners)
    image = np.zeros((1, 4, 4, 3), np.uint8)
    for _ in range(2 * tuning.WARMUP_CALLS):
        faster.probabilities(image)
    assert [runner.calls for runner in runners] == [tuning.WARMUP_CALLS, tuning.WARMUP_CALLS]
    assert faster.fastest == best
    for _ in range(1000):
        faster.probabilities(image)
    assert runners[1 - best].calls - tuning.WARMUP_CALLS <= 10


def test_the_faster_runner_may_change(clock):
    runners = [CountingRunner(0.001), CountingRunner(0.002)]
    faster = tuning.FasterRunner(*runners)
    image = np.zeros((1, 4, 4, 3), np.uint8)
    for _ in range(100):
        faster.probabilities(image)
    assert faster.fastest == 0
    runners[0].batch = 0.003
    for _ in range(100):
        faster.probabilities(image)
    assert faster.fastest == 1
    runners[0].batch = 0.001
    for _ in range(tuning.PROBE_INTERVAL * tuning.LATENCY_WINDOW):
        faster.probabilities(image)
    assert faster.fastest == 0
    faster.probabilities(np.zeros((3, 4, 4, 3), np.uint8))
    assert runners[0].images == 3


class CountingRunner(SlowRunner):
    """Counts."""

    calls = images = 0

    def __init__(self, batch):
        super().__init__(batch, 0.0)

    def probabilities(self, images):
        self.calls += 1
        self.images = len(images)
        return super().probabilities(images)


def test_an_engine_takes_its_tuning_and_threads():
    path = site_of_two() / "releases" / "0001" / "model.onnx"
    plain = open_engine(path, threads=1, tuning=BatchTuning(4))
    assert plain.exclusive_runner is plain.shared_runner
    both = open_engine(path, threads=2, tuning=BatchTuning(4))
    assert both.exclusive_runner is not both.shared_runner
    assert both.tuning.max_batch == 4
    image = np.zeros((1, *both.geometry.shape), np.uint8)
    assert np.allclose(
        both.exclusive_runner.probabilities(image), plain.exclusive_runner.probabilities(image), atol=1e-5
    )


# the service


def test_concurrent_requests_get_the_answers_of_single_ones():
    service = Service(ServiceSettings(path=site_of_two() / "releases" / "0001" / "model.onnx", threads=2)).open()
    try:
        object.__setattr__(service.engine, "tuning", BatchTuning(8))
        alone = {image: predict(service.engine, [image])[0] for image in pictures()}

        async def ask():
            many = [pictures()[k % 12] for k in range(200)]
            return many, await asyncio.gather(
                *(service.batcher.submit_async(PredictRequest([one])) for one in many)
            )

        many, found = asyncio.run(ask())
        for image, text in zip(many, found, strict=True):
            assert f'"label":"{alone[image].label}"'.encode() in text
    finally:
        service.close()


@pytest.mark.parametrize(
    ("data", "status"),
    [(b"", 400), (b"hello", 415), (b"\0\0\0\x18ftypheic", 415), (pictures()[0][:40], 422)],
)
def test_what_is_not_an_image_has_its_own_status(engine, data, status):
    found = engine.decode_image(data, RequestLimits())
    assert isinstance(found, RequestError)
    assert found.status == status


def test_pixels_are_counted_before_any_is_decoded(engine):
    for image in pictures():
        assert not isinstance(engine.decode_image(image, RequestLimits(pixels=40 * 48)), RequestError)
        refused = engine.decode_image(image, RequestLimits(pixels=40 * 48 - 1))
        assert isinstance(refused, RequestError)
        assert refused.status == 413


NOISE = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("request_", "quick"),
    [
        (PredictRequest([encoded(NOISE[:64, :64], "JPEG")]), True),
        (PredictRequest([encoded(NOISE[:64, :64])]), True),
        (PredictRequest([encoded(NOISE[:64, :64], "JPEG")], heat=True), False),
        (PredictRequest([encoded(NOISE[:64, :64], "JPEG")] * 2), False),
        (PredictRequest([encoded(0 * NOISE, "JPEG")]), False),  # 160,000 pixels in 4 kB
        (PredictRequest([encoded(0 * NOISE)]), False),
        (PredictRequest([encoded(NOISE[:64, :64], "JPEG") + bytes(300_000)]), False),
        (PredictRequest([encoded(NOISE[:200, :200], "JPEG")]), True),
        (PredictRequest([encoded(NOISE[:200, :200], "JPEG", progressive=True)]), False),  # ten passes over it
        (PredictRequest([encoded(NOISE[:64, :64], "GIF")]), False),
        (PredictRequest([b"\xff\xd8\xff and no more"]), False),
        (PredictRequest([b""]), False),
    ],
)
def test_one_small_image_for_a_fast_network_is_quick(engine, request_, quick):
    assert not replace(engine, tuning=BatchTuning()).is_quick(request_)  # not measured
    assert not replace(engine, tuning=BatchTuning(single_seconds=0.01)).is_quick(request_)
    assert replace(engine, tuning=BatchTuning(single_seconds=0.001)).is_quick(request_) is quick


def test_the_network_is_timed_for_one_image(clock):
    assert tuning.tune_batch_size(SlowRunner(0.001, 0.002), (4, 4, 3)).single_seconds == pytest.approx(0.003)
