"""A budget is kept: the plan is made again, the first epoch is cut where it must be, and a pipe hears of it."""

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sightline import progress, runtime
from sightline.sources import FolderReader, Source, limit_training
from sightline.training import (
    budget,
    build_classifier,
    defaults,
    measure_throughput,
    prepare,
    reopen,
    resolve,
    starts,
    train,
)
from sightline.training.budget import Budget, Deadline
from sightline.training.build import build_method, progressive_size
from sightline.training.fit import TrainingState
from sightline.training.losses import CrossEntropy
from sightline.training.optimizers import Cosine
from sightline.training.recipe import Recipe
from sightline.types import Geometry

OPEN = Recipe(
    model="mlp", size=8, batch_size=16, augment=(), precision="float32", memory_format="contiguous",
    cpu_replicas=1, lr=0.05,
)  # fmt: skip


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: self.now))


@pytest.fixture(scope="module")
def started():
    """A classifier and its optimiser, which no simulation steps."""
    plan, splits, _ = prepare(resolve(OPEN.replace(data="digits", limit=100)))
    classifier, _ = build_classifier(plan, splits, torch.device("cpu"))
    return classifier, plan.build_optimizer(classifier)


class Simulation:
    """A training whose steps and validations take what ``step(now)`` and ``validation(now)`` say, in seconds."""

    def __init__(
        self, monkeypatch, started, step, validation, *, planned=2, whole=100, most=60, seconds=100.0, grows=None
    ):
        clock, self.said = Clock(monkeypatch), []
        recipe = Recipe(budget=f"{seconds}s", epochs=planned, batch_size=8, size=32, progressive_from=grows)
        keeper = Budget(recipe, Deadline(seconds, 0.0, val=100, test=100), most, self.said.append)
        self.state = state = TrainingState(*started, planned, whole, peak_lr=0.1, schedule=Cosine(warmup=0.0))
        self.plans, self.rates = [], []
        while state.epoch < state.epochs:
            while True:
                share = (progressive_size(32, grows, state.epoch, planned) / 32) ** 2
                clock.now += (took := share * step(clock.now))
                state.set_lr()
                self.rates.append(state.optimizer.param_groups[0]["lr"])
                state.batch, state.seconds = state.batch + 1, state.seconds + took
                keeper.after_step(state)
                if state.batch >= state.epoch_steps:
                    break
            clock.now += validation(clock.now)
            state.finish_epoch(1.0, 0.5)
            keeper.after_epoch(state)
            self.plans.append(state.epochs)
        self.trained = state.step
        self.ended = clock.now + 5 * validation(clock.now)  # calibration, test, report


def steady(seconds):
    """Always the same."""
    return lambda _: seconds


def test_a_plan_made_in_a_busy_moment_is_made_again(monkeypatch, started):
    run = Simulation(monkeypatch, started, steady(0.018), steady(0.2))
    assert 40 < run.state.epochs < 46
    assert "instead of 2" in run.said[0]
    assert any("instead of 2, as many as fit the budget of 100 s" in each for each in run.state.remarks)


SPEEDS = {
    "steady": steady(0.02),
    "slow first epoch": lambda now: 0.2 if now < 20 else 0.02,
    "slow first minute": lambda now: 0.3 if now < 60 else 0.02,
    "slow later": lambda now: 0.02 if now < 40 else 0.08,
    "much slower within the last epoch": lambda now: 0.02 if now < 85 else 0.2,
    "slow by turns": lambda now: 0.02 if int(now) % 7 else 0.1,
    "one epoch does not fit": steady(1.5),
    "one epoch and a half fit": steady(0.55),
    "first step compiles for long": lambda now: 15.0 if not now else 0.05,
}


@pytest.mark.parametrize("planned", [1, 60])
@pytest.mark.parametrize("speed", SPEEDS)
def test_a_budget_is_kept_and_used(monkeypatch, started, speed, planned):
    step = SPEEDS[speed]
    run = Simulation(monkeypatch, started, step, lambda now: 4 * step(now), planned=planned, most=10**6)
    assert 80 < run.ended < 115
    assert run.trained == len(run.rates) == run.state.step == run.state.total_steps
    assert run.rates[-1] < 0.2 * max(run.rates)  # the schedule came to its end, whenever that was
    assert max(run.rates) > 0.09


