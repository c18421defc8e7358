"""Low rank: a layer whose weight is nearly a product of smaller ones is replaced by these.

The decompositions are computed in float64.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .. import progress, runtime
from ..checks import check_positive
from ..choose import suggest
from ..classifier import Classifier
from ..errors import RecipeError
from ..layers import FactorisedLayer, Network, factorise_layers
from ..models import compressible_layers, copy_network, count_parameters
from ..types import Splits
from .compressor import Compressor, example_input

DEFAULT_ENERGY = 0.95
"""Share of each layer's squared weights that is kept by default."""

BLOCKED_BY_PRUNING = {
    "masked": "Its pruned weights are zero, and factors would fill them: factorise first, then prune."
}

LEVEL_SEARCH_STEPS = 30
"""Bisections of the search for the level that meets a budget."""

MAX_ALS_SWEEPS, ALS_TOLERANCE = 100, 1e-3
"""Largest number of sweeps of alternating least squares, and the relative fall of the error below which they
stop."""


class Decomposition(ABC):
    """A decomposition of one weight: the spectra its ranks are chosen by, and the factors at any ranks."""

    spectra: tuple[Float[Tensor, " _"], ...] = ()
    """Singular values, descending, one row for each rank to choose; empty where there is no spectrum."""

    @abstractmethod
    def __init__(self, weight: Tensor) -> None:
        """Compute what does not depend on the ranks of a layer's ``weight``, (O, I) or (O, I, h, w)."""

    @staticmethod
    @abstractmethod
    def parameter_count(shape: torch.Size, *ranks: int) -> int:
        """The number of parameters of the factors at these ranks, without the bias."""

    @abstractmethod
    def factor_weights(self, *ranks: int) -> list[Tensor]:
        """The weights of the factors at these ranks, in the order of the layers of ``layers.FactorisedLayer``."""


class SVD(Decomposition):
    """``W = (U S^1/2) (S^1/2 V^T)`` of linear layers and 1x1 convolutions.

    The truncated SVD: no other factors of this rank are nearer (Eckart and Young 1936).
    """

    def __init__(self, weight: Tensor) -> None:
        self.tail = weight.shape[2:]
        self.left, values, self.right = svd_by_eigh(weight.flatten(1))
        self.spectra = (values,)

    @staticmethod
    def parameter_count(shape: torch.Size, *ranks: int) -> int:
        """``r (m + n)``."""
        return ranks[0] * (shape[0] + shape[1:].numel())

    def factor_weights(self, *ranks: int) -> list[Tensor]:
        """(r, n) and (m, r), as convolutions where the layer is one."""
        narrow, wide = _split_singular_values(self.left, self.spectra[0], self.right, ranks[0])
        flat = [1 for _ in self.tail]
        return [narrow.reshape(len(narrow), -1, *self.tail), wide.reshape(*wide.shape, *flat)]


