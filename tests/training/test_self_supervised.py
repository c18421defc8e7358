"""Pre-training: the published losses, collapse, and a backbone that knows no classes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import NTXentLoss

from sightline.adaptation import pretrain
from sightline.adaptation import pretraining as compared
from sightline.batches import Batch
from sightline.classifier import Classifier
from sightline.errors import Interrupted, RecipeError, SightlineError, TrainingError
from sightline.features import predict_knn
from sightline.training import BaseHook, Recipe, read_splits, resolve, resume, train
from sightline.training import pretraining as pretraining_module
from sightline.training.build import build_classifier
from sightline.training.pretraining import NO_CLASSES, pretrain_backbone, read_without_labels
from sightline.training.self_supervised import (
    BYOL,
    SimCLR,
    Views,
    build_pretraining,
    cosine_regression,
    nt_xent,
    spread,
)

FIRST = torch.tensor([[1.0, 0], [0, 1], [1, 1]])
SECOND = torch.tensor([[1.0, 0.5], [-0.5, 1], [1, 0]])
TINY = Recipe(
    data="digits", model="lenet5", size=28, channels=1, limit=300, epochs=2, batch_size=32, precision="float32",
    memory_format="contiguous", cpu_replicas=1,
)  # fmt: skip


# the published losses


@pytest.mark.parametrize(("temperature", "wanted"), [(0.5, 1.16251575), (0.1, 1.46455533)])
def test_nt_xent(temperature, wanted):
    """As published, and as pytorch-metric-learning computes it."""
    assert nt_xent(FIRST, SECOND, temperature).item() == pytest.approx(wanted, abs=1e-7)
    oracle = NTXentLoss(temperature)(torch.cat([FIRST, SECOND]), torch.arange(3).repeat(2))
    assert nt_xent(FIRST, SECOND, temperature).item() == pytest.approx(oracle.item(), abs=1e-6)


def test_laws_of_nt_xent():
    a, b = torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(0))
    loss = nt_xent(a, b, 0.5)
    assert nt_xent(b, a, 0.5) == pytest.approx(loss.item(), rel=1e-5)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    assert nt_xent(a[order], b[order], 0.5) == pytest.approx(loss.item(), rel=1e-5)
    assert nt_xent(a, b, 10.0).item() == pytest.approx(np.log(127), abs=0.01)
    assert nt_xent(a, a, 0.5) < loss


def test_the_loss_of_byol():
    """2 + 2 D with SimSiam's D(z1, z2) = -.83198705; equal views give 0; the target has no gradient."""
    both = (cosine_regression(FIRST, SECOND) + cosine_regression(SECOND, FIRST)) / 2
    assert both.item() == pytest.approx(2 - 2 * 0.83198705, abs=1e-6)
    assert cosine_regression(FIRST, 3 * FIRST).item() == pytest.approx(0, abs=1e-6)
    target = SECOND.clone().requires_grad_()
    predicted = FIRST.clone().requires_grad_()
    cosine_regression(predicted, target).backward()
    assert target.grad is None
    assert predicted.grad.abs().sum() > 0


def test_the_collapse_meter():
    """1 for independent directions (a mean deviation of 1/sqrt(64) = .125), 0 where all are the same."""
    z = torch.randn(4096, 64, generator=torch.Generator().manual_seed(0))
    assert F.normalize(z, dim=1).std(0).mean().item() == pytest.approx(0.125, abs=1e-3)
    assert spread(z).item() == pytest.approx(1, abs=0.01)
    assert spread(torch.ones(64, 8)).item() == pytest.approx(0, abs=1e-6)


def test_knn_is_scikit_learns():
    from sklearn.neighbors import KNeighborsClassifier

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 500)
    known = rng.normal(size=(500, 16)) + 0.7 * np.eye(4, 16)[labels]
    asked = rng.normal(size=(200, 16)) + 0.7 * np.eye(4, 16)[rng.integers(0, 4, 200)]
    oracle = KNeighborsClassifier(50, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.1), algorithm="brute")
    assert (predict_knn(known, labels, asked) == oracle.fit(known, labels).predict(asked)).mean() > 0.995


# the method


@pytest.fixture(scope="module")
def made():
    """A plan of views, its images and a classifier before training."""
    images, _, _ = read_without_labels(TINY)
    recipe = pretraining_module.open_defaults(TINY, images)
    plan = resolve(recipe).fit_to(images)
    none = images.subset(np.arange(0))
    classifier, _ = build_classifier(
        plan, replace(read_splits(TINY)[0], train=images, val=none), torch.device("cpu")
    )
    return plan, images, classifier


def test_both_views_come_from_the_stored_image(made):
    plan, images, _ = made
    seen = []

    def policy(batch, _):
        seen.append(batch.pixels)
        return replace(batch, pixels=batch.pixels * 0.5)

    batch = Batch(torch.rand(4, 1, 28, 28), torch.zeros(4, dtype=torch.long), torch.arange(4))
    viewed = Views(replace(plan, augment=policy))(batch, torch.Generator())
    assert len(seen) == 2
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(viewed.view, batch.pixels * 0.5)
    assert len(images) > 200


@pytest.mark.parametrize("by", [SimCLR(), BYOL()])
def test_every_module_of_the_method_learns_and_no_head(by, made):
    plan, images, classifier = made
    method = build_pretraining(by, classifier, plan, images)
    batch = next(iter(method.batches(0, 0)))
    classifier.zero_grad()
    method.objective(classifier.train(), batch).backward()
    for module in method.modules.values():
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters() if p.ndim > 1)
    head, *_ = [p for name, p in classifier.network.named_parameters() if "head" in name or p.shape[0] == 2]
    assert head.grad is None or head.grad.abs().sum() == 0
    body = next(classifier.network.parameters())
    assert body.grad.abs().sum() > 0


