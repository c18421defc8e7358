"""Which images are remembered."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from sightline.continual.exemplars import Reservoir, balanced_sample, equal_shares, herd
from sightline.errors import DataError


def test_a_reservoir_is_uniform():
    counts = np.zeros(30)
    for seed in range(600):
        reservoir = Reservoir(5, seed)
        reservoir.add(range(10))
        later = Reservoir(5, seed, positions=reservoir.positions, seen=reservoir.seen)  # the next task
        later.add(range(10, 30))
        counts[later.positions] += 1
    assert counts.sum() == 5 * 600
    assert chisquare(counts).pvalue > 1e-3


def test_a_reservoir_holds_all_of_a_short_stream():
    reservoir = Reservoir(5)
    reservoir.add([3, 1])
    assert reservoir.positions == [3, 1]


def test_herding_vector():
    assert herd(np.array([[1, 0], [0.8, 0.6], [0, 1], [0.6, 0.8]]), 4) == [3, 1, 2, 0]


@pytest.mark.parametrize("seed", range(4))
def test_herding_takes_the_nearest_mean_at_each_step(seed):
    features = np.random.default_rng(seed).normal(size=(9, 4))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    chosen: list[int] = []
    for _ in range(5):
        left = [i for i in range(9) if i not in chosen]
        chosen.append(min(left, key=lambda i: np.linalg.norm(unit.mean(0) - unit[[*chosen, i]].mean(0))))
    assert herd(features, 5) == chosen


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(0, 80))
def test_equal_shares(counts, size):
    shares = equal_shares(np.array(counts), size)
    assert shares.sum() == min(size, sum(counts))
    assert (shares <= counts).all()
    for one, other in itertools.permutations(range(len(counts)), 2):
        # a class has fewer by more than one only where it has no more images
        assert shares[one] >= shares[other] - 1 or shares[one] == counts[one]


def test_a_balanced_sample():
    labels = np.array([0] * 50 + [1] * 3 + [2] * 50)
    chosen = balanced_sample(labels, 23, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [10, 3, 10]
    assert len(set(chosen.tolist())) == 23
    assert not np.array_equal(chosen, balanced_sample(labels, 23, seed=1))


def test_a_memory_smaller_than_the_classes_is_refused():
    with pytest.raises(DataError, match="2 images is smaller than one image for each of 3 classes"):
        balanced_sample(np.array([0, 1, 2, 2]), 2, seed=0)
