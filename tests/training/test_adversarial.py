"""Losses on attacked images: laws over every member, their definitions, and what they are for."""

import copy
import csv
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch.nn import functional as F

from helpers.attacked_classifiers import GEOMETRY, digits, trained
from sightline.attacks import PGD
from sightline.batches import Batch
from sightline.classifier import Classifier
from sightline.data.loader import to_tensor
from sightline.errors import ChoiceError, GradientError, Interrupted, RecipeError
from sightline.models import build, parse_architecture
from sightline.preprocessing import Preprocessing
from sightline.training import resolve, resume, run, train
from sightline.training.adversarial import AdversarialLoss, FastAdversarial, PGDAdversarial, Trades, kl_divergence
from sightline.training.gradients import SingleReplica, replicas_may_help
from sightline.training.hooks import BaseHook
from sightline.training.losses import CrossEntropy
from sightline.training.objectives import OBJECTIVES
from sightline.training.recipe import Recipe

NAMES = [name for name, make in OBJECTIVES.items() if issubclass(make, AdversarialLoss)]
MADE = [
    PGDAdversarial(0.1, 3),
    PGDAdversarial(0.1, 2, clean=0.5),
    FastAdversarial(0.1),
    FastAdversarial(0.1, 1.0, 2.0),
    Trades(0.1, 3),
    PGDAdversarial(0.5, 2, norm="l2"),
    FastAdversarial(0.5, norm="l2"),
    Trades(0.5, 2, norm="l2"),
]
TINY = Recipe(
    model="mlp", size=8, limit=300, epochs=3, batch_size=32, augment=("shift:1",), precision="float32",
    memory_format="contiguous", lr=0.05,
)  # fmt: skip


@pytest.fixture
def classifier():
    """With batch norm and dropout, in training."""
    return copy.deepcopy(trained()).train()


@pytest.fixture
def batch():
    images, labels, _ = digits()
    return Batch(images[:48], labels[:48], torch.arange(48), classes=10)


class Spy(torch.nn.Module):
    """Keeps what a classifier is shown in training mode."""

    def __init__(self, classifier):
        super().__init__()
        self.seen = []
        classifier.preprocessing.register_forward_pre_hook(self.look)

    def look(self, module, given):
        if module.training:
            self.seen.append(given[0].detach().clone())


def test_there_are_three_and_their_names_are_losses():
    assert [type(OBJECTIVES[name]()) for name in NAMES] == [PGDAdversarial, FastAdversarial, Trades]


@pytest.mark.parametrize("objective", MADE, ids=repr)
def test_every_robust_loss_has_gradients_and_draws_from_the_global_generator(classifier, batch, objective):
    classifier.eval()  # dropout draws too
    torch.manual_seed(0)
    loss = objective(classifier, batch)
    assert loss.shape == ()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.requires_grad for p in classifier.parameters())
    torch.manual_seed(0)
    assert objective(classifier, batch).item() == loss.item()
    assert objective(classifier, batch).item() != loss.item(), "the attack does not start afresh"


@pytest.mark.parametrize("objective", MADE, ids=repr)
def test_it_trains_on_images_in_the_ball_and_norms_gather_from_these_alone(classifier, batch, objective):
    spy = Spy(classifier)
    norm = classifier.network.features.bn
    before = int(norm.num_batches_tracked)
    objective(classifier, batch).backward()
    assert all(module.training for module in classifier.modules())
    assert len(spy.seen) == (2 if isinstance(objective, Trades) or getattr(objective, "clean", 0) else 1)
    assert int(norm.num_batches_tracked) - before == len(spy.seen)
    reach = objective.eps * (3 if getattr(objective, "noise", 1) > 1 else 1)
    for pixels in spy.seen:
        changes = (pixels - batch.pixels).flatten(1)
        far = changes.abs().amax(1) if objective.norm == "linf" else changes.norm(dim=1)
        assert far.max() <= reach + 1e-6
        assert pixels.min() >= 0
        assert pixels.max() <= 1


@pytest.mark.parametrize("objective", MADE, ids=repr)
def test_soft_labels_and_weights_of_classes(classifier, batch, objective):
    classifier.eval()

    def value(made, images):
        torch.manual_seed(3)
        return made(classifier, images).item()

    soft = replace(batch, labels=F.one_hot(batch.labels, 10).float())
    assert value(objective, soft) == pytest.approx(value(objective, batch), rel=1e-5)
    alike = replace(objective, class_weights=(1.0,) * 10)
    assert value(alike, batch) == pytest.approx(value(objective, batch), rel=1e-5)
    only = replace(objective, class_weights=(2.0, *(0.0,) * 9))
    for labels in (batch.labels, soft.labels):
        zeros = value(only, replace(batch, labels=labels))
        assert 0 < zeros < 2 * 48 / int((batch.labels == 0).sum()) * value(objective, batch)
    none = replace(objective, class_weights=(0.0,) * 10)
    assert value(none, batch) == 0
    assert value(replace(objective, label_smoothing=0.2), batch) != value(objective, batch)