@pytest.mark.parametrize("planned", [1, 6, 30])
@pytest.mark.parametrize("seconds", [0.02, 0.03, 0.1])
def test_a_budget_is_kept_and_used_where_images_grow(monkeypatch, started, planned, seconds):
    run = Simulation(monkeypatch, started, steady(seconds), steady(4 * seconds), planned=planned, most=99, grows=8)
    assert 80 < run.ended < 115
    assert run.rates[-1] < 0.2 * max(run.rates)


def test_images_that_grow_have_more_epochs(started):
    recipe = OPEN.replace(size=32, budget="100s")
    plain, growing = (
        defaults.default_epochs(each, train_images=1000, images_per_second=200.0, seconds=100.0).value
        for each in (recipe, recipe.replace(progressive_from=16))
    )
    assert plain == 20
    sides = [progressive_size(32, 16, epoch, growing) for epoch in range(growing)]
    assert growing > 25
    assert 19 < sum((side / 32) ** 2 for side in sides) <= 20


def test_thousands_of_epochs_are_not_tried_one_by_one(monkeypatch):
    tried, recipe = [], OPEN.replace(size=32, semi_supervised="fixmatch", progressive_from=16, batch_size=64)
    monkeypatch.setattr(defaults, "count_passes", lambda _, epochs: tried.append(epochs) or 0.75 * epochs)
    found = defaults.default_epochs(recipe, train_images=100, images_per_second=300.0, seconds=570.0)
    assert found.value == 2280  # 1,710 passes
    assert len(tried) < 20


def test_a_slow_minute_costs_its_time_and_no_more(monkeypatch, started):
    quiet = Simulation(monkeypatch, started, steady(0.02), steady(0.2))
    busy = Simulation(monkeypatch, started, lambda now: 0.4 if now < 30 else 0.02, steady(0.2))
    assert busy.trained > 0.55 * quiet.trained


def test_a_part_of_an_epoch_is_trained_where_whole_ones_leave_much_of_the_budget(monkeypatch, started):
    run = Simulation(monkeypatch, started, steady(0.55), steady(1.0))
    assert run.state.epochs == 2
    assert 40 < run.state.last_steps < 90
    assert run.trained == 100 + run.state.last_steps
    assert any(f"cut to {run.state.last_steps} of 100 steps" in each for each in run.state.remarks)


def test_no_more_epochs_than_are_useful(monkeypatch, started):
    run = Simulation(monkeypatch, started, steady(0.02), steady(0.2), most=7)
    assert run.state.epochs == 7
    assert any("instead of 2, more would gain little" in each for each in run.state.remarks)


def test_a_run_at_its_useful_epochs_is_the_run_that_has_them_given(monkeypatch, started):
    run = Simulation(monkeypatch, started, steady(0.02), steady(0.2), planned=7, most=7)
    given = TrainingState(*started, 7, 100, peak_lr=0.1, schedule=Cosine(warmup=0.0))
    rates = []
    for step in range(700):
        given.epoch, given.batch = divmod(step, 100)
        given.set_lr()
        rates.append(given.optimizer.param_groups[0]["lr"])
    assert run.rates == rates
    assert run.state.remarks == []


def test_where_one_epoch_does_not_fit_a_part_is_trained_and_said(tmp_path, capsys):
    def slow(classifier, batch):
        time.sleep(0.1)
        return CrossEntropy()(classifier, batch)

    made = train("digits", OPEN.replace(budget="5s"), out=tmp_path / "r", objective=slow)
    facts = made.facts
    assert facts["epochs"] == 1
    assert 1 <= facts["steps"] < facts["steps_per_epoch"]
    assert any("the budget of 5s has time for about" in note for note in made.notes)
    assert any(f"cut to {facts['steps']} of {facts['steps_per_epoch']} steps" in note for note in made.notes)
    assert "has time for about" in capsys.readouterr().err
    again = Recipe.from_toml(tmp_path / "r" / "recipe.toml")  # what was trained can be trained again
    assert (again.epochs, again.steps) == (made.recipe.epochs, made.recipe.steps) == (1, facts["steps"])
    repeated = train("digits", again, out=tmp_path / "again")
    assert repeated.facts["steps"] == facts["steps"]


