"""Losses against test vectors, float64 differences and what is known of them."""

import copy
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.batches import Batch
from sightline.classifier import Classifier
from sightline.errors import ChoiceError, RecipeError
from sightline.models import build, parse_architecture
from sightline.preprocessing import Preprocessing
from sightline.training import resolve
from sightline.training.fairness import BalancedWeights, EffectiveNumberWeights
from sightline.training.losses import (
    M3CE,
    MCE,
    CrossEntropy,
    Focal,
    LargeMarginMCE,
    M3CECEc,
    M3CECEcNormalised,
    lambda_safe,
    soft_target_loss,
)
from sightline.training.objectives import OBJECTIVES
from sightline.training.plan import CLASS_WEIGHTINGS
from sightline.training.recipe import Recipe
from sightline.types import Geometry

PLAIN = [name for name, make in OBJECTIVES.items() if make().on_logits]  # the others: test_adversarial

CRITERIA = {
    "cross-entropy": partial(F.cross_entropy, reduction="none"),
    "focal": Focal(gamma=2.0).per_sample,
    "m3ce": M3CE(gamma=3.0).per_sample,
    "mce": MCE(eta=1.3, xi=0.7, theta=0.2).per_sample,
}


def m3ce_per_sample(logits, labels, gamma):
    return M3CE(gamma=gamma).per_sample(logits, labels)


def build_objective(recipe, counts=None):
    """The recipe's loss, with the weights of classes that have so many training images."""
    plan = resolve(recipe)
    weights = None if counts is None else plan.class_weighting(counts)
    return plan.objective if weights is None else replace(plan.objective, class_weights=weights)


# logits, d, M3CE, its gradient, cross-entropy; the true class is 0 and gamma is 3
VECTORS = [
    ((2, 1, 0), -0.42051248, 0.19459526, (-0.38835820, 0.35021841, 0.03813979), 0.40760596),
    ((0, 2, 1), 0.57521038, 3.90855023, (-1.05566705, 2.10354234, -1.04787529), 2.40760596),
    ((5, 0, 0), -0.98005494, 7.934e-06, (-2.349e-05, 1.571e-05, 7.78e-06), 0.01338590),
    ((-5, 5, 0), 0.99321726, 7.91888287, (-0.00107128, 0.08029703, -0.07922575), 10.00676044),
]


def logits_of(values, dtype=torch.float64):
    return torch.tensor([values], dtype=dtype, requires_grad=True)


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    plan = parse_architecture("mlp", classes=4, channels=1, size=(8, 8))
    made = Classifier(
        Preprocessing(),
        build(plan),
        architecture=plan,
        classes=tuple("abcd"),
        geometry=Geometry(size=(8, 8), channels=1),
    )
    return made.eval()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return Batch(torch.rand(6, 1, 8, 8, generator=generator), torch.tensor([0, 1, 2, 3, 0, 1]), torch.arange(6))


@pytest.mark.parametrize(("z", "d", "loss", "gradient", "entropy"), VECTORS)
def test_m3ce_test_vectors(z, d, loss, gradient, entropy):
    logits, label = logits_of(z), torch.tensor([0])
    value = m3ce_per_sample(logits, label, gamma=3.0)
    assert value.item() == pytest.approx(loss, rel=1e-4 if loss < 1e-3 else 1e-7)
    assert value.item() ** (1 / 3) - 1 == pytest.approx(d, abs=1e-6)
    (got,) = torch.autograd.grad(value.sum(), logits)
    assert got[0].tolist() == pytest.approx(list(gradient), rel=5e-3 if loss < 1e-3 else 1e-5, abs=1e-8)
    assert F.cross_entropy(logits, label, reduction="none").item() == pytest.approx(entropy, abs=1e-7)


def test_m3ce_of_a_confident_answer():
    assert m3ce_per_sample(logits_of((60, 0, 0)), torch.tensor([0]), gamma=3.0).item() == pytest.approx(
        1.8128e-77, rel=1e-3
    )
    single = logits_of((60, 0, 0), torch.float32)
    value = m3ce_per_sample(single, torch.tensor([0]), gamma=3.0)
    value.sum().backward()
    assert value.item() == pytest.approx(0, abs=1e-30)
    assert single.grad is not None
    assert single.grad.abs().max() < 1e-20


