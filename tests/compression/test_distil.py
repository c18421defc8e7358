"""A student learns from a teacher's answers: the objective against numpy and its limit, and the step."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from sightline.batches import Batch
from sightline.classifier import Classifier
from sightline.compression import COMPRESSORS, Distil, fine_tune
from sightline.data import load_dataset
from sightline.data.splits import split
from sightline.ensembles import combine
from sightline.errors import ChoiceError
from sightline.inference import predict_logits
from sightline.layers import Network
from sightline.models import build, parse_architecture
from sightline.preprocessing import Normalise, Preprocessing
from sightline.training import DistillationLoss, Recipe, resolve
from sightline.training.adversarial import FastAdversarial
from sightline.training.losses import CrossEntropy, Focal
from sightline.training.run_folder import SilentRunFolder
from sightline.types import Geometry

GEOMETRY = Geometry(size=(12, 12), channels=1)


class Known(Network):
    """Logits that are written down: row i of a table for the image whose pixels are all i / 100."""

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(torch.as_tensor(table, dtype=torch.float32))
        self.seen = []

    def logits(self, pixels):
        self.seen.append((pixels, self.training, torch.is_grad_enabled()))
        return self.table[(pixels[:, 0, 0, 0] * 100).round().long()]


def known(table):
    plan = parse_architecture("mlp", classes=len(table[0]), channels=1, size=(12, 12))
    names = [f"class {k}" for k in range(len(table[0]))]
    return Classifier(Preprocessing(), Known(table), architecture=plan, classes=names, geometry=GEOMETRY)


def batch_of(count, labels):
    pixels = torch.arange(count)[:, None, None, None].expand(count, 1, 12, 12) / 100
    return Batch(pixels.contiguous(), labels, torch.arange(count))


TEACHER = [[2.0, 1.0, -1.0], [0.0, 0.5, 4.0], [-3.0, 3.0, 0.0]]
STUDENT = [[1.0, 1.0, 0.0], [2.0, -0.5, 0.3], [0.1, 0.2, 0.7]]


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def by_hand(labels, temperature, alpha):
    """Hinton's loss in float64, as the paper has it."""
    t, s = np.asarray(TEACHER), np.asarray(STUDENT)
    soft, own = softmax(t / temperature), softmax(s / temperature)
    pull = (soft * (np.log(soft) - np.log(own))).sum(1).mean() * temperature**2
    hard = -(labels * np.log(softmax(s))).sum(1).mean()
    return alpha * pull + (1 - alpha) * hard


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(("temperature", "alpha"), [(4.0, 0.9), (1.0, 0.5), (20.0, 1.0), (2.0, 0.0)])
def test_the_loss_is_the_papers(temperature, alpha, soft):
    labels = (
        torch.tensor([[0.2, 0.8, 0.0], [0.0, 0.0, 1.0], [0.5, 0.25, 0.25]]) if soft else torch.tensor([1, 2, 0])
    )
    wanted = labels.double().numpy() if soft else np.eye(3)[labels.numpy()]
    loss = DistillationLoss(known(TEACHER), temperature=temperature, alpha=alpha)(
        known(STUDENT), batch_of(3, labels)
    )
    assert loss.item() == pytest.approx(by_hand(wanted, temperature, alpha), rel=1e-5)


def test_at_high_temperature_the_gradient_is_that_of_matching_logits():
    """Equation 4 of the paper: T^2 times the gradient goes to (z - v) / K for logits of zero mean."""
    teacher, student = known(TEACHER), known(STUDENT)
    DistillationLoss(teacher, temperature=1e3, alpha=1.0)(student, batch_of(3, torch.tensor([0, 1, 2]))).backward()
    z, v = (np.asarray(each) - np.mean(each, axis=1, keepdims=True) for each in (STUDENT, TEACHER))
    np.testing.assert_allclose(student.network.table.grad, (z - v) / 3 / 3, rtol=0.02, atol=1e-4)
    assert teacher.network.table.grad is None


def test_the_teacher_sees_the_same_pixels_at_rest():
    teacher, student = known(TEACHER), known(STUDENT).train()
    batch = batch_of(3, torch.tensor([0, 1, 2]))
    DistillationLoss(teacher.train())(student, batch).backward()
    ((pixels, training, learning),) = teacher.network.seen
    assert pixels is batch.pixels
    assert not training
    assert not learning
    ((seen, training, learning),) = student.network.seen
    assert seen is batch.pixels
    assert training
    assert learning