def test_given_epochs_are_kept_whatever_the_budget(tmp_path):
    made = train("digits", OPEN.replace(epochs=2, limit=300, budget="1s"), out=tmp_path / "r")
    assert made.facts["epochs"] == 2
    assert made.facts["remarks"] == []


def test_the_way_is_remembered_and_the_speed_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "cache_dir", lambda: tmp_path)
    recipe = OPEN.replace(precision=None, data="digits", limit=300, epochs=1)
    plan, splits, _ = prepare(resolve(recipe))
    classifier, _ = build_classifier(plan, splits, torch.device("cpu"))
    batch = next(iter(build_method(plan, splits, torch.device("cpu")).batches(0, 0)))
    first = measure_throughput(classifier, plan, batch)
    measured = []

    def time_modes(modes, *_):
        measured.append(modes)
        return modes[0], 12.5

    monkeypatch.setattr(defaults, "_time_modes", time_modes)
    again = measure_throughput(classifier, plan, batch)
    assert measured == [[first.mode]]
    assert again.images_per_second == 12.5
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another processor")
    measure_throughput(classifier, plan, batch)
    assert len(measured) == 2
    assert len(list((tmp_path / "throughput").iterdir())) == 2


def test_a_slow_candidate_is_given_up_after_its_first_step():
    calls = {"fast": 0, "slow": 0}

    def candidate(name, seconds):
        def run():
            calls[name] += 1
            time.sleep(seconds)

        return run

    times = runtime.time_interleaved(
        {"slow": candidate("slow", 0.05), "fast": candidate("fast", 0.005)}, 4, give_up=3.0
    )
    assert calls == {"slow": 2, "fast": 5}
    assert [len(times[name]) for name in ("slow", "fast")] == [1, 4]


