"""Schedules against torch's own, and the laws of the family."""

import pytest
import torch

from sightline.errors import ChoiceError, RecipeError
from sightline.training import Recipe, resolve
from sightline.training.optimizers import Plateau, TrainingProgress
from sightline.training.plan import SCHEDULES


def parse_schedule(word, warmup, epochs=None):
    return resolve(Recipe(schedule=word, warmup=warmup, epochs=epochs)).schedule


def at(share, epochs=100, losses=()):
    return TrainingProgress(share * epochs, epochs, losses)


def theirs(kind, steps, **arguments):
    """The factors that torch's scheduler gives from a rate of 1, before each step."""
    moves = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = kind(moves, **arguments)
    for _ in range(steps):
        yield scheduler.get_last_lr()[0]
        moves.step()
        scheduler.step()


def test_one_cycle_is_torchs():
    arguments = {"max_lr": 1.0, "total_steps": 5000, "pct_start": 0.3, "final_div_factor": 400}
    ours = parse_schedule("one-cycle", 0.3)
    for step, factor in enumerate(theirs(torch.optim.lr_scheduler.OneCycleLR, 5000, **arguments)):
        if step % 97 == 0:
            assert ours(at(step / 5000)) == pytest.approx(factor, abs=2e-3)


@pytest.mark.parametrize(
    ("word", "kind", "arguments"),
    [
        ("cosine", torch.optim.lr_scheduler.CosineAnnealingLR, {"T_max": 100}),
        ("step:every=30:gamma=0.2", torch.optim.lr_scheduler.StepLR, {"step_size": 30, "gamma": 0.2}),
        ("exponential:0.95", torch.optim.lr_scheduler.ExponentialLR, {"gamma": 0.95}),
        (
            "restarts:first=3:end=0.01",
            torch.optim.lr_scheduler.CosineAnnealingWarmRestarts,
            {"T_0": 3, "T_mult": 2, "eta_min": 0.01},
        ),
        (
            "linear:end=0.25",
            torch.optim.lr_scheduler.LinearLR,
            {"start_factor": 1.0, "end_factor": 0.25, "total_iters": 100},
        ),
    ],
)
def test_schedules_are_torchs(word, kind, arguments):
    ours = parse_schedule(word, 0.0)
    for epoch, factor in enumerate(theirs(kind, 100, **arguments)):
        assert ours(TrainingProgress(epoch, 100)) == pytest.approx(factor, abs=1e-9), epoch


def test_plateau_is_torchs():
    generator = torch.Generator().manual_seed(3)
    losses = (torch.rand(60, generator=generator) * 0.3 + torch.linspace(1, 0.7, 60)).tolist()
    moves = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    # Torch waits for one bad epoch more than its patience says.
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(moves, factor=0.5, patience=3, threshold=1e-3)
    ours, seen = Plateau(gamma=0.5, patience=4, warmup=0.0), set()
    for epoch, loss in enumerate(losses, 1):
        scheduler.step(loss)
        factor = ours(TrainingProgress(epoch, 60, losses[:epoch]))
        assert factor == pytest.approx(moves.param_groups[0]["lr"]), epoch
        seen.add(factor)
    assert len(seen) > 3


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.2, 0.9])
def test_schedules_rise_and_stay_in_bounds(name, warmup):
    ours = parse_schedule(name, warmup)
    factors = [ours(at(step / 1000, epochs=5)) for step in range(1000)]
    assert all(0 <= f <= 1 for f in factors)
    assert max(factors) > 0.6  # exponential decay has begun when the warm-up ends
    if name not in {"step", "exponential"}:
        rise = factors[: int(warmup * 1000)]
        assert rise == sorted(rise)


def test_a_schedule_longer_than_the_run_is_refused():
    with pytest.raises(RecipeError, match="first changes the rate after 30 epochs, but the run has 10"):
        parse_schedule("step:every=30", 0.0, 10)
    with pytest.raises(RecipeError, match="after 6 epochs"):
        parse_schedule("plateau:patience=5", 0.0, 6)
    assert parse_schedule("step:every=9", 0.0, 10)(TrainingProgress(9, 10)) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("cosin", "Did you mean 'cosine'"),
        ("step:every=0", "whole number of at least 1"),
        ("step:gamma=2", "from 0 to 1"),
        ("plateau:patience=0", "whole number"),
        ("cosine:nonsense=1", "nonsense"),
    ],
)
def test_bad_words(word, says):
    with pytest.raises(ChoiceError, match=says):
        parse_schedule(word, 0.0)
