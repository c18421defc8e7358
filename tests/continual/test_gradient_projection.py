"""GEM and A-GEM: vectors, brute force, and no task made worse."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from sightline.continual.gradient_projection import project_agem, project_gem

GRADIENT = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
PAST = torch.tensor([[-1.0, 0.0, 1.0], [0.0, -1.0, 0.5]], dtype=torch.float64)


def test_exact_vector():
    found = project_gem(GRADIENT, PAST)
    np.testing.assert_allclose(found, [4 / 9, 2 / 9, 4 / 9], atol=1e-12)
    np.testing.assert_allclose(PAST @ found, [0, 0], atol=1e-12)


def test_published_code_lets_a_task_get_worse():
    found = project_gem(GRADIENT, PAST, eps=1e-3)
    np.testing.assert_allclose(PAST @ found, [-5.6e-4, -1.8e-3], atol=5e-5)


def test_averaged_vector():
    assert project_agem(GRADIENT, PAST[0]).tolist() == [0, 2, 0]
    assert project_agem(GRADIENT, -PAST[0]) is GRADIENT


@pytest.mark.parametrize("seed", range(20))
def test_the_projection_is_the_nearest_of_all_active_sets(seed):
    rng = np.random.default_rng(seed)
    tasks = int(rng.integers(1, 5))
    g, past = torch.from_numpy(rng.normal(size=8)), torch.from_numpy(rng.normal(size=(tasks, 8)))
    found = project_gem(g, past)
    best, nearest = None, np.inf
    for active in itertools.chain.from_iterable(itertools.combinations(range(tasks), n) for n in range(tasks + 1)):
        candidate = g
        if active:
            rows = past[list(active)]
            candidate = g - rows.T @ torch.linalg.solve(rows @ rows.T, rows @ g)
        if bool((past @ candidate >= -1e-9).all()) and (distance := float((candidate - g).norm())) < nearest:
            best, nearest = candidate, distance
    np.testing.assert_allclose(found, best, atol=1e-8)
    assert bool((past @ found >= -1e-6 * past.norm(dim=1) * found.norm()).all())


def test_a_harmless_gradient_is_left_alone():
    assert project_gem(GRADIENT, -PAST) is GRADIENT
    assert project_gem(GRADIENT, PAST[:0]) is GRADIENT


def test_tasks_that_repeat_are_one():
    once, twice = project_gem(GRADIENT, PAST), project_gem(GRADIENT, torch.cat([PAST, PAST]))
    np.testing.assert_allclose(once, twice, atol=1e-9)
    assert project_gem(GRADIENT.float(), PAST.float()).dtype == torch.float32


@pytest.mark.parametrize("margin", [0.0, 0.5])
@pytest.mark.parametrize("eps", [0.0, 1e-3])
def test_the_dual_is_the_published_one(margin, eps):
    """min over v >= margin of v' (G G' + eps I) v / 2 + (G g)' v, by another solver."""
    g, rows = GRADIENT.numpy(), PAST.numpy()
    gram = rows @ rows.T + eps * np.eye(2)
    found = minimize(
        lambda v: v @ gram @ v / 2 + (rows @ g) @ v,
        np.full(2, 1.0),
        jac=lambda v: gram @ v + rows @ g,
        bounds=[(margin, None)] * 2,
        method="L-BFGS-B",
        options={"ftol": 1e-15, "gtol": 1e-10},
    )
    np.testing.assert_allclose(
        project_gem(GRADIENT, PAST, margin=margin, eps=eps), rows.T @ found.x + g, atol=1e-6
    )