class Tucker(Decomposition):
    """``W = core x_I A x_O B`` with orthonormal A (I, r1) and B (O, r2): Kim et al. 2016, arXiv 1511.06530.

    A and B are the leading singular vectors of the two unfoldings (the truncated higher-order SVD of De Lathauwer
    et al. 2000), at most sqrt(2) from the nearest.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.double()
        self.inputs, first, _ = svd_by_eigh(weight.transpose(0, 1).flatten(1))
        self.outputs, second, _ = svd_by_eigh(weight.flatten(1))
        self.spectra = (first, second)

    @staticmethod
    def parameter_count(shape: torch.Size, *ranks: int) -> int:
        """``C r1 + k^2 r1 r2 + r2 O``."""
        first, second = ranks
        return shape[1] * first + shape[2:].numel() * first * second + second * shape[0]

    def factor_weights(self, *ranks: int) -> list[Tensor]:
        """1x1, k x k, 1x1."""
        inputs, outputs = self.inputs[:, : ranks[0]], self.outputs[:, : ranks[1]]
        core = torch.einsum("oihw,if,os->sfhw", self.weight, inputs, outputs)
        return [_as_pointwise(inputs.T), core, _as_pointwise(outputs)]


class SpatialSVD(Decomposition):
    """``W[o, i, y, x] = sum_r A[r, i, y] B[o, r, x]``: the SVD of (I h) x (O w) (Jaderberg et al. 2014)."""

    def __init__(self, weight: Tensor) -> None:
        self.shape = weight.shape
        self.left, values, self.right = svd_by_eigh(weight.permute(1, 2, 0, 3).flatten(2).flatten(0, 1))
        self.spectra = (values,)

    @staticmethod
    def parameter_count(shape: torch.Size, *ranks: int) -> int:
        """``r (C h + O w)``."""
        return ranks[0] * (shape[1] * shape[2] + shape[0] * shape[3])

    def factor_weights(self, *ranks: int) -> list[Tensor]:
        """K x 1, 1 x k."""
        outputs, inputs, height, width = self.shape
        right, left = _split_singular_values(self.left, self.spectra[0], self.right, ranks[0])
        along = right.reshape(-1, outputs, width).transpose(0, 1).unsqueeze(2)
        return [left.T.reshape(-1, inputs, height, 1), along.contiguous()]


class CP(Decomposition):
    """``W[o, i, y, x] = sum_r A[o, r] B[i, r] C[y, r] D[x, r]`` (CP) by alternating least squares.

    Lebedev et al. 2015 (arXiv 1412.6553). It starts from the leading singular vectors of each unfolding, filled up
    with seeded random vectors, so the same weight gives the same factors.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.double()

    @staticmethod
    def parameter_count(shape: torch.Size, *ranks: int) -> int:
        """``r (C + h + w + O)``."""
        return ranks[0] * sum(shape)

    def factor_weights(self, *ranks: int) -> list[Tensor]:
        """1x1, depthwise k x 1 and 1 x k, 1x1."""
        chance = runtime.make_generator(0)
        factors = [_initial_factor(self.weight, axis, ranks[0], chance) for axis in range(4)]
        size, before = float(self.weight.norm().clamp(min=1e-30)), float("inf")
        for _ in range(MAX_ALS_SWEEPS):
            for axis in range(4):
                factors[axis] = _solve_factor(self.weight, factors, axis)
                if axis < 3:
                    factors[axis] = factors[axis] / factors[axis].norm(dim=0).clamp(min=1e-30)
            product = torch.einsum("or,ir,hr,wr->oihw", *factors)
            error = float((self.weight - product).norm()) / size
            if before - error < ALS_TOLERANCE * error or error < 1e-9:
                break
            before = error
        # Columns of equal norm in every factor: training then moves all factors alike.
        lengths = torch.stack([factor.norm(dim=0).clamp(min=1e-30) for factor in factors])
        even = lengths.prod(0) ** (1 / len(factors))
        outputs, inputs, down, along = (
            factor / length * even for factor, length in zip(factors, lengths, strict=True)
        )
        return [
            _as_pointwise(inputs.T),
            down.T[:, None, :, None],
            along.T[:, None, None, :],
            _as_pointwise(outputs),
        ]


DECOMPOSITIONS: Mapping[str, type[Decomposition]] = {
    "svd": SVD,
    "tucker": Tucker,
    "cp": CP,
    "spatial": SpatialSVD,
}
"""Kind of ``layers.FactorisedLayer`` -> its decomposition."""


def svd_by_eigh(
    matrix: Float[Tensor, "m n"],
) -> tuple[Float[Tensor, "m k"], Float[Tensor, " k"], Float[Tensor, "k n"]]:
    """``U, S, V^T`` from the eigenvectors of the smaller of W W^T and W^T W: many times faster for long matrices.

    U S V^T equals the matrix, because one side is a complete orthonormal basis; S is exact to 1e-8 of its largest.
    """
    matrix = matrix.double()
    if len(matrix) > matrix.shape[1]:
        right, values, left = svd_by_eigh(matrix.T)
        return left.T, values, right.T
    left = torch.linalg.eigh(matrix @ matrix.T)[1].flip(1)  # the largest first
    right = left.T @ matrix
    values = right.norm(dim=1)
    return left, values, right / values.clamp(min=1e-30)[:, None]


