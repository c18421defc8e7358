"""CP by alternating least squares, ours against tensorly's: error and time on weights of convolutions.

    python benchmarks/cp.py

About a minute of one core. Weights are random, or a sum of ``rank`` products with noise of a tenth of their length.
Ours ends where a sweep lowers the error by less than 1 in 1,000 of itself; tensorly's ``parafac`` (SVD start) by less
than ``tol``, of which the values nearest in accuracy are shown. The fastest of 3 times.
"""

import time
import warnings
from collections.abc import Callable

import torch
from record import record
from tensorly import cp_to_tensor, set_backend
from tensorly.decomposition import parafac
from torch import Tensor

from sightline.compression.lowrank import DECOMPOSITIONS

LAYERS = {(64, 32, 3, 3): 20, (128, 64, 3, 3): 60, (64, 64, 5, 5): 50, (16, 3, 3, 3): 6}
"""Shape of a weight -> rank."""

TOLERANCES = (1e-3, 1e-4, 1e-5)
"""Of tensorly: the fall of the relative error in a sweep below which it ends."""


def weight_of(shape: tuple[int, ...], rank: int, kind: str) -> Tensor:
    """A weight without structure (``random``), or nearly of the rank (``low rank``)."""
    torch.manual_seed(0)
    if kind == "random":
        return torch.randn(shape, dtype=torch.float64)
    exact = torch.einsum("or,ir,hr,wr->oihw", *(torch.randn(n, rank, dtype=torch.float64) for n in shape))
    noise = torch.randn(shape, dtype=torch.float64)
    return exact + 0.1 * exact.norm() / noise.norm() * noise


def ours(weight: Tensor, rank: int) -> Tensor:
    """The tensor of our factors."""
    inputs, down, along, outputs = (part.double() for part in DECOMPOSITIONS["cp"](weight).factor_weights(rank))
    factors = outputs[..., 0, 0], inputs[..., 0, 0].T, down[:, 0, :, 0].T, along[:, 0, 0].T
    return torch.einsum("or,ir,hr,wr->oihw", *factors)


def measure(decompose: Callable[[], Tensor], weight: Tensor) -> dict[str, float]:
    """Relative error and seconds."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        found = decompose()
        seconds.append(time.perf_counter() - start)
    return {"error": round(float((found - weight).norm() / weight.norm()), 4), "seconds": round(min(seconds), 3)}


def main() -> None:
    """Measure each layer and record all."""
    torch.set_num_threads(1)
    set_backend("pytorch")
    warnings.simplefilter("ignore")
    figures = {}
    for shape, rank in LAYERS.items():
        for kind in ("random", "low rank"):
            weight = weight_of(shape, rank, kind)
            found = {"ours": measure(lambda w=weight, r=rank: ours(w, r), weight)}
            for tol in TOLERANCES:
                found[f"tensorly, tol {tol:g}"] = measure(
                    lambda w=weight, r=rank, t=tol: cp_to_tensor(parafac(w, r, init="svd", tol=t, random_state=0)),
                    weight,
                )
            figures[f"{' x '.join(map(str, shape))}, rank {rank}, {kind}"] = found
    record("cp", figures)


if __name__ == "__main__":
    main()
