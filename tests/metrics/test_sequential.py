"""Inference at any number of looks, and estimates without labels, against vectors, brute force and scipy."""

from math import comb

import numpy as np
import pytest
from scipy.stats import binom, kstest
from scipy.stats import energy_distance as scipy_energy

from sightline.metrics import (
    Bets,
    ScoreRanks,
    anytime_interval,
    disagreement_e_value,
    energy_distance,
    estimate_accuracy,
    estimate_class_shares,
    population_stability_index,
    wilson,
)

# Intervals and e-values


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(18, 20, 0.591, 0.996), (45, 50, 0.713, 0.984), (90, 100, 0.772, 0.971), (450, 500, 0.846, 0.941),
     (900, 1000, 0.862, 0.931)],
)  # fmt: skip
def test_the_anytime_interval_has_its_published_bounds(right, n, low, high):
    found = anytime_interval(right, n)
    assert (found.low, found.high) == (pytest.approx(low, abs=6e-4), pytest.approx(high, abs=6e-4))
    assert found.low < wilson(right, n).low < wilson(right, n).high < found.high


def test_the_anytime_interval_of_nothing_and_of_all():
    assert (anytime_interval(0, 0).low, anytime_interval(0, 0).high) == (0, 1)
    assert anytime_interval(0, 30).low == 0
    assert anytime_interval(30, 30).high == 1
    with pytest.raises(ValueError, match="impossible"):
        anytime_interval(3, 2)


def test_the_anytime_interval_holds_at_all_looks_together():
    chance = np.random.default_rng(0)
    left = 0
    for _ in range(100):
        right = np.cumsum(chance.random(400) < 0.9)
        looks = [anytime_interval(int(right[n - 1]), n) for n in (*range(5, 100, 10), 200, 400)]
        left += any(not one.low <= 0.9 <= one.high for one in looks)
    assert left <= binom.ppf(0.999, 100, 0.05)


@pytest.mark.parametrize(
    ("wins", "losses", "two_sided", "one_sided"),
    [(8, 2, 2.0687, 4.0020), (15, 5, 3.2206, 6.3555), (20, 5, 24.2905, 48.5205), (30, 10, 31.637, 63.228),
     (3, 12, 4.5011, 0.0957), (0, 7, 16, 0.125)],
)  # fmt: skip
def test_e_values_of_disagreements_have_their_published_values(wins, losses, two_sided, one_sided):
    assert disagreement_e_value(wins, losses, one_sided=False) == pytest.approx(two_sided, rel=1e-4)
    assert disagreement_e_value(wins, losses) == pytest.approx(one_sided, rel=1e-3)


@pytest.mark.parametrize("one_sided", [True, False])
def test_the_mean_of_an_e_value_is_one_where_both_are_equally_good(one_sided):
    for n in (0, 1, 7, 40):
        mean = sum(comb(n, k) / 2**n * disagreement_e_value(k, n - k, one_sided=one_sided) for k in range(n + 1))
        assert mean == pytest.approx(1)


# Ranks and bets


def test_bets_have_their_published_capital():
    bets, found = Bets.start(1), []
    for p in (0.1, 0.2, 0.3, 0.9, 0.05):
        bets.bet(np.array([p]), jump=0.01)
        found.append(bets.capital)
    assert found == pytest.approx([1.0, 1.0792, 1.171072, 0.93011371, 1.04934417])
    bets = Bets.start(1)
    for _ in range(20):
        bets.bet(np.array([0.02]), jump=0.01)
    assert bets.capital == pytest.approx(760.2065, rel=1e-6)


def test_evidence_is_the_sum_over_starts_of_capital_since_then():
    chance = np.random.default_rng(1)
    bets, growth, before = Bets.start(1), [], 1.0
    for p in chance.random(50):
        bets.bet(np.array([p]))
        growth.append(bets.capital / before)
        before = bets.capital
    expected = sum(np.prod(growth[start:]) for start in range(50))
    assert bets.evidence == pytest.approx(expected)


def test_ranks_are_those_of_brute_force():
    chance = np.random.default_rng(2)
    scores = chance.normal(size=(120, 3)).round(1).astype(np.float16)  # many ties, negative values, both zeros
    scores[5, 0], scores[90, 1], scores[91, 1] = np.nan, -np.inf, np.inf
    ranks = ScoreRanks.of(scores[:40])
    for t in range(40, 120):
        ties = chance.random(3)
        found = ranks.add(scores[t], ties)
        seen = np.where(np.isnan(scores[: t + 1]), np.inf, scores[: t + 1])
        expected = ((seen > seen[-1]).sum(0) + ties * (seen == seen[-1]).sum(0)) / (t + 1)
        assert found == pytest.approx(expected)


