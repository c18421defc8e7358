"""A budget is kept: the plan is made again, the first epoch is cut where it must be, and a pipe hears of it."""

import time
from types import SimpleNamespace

import pytest
import torch

from sightline import progress, runtime
from sightline.training import budget, build_classifier, defaults, measure_throughput, prepare, resolve, train
from sightline.training.budget import Budget
from sightline.training.build import build_method
from sightline.training.fit import EpochMetrics, TrainingState
from sightline.training.losses import CrossEntropy
from sightline.training.recipe import Recipe

OPEN = Recipe(
    model="mlp", size=8, batch_size=16, augment=(), precision="float32", memory_format="contiguous",
    cpu_replicas=1, lr=0.05,
)  # fmt: skip


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: self.now))


def run_epoch(clock, keeper, state, seconds):
    """An epoch of so many seconds, a tenth of them validation; returns the planned epochs."""
    for batch in range(1, state.steps_per_epoch + 1):
        clock.now += 0.9 * seconds / state.steps_per_epoch
        state.batch, state.seconds = batch, 0.9 * seconds * batch / state.steps_per_epoch
        keeper.after_step(state)
    clock.now += 0.1 * seconds
    state.epoch += 1
    state.history.append(EpochMetrics(state.epoch, 0.9 * seconds, 0.1, 1.0, 1.0, 0.5, 100.0))
    keeper.after_epoch(state)
    return state.epochs


def make(budget_text, planned, most=60):
    images = SimpleNamespace(labelled=range(100))
    splits = SimpleNamespace(train=SimpleNamespace(labelled=range(800)), val=images, test=range(100))
    said = []
    keeper = Budget(
        Recipe(budget=budget_text, epochs=planned, batch_size=8), splits, began=0.0, most=most, say=said.append
    )
    plan, splits_of_digits, _ = prepare(resolve(OPEN.replace(data="digits", limit=100)))
    classifier, _ = build_classifier(plan, splits_of_digits, torch.device("cpu"))
    state = TrainingState(classifier, plan.build_optimizer(classifier), planned, 100, peak_lr=0.1)
    return keeper, state, said


def test_a_plan_made_in_a_busy_moment_is_made_again(monkeypatch):
    clock = Clock(monkeypatch)
    keeper, state, said = make("100s", 2)
    assert 40 < run_epoch(clock, keeper, state, 2.0) < 46
    assert "in place of 2" in said[0]
    assert run_epoch(clock, keeper, state, 2.0) == state.epochs


def test_a_machine_that_slows_down_gets_fewer_epochs(monkeypatch):
    clock = Clock(monkeypatch)
    keeper, state, _ = make("100s", 40)
    assert run_epoch(clock, keeper, state, 2.0) == 40
    while state.epoch < state.epochs:
        run_epoch(clock, keeper, state, 4.0)
    assert 80 < clock.now < 100


def test_no_more_epochs_than_are_useful(monkeypatch):
    keeper, state, _ = make("100s", 2, most=7)
    assert run_epoch(Clock(monkeypatch), keeper, state, 2.0) == 7


def test_where_one_epoch_does_not_fit_a_part_is_trained_and_said(tmp_path, capsys):
    def slow(classifier, batch):
        time.sleep(0.1)
        return CrossEntropy()(classifier, batch)

    began = time.monotonic()
    made = train("digits", OPEN.replace(budget="5s"), out=tmp_path / "r", objective=slow)
    took = time.monotonic() - began
    facts = made.facts
    assert took < 5 * 1.15
    assert facts["epochs"] == 1
    assert 5 <= facts["steps"] == facts["steps_per_epoch"] < 80
    assert any("the budget of 5s has time for about" in note for note in made.notes)
    assert any("The first epoch was cut" in note for note in made.notes)
    assert "has time for about" in capsys.readouterr().err


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


def test_trials_end_with_their_time():
    times = runtime.time_interleaved({"one": lambda: time.sleep(0.02)}, 100, seconds=0.1)
    assert 1 <= len(times["one"]) < 10


@pytest.mark.parametrize(("total", "said"), [(9, "Training: 2 of 9, epoch 1"), (None, "Training: 2, epoch 1")])
def test_a_pipe_hears_a_line_every_half_minute(total, said, capsys, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    with progress.progress_bar("Training", total) as advance:
        advance(1, note="epoch 1")
        clock.now = 30.5
        advance(1, note="epoch 1")
        advance(1, note="epoch 1")
    assert capsys.readouterr().err.splitlines() == [said]