def test_a_tie_gives_the_whole_gradient_to_the_first_rival():
    logits = logits_of((5, 0, 0))
    m3ce_per_sample(logits, torch.tensor([0]), gamma=3.0).sum().backward()
    assert logits.grad is not None
    assert logits.grad[0, 1].item() > 2 * logits.grad[0, 2].item() > 0


def differences(function, z, step=1e-5):
    """Central differences of a scalar function, float64."""
    found = torch.zeros_like(z)
    for j in range(len(z)):
        up, down = z.clone(), z.clone()
        up[j] += step
        down[j] -= step
        found[j] = (function(up) - function(down)) / (2 * step)
    return found


@pytest.mark.parametrize("name", CRITERIA)
def test_gradients_are_those_of_float64_differences(name):
    criterion, worst = CRITERIA[name], 0.0
    generator = torch.Generator().manual_seed(3)
    for case in range(300):
        k = 2 + case % 10
        z = 3 * torch.randn(k, dtype=torch.float64, generator=generator)
        label = torch.tensor([case % k])
        asked = z.clone().requires_grad_()
        (got,) = torch.autograd.grad(criterion(asked[None], label).sum(), asked)
        wanted = differences(lambda v, c=criterion, y=label: c(v[None], y).item(), z)
        worst = max(worst, (got - wanted).abs().max().item())
    assert worst < 1e-6


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1e4, 1e4, allow_nan=False), min_size=2, max_size=8),
    st.integers(0, 7),
    st.sampled_from([1.0, 2.0, 3.0]),
)
def test_m3ce_is_bounded_finite_and_sums_to_no_push(values, label, gamma):
    logits = logits_of(values)
    loss = m3ce_per_sample(logits, torch.tensor([label % len(values)]), gamma=gamma)
    assert 0 <= loss.item() <= 2**gamma * (1 + 1e-9)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient.isfinite().all()
    assert gradient.sum().item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("k", [2, 3, 10, 100])
def test_m3ce_of_no_knowledge_is_one(k):
    assert m3ce_per_sample(torch.zeros(1, k), torch.tensor([k - 1]), gamma=3.0).item() == pytest.approx(1)


def test_m3ce_of_two_classes_is_eight_times_the_cube():
    z = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(50) % 2
    other = 1 - torch.softmax(z, 1).gather(1, labels[:, None]).squeeze(1)
    torch.testing.assert_close(m3ce_per_sample(z, labels, gamma=3.0), 8 * other**3)


