"""Randomised smoothing: bounds against SciPy, radii against the distance to a plane, where both are known."""

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from sightline.classifier import Classifier
from sightline.errors import RecipeError
from sightline.layers import Network
from sightline.models import Architecture
from sightline.preprocessing import NoiseFilter, Preprocessing
from sightline.robustness.smoothing import (
    ABSTAINS,
    Certificate,
    certified_radius,
    certify,
    clopper_pearson_lower,
    predict_smoothed,
)
from sightline.types import Geometry

ALPHA = 0.001


class Plane(Network):
    """Two classes, on either side of w x = 0.5 w 1."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 2, bias=True)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[0.0, 0, 0, 0], [1.0, 2.0, 0.0, 2.0]]))
            self.head.bias.copy_(torch.tensor([0.0, -2.5]))

    def logits(self, pixels):
        return self.head(pixels.flatten(1))


def classifier_of(*steps):
    plan = Architecture("mlp", {"classes": 2, "channels": 1, "size": [2, 2]})
    geometry = Geometry(size=(2, 2), channels=1)
    return Classifier(Preprocessing(steps), Plane(), architecture=plan, classes=("no", "yes"), geometry=geometry)


def images_at(*distances):
    """Images at these distances from the plane, on its far side where positive."""
    unit = torch.tensor([1.0, 2.0, 0.0, 2.0]) / 3
    return torch.stack([(0.5 + d * unit).view(1, 2, 2) for d in distances])


@pytest.mark.parametrize("n", [1, 10, 100, 1000])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_the_bound_is_clopper_and_pearsons(n, share, alpha):
    count = round(share * n)
    found = clopper_pearson_lower(count, n, alpha)
    right = scipy.stats.binomtest(count, n).proportion_ci(1 - 2 * alpha, "exact").low
    assert found == pytest.approx(right, abs=1e-12)
    if count:
        assert scipy.stats.binom.sf(count - 1, n, found) == pytest.approx(alpha, rel=1e-6)


def test_the_bound_is_above_the_truth_as_rarely_as_it_says():
    chance = np.random.default_rng(0)
    for p in (0.55, 0.9):
        wrong = np.mean([clopper_pearson_lower(int(k), 60, 0.05) > p for k in chance.binomial(60, p, 4000)])
        assert wrong <= 0.05 + 0.01


@pytest.mark.parametrize("p", [0.5, 0.6, 0.9, 0.999])
def test_the_radius_is_the_normal_quantile(p):
    assert certified_radius(0.25, p) == pytest.approx(0.25 * scipy.stats.norm.ppf(p), abs=1e-12)
    assert certified_radius(0.25, 0.4) == 0


def test_radii_of_a_plane_are_the_distance_to_it():
    """There the smoothed answer changes exactly at the plane, so the true radius is known."""
    distances = (-0.6, -0.3, -0.1, 0.05, 0.2, 0.4)
    found = certify(
        classifier_of(), images_at(*distances), sigma=0.25, draws=20_000, alpha=ALPHA, batch_size=20_000
    )
    assert found.answers.tolist() == [0, 0, 0, 1, 1, 1]
    assert (found.radii <= np.abs(distances)).all(), "never more than is true"
    near = np.abs(distances) < 0.5  # further out hardly a draw falls on the other side
    assert np.allclose(found.radii[near], np.abs(distances)[near], atol=0.03)
    assert (found.radii > 0).all()


def test_within_the_radius_the_answer_does_not_change():
    images = images_at(0.15, -0.25)
    held = certify(classifier_of(), images, sigma=0.25, draws=2000)
    unit = images_at(1.0)[0] - 0.5
    for sign in (-1, 1):
        moved = torch.stack(
            [image + sign * 0.9 * float(r) * unit for image, r in zip(images, held.radii, strict=True)]
        )
        votes = predict_smoothed(classifier_of(), moved, sigma=0.25, draws=5000, batch_size=5000)
        assert np.array_equal(votes, held.answers)


def test_on_the_plane_it_abstains():
    found = certify(classifier_of(), images_at(0.0, 0.3), sigma=0.25, draws=500)
    assert found.answers.tolist() == [ABSTAINS, 1]
    assert found.radii[0] == 0
    assert predict_smoothed(classifier_of(), images_at(0.0, 0.3), sigma=0.25, draws=500).tolist() == [ABSTAINS, 1]


def test_certified_accuracy_counts_what_is_right_and_held():
    found = Certificate(np.array([0, 1, ABSTAINS, 1]), np.array([0.3, 0.1, 0.0, 0.5]), 0.25, 100, ALPHA)
    labels = np.array([0, 1, 1, 0])
    assert [found.accuracy(labels, r).value for r in (0, 0.1, 0.2, 0.4)] == [0.5, 0.5, 0.25, 0.0]
    assert found.accuracy(labels).low < 0.5 < found.accuracy(labels).high


def test_sigma_is_that_of_the_classifiers_own_noise_which_is_left_out():
    """With its own noise beside the smoothing noise, the radius of a plane would come out too small."""
    images = images_at(0.2)
    own = certify(classifier_of(NoiseFilter(0.25)), images, draws=20_000, batch_size=20_000)
    assert own.sigma == 0.25
    assert own.radii[0] == pytest.approx(0.2, abs=0.02)


def test_it_repeats():
    one, other = (certify(classifier_of(), images_at(0.1, 0.2), sigma=0.3, draws=300) for _ in range(2))
    assert np.array_equal(one.radii, other.radii)
    assert not np.array_equal(
        one.radii, certify(classifier_of(), images_at(0.1, 0.2), sigma=0.3, draws=300, seed=1).radii
    )


def test_numbers_that_make_no_certificate_are_refused():
    images = images_at(0.1)
    with pytest.raises(RecipeError, match=r"noise:0\.25\+fitted"):
        certify(classifier_of(), images)
    for wrong, what in (
        ({"sigma": 0.0}, "sigma is 0.0"),
        ({"sigma": 0.25, "draws": 0}, r"draws \(0\)"),
        ({"sigma": 0.25, "alpha": 0.5}, r"alpha \(0.5\)"),
        ({"sigma": 0.25, "first": 0}, r"first \(0\)"),
    ):
        with pytest.raises(RecipeError, match=what):
            certify(classifier_of(), images, **wrong)  # pyright: ignore[reportArgumentType]
