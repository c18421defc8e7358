"""find_close_pairs against every pair compared in float64."""

import numpy as np
import pytest

from sightline.data import similarity_join
from sightline.data.similarity_join import find_close_pairs

COUNT, DISTANCE, ROUNDING = 1200, 0.2, 1e-5


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def steep(rng: np.random.Generator) -> np.ndarray:
    """Like frequencies of pictures: the first axes vary most."""
    return unit(rng.normal(size=(COUNT, 63)) / np.arange(1, 64))


KINDS = {
    "isotropic": lambda rng: unit(rng.normal(size=(COUNT, 63))),
    "steep": steep,
    "a plane": lambda rng: unit(rng.normal(size=(COUNT, 3)) @ rng.normal(size=(3, 63))),
    "clusters": lambda rng: unit(
        rng.normal(size=(20, 63))[rng.integers(0, 20, COUNT)] + rng.normal(0, 0.1, (COUNT, 63))
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_finds_every_planted_and_every_other_pair(kind, monkeypatch):
    """Copies are planted up to the very distance; the leaves are small, so that most pairs lie in two of them."""
    rng = np.random.default_rng(0)
    vectors = KINDS[kind](rng)
    away = rng.normal(size=(COUNT // 3, 63))
    away *= rng.uniform(0.5, 0.99, (len(away), 1)) * DISTANCE / np.linalg.norm(away, axis=1, keepdims=True)
    vectors[-len(away) :] = unit(vectors[: len(away)] + away)
    monkeypatch.setattr(similarity_join, "MAX_LEAF_VECTORS", 16)
    monkeypatch.setattr(similarity_join, "_COLUMNS", 100)
    found = find_close_pairs(vectors, DISTANCE, most=COUNT)
    products = np.triu(vectors.astype(np.float64) @ vectors.T.astype(np.float64), 1)
    limit = 1 - DISTANCE**2 / 2
    surely, perhaps = (set(map(tuple, np.argwhere(products > limit + room))) for room in (ROUNDING, -ROUNDING))
    assert len(surely) > len(away) / 2
    assert len({tuple(pair) for pair in found}) == len(found)
    assert surely <= {tuple(pair) for pair in found} <= perhaps


@pytest.mark.parametrize("kind", ["an arc", "one scene", "equal"])
def test_of_vectors_with_very_many_alike_the_closest_are_kept(kind, monkeypatch):
    """A pair is lost only where one of the two keeps as many that are as close, each pair compared in float64."""
    monkeypatch.setattr(similarity_join, "MAX_LEAF_VECTORS", 64)
    monkeypatch.setattr(similarity_join, "_COLUMNS", 100)
    rng, angle, most = np.random.default_rng(0), np.linspace(0, 0.1, 500), 30
    vectors = {
        "an arc": np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32),
        "one scene": unit(1 + rng.normal(0, 0.05, (500, 63))),
        "equal": unit(np.ones((500, 63))),
    }[kind]
    found = find_close_pairs(vectors, DISTANCE, most=most)
    kept = np.zeros((500, 500), np.bool_)
    kept[found[:, 0], found[:, 1]] = kept[found[:, 1], found[:, 0]] = True
    products = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    worst_kept = -np.sort(-np.where(kept, products, -1), axis=1)[:, most - 1]
    one, two = np.nonzero(np.triu((products > 1 - DISTANCE**2 / 2) & ~kept, 1))
    assert len(one) > 100_000
    assert (np.maximum(worst_kept[one], worst_kept[two]) >= products[one, two] - ROUNDING).all()
    assert 499 <= len(np.unique(found, axis=0)) == len(found) <= 500 * most


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_vectors(count):
    assert (
        find_close_pairs(np.tile(np.float32([0.6, 0.8]), (count, 1)), DISTANCE, most=1).tolist()
        == [[0, 1]][: count - 1]
    )