@pytest.mark.parametrize("image_seconds", [1e-5, 1e-3, 0.01, 0.02, 0.1, 1.0])
@pytest.mark.parametrize("bfloat16", [0.6, 1, 20], ids=["native", "equal", "emulated"])
def test_the_trial_of_ways_costs_3_s_and_the_steps_begun(tmp_path, monkeypatch, image_seconds, bfloat16):
    monkeypatch.setattr(runtime, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(runtime, "has_bfloat16", lambda _: bfloat16 < 20)
    recipe = OPEN.replace(
        batch_size=128, precision=None, memory_format=None, cpu_replicas=None, data="digits", limit=300, epochs=1
    )
    plan, splits, _ = prepare(resolve(recipe))
    classifier, _ = build_classifier(plan, splits, torch.device("cpu"))
    batch = next(iter(build_method(plan, splits, torch.device("cpu")).batches(0, 0)))
    clock, taken = SimpleNamespace(now=0.0), []
    for module in (runtime, defaults):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def prepare_step(stack, classifier, plan, batch, mode):
        def step():
            taken.append(len(batch) * image_seconds * (bfloat16 if mode.precision == "bfloat16" else 1))
            clock.now += taken[-1]

        return step

    monkeypatch.setattr(defaults, "_prepare_step", prepare_step)
    found = measure_throughput(classifier, plan, batch)
    assert sum(taken) == pytest.approx(clock.now)
    assert clock.now <= 3 + 2 * max(taken)
    tried = bfloat16 < 1 and image_seconds < 1  # both precisions, on 8 images in 3 s
    fastest = "bfloat16" if tried else "float32"
    if bfloat16 != 1:
        assert found.mode.precision == fastest
    assert found.images_per_second == pytest.approx(1 / image_seconds / (bfloat16 if fastest == "bfloat16" else 1))


@pytest.mark.parametrize(("load", "reserved"), [(1.0, 3.0), (2.0, 6.0)])
def test_a_busy_machine_reserves_more_for_the_report(monkeypatch, load, reserved):
    Clock(monkeypatch)
    deadline = Deadline(30.0, 0.0, val=100, test=300, image_seconds=0.01, load=load)
    assert deadline.seconds_left() == pytest.approx(0.95 * 30 - 2 * 1.0 - 300 * 0.01 - reserved)


@pytest.mark.parametrize(("now", "can"), [(18.7, True), (18.9, False)])
def test_latencies_are_measured_where_time_is_left(monkeypatch, now, can):
    Clock(monkeypatch).now = now
    deadline = Deadline(30.0, 0.0, val=100, test=300, image_seconds=0.01)
    assert deadline.can_measure_costs() == can  # 3 s of the test, 3.2 s and 2 s of latencies, 3 s of the report


def test_the_test_is_of_as_many_images_as_fit(monkeypatch):
    clock = Clock(monkeypatch)
    deadline = Deadline(30.0, 0.0, val=100, test=4000, image_seconds=0.01)
    found = {}
    for clock.now in (0.0, 14.5, 29.0, 100.0):
        found[clock.now] = deadline.testable_images()
    assert found == {0.0: 2850, 14.5: 1400, 29.0: 200, 100.0: 200}
    deadline.image_seconds = 0.001
    clock.now = 20.0
    assert deadline.testable_images() == 4000


def test_validation_takes_a_quarter_of_the_budget_at_most(started):
    _, splits, _ = prepare(resolve(OPEN.replace(data="digits", val_fraction=0.5, test_fraction=0.1)))
    images = len(splits.val)
    fast, slow = (Deadline(100.0, 0.0, val=images, test=9, image_seconds=each) for each in (0.001, 0.0208))
    assert budget.sample_validation(fast, splits, 0) == (splits, ())
    assert budget.sample_validation(None, splits, 0) == (splits, ())
    some, (note,) = budget.sample_validation(slow, splits, 0)
    assert 590 < slow.val == len(some.val) < 610 < images
    assert f"{len(some.val)} of {images}" in note
    shares = some.val.counts / splits.val.counts
    assert shares.max() - shares.min() < 0.03


def test_trials_end_with_their_time():
    times = runtime.time_interleaved({"one": lambda: time.sleep(0.02)}, 100, seconds=0.1)
    assert 1 <= len(times["one"]) < 10


@pytest.mark.parametrize(("total", "said"), [(9, "Training: 2 of 9, epoch 1"), (None, "Training: 2, epoch 1")])
def test_a_pipe_hears_a_line_every_half_minute(total, said, capsys, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(progress, "_printed", [0.0])
    with progress.progress_bar("Training", total) as advance:
        advance(1, note="epoch 1")
        clock.now = 30.5
        advance(1, note="epoch 1")
        advance(1, note="epoch 1")
    assert capsys.readouterr().err.splitlines() == [said]


def test_a_stage_that_says_nothing_is_heard_of(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.05)
    monkeypatch.setattr(progress, "_printed", [time.monotonic()])
    with progress.heartbeat():
        progress.notify("Fitting the head.")
        heard, ends = "", time.monotonic() + 30
        while heard.count("\n") < 3 and time.monotonic() < ends:  # the main thread says nothing more
            time.sleep(0.02)
            heard += capsys.readouterr().err
    assert heard.splitlines()[:3] == ["Fitting the head.", *["Still working. Fitting the head."] * 2]
    capsys.readouterr()
    time.sleep(0.2)
    assert capsys.readouterr().err == "", "the thread has ended"


# images and networks that a short budget has time for


def labelled(counts, splits):
    """A source of ``counts`` images of each class in each of these splits; its files are never read."""
    rows = [(split, label) for split in splits for label, count in enumerate(counts) for _ in range(count)]
    count = len(rows)
    return Source(
        name="many", reader=FolderReader(Path(), []), keys=np.arange(count), files=np.arange(count).astype(str),
        labels=np.array([label for _, label in rows]), classes=tuple("abc"[: len(counts)]), fingerprint="many",
        columns={"split": np.array([split for split, _ in rows])} if splits != [""] else {},
    )  # fmt: skip


@pytest.mark.parametrize("splits", [[""], ["train", "test"], ["train", "val", "test"]])
def test_training_images_are_limited_and_the_test_is_whole(splits):
    source = labelled((600, 300, 100), splits)
    some = limit_training(source, 100, seed=3)
    split = some.columns.get("split", np.full(len(some), "train"))
    assert np.bincount(some.labels[split == "train"]).tolist() == [60, 30, 10]
    assert [int((split == each).sum()) for each in splits[1:]] == [1000] * (len(splits) - 1)
    assert "Training on 100 of 1,000 images" in some.notes[-1]
    again = limit_training(source, 100, seed=3)
    assert again.files.tolist() == some.files.tolist()
    assert limit_training(source, 1000, seed=3) is source


@pytest.mark.parametrize(
    ("seconds", "given", "stored", "trained"),
    [
        (1e-4, {}, False, 5000),  # all of them in 0.6 s
        (6e-3, {}, False, 500),  # 12 % of 20 s: 400 images, and the test has more; half as many as that
        (1.2e-3, {}, False, 1000),  # 2,000 images, 1,000 of the test
        (1.2e-3, {}, True, 5000),
        (1.2e-3, {"epochs": 1}, False, 5000),
        (1.2e-3, {"limit": 6000}, False, 5000),
        (1.2e-3, {"train_limit": 50}, False, 50),
    ],
)
def test_as_many_images_are_read_as_their_share_of_the_budget_allows(monkeypatch, seconds, given, stored, trained):
    monkeypatch.setattr(starts, "time_decoding", lambda *_: seconds)
    monkeypatch.setattr(starts, "is_stored", lambda *_: stored)
    source = replace(labelled((5000,), ["train"]), classes=("a",))
    test = labelled((1000,), ["test"])
    joined = {
        name: np.concatenate([getattr(source, name), getattr(test, name)]) for name in ("keys", "files", "labels")
    }
    split = np.concatenate([source.columns["split"], test.columns["split"]])
    both = replace(source, **joined, columns={"split": split})
    recipe = Recipe(budget="20s", size=8).replace(**given)
    some, chosen = starts.limit_train_images(recipe, both)
    split = some.columns["split"]
    assert ((split == "train").sum(), (split == "test").sum()) == (trained, 1000)
    if not given and trained < 5000:
        assert [(each.field, each.value) for each in chosen] == [("train_limit", trained)]
        assert f"Training on {trained:,} of 5,000 images, as many as the budget of 20s allows" in some.notes[-1]
    else:
        assert chosen == []


@pytest.mark.parametrize(
    ("rate", "budget", "given", "chosen"),
    [
        (300, "30s", {}, "lenet5"),  # 4,500 images in half of it
        (3000, "30s", {}, "lenet5"),  # 45,000, and 60,000 are wanted
        (900, "2m", {}, "lenet5"),
        (1100, "2m", {}, None),
        (20, "10m", {}, None),  # nothing is measured by default
        (300, "30s", {"model": "resnet20"}, None),
        (300, "30s", {"epochs": 3}, None),
        (10_000, "30s", {}, None),
    ],
)
def test_a_smaller_network_where_the_usual_one_would_see_too_little(monkeypatch, rate, budget, given, chosen):
    monkeypatch.setattr(starts, "_time_training", lambda *_: rate)
    plan = resolve(Recipe(budget=budget, **given))
    found = starts.affordable_network(plan, Geometry(size=(32, 32)), 45_000)
    assert [each.value for each in found] == ([] if chosen is None else [chosen])
    assert starts.affordable_network(plan, Geometry(size=(32, 32), channels=1), 45_000) == []
    assert starts.affordable_network(plan, Geometry(size=(8, 8)), 45_000) == []  # which LeNet-5 does not take
    seen = rate * (15 if budget == "30s" else 60)
    assert all(f"{seen:,} images in the budget of {budget}" in each.reason for each in found)


def test_a_limited_run_is_read_back_with_the_images_it_saw(tmp_path):
    run = train("digits", OPEN.replace(epochs=1, train_limit=120), out=tmp_path / "run")
    assert 110 < sum(map(len, (run.splits.train, run.splits.val, run.splits.test))) < 130
    again = reopen(run.folder)
    for name in ("train", "val", "test"):
        assert getattr(run.splits, name).files.tolist() == getattr(again.splits, name).files.tolist()
    assert any("of 1,797 images" in note for note in run.notes)
    assert not any("left out" in note for note in again.notes)