@pytest.mark.parametrize("objective", MADE, ids=repr)
def test_pieces_frozen_layers_and_bfloat16(classifier, batch, objective):
    for parameter in classifier.network.features.conv.parameters():
        parameter.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        assert objective(classifier, batch).dtype == torch.float32
    with SingleReplica(classifier, pieces=3) as work:
        loss = work(objective, batch)
    assert loss.isfinite()
    assert all(p.grad is None for p in classifier.network.features.conv.parameters())
    assert classifier.network.head.weight.grad is not None


# Definitions, in plain torch


def test_fast_adversarial_training_is_that_of_the_paper(classifier, batch):
    """Wong et al. 2020, Algorithm 3, with the same random numbers (and the gradient taken in eval mode)."""
    x, y, eps = batch.pixels, batch.labels, 0.1
    spy = Spy(classifier)
    for noise, step in ((1.0, 1.25), (2.0, 1.0)):
        torch.manual_seed(7)
        start = (x + (2 * torch.rand_like(x) - 1) * noise * eps).clamp(0, 1).requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(classifier.eval()(start), y), start)
        delta = start.detach() + step * eps * slope.sign() - x
        delta = delta.clamp(-eps, eps) if noise == 1 else delta
        torch.manual_seed(7)
        FastAdversarial(eps, step, noise)(classifier.train(), batch)
        torch.testing.assert_close(spy.seen[-1], (x + delta).clamp(0, 1), atol=1e-5, rtol=0)


def test_adversarial_training_is_cross_entropy_of_pgd_images(classifier, batch):
    classifier.eval()
    torch.manual_seed(7)
    loss = PGDAdversarial(0.1, 4, step=0.04)(classifier, batch)
    torch.manual_seed(7)
    attacked = PGD(4, step=0.04, early_stop=False, seed=None)(classifier, batch.pixels, batch.labels, 0.1)
    wanted = F.cross_entropy(classifier(attacked), batch.labels)
    torch.testing.assert_close(loss, wanted)
    torch.manual_seed(7)
    half = PGDAdversarial(0.1, 4, step=0.04, clean=0.25)(classifier, batch)
    torch.testing.assert_close(half, 0.75 * wanted + 0.25 * CrossEntropy()(classifier, batch))


def test_trades_from_its_definition(classifier, batch):
    spy = Spy(classifier)
    loss = Trades(0.1, 4, beta=3)(classifier, batch)
    clean, attacked = spy.seen
    assert torch.equal(clean, batch.pixels)
    twin = copy.deepcopy(trained()).train()
    torch.manual_seed(0)
    with torch.no_grad():
        for module in (classifier, twin):
            module.network.features.dropout.p = 0.0
    spy.seen.clear()
    torch.manual_seed(1)
    loss = Trades(0.1, 4, beta=3)(classifier, batch)
    clean, attacked = spy.seen
    p, q = (torch.softmax(twin(x).double(), 1) for x in (clean, attacked))
    wanted = -p.gather(1, batch.labels[:, None]).log().mean() + 3 * (p * (p / q).log()).sum(1).mean()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-4)
    assert (p * (p / q).log()).sum(1).mean() > 0.05, "the attack raised nothing"


@pytest.mark.parametrize("make", [PGDAdversarial, FastAdversarial, Trades])
def test_a_ramp_reaches_eps_step_by_step(classifier, batch, make):
    for epoch, share in ((0, 1 / 4), (1, 1 / 2), (3, 1.0), (9, 1.0)):
        spy = Spy(classifier)
        make(0.2, warmup_epochs=3)(classifier, replace(batch, epoch=epoch))
        assert (spy.seen[-1] - batch.pixels).abs().max().item() == pytest.approx(share * 0.2, abs=1e-6)


def test_divergence_keeps_its_head_where_answers_are_sure():
    sure = torch.tensor([[200.0, -200.0], [0.0, 0.0]], requires_grad=True)
    other = torch.tensor([[-200.0, 200.0], [1.0, 0.0]], requires_grad=True)
    found = kl_divergence(other, sure)
    assert found[0].item() == pytest.approx(400)
    for gradient in torch.autograd.grad(found.sum(), (sure, other)):
        assert gradient.isfinite().all()


# What it is for


def fresh():
    torch.manual_seed(0)
    plan = parse_architecture("mlp", classes=10, channels=1, size=(8, 8))
    names = tuple("0123456789")
    return Classifier(Preprocessing(), build(plan), architecture=plan, classes=names, geometry=GEOMETRY).train()


@cache
def left(objective):
    """Accuracy on images not trained on, as they are and under PGD-10, after a second of training."""
    images, labels, _ = digits()
    made = fresh()
    moves = torch.optim.Adam(made.parameters(), 3e-3)
    for step in range(120):
        some = torch.arange(step * 100, step * 100 + 100) % 1400
        objective(made, Batch(images[some], labels[some], some)).backward()
        moves.step()
        moves.zero_grad()
    attacked = PGD(10)(made.eval(), images[1400:], labels[1400:], 0.15)
    with torch.no_grad():
        return [(made(x).argmax(1) == labels[1400:]).float().mean().item() for x in (images[1400:], attacked)]