def rank_for_energy(values: Float[Tensor, " n"], energy: float) -> int:
    """The fewest singular values whose squares reach the share ``energy`` of the sum of all squares."""
    squares = values.square().cumsum(0)
    return 1 + int((squares < energy * squares[-1] * (1 - 1e-12)).sum()) if squares[-1] > 0 else 1


def _split_singular_values(
    left: Float[Tensor, "m k"], values: Float[Tensor, " k"], right: Float[Tensor, "k n"], rank: int
) -> tuple[Float[Tensor, "r n"], Float[Tensor, "m r"]]:
    """``S^1/2 V^T`` and ``U S^1/2`` of the ``rank`` largest: two factors of equal norm."""
    root = values[:rank].sqrt()
    return root[:, None] * right[:rank], left[:, :rank] * root


def _initial_factor(weight: Tensor, axis: int, rank: int, chance: torch.Generator) -> Float[Tensor, "n R"]:
    leading = svd_by_eigh(weight.transpose(0, axis).flatten(1))[0][:, :rank]
    shape = (len(leading), rank - leading.shape[1])
    random = torch.randn(shape, generator=chance, dtype=weight.dtype) / len(leading) ** 0.5
    return torch.cat([leading, random], 1)


def _solve_factor(weight: Tensor, factors: Sequence[Tensor], axis: int) -> Float[Tensor, "n R"]:
    """The least-squares factor of one axis, the others fixed."""
    letters, others = "oihw", [place for place in range(4) if place != axis]
    given = ",".join(f"{letters[place]}r" for place in others)
    seen = torch.einsum(f"{letters},{given}->{letters[axis]}r", weight, *(factors[place] for place in others))
    gram = torch.stack([factors[place].T @ factors[place] for place in others]).prod(0)
    steadied = gram + 1e-12 * gram.diagonal().mean().clamp(min=1e-30) * torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve(steadied, seen.T).T


def _as_pointwise(matrix: Float[Tensor, "O I"]) -> Float[Tensor, "O I 1 1"]:
    return matrix[:, :, None, None].contiguous()


@dataclass(frozen=True, eq=False)
class FactorisableLayer:
    """A layer with its decomposition."""

    layer: nn.Conv2d | nn.Linear
    kind: str
    decomposition: Decomposition
    by_energy: bool

    def ranks(self, level: float) -> list[int]:
        """The ranks that keep the share ``level`` of each spectrum's energy, or of the layer's parameters."""
        if self.by_energy:
            return [rank_for_energy(values, level) for values in self.decomposition.spectra]
        shape = self.layer.weight.shape
        return [max(1, int(level * shape.numel() / self.decomposition.parameter_count(shape, 1)))]

    def saving(self, ranks: list[int]) -> int:
        """Parameters saved at these ranks, 0 or more."""
        shape = self.layer.weight.shape
        return max(0, shape.numel() - self.decomposition.parameter_count(shape, *ranks))