@pytest.mark.parametrize("name", CRITERIA)
def test_criteria_know_neither_shift_nor_the_order_of_the_others(name):
    z = torch.randn(20, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.zeros(20, dtype=torch.int64)
    order = torch.tensor([0, 3, 1, 4, 2])
    values = CRITERIA[name](z, labels)
    torch.testing.assert_close(CRITERIA[name](z + 7, labels), values)
    torch.testing.assert_close(CRITERIA[name](z[:, order], labels), values)
    (gradient,) = torch.autograd.grad(values.sum(), z)
    (permuted,) = torch.autograd.grad(CRITERIA[name](z[:, order], labels).sum(), z)
    torch.testing.assert_close(permuted, gradient)


def test_the_known_weaknesses_of_m3ce_and_what_the_combination_does():
    wrong = logits_of((-40, 0, -1))
    (alone,) = torch.autograd.grad(M3CE().from_logits(wrong, torch.tensor([0])), wrong)
    (both,) = torch.autograd.grad(M3CECEc().from_logits(wrong, torch.tensor([0])), wrong)
    assert abs(alone[0, 0].item()) < 1e-15
    assert both[0, 0].item() == pytest.approx(-1, abs=1e-6)


@pytest.mark.parametrize("gamma", [1.0, 2.0, 3.0])
def test_below_the_safe_weight_no_gradient_turns_round_and_above_it_some_does(gamma):
    z = 6 * torch.randn(4000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    z = torch.cat([z, torch.tensor([[-9.0, 9.0, 0.0, 0.0]], dtype=torch.float64)]).requires_grad_()
    labels = torch.zeros(len(z), dtype=torch.int64)

    def third_class(weight):
        loss = M3CECEc(weight=weight, gamma=gamma).from_logits(z, labels) * len(z)
        (gradient,) = torch.autograd.grad(loss, z)
        others = gradient.clone()
        others[:, 0] = torch.inf
        return gradient[:, 0].max().item(), others.min().item()

    own, least = third_class(lambda_safe(gamma))
    assert own < 0
    assert least >= -1e-12
    own, least = third_class(1.5 * lambda_safe(gamma))
    assert own < 0
    assert least < 0


def test_the_parts_of_the_combination():
    z = torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.arange(9) % 4
    entropy, margin = F.cross_entropy(z, y), M3CE(gamma=2).from_logits(z, y)
    torch.testing.assert_close(M3CECEc(0.3, gamma=2).from_logits(z, y), entropy + 0.3 * margin)
    torch.testing.assert_close(M3CECEcNormalised(0.3, gamma=2).from_logits(z, y), 0.7 * entropy + 0.3 * margin)
    smooth = F.cross_entropy(z, y, label_smoothing=0.1)
    torch.testing.assert_close(M3CECEc(0.3, gamma=2, label_smoothing=0.1).from_logits(z, y), smooth + 0.3 * margin)


def test_focal_from_its_definition():
    z = torch.randn(30, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.arange(30) % 5
    p = torch.softmax(z, 1).gather(1, y[:, None]).squeeze(1)
    torch.testing.assert_close(Focal(1.5).from_logits(z, y), (-((1 - p) ** 1.5) * p.log()).mean())
    torch.testing.assert_close(Focal(0).from_logits(z, y), F.cross_entropy(z, y))


def test_mce_from_its_definition_and_in_the_limit():
    z = torch.randn(30, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.arange(30) % 5
    others = torch.stack([torch.cat([row[:k], row[k + 1 :]]) for row, k in zip(z, y, strict=True)])
    own = z.gather(1, y[:, None]).squeeze(1)
    d = ((2 * others).exp().mean(1)).log() / 2 - own
    torch.testing.assert_close(
        MCE(eta=2, xi=0.5, theta=0.1).from_logits(z, y), torch.sigmoid(0.5 * d + 0.1).mean()
    )
    torch.testing.assert_close(
        LargeMarginMCE(eta=2, xi=0.5, margin=0.4).from_logits(z, y), torch.sigmoid(0.5 * (d + 0.4)).mean()
    )
    nearest = torch.sigmoid(others.max(1).values - own).mean()
    torch.testing.assert_close(MCE(eta=500).from_logits(z, y), nearest, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", CRITERIA)
def test_soft_labels_are_shares_of_hard_ones(name):
    z = torch.randn(12, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    first, second = torch.arange(12) % 4, (torch.arange(12) * 3 + 1) % 4
    share = torch.linspace(0, 1, 12, dtype=torch.float64)[:, None]
    soft = share * F.one_hot(first, 4) + (1 - share) * F.one_hot(second, 4)
    values = soft_target_loss(CRITERIA[name], z, soft)
    wanted = share[:, 0] * CRITERIA[name](z, first) + (1 - share[:, 0]) * CRITERIA[name](z, second)
    torch.testing.assert_close(values, wanted)
    (a,) = torch.autograd.grad(values.sum(), z, retain_graph=True)
    (b,) = torch.autograd.grad(wanted.sum(), z)
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", PLAIN)
def test_every_loss_lowers_itself_and_takes_soft_labels_and_weights(classifier, batch, name):
    objective = OBJECTIVES[name]()
    soft = replace(batch, labels=F.one_hot(batch.labels, 4).float())
    torch.testing.assert_close(objective(classifier, soft), objective(classifier, batch))
    alike = replace(objective, class_weights=(1.0, 1.0, 1.0, 1.0))
    torch.testing.assert_close(alike(classifier, batch), objective(classifier, batch))
    only = replace(objective, class_weights=(1.0, 0.0, 0.0, 0.0))
    mine = torch.tensor([0, 4])
    own = replace(batch, pixels=batch.pixels[mine], labels=batch.labels[mine], index=mine)
    torch.testing.assert_close(only(classifier, batch), objective(classifier, own) * 2 / 6)
    moved = copy.deepcopy(classifier)
    before = objective(moved, batch)
    before.backward()
    with torch.no_grad():
        for parameter in moved.parameters():
            assert parameter.grad is not None
            parameter.sub_(0.01 * parameter.grad)
    assert objective(moved, batch) < before


@pytest.mark.parametrize("name", PLAIN)
def test_under_bfloat16_a_loss_is_worked_in_float32(classifier, batch, name):
    with torch.autocast("cpu", torch.bfloat16):
        logits = classifier(batch.pixels)
        loss = OBJECTIVES[name]()(classifier, batch)
    assert logits.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, OBJECTIVES[name]().from_logits(logits.float(), batch.labels))


def test_balanced_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.array([0] * 50 + [1] * 30 + [3] * 20)
    ours = BalancedWeights()(np.bincount(labels, minlength=5))
    theirs = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels)
    assert [ours[k] for k in (0, 1, 3)] == pytest.approx(theirs)
    assert ours[2] == ours[4] == 0


def test_effective_number_weights():
    counts = np.array([5000, 500, 5, 0])
    ours = np.array(EffectiveNumberWeights(0.999)(counts))
    worth = np.array([sum(0.999**j for j in range(n)) for n in counts[:3]])
    assert ours[:3] / ours[0] == pytest.approx(worth[0] / worth)
    assert ours[3] == 0
    assert (ours * counts).sum() == pytest.approx(counts.sum())
    assert EffectiveNumberWeights(0)(counts[:3]) == pytest.approx((1.0, 1.0, 1.0))
    close = np.array(EffectiveNumberWeights(1 - 1e-9)(counts[:3]))
    assert close == pytest.approx(BalancedWeights()(counts[:3]), rel=1e-4)


@pytest.mark.parametrize("name", CLASS_WEIGHTINGS)
def test_every_weighting_has_a_mean_of_one_over_images(name):
    counts = np.array([7, 0, 100, 13])
    weights = CLASS_WEIGHTINGS[name]()(counts)
    assert weights is None or np.dot(weights, counts) == pytest.approx(120)


def test_the_recipe_chooses_loss_weight_smoothing_and_weights():
    counts = np.array([3, 1])
    made = build_objective(Recipe(loss="m3ce-cec", loss_weight=0.083, label_smoothing=0.1), counts)
    assert made == M3CECEc(weight=0.083, label_smoothing=0.1)
    assert build_objective(Recipe(loss="focal:3")) == Focal(3)
    assert build_objective(Recipe(class_weights="balanced"), counts) == CrossEntropy(
        class_weights=BalancedWeights()(counts)
    )
    made = build_objective(Recipe(loss="mce:eta=2", class_weights="effective:0.9"), counts)
    assert made == MCE(eta=2, class_weights=EffectiveNumberWeights(0.9)(counts))


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"loss": "m3ec"}, ChoiceError, "Did you mean 'm3ce'"),
        ({"loss": "focal:gama=2"}, ChoiceError, "no argument 'gama'.*'gamma'"),
        ({"loss": "focal:gamma=-1"}, ChoiceError, "gamma must be a number of at least 0"),
        ({"loss": "mce:eta=inf"}, ChoiceError, "eta must be a number above 0, not 'inf'"),
        ({"loss": "mce:xi=1e400"}, ChoiceError, "xi must be a number above 0, not inf"),
        ({"loss": "mce:xi=0"}, ChoiceError, "xi must be a number above 0"),
        ({"loss": "large-margin-mce:theta=wide"}, ChoiceError, "theta must be a number, not 'wide'"),
        ({"loss": "m3ce-cec-normalised", "loss_weight": 1.0}, ChoiceError, "weight must be below 1"),
        ({"loss": "cross-entropy", "loss_weight": 0.5}, RecipeError, "no use for loss_weight.*m3ce-cec"),
        ({"loss": "m3ce", "label_smoothing": 0.1}, RecipeError, "no use for label_smoothing.*m3ce-cec"),
        ({"class_weights": "effectve"}, ChoiceError, "Did you mean 'effective'"),
        ({"class_weights": "effective:2"}, ChoiceError, "beta must be a number of at least 0 and below 1"),
    ],
)
def test_a_loss_that_cannot_be_is_refused_in_a_sentence(fields, error, words):
    with pytest.raises(error, match=words):
        build_objective(Recipe(**fields), np.array([3, 1]))


def test_lambda_safe():
    assert [lambda_safe(g) for g in (1, 2, 3)] == pytest.approx([1, 1 / 4, 1 / 12])
    assert math.isclose(lambda_safe(), 1 / 12)
