"""Losses of features: published vectors, pytorch-metric-learning as oracle, and what must hold for each of them."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as oracle
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.reducers import MeanReducer

from sightline.data import Shuffle, batch_order
from sightline.errors import ChoiceError, DataError, RecipeError
from sightline.layers import CosineHead
from sightline.training import Recipe, resolve, train
from sightline.training.build import build_classifier, build_method
from sightline.training.metric_losses import (
    ArcFace,
    CosFace,
    MetricLoss,
    contrastive_loss,
    supervised_contrastive_loss,
    triplet_loss,
)
from sightline.training.objectives import OBJECTIVES
from sightline.training.preparation import prepare

FEATURES = torch.tensor([[1.0, 0], [1, 1], [0, 1], [1, 0.5], [-1, 0.5]], dtype=torch.float64)
LABELS = torch.tensor([0, 0, 1, 1, 2])
DIRECTIONS = torch.tensor([[1, 0.1], [0.1, 1], [-1, 0.1]], dtype=torch.float64)
LOSSES = {"contrastive": contrastive_loss, "triplet": triplet_loss, "supcon": supervised_contrastive_loss}
FAMILY = [name for name, make in OBJECTIVES.items() if issubclass(make, MetricLoss)]


def unit(x):
    return F.normalize(x, dim=1)


def test_every_member_has_its_loss_here():
    assert sorted(FAMILY) == sorted(LOSSES)


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (contrastive_loss(FEATURES, LABELS, 1.0), 0.12502252),
        (triplet_loss(FEATURES, LABELS, 0.2), 0.64201413),
        (triplet_loss(FEATURES, LABELS, None), 0.94209748),
        (supervised_contrastive_loss(FEATURES, LABELS, 0.1), 3.20293489),
        (supervised_contrastive_loss(FEATURES, LABELS, 0.5), 1.39440966),
    ],
)
def test_published_values(found, wanted):
    assert float(found) == pytest.approx(wanted, abs=2e-6)


@pytest.mark.parametrize(
    ("loss", "wanted"),
    [(ArcFace(scale=16, margin=0.5), 4.06472693), (CosFace(scale=16, margin=0.35), 3.52752186)],
)
def test_cosine_margins_have_their_published_values(loss, wanted):
    logits = 16 * unit(FEATURES) @ unit(DIRECTIONS).T
    assert float(loss.from_logits(logits, LABELS)) == pytest.approx(wanted, abs=1e-7)
    plain = type(loss)(scale=16, margin=0)
    assert float(plain.from_logits(logits, LABELS)) == pytest.approx(1.42056150, abs=2e-6)


@pytest.mark.parametrize("seed", range(5))
def test_losses_equal_the_oracle(seed):
    torch.manual_seed(seed)
    x, y = torch.randn(24, 7, dtype=torch.float64), torch.randint(0, 5, (24,))
    y[:2] = 0
    mean = MeanReducer()
    wanted = oracle.SupConLoss(temperature=0.1, reducer=mean)(x, y)
    anchors = torch.tensor([(y == label).sum() > 1 for label in y])
    torch.testing.assert_close(  # the oracle's mean is over all anchors, those without a positive as 0
        supervised_contrastive_loss(x, y, 0.1).double() * anchors.double().mean(), wanted, rtol=1e-5, atol=1e-6
    )
    hardest = oracle.TripletMarginLoss(0.2, distance=LpDistance(), reducer=mean)
    pairs = BatchHardMiner(distance=LpDistance())(x, y)
    torch.testing.assert_close(triplet_loss(x, y, 0.2).double(), hardest(x, y, pairs), rtol=1e-5, atol=1e-6)
    w = torch.randn(7, 5, dtype=torch.float64)
    logits = 16 * unit(x) @ F.normalize(w, dim=0)
    for ours, theirs in (
        (ArcFace(scale=16, margin=0.5), oracle.ArcFaceLoss(5, 7, margin=math.degrees(0.5), scale=16)),
        (CosFace(scale=16, margin=0.35), oracle.CosFaceLoss(5, 7, margin=0.35, scale=16)),
    ):
        theirs.double().W.data = w
        torch.testing.assert_close(ours.from_logits(logits, y), theirs(x, y), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_rotations_and_orders_change_nothing(name):
    torch.manual_seed(1)
    x, y = torch.randn(16, 5), torch.arange(16) % 4
    rotation, order = torch.linalg.qr(torch.randn(5, 5))[0], torch.randperm(16)
    loss = LOSSES[name](x, y)
    assert float(loss) > 0
    for other in (LOSSES[name](x @ rotation, y), LOSSES[name](x[order], y[order]), LOSSES[name](3 * x, y)):
        torch.testing.assert_close(other, loss, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["triplet", "supcon"])
def test_a_batch_without_pairs_is_0_and_has_no_gradient(name):
    x = torch.randn(4, 3, requires_grad=True)
    loss = LOSSES[name](x, torch.arange(4))
    loss.backward()
    assert loss.item() == 0
    assert x.grad is not None
    assert not x.grad.any()


@pytest.mark.parametrize("name", LOSSES)
def test_equal_images_have_finite_gradients(name):
    x = torch.ones(6, 3, requires_grad=True)
    LOSSES[name](x, torch.arange(6) % 2).backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())


def test_supcon_of_pairs_is_nt_xent():
    """Each image and its other view alone are a class: the loss of SimCLR, whose published value this is."""
    views = torch.tensor([[1.0, 0], [0, 1], [1, 1], [1, 0.5], [-0.5, 1], [1, 0]])
    assert float(supervised_contrastive_loss(views, torch.arange(3).repeat(2), 0.5)) == pytest.approx(1.16251575)


def test_arcface_goes_on_falling_past_the_largest_angle():
    angles = torch.linspace(0.001, math.pi - 0.001, 200, dtype=torch.float64)[:, None]
    lowered = ArcFace(margin=0.5).lower(angles.cos())
    assert bool((lowered.diff(dim=0) < 0).all())


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("supcon:temperature=0", "temperature"),
        ("triplet:margin=-1", "margin"),
        ("contrastive:margin=0", "margin"),
        ("supcon:weight=0:alone=True", "nothing else trains"),
        ("arcface:margin=2", "at most 1.571"),
        ("cosface:scale=0", "scale"),
    ],
)
def test_impossible_arguments_are_refused(word, message):
    with pytest.raises(ChoiceError, match=message):
        resolve(Recipe(data="digits", loss=word))


# In training


def recipe(**changes):
    settings = {"data": "digits", "model": "small-cnn", "epochs": 2, "limit": 300, "batch_size": 40, "size": 28}
    return Recipe(
        **{**settings, "precision": "float32", "memory_format": "contiguous", "cpu_replicas": 1, **changes}
    )


@pytest.mark.parametrize("name", FAMILY)
def test_weight_0_is_the_plain_run_bit_for_bit(name, tmp_path):
    plain = train("digits", recipe(epochs=1), out=tmp_path / "plain").classifier
    same = train("digits", recipe(epochs=1, loss=name, loss_weight=0.0), out=tmp_path / name).classifier
    for key, tensor in plain.state_dict().items():
        assert torch.equal(tensor, same.state_dict()[key]), key


@pytest.mark.parametrize("name", FAMILY)
def test_alone_the_cross_entropy_leaves_the_features(name):
    plan, splits, _ = prepare(resolve(recipe(loss=f"{name}:alone=True")))
    classifier, _ = build_classifier(plan, splits, torch.device("cpu"))
    batch = next(build_method(plan, splits, torch.device("cpu")).batches(0, 0))
    classifier.eval()
    objective = plan.objective
    assert isinstance(objective, MetricLoss)
    twin = copy.deepcopy(classifier)
    objective(classifier, batch).backward()
    (objective.weight * objective.from_features(twin.features(batch.pixels), batch.labels)).backward()
    head = {id(p) for p in classifier.network.head.parameters()}
    compared = 0
    for one, other in zip(classifier.parameters(), twin.parameters(), strict=True):
        if id(one) in head:
            assert one.grad is not None
            assert bool(one.grad.any())
        elif other.grad is not None:
            torch.testing.assert_close(one.grad, other.grad)
            compared += 1
    assert compared > 3


def test_a_margin_loss_trains_a_cosine_head_that_survives_saving(tmp_path):
    from sightline import load

    run = train("digits", recipe(loss="cosface:scale=12"), out=tmp_path / "run")
    head = load(run.folder).network.head
    assert isinstance(head, CosineHead)
    assert head.scale == 12
    pixels = torch.rand(3, 1, 28, 28)
    again = load(run.folder).eval()
    features, logits = again.features_and_logits(pixels)
    torch.testing.assert_close(logits, 12 * unit(features) @ unit(head.weight).T, rtol=1e-4, atol=1e-4)
    changed = train("digits", recipe(epochs=1, weights=str(run.folder)), out=tmp_path / "plain")
    assert not isinstance(changed.classifier.network.head, CosineHead)
    changed = train(
        "digits", recipe(epochs=1, loss="arcface", weights=str(changed.folder)), out=tmp_path / "again"
    )
    assert isinstance(changed.classifier.network.head, CosineHead)


def test_what_cuts_a_batch_or_mixes_images_is_refused(tmp_path):
    for flag in ("grad_accum_steps", "cpu_replicas", "devices"):
        with pytest.raises(RecipeError, match="cannot be cut"):
            resolve(recipe(loss="supcon", **{flag: 2}))
    with pytest.raises(RecipeError, match="mixed images"):
        resolve(recipe(loss="triplet", augment=["mixup"]))


def test_a_class_of_one_image_is_refused(tmp_path):
    plan, splits, _ = prepare(resolve(recipe(val_fraction=0)))
    few = splits.train.subset(
        np.flatnonzero((splits.train.labels != 3) | (np.cumsum(splits.train.labels == 3) == 1))
    )
    with pytest.raises(DataError, match=r"fewer than 2 training images: 3 \(1\)"):
        plan.replace(loss="triplet").fit_to(few)


# Batches by class


@pytest.mark.parametrize(("classes", "size"), [(4, 16), (3, 10), (8, 8)])
def test_batches_by_class_have_so_many_classes_and_images(classes, size):
    labels = np.random.default_rng(0).choice(6, 200, p=[0.5, 0.2, 0.1, 0.1, 0.05, 0.05])
    order = batch_order(labels, Shuffle(3, 1, classes=classes), size)
    assert len(order) == -(-200 // size) * size
    batches = labels[order].reshape(-1, size)
    for batch in batches:
        found, counts = np.unique(batch, return_counts=True)
        assert len(found) == min(classes, 6)
        assert counts.max() - counts.min() <= 1
    drawn = np.bincount(labels[order], minlength=6)
    assert drawn.max() - drawn.min() <= 2 * size  # every class in turn
    for label in range(6):  # the images of a class in turn
        times = np.bincount(order, minlength=200)[labels == label]
        assert times.max() - times.min() <= 1
    assert not np.array_equal(order, batch_order(labels, Shuffle(3, 2, classes=classes), size))
    assert np.array_equal(order, batch_order(labels, Shuffle(3, 1, classes=classes), size))


def test_many_classes_are_drawn_by_class_and_the_user_is_told():
    plan, _, notes = prepare(resolve(recipe(loss="supcon", batch_size=16)))
    assert plan.sampling.classes == 2
    assert any("--sampling" in note for note in notes)
    plan, _, _ = prepare(resolve(recipe(loss="supcon", batch_size=16, sampling="shuffled")))
    assert plan.sampling.classes == 0
    with pytest.raises(ChoiceError, match="at least 2"):
        resolve(recipe(sampling="classes:1"))