def test_the_teacher_moves_and_gets_no_gradient(made):
    plan, images, classifier = made
    method = build_pretraining(BYOL(decay=0.9), classifier, plan, images)
    teacher = method.hooks["teacher"]
    assert not any(p.requires_grad for p in (*teacher.classifier.parameters(), *teacher.modules.parameters()))
    assert all(a is not b for a, b in zip(teacher.classifier.parameters(), classifier.parameters(), strict=True))


# the verb


def test_a_backbone_to_start_from(tmp_path, cli, monkeypatch):
    monkeypatch.setattr(compared, "MAX_BANK_IMAGES", 50)
    monkeypatch.setattr(compared, "MAX_ASKED_IMAGES", 30)
    answer = cli(
        "pretrain", "digits", "--by", "simclr", "--model", "lenet5", "--size", 28, "--epochs", 2, "--batch-size", 64,
        "--out", tmp_path / "backbone", "--json",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert set(found["knn"]) == {"pretrained", "untrained", "supervised", "embedded"}
    assert "spread" in (tmp_path / "backbone" / "log.txt").read_text()
    assert "knows no classes" in (tmp_path / "backbone" / "classifier" / "README.md").read_text()
    bundle = Classifier.load(tmp_path / "backbone")
    assert not any("projector" in name for name in bundle.state_dict())
    run = train(
        "digits", Recipe(weights=str(tmp_path / "backbone"), epochs=1, batch_size=64), out=tmp_path / "run"
    )  # fmt: skip
    assert len(run.classifier.classes) == 10
    assert any(
        "starts from random weights, because it was trained for other classes" in note for note in run.notes
    )
    assert not any("were training images" in note for note in run.notes)


def test_labels_and_names_say_nothing(tmp_path):
    """The leak test: the same training images under random names, in random classes, give the same weights."""
    from sightline.sources import find

    source, found = find("digits"), []
    for turn in range(2):
        place, rng = tmp_path / f"d{turn}", np.random.default_rng(turn)
        for row in range(120):
            kind = place / ("test" if row < 20 else "train") / str(row % 3 if row < 20 else rng.integers(3))
            kind.mkdir(parents=True, exist_ok=True)
            (kind / f"{row if row < 20 else rng.integers(10**9)}.png").write_bytes(source.read(row))
        recipe = TINY.replace(data=str(place), limit=None)
        made = pretrain_backbone(recipe, "simclr", out=tmp_path / f"run{turn}", began=0.0, device="cpu")
        found.append(torch.cat([t.flatten() for t in made.classifier.state_dict().values()]))
        assert (made.images, len(made.labelled.test)) == (95, 20)
    assert torch.equal(found[0], found[1])


def test_an_interrupted_one_resumes_exactly(tmp_path, monkeypatch):
    whole = pretrain_backbone(TINY, "byol", out=tmp_path / "whole", began=0.0, device="cpu")

    class Interrupt(BaseHook):
        def after_step(self, state):
            state.interrupted = state.step == 5

    build = pretraining_module.build_pretraining

    def interrupting(*given):
        method = build(*given)
        return replace(method, hooks={**method.hooks, "interrupt": Interrupt()})

    with monkeypatch.context() as patched:
        patched.setattr(pretraining_module, "build_pretraining", interrupting)
        with pytest.raises(Interrupted, match="sightline pretrain --resume"):
            pretrain_backbone(TINY, "byol", out=tmp_path / "run", began=0.0, device="cpu")
    with pytest.raises(RecipeError, match="go on with sightline pretrain --resume"):
        resume(tmp_path / "run")
    resumed = pretrain_backbone(
        Recipe(), "byol", resume=tmp_path / "run", began=0.0, device="cpu"
    )  # fmt: skip
    ours, theirs = (one.classifier.state_dict() for one in (whole, resumed))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    (tmp_path / "run" / "knn.json").write_text("{}")
    with pytest.raises(RecipeError, match=r"is finished\. Use it: sightline train DATA --weights"):
        pretrain(None, resume=tmp_path / "run")


def test_collapse_is_seen_and_stopped(tmp_path, monkeypatch):
    """Where all images are projected to one point, the run ends with a sentence."""
    build = pretraining_module.build_pretraining

    def collapsing(*given):
        method = build(*given)
        last = method.modules["projector"][-1]
        with torch.no_grad():
            last.weight.zero_()
        last.weight.requires_grad_(False)
        return method

    monkeypatch.setattr(pretraining_module, "build_pretraining", collapsing)
    with pytest.raises(TrainingError, match=r"collapsed in epoch 1: .*nearly equal .spread .* Use a lower --lr"):
        pretrain("digits", TINY, by="byol", out=tmp_path / "run", device="cpu")


@pytest.mark.parametrize(
    ("changes", "by", "says"),
    [
        ({}, "simclrr", "Did you mean 'simclr'"),
        ({"batch_size": 1000}, "simclr", "a batch is 1000: views are compared.*--batch-size"),
        ({"grad_accum_steps": 2}, "simclr", "compares the images.*leave out --grad-accum-steps"),
        ({"cpu_replicas": 2}, "byol", "leave out --cpu-replicas"),
        ({"data": "nowhere"}, "simclr", "There is nothing at 'nowhere'"),
    ],
)
def test_bad_input(changes, by, says, tmp_path):
    recipe = TINY.replace(**changes)
    with pytest.raises(SightlineError, match=says):
        pretrain(recipe.data, recipe, by=by, out=tmp_path / "run")


def test_say_which_images():
    with pytest.raises(RecipeError, match="Say which images to pre-train on"):
        pretrain(None)
    assert len(set(NO_CLASSES)) == 2
