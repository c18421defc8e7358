"""EWC's Fisher information and penalty, and LwF's pull, against formulas worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sightline.batches import Batch
from sightline.classifier import Classifier
from sightline.continual import EWC, LwF, Past, Task, fisher_diagonal
from sightline.continual.regularisation import ANCHOR
from sightline.data import load_dataset, to_tensor
from sightline.layers import Network
from sightline.models import Architecture
from sightline.preprocessing import Preprocessing
from sightline.runtime import permutation
from sightline.sources import find
from sightline.training import Recipe, resolve
from sightline.types import Geometry


class Linear(Network):
    """Logits linear in the pixels."""

    def __init__(self, features, classes):
        super().__init__()
        self.head = torch.nn.Linear(features, classes)

    def logits(self, pixels):
        return self.head(pixels.flatten(1))


@pytest.fixture(scope="module")
def images():
    return load_dataset(find("digits", limit=30), Geometry(size=(8, 8), channels=1))


def linear(images, seed=0):
    torch.manual_seed(seed)
    return Classifier(
        Preprocessing(),
        Linear(64, len(images.classes)),
        architecture=Architecture("linear", {}),
        classes=images.classes,
        geometry=images.geometry,
    )


def make_task(classifier, images, **more):
    plan = resolve(Recipe(model="mlp", lr=0.01, batch_size=8, epochs=1, size=8, channels=1, augment=()))
    nothing = images.subset(np.zeros(0, np.int64))
    given = {"classifier": classifier, "previous": None, "new": images, "plan": plan, "memory_size": 0} | more
    return Task(past=given.pop("past", Past(images=nothing, tasks=np.zeros(0, np.int64))), **given)


def test_the_fisher_information_of_a_linear_softmax(images):
    """F of weight (k, j) is E_x [p_k (1 - p_k) x_j^2], of bias k E_x [p_k (1 - p_k)]."""
    classifier = linear(images)
    found = fisher_diagonal(classifier, images)
    x = to_tensor(images[:]).flatten(1).double()
    p = torch.softmax(classifier(to_tensor(images[:])).double(), 1)
    spread = (p * (1 - p)).detach()
    np.testing.assert_allclose(found["head.weight"], (spread.T @ x.square()) / len(x), rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(found["head.bias"], spread.mean(0), rtol=1e-4)
    assert all(p.requires_grad for p in classifier.parameters())


def test_the_information_over_the_classes_of_a_task_alone(images):
    classifier = linear(images)
    some = images.subset(images.labels < 2)
    found = fisher_diagonal(classifier, some, make_task(classifier, some, groups=[[0, 1], list(range(2, 10))]))
    p = torch.softmax(classifier(to_tensor(some[:]))[:, :2].double(), 1).detach()
    np.testing.assert_allclose(found["head.bias"][:2], (p * (1 - p)).mean(0), rtol=1e-4)
    assert found["head.bias"][2:].abs().max() == 0


def penalty(strategy, task):
    """What the objective adds to the cross-entropy, with its gradient."""
    batch = Batch(
        pixels=to_tensor(task.new[:4]), labels=torch.from_numpy(task.new.labels[:4]), index=torch.arange(4)
    )
    objective = strategy.method(task).objective
    return objective(task.classifier, batch) - task.cross_entropy(task.classifier(batch.pixels), batch.labels)


def test_two_sums_are_the_penalties_of_all_tasks(images):
    """Anchors of each task need not be kept apart: the penalties differ by a constant, so gradients are equal."""
    strategy, past = EWC(weight=3.0, images=10), None
    anchors = []
    for seed in range(2):
        task = make_task(linear(images, seed), images, **({} if past is None else {"past": past}))
        past = strategy.remember(task)
        anchors.append({n: p.detach().clone() for n, p in task.classifier.network.named_parameters()})
    first = strategy.remember(make_task(linear(images, 0), images)).fisher
    both = past.fisher
    second = {n: both[n] - first[n] for n in first if not n.endswith(ANCHOR)}
    classifier = linear(images, 5)
    penalty(strategy, make_task(classifier, images, past=past)).backward()
    for name, parameter in classifier.network.named_parameters():
        value = parameter.detach()
        expected = 3.0 * (first[name] * (value - anchors[0][name]) + second[name] * (value - anchors[1][name]))
        np.testing.assert_allclose(parameter.grad, expected, rtol=1e-3, atol=1e-6)


def test_online_ewc_has_one_anchor(images):
    strategy = EWC(weight=1.0, decay=0.5, images=10)
    first = strategy.remember(make_task(linear(images, 0), images))
    classifier = linear(images, 1)
    second = strategy.remember(make_task(classifier, images, past=first))
    for name, parameter in classifier.network.named_parameters():
        np.testing.assert_allclose(
            second.fisher[name + ANCHOR], second.fisher[name] * parameter.detach(), rtol=1e-5
        )
    chosen = np.sort(permutation(30, 0, 86)[:10])
    own = fisher_diagonal(classifier, images.subset(chosen))["head.bias"]
    np.testing.assert_allclose(second.fisher["head.bias"], 0.5 * first.fisher["head.bias"] + own, rtol=1e-4)
    assert penalty(strategy, make_task(classifier, images, past=second)).item() == pytest.approx(0, abs=1e-9)


def test_a_steep_penalty_never_overshoots(images):
    """Beyond 1 / lr the curvature is cut, where a gradient step would diverge."""
    strategy = EWC(weight=1e12, images=10)
    past = strategy.remember(make_task(linear(images, 0), images))
    classifier = linear(images, 3)
    task = make_task(classifier, images, past=past)
    lr, before = task.plan.recipe.lr, penalty(strategy, task).item()
    penalty(strategy, task).backward()
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.sub_(lr * parameter.grad)
    assert penalty(strategy, task).item() < 1e-6 * before


def test_rows_of_later_classes_are_free(images):
    strategy = EWC(weight=1.0, images=10)
    past = strategy.remember(make_task(linear(images, 0), images))
    small = {n: v[:5] for n, v in past.fisher.items()}  # five classes were known then
    classifier = linear(images, 1)
    penalty(strategy, make_task(classifier, images, past=replace(past, fisher=small))).backward()
    assert classifier.network.head.bias.grad[5:].abs().max() == 0
    assert classifier.network.head.bias.grad[:5].abs().min() > 0


def test_old_answers_pull(images):
    old, classifier = linear(images, 0), linear(images, 1)
    task = make_task(classifier, images, previous=old, old_classes=range(10))
    batch_pixels = to_tensor(images[:4])
    t, own, was = 2.0, classifier(batch_pixels), old(batch_pixels)
    target = torch.softmax(was / t, 1)
    expected = (target * (target.log() - torch.log_softmax(own / t, 1))).sum(1).mean() * t * t
    assert penalty(LwF(weight=1.5, temperature=t), task).item() == pytest.approx(1.5 * expected.item(), rel=1e-4)
    same = make_task(old, images, previous=old, old_classes=range(10))
    assert penalty(LwF(), same).item() == pytest.approx(0, abs=1e-6)