@pytest.mark.parametrize("objective", [PGDAdversarial(0.15, 3), FastAdversarial(0.15), Trades(0.15, 3)], ids=repr)
def test_it_makes_classifiers_harder_to_fool(objective):
    clean, robust = left(objective)
    assert robust > left(CrossEntropy())[1] + 0.2
    assert clean > 0.8


def test_the_epoch_is_chosen_by_attacked_validation_images(tmp_path):
    made = train("digits", TINY.replace(loss="adversarial:0.1:2", epochs=2), out=tmp_path / "r")
    val = made.splits.val
    attack = PGD(10, early_stop=False)
    images, labels = to_tensor(val[:]), torch.from_numpy(val.labels)
    with torch.no_grad():
        logits = made.classifier(attack(made.classifier, images, labels, 0.1))
    accuracy = (logits.argmax(1) == labels).float().mean().item()
    assert made.facts["val_accuracy"] == pytest.approx(accuracy, abs=1e-6)
    with (made.folder / "history.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    best = rows[made.facts["best_epoch"] - 1]
    assert float(best["val_loss"]) == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-4)


@pytest.mark.parametrize("loss", ["adversarial:0.1:2", "fast-adversarial:0.1", "trades:0.1:2"])
def test_an_interrupted_robust_run_resumes_exactly(tmp_path, loss, monkeypatch):
    recipe = TINY.replace(loss=loss, epochs=2, model="mlp:dropout=0.2", grad_accum_steps=2)
    whole = train("digits", recipe, out=tmp_path / "whole")

    class Stop(BaseHook):
        def after_step(self, state):
            state.interrupted = state.step == 11

    original = run.build_method
    monkeypatch.setattr(run, "build_method", lambda *a, **k: replace(original(*a, **k), hooks={"stop": Stop()}))
    with pytest.raises(Interrupted, match="step 11"):
        train("digits", recipe, out=tmp_path / "cut")
    monkeypatch.setattr(
        run, "build_method", lambda *a, **k: replace(original(*a, **k), hooks={"stop": BaseHook()})
    )
    resumed = resume(tmp_path / "cut")
    for name, tensor in whole.classifier.state_dict().items():
        assert torch.equal(tensor, resumed.classifier.state_dict()[name]), name


# Words, and what cannot be


def test_losses_by_words():
    assert resolve(Recipe(loss="adversarial:eps=8/255:steps=10")).objective == PGDAdversarial(8 / 255, 10)
    assert resolve(Recipe(loss="trades:0.3:40:beta=1", label_smoothing=0.1)).objective == Trades(
        0.3, 40, beta=1, label_smoothing=0.1
    )
    assert resolve(Recipe(loss="fast-adversarial:0.3:noise=2:step=1")).objective == FastAdversarial(0.3, 1, 2)


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"loss": "adversarial:eps=8"}, ChoiceError, "write 8/255"),
        ({"loss": "adversarial:eps=-0.1"}, ChoiceError, "eps must be above 0"),
        ({"loss": "adversarial:0.1:0"}, ChoiceError, "steps must be a whole number"),
        ({"loss": "adversarial:0.1:clean=1"}, ChoiceError, "clean must be a number of at least 0 and below 1"),
        ({"loss": "adversarial:0.1:norm=l7"}, ChoiceError, "no norm called 'l7'"),
        ({"loss": "trades:beta=0"}, ChoiceError, "beta must be a number above 0"),
        ({"loss": "fast-adversarial:noise=-1"}, ChoiceError, "noise must be"),
        ({"loss": "adversarial:epsilon=0.1"}, ChoiceError, "no argument 'epsilon'.*'eps'"),
        (
            {"loss": "adversarial:0.1:warmup_epochs=-1"},
            ChoiceError,
            "warmup_epochs must be a whole number of at least 0",
        ),
        ({"loss": "adversary"}, ChoiceError, "Did you mean 'adversarial'"),
        ({"loss": "adversarial", "cpu_replicas": 2}, RecipeError, "leave out --cpu-replicas"),
    ],
)
def test_a_robust_loss_that_cannot_be_is_refused_in_a_sentence(fields, error, words):
    with pytest.raises(error, match=words):
        resolve(Recipe(**fields))


def test_replicas_are_not_tried_with_what_draws(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    recipe, classifier = TINY.replace(batch_size=64), fresh()
    assert replicas_may_help(classifier, recipe, resolve(recipe).objective)
    for name in NAMES:
        assert not replicas_may_help(classifier, recipe, resolve(recipe.replace(loss=name)).objective)


@pytest.mark.parametrize("name", NAMES)
def test_what_has_no_gradient_cannot_be_trained_so(name, batch):
    classifier = fresh()
    classifier.network.differentiable = False
    with pytest.raises(GradientError, match="has none"):
        OBJECTIVES[name]()(classifier, batch)
