"""CP and Tucker against tensorly, an independent implementation."""

import pytest
import torch
from tensorly import cp_to_tensor
from tensorly.decomposition import parafac, partial_tucker

from sightline import runtime
from sightline.compression import lowrank
from sightline.compression.lowrank import DECOMPOSITIONS

SHAPES = [(12, 9, 3, 3), (16, 3, 5, 5), (7, 20, 1, 4)]


def weight_of(shape, seed=0):
    """A tensor that is nearly of rank 4, as trained weights are nearly of some rank."""
    generator = torch.Generator().manual_seed(seed)
    factors = [torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in shape]
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    return torch.einsum("or,ir,hr,wr->oihw", *factors) + 0.5 * noise


def cp_product(parts):
    inputs, down, along, outputs = (part.double() for part in parts)
    return torch.einsum(
        "or,ir,hr,wr->oihw", outputs[..., 0, 0], inputs[..., 0, 0].T, down[:, 0, :, 0].T, along[:, 0, 0].T
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 3, 6])
def test_sweeps_of_least_squares_are_tensorlys(shape, rank, monkeypatch):
    """The same start and the same number of sweeps give the same tensor."""
    monkeypatch.setattr(lowrank, "MAX_ALS_SWEEPS", 4)
    monkeypatch.setattr(lowrank, "ALS_TOLERANCE", -1.0)  # no early end
    weight = weight_of(shape)
    own = cp_product(DECOMPOSITIONS["cp"](weight).factor_weights(rank))
    chance = runtime.make_generator(0)
    start = [lowrank._initial_factor(weight, axis, rank, chance).numpy() for axis in range(4)]
    theirs = parafac(weight.numpy(), rank, n_iter_max=4, init=(None, start), tol=0, normalize_factors=False)
    torch.testing.assert_close(own, torch.from_numpy(cp_to_tensor(theirs)), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Trying to compute SVD")
@pytest.mark.parametrize("shape", SHAPES)
def test_cp_is_as_near_as_tensorlys(shape):
    """Ended by their own rules, the errors are within a tenth of each other, or ours is smaller."""
    weight = weight_of(shape)
    own = cp_product(DECOMPOSITIONS["cp"](weight).factor_weights(4))
    theirs = cp_to_tensor(parafac(weight.numpy(), 4, init="svd", random_state=0))
    assert (own - weight).norm() <= 1.1 * (torch.from_numpy(theirs) - weight).norm()


@pytest.mark.parametrize("shape", SHAPES)
def test_tucker_is_within_its_bound_of_tensorlys(shape):
    """tensorly iterates to a local optimum (HOOI); the truncated HOSVD is at most sqrt(2) from the best."""
    weight = weight_of(shape)
    inputs, core, outputs = (p.double() for p in DECOMPOSITIONS["tucker"](weight).factor_weights(3, 4))
    own = torch.einsum("fi,sfyx,os->oiyx", inputs[..., 0, 0], core, outputs[..., 0, 0])
    (best, factors), _ = partial_tucker(weight.numpy(), rank=(4, 3), modes=[0, 1])
    theirs = torch.einsum("ofyx,ao,bf->abyx", *(torch.from_numpy(x.copy()) for x in (best, *factors)))
    errors = [float((one - weight).norm()) for one in (own, theirs)]
    assert errors[1] <= errors[0] * (1 + 1e-9)
    assert errors[0] <= 2**0.5 * errors[1]