def test_the_labels_enter_by_any_loss():
    batch = batch_of(3, torch.tensor([0, 1, 2]))
    focal = DistillationLoss(known(TEACHER), Focal(gamma=2.0), alpha=0.3)(known(STUDENT), batch)
    pull = DistillationLoss(known(TEACHER), alpha=1.0)(known(STUDENT), batch)
    own = Focal(gamma=2.0)(known(STUDENT), batch)
    assert focal.item() == pytest.approx(0.3 * pull.item() + 0.7 * own.item(), rel=1e-5)
    torch.manual_seed(0)
    plan = parse_architecture("mlp", classes=3, channels=1, size=(12, 12))
    student = Classifier(
        Preprocessing(), build(plan), architecture=plan, classes=("a", "b", "c"), geometry=GEOMETRY
    )
    loss = DistillationLoss(known(TEACHER), FastAdversarial(eps=0.1))(student, batch)
    assert loss.isfinite()


@pytest.mark.parametrize("field", [{"temperature": 0}, {"temperature": True}, {"alpha": 1.2}, {"alpha": "much"}])
def test_impossible_fields_are_refused(field):
    with pytest.raises(ValueError, match=f"{next(iter(field))} must be"):
        Distil(**field)
    with pytest.raises(ValueError, match=f"{next(iter(field))} must be"):
        DistillationLoss(known(TEACHER), **field)
    with pytest.raises(ChoiceError, match="Did you mean 'lenet5'"):
        Distil("lenet")


def test_words_name_the_student_and_its_own_arguments():
    made = COMPRESSORS["distil"]("fastcnn", width=0.25, temperature=2)
    assert made == Distil("fastcnn:width=0.25", temperature=2)
    assert Distil().word() == "distil:to=lenet5"


@pytest.fixture(scope="module")
def digits():
    return split(load_dataset("digits", GEOMETRY), seed=1)


def teacher_of(digits, steps=(), model="small-cnn"):
    torch.manual_seed(0)
    plan = parse_architecture(model, classes=10, channels=1, size=(12, 12))
    return Classifier(
        Preprocessing(steps), build(plan), architecture=plan, classes=digits.train.classes, geometry=GEOMETRY
    ).eval()


def test_a_student_is_fresh_and_looks_through_its_teachers_eyes(digits):
    teacher = teacher_of(digits, [Normalise((0.2,), (0.4,))])
    one, same, other = (Distil("mlp", seed=seed)(teacher, digits) for seed in (0, 0, 1))
    assert one.architecture.name == "mlp"
    assert (one.classes, one.geometry) == (teacher.classes, teacher.geometry)
    assert one.preprocessing.config() == teacher.preprocessing.config()
    weights = [[p.detach() for p in each.network.parameters()] for each in (one, same, other)]
    assert all(torch.equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights[0], weights[2], strict=True))


def test_an_ensemble_teaches_a_student_with_statistics_of_its_own(digits):
    both = combine([teacher_of(digits), teacher_of(digits, model="mlp")]).classifier
    student = Distil("mlp")(both, digits)
    mean = digits.train[:].mean() / 255
    (step,) = student.preprocessing.config()
    assert step["step"] == "normalise"
    shown = student.preprocessing(torch.full((1, 1, 12, 12), float(mean)))
    assert shown.abs().max() < 1e-3


def test_a_taught_student_answers_like_its_teacher(digits, tmp_path):
    """A teacher whose classes are turned round by one: who learns from it alone, learns just that."""
    recipe = Recipe(
        model="mlp", size=12, channels=1, epochs=4, batch_size=64, lr=0.05, augment=(), precision="float32",
        memory_format="contiguous", cpu_replicas=1,
    )  # fmt: skip
    right = fine_tune(
        Distil("mlp")(teacher_of(digits, [Normalise((0.3,), (0.4,))]), digits), digits, recipe,
        folder(tmp_path, "a"), objective=resolve(recipe).objective, fresh=True,
    ).classifier  # fmt: skip
    turned = Turned(right)
    step = Distil("mlp", alpha=1.0, seed=3)
    student = step(right, digits)
    held = replace(digits.val, labels=(digits.val.labels + 1) % 10)  # by which the best epoch is chosen
    taught = fine_tune(
        student, replace(digits, val=held), recipe.replace(seed=3), folder(tmp_path, "b"),
        objective=DistillationLoss(turned, CrossEntropy(), alpha=1.0), fresh=True,
    )  # fmt: skip
    answers = predict_logits(taught.classifier, digits.test)[0].argmax(1)
    wanted = (predict_logits(right, digits.test)[0].argmax(1) + 1) % 10
    assert (answers == wanted).float().mean() > 0.85
    assert taught.facts["epochs"] == 4


class Turned(Classifier):
    """A classifier that gives each class the logit of the one before it."""

    def __init__(self, of):
        super().__init__(
            of.preprocessing, of.network, architecture=of.architecture, classes=of.classes, geometry=of.geometry
        )

    def forward(self, pixels):
        return super().forward(pixels).roll(1, 1)


def folder(place, name):
    (place / name).mkdir()
    return SilentRunFolder(place / name)