@dataclass(frozen=True)
class LowRank(Compressor):
    """Layers become products of smaller ones: SVD, Tucker-2, CP or spatial factors.

    Linear layers and 1x1 convolutions are factorised by SVD. Layers that would not shrink stay, and so does the
    last.

    Args:
        by: how other convolutions are factorised: ``tucker``, ``cp``, ``spatial``, or ``svd``, not at all.
        energy: share in (0, 1] of each layer's squared weights to keep; 0.95 without a budget.
        budget: share in (0, 1] of the network's parameters to keep, at the highest energy, one for all layers,
            that fits; ``cp`` has no spectrum, so each layer keeps the same share of its own parameters.
    """

    by: str = "svd"
    energy: float | None = None
    budget: float | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for an unknown decomposition, an impossible share, or two contradicting ones."""
        if self.by not in DECOMPOSITIONS:
            raise ValueError(f"there is no decomposition '{self.by}'. {suggest(str(self.by), DECOMPOSITIONS)}")
        for name in ("energy", "budget"):
            if vars(self)[name] is not None:
                check_positive(name, vars(self)[name], 1)
        if self.energy is not None and self.budget is not None:
            raise ValueError("ranks go by energy or by budget: give one of them")
        if self.by == "cp" and self.budget is None:
            raise ValueError("cp has no spectrum to take an energy of: give a budget, such as budget=0.5")

    def __call__(self, classifier: Classifier, data: Splits | None = None) -> Classifier:
        """The classifier with factorised layers: see ``layers.FactorisedLayer``. Uses no images.

        Raises RecipeError for a network that was factorised or pruned before, has no layer that would shrink, or
        cannot meet the budget.
        """
        del data
        network = copy_network(classifier.network, classifier.architecture, "factors", after=BLOCKED_BY_PRUNING)
        pixels = example_input(classifier)
        found = {name: self._factorisable(layer) for name, layer in compressible_layers(network, pixels).items()}
        known = {name: one for name, one in found.items() if one is not None}
        level = _find_level(network, known, self.budget) if self.budget else self.energy or DEFAULT_ENERGY
        ranks = {name: one.ranks(level) for name, one in known.items()}
        plan = {name: {"kind": known[name].kind, "ranks": r} for name, r in ranks.items() if known[name].saving(r)}
        if not plan:
            raise RecipeError(
                "No layer of this network would shrink: choose less energy, a budget, or another decomposition."
            )
        made = factorise_layers(network, plan)
        with progress.progress_bar("Factorising layers", len(plan)) as advance:
            for name in plan:
                fill_factors(made.get_submodule(name), known[name].layer, known[name].decomposition)
                advance()
        try:
            with torch.no_grad():
                made.logits(pixels)
        except (AttributeError, RuntimeError) as error:
            raise RecipeError(
                "This network uses the weights of its layers without calling the layers, so they cannot be "
                "factorised: choose another compressor."
            ) from error
        return classifier.with_network(made, "factors", {"layers": plan})

    def at_strength(self, strength: float) -> Compressor:
        """The same with a ``budget`` of the rest."""
        return replace(self, energy=None, budget=round(1 - strength, 2))

    def _factorisable(self, layer: nn.Conv2d | nn.Linear) -> FactorisableLayer | None:
        """The layer's decomposition; None where it has none."""
        flat = isinstance(layer, nn.Linear) or layer.kernel_size == (1, 1)
        kind = "svd" if flat else self.by
        grouped = isinstance(layer, nn.Conv2d) and (layer.groups != 1 or layer.padding_mode != "zeros")
        if grouped or (kind == "svd" and not flat):
            return None
        return FactorisableLayer(
            layer, kind, DECOMPOSITIONS[kind](layer.weight.detach()), by_energy=self.by != "cp"
        )


@torch.no_grad()
def fill_factors(made: nn.Module, layer: nn.Conv2d | nn.Linear, parts: Decomposition) -> None:
    """Copy the decomposition of ``layer`` and its bias into the factors ``made`` that replace it."""
    assert isinstance(made, FactorisedLayer)
    small = [*made.children()]
    for each, weight in zip(small, parts.factor_weights(*made.ranks), strict=True):
        each.get_parameter("weight").copy_(weight)
    if layer.bias is not None:
        small[-1].get_parameter("bias").copy_(layer.bias)


def _find_level(network: Network, known: Mapping[str, FactorisableLayer], budget: float) -> float:
    """The highest level whose parameters are within the budget, by bisection; RecipeError where there is none."""
    whole = count_parameters(network)

    def left(level: float) -> float:
        return 1 - sum(one.saving(one.ranks(level)) for one in known.values()) / whole

    low, high = 0.0, 1.0
    if (least := left(low)) > budget:
        raise RecipeError(
            f"With rank 1 in every layer {least:.1%} of the parameters are left, more than the budget of "
            f"{budget:.1%}: choose at least {int(least * 100 + 1) / 100}, or another decomposition."
        )
    if left(high) <= budget:
        return high
    for _ in range(LEVEL_SEARCH_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if left(middle) <= budget else (low, middle)
    return low