@pytest.fixture(scope="module")
def outputs():
    """Confidences of a real classifier on images that it was not trained on, in random order."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    digits = load_digits()
    chance = np.random.default_rng(0)
    order = chance.permutation(len(digits.target))
    images, labels = digits.data[order], digits.target[order]
    return (
        LogisticRegression(C=0.01, max_iter=300).fit(images[:400], labels[:400]).predict_proba(images[400:]).max(1)
    )


def quiet_capitals(outputs, *, reference, answers, streams, fixed=False):
    """The largest capital of each quiet stream; every stream is a channel."""
    chance = np.random.default_rng(3)
    drawn = np.stack([chance.permutation(outputs)[: reference + answers] for _ in range(streams)], 1)
    ranks, bets = ScoreRanks.of(drawn[:reference]), Bets.start(streams)
    largest = np.zeros(streams)
    held = ranks.counts.copy(), ranks._by_high_byte.copy()
    for scores in drawn[reference:]:
        bets.bet(ranks.add(scores, chance.random(streams)))
        largest = np.maximum(largest, bets.log_capital)
        if fixed:
            ranks.counts[:], ranks._by_high_byte[:], ranks.seen = *held, reference
    return np.exp(largest)


def test_quiet_streams_of_real_outputs_raise_no_more_alarms_than_promised(outputs):
    largest = quiet_capitals(outputs, reference=100, answers=500, streams=100)
    assert (largest >= 100).sum() <= binom.ppf(0.999, 100, 0.01)
    assert (largest >= 20).sum() <= binom.ppf(0.999, 100, 0.05)


def test_ranks_among_a_fixed_reference_break_the_promise(outputs):
    largest = quiet_capitals(outputs, reference=40, answers=800, streams=40, fixed=True)
    assert (largest >= 20).sum() > binom.ppf(0.999, 40, 0.05)


def test_p_values_of_a_quiet_stream_are_uniform(outputs):
    chance = np.random.default_rng(4)
    ranks = ScoreRanks.of(outputs[:100, None])
    found = [ranks.add(score, chance.random(1))[0] for score in outputs[100:, None]]
    assert kstest(found, "uniform").pvalue > 0.001


# Estimates without labels


def test_estimates_of_accuracy_have_their_published_values():
    held_out = np.array([0.95, 0.9, 0.8, 0.7, 0.6, 0.55, 0.5, 0.4])
    right = np.array([1, 1, 1, 0, 1, 0, 1, 0], bool)
    live = np.array([0.9, 0.85, 0.7, 0.65, 0.58, 0.5, 0.45, 0.42, 0.4, 0.35])
    found = estimate_accuracy(held_out, right, live)
    assert (found.atc, found.doc, found.mean_confidence) == pytest.approx((0.4, 0.53, 0.58))
    assert estimate_accuracy(held_out, right, held_out).atc == right.mean()
    opposite = estimate_accuracy(held_out, right, live, entropies=(held_out, live))
    assert (
        opposite.atc == 0.8
    )  # the 3 of the largest entropy, above 0.7, count as wrong: 0.9 and 0.85 of the new ones
    assert estimate_accuracy(held_out, np.zeros(8, bool), live).atc == 0
    assert estimate_accuracy(held_out, np.ones(8, bool), held_out).atc == 1
    with pytest.raises(ValueError, match="needs"):
        estimate_accuracy(held_out, right, live[:0])


def test_class_shares_have_their_published_values():
    weights, shares = estimate_class_shares(np.array([[0.45, 0.05], [0.1, 0.4]]), np.array([0.35, 0.65]))
    assert weights == pytest.approx([0.6143, 1.4714], abs=1e-4)
    assert shares == pytest.approx([0.3379, 0.6621], abs=1e-4)


def test_sizes_of_a_shift_have_their_published_values():
    index = population_stability_index(np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.4, 0.2]))
    assert index == pytest.approx(0.0510826, abs=1e-7)
    x, y = np.array([[0, 0], [1, 0], [0, 1.0]]), np.array([[1.0, 1], [2, 1]])
    assert energy_distance(x, y) == pytest.approx(1.76278, abs=1e-5)
    chance = np.random.default_rng(5)
    one, other = chance.normal(size=40), chance.normal(0.5, 1, size=30)
    assert energy_distance(one[:, None], other[:, None]) == pytest.approx(scipy_energy(one, other) ** 2)
