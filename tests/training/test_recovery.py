"""A run that diverges goes back to its best weights at a lower rate, finishes, and says so."""

import json
from dataclasses import replace

import pytest
import torch

from sightline.classifier import Classifier
from sightline.comparison import cross_validate
from sightline.errors import Interrupted, TrainingError
from sightline.inference import predict_correct
from sightline.training import resume, run, train
from sightline.training.hooks import BaseHook
from sightline.training.losses import CrossEntropy
from sightline.training.recipe import Recipe

TINY = Recipe(
    model="mlp", size=8, limit=400, epochs=4, batch_size=32, augment=("shift:1",), precision="float32",
    memory_format="contiguous", cpu_replicas=1, lr=0.05,
)  # fmt: skip
STEPS = 9
"""Steps of an epoch of TINY."""


class NotFiniteAt:
    """Cross-entropy, but not-a-number at this call."""

    def __init__(self, call):
        self.call, self.calls = call, 0

    def __call__(self, classifier, batch):
        self.calls += 1
        return CrossEntropy()(classifier, batch) * (float("nan") if self.calls == self.call else 1.0)


@pytest.mark.parametrize(
    ("call", "origin"), [(3, "the first weights"), (STEPS + 2, "epoch 1"), (3 * STEPS, "epoch")]
)
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_it_goes_on_at_a_tenth_of_the_rate_and_says_so(tmp_path, call, origin, ema):
    made = train("digits", TINY.replace(ema_decay=ema), out=tmp_path / "r", objective=NotFiniteAt(call))
    facts = json.loads((tmp_path / "r" / "training.json").read_text())
    assert (facts["epochs"], facts["recoveries"], facts["steps"]) == (4, 1, 4 * STEPS)
    assert facts["peak_lr"] == pytest.approx(0.005)
    said = facts["remarks"][0]
    assert said.startswith("The loss became nan at step")
    assert origin in said
    assert "0.005 instead of 0.05" in said
    assert said in json.loads((tmp_path / "r" / "notes.json").read_text())
    assert said in made.notes
    assert said in (tmp_path / "r" / "log.txt").read_text()
    assert all(t.isfinite().all() for t in Classifier.load(tmp_path / "r").state_dict().values())


@pytest.mark.parametrize(
    "course", [{}, {"schedule": "constant", "warmup": 0.0, "clip_grad": 0.0}], ids=["default", "bare"]
)
def test_lenet5_at_a_hundred_times_its_rate_ends_well(tmp_path, course):
    recipe = TINY.replace(model="lenet5", size=16, lr=10.0, **course)
    made = train("digits", recipe, out=tmp_path / "r")
    assert made.facts["recoveries"] >= 1
    assert made.facts["val_accuracy"] > 0.3
    assert made.facts["remarks"][0].startswith("The loss became")
    assert any("nothing was learned" in each and "the first weights" in each for each in made.facts["remarks"])
    kept = Classifier.load(tmp_path / "r")
    assert predict_correct(kept, made.splits.test).mean() > 0.3


def test_folds_that_diverged_end_well_and_say_so(tmp_path):
    recipe = TINY.replace(size=16, limit=600, epochs=8, lr=10.0)
    found = cross_validate("digits", "lenet5", recipe=recipe, folds=2, folder=tmp_path)
    assert found.accuracy.value > 0.4
    assert any("Training went on from the first weights" in note for note in found.notes)


def with_hook(monkeypatch, hook):
    original = run.build_method
    monkeypatch.setattr(run, "build_method", lambda *a, **k: replace(original(*a, **k), hooks={"own": hook}))


class Collapse(BaseHook):
    """Puts out a hidden layer once, at the end of epoch 3."""

    done = False

    def after_step(self, state):
        if state.step == 3 * STEPS and not self.done:
            self.done = True
            with torch.no_grad():
                for parameter in state.classifier.parameters():
                    parameter.fill_(-1.0)


def test_lost_accuracy_is_won_back(tmp_path, monkeypatch):
    hook = Collapse()
    with_hook(monkeypatch, hook)
    recipe = TINY.replace(epochs=8, schedule="constant", warmup=0.0)
    made = train("digits", recipe, out=tmp_path / "r")
    assert hook.done
    assert made.facts["recoveries"] == 1
    assert "In epoch" in made.facts["remarks"][0]
    assert made.facts["val_accuracy"] > 0.5


def test_batch_norms_of_replicas_recover(tmp_path):
    class Spoil(NotFiniteAt):
        def __call__(self, classifier, batch):
            self.calls += 1
            if self.calls in (self.call, self.call + 1):
                batch = replace(batch, pixels=batch.pixels * float("nan"))
            return CrossEntropy()(classifier, batch)

    recipe = TINY.replace(model="resnet20", size=16, limit=200, epochs=2, cpu_replicas=2)
    made = train("digits", recipe, out=tmp_path / "r", objective=Spoil(3))
    assert made.facts["recoveries"] == 1
    assert all(t.isfinite().all() for t in made.classifier.state_dict().values())


@pytest.mark.parametrize("stop_at", [STEPS + 3, 2 * STEPS + 1])
def test_interrupted_after_a_recovery_and_resumed_gives_the_same_weights(tmp_path, stop_at, monkeypatch):
    whole = train("digits", TINY, out=tmp_path / "whole", objective=NotFiniteAt(STEPS + 2))

    class Stop(BaseHook):
        def after_step(self, state):
            state.interrupted = bool(state.recoveries) and state.step == stop_at

    with monkeypatch.context() as patch:
        with_hook(patch, Stop())
        with pytest.raises(Interrupted):
            train("digits", TINY, out=tmp_path / "cut", objective=NotFiniteAt(STEPS + 2))
    with_hook(monkeypatch, BaseHook())
    resumed = resume(tmp_path / "cut", objective=NotFiniteAt(0))
    ours, theirs = whole.classifier.state_dict(), resumed.classifier.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert resumed.facts["remarks"] == whole.facts["remarks"]


def test_the_best_epoch_so_far_may_be_taken(tmp_path, monkeypatch):
    class Stop(BaseHook):
        def __init__(self, at):
            self.at, self.after = at, []

        def after_step(self, state):
            state.interrupted = state.step == self.at

        def after_epoch(self, state):
            weights = {name: t.clone() for name, t in state.classifier.state_dict().items()}
            self.after.append((state.history[-1].val_accuracy, weights))

    for name, at in (("early", 3), ("cut", 2 * STEPS + 3)):
        hook = Stop(at)
        with monkeypatch.context() as patch:
            with_hook(patch, hook)
            with pytest.raises(Interrupted):
                train("digits", TINY, out=tmp_path / name)
    with_hook(monkeypatch, BaseHook())
    with pytest.raises(TrainingError, match="has finished no epoch"):
        resume(tmp_path / "early", take_best=True)
    taken = resume(tmp_path / "cut", take_best=True)
    accuracies = [accuracy for accuracy, _ in hook.after]
    assert len(accuracies) == 2
    assert accuracies[taken.facts["best_epoch"] - 1] == max(accuracies)
    assert taken.facts["steps"] == 2 * STEPS + 3
    wanted = hook.after[taken.facts["best_epoch"] - 1][1]
    assert all(torch.equal(t, wanted[name]) for name, t in Classifier.load(tmp_path / "cut").state_dict().items())
    assert "the best epoch so far was taken" in (tmp_path / "cut" / "log.txt").read_text()
