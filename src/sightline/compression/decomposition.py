"""Weights of a layer as products of smaller ones; all of it in float64."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from .. import runtime

MAX_ALS_SWEEPS, ALS_TOLERANCE = 100, 1e-3
"""Rounds of alternating least squares, at most, and the relative gain below which they end."""


class Decomposition(ABC):
    """One weight taken apart: what its ranks are chosen by, and the weights of its factors at any ranks."""

    spectra: tuple[Float[Tensor, " _"], ...] = ()
    """Singular values, falling, for each rank to be chosen; none where there is no spectrum."""

    @abstractmethod
    def __init__(self, weight: Tensor) -> None:
        """Take a layer's weight apart, as far as that does not depend on ranks."""

    @staticmethod
    @abstractmethod
    def parameter_count(shape: torch.Size, *ranks: int) -> int:
        """Numbers in the factors of a weight of this shape, the bias not counted."""

    @abstractmethod
    def factor_weights(self, *ranks: int) -> list[Tensor]:
        """The weights of the factors, in the order of the layers of ``models.factors``."""


class SVD(Decomposition):
    """``W = (U S^1/2) (S^1/2 V^T)`` of linear layers and 1x1 convolutions.

    The largest singular values: no other factors of this rank are nearer (Eckart and Young 1936).
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

    Lebedev et al. 2015 (arXiv 1412.6553). It begins with the leading singular vectors of each unfolding, and
    random ones where they do not suffice; the same weights give the same factors.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.double()

    @staticmethod
    def parameter_count(shape: torch.Size, *ranks: int) -> int:
        """``r (C + h + w + O)``."""
        return ranks[0] * sum(shape)

    def factor_weights(self, *ranks: int) -> list[Tensor]:
        """1x1, k x 1 and 1 x k for each channel by itself, 1x1."""
        chance = runtime.make_generator(0)
        factors = [_initial_factor(self.weight, axis, ranks[0], chance) for axis in range(4)]
        size, before = float(self.weight.norm().clamp(min=1e-30)), float("inf")
        for _ in range(MAX_ALS_SWEEPS):
            for axis in range(4):
                factors[axis] = _solve_factor(self.weight, factors, axis)
                if axis < 3:
                    factors[axis] = factors[axis] / factors[axis].norm(dim=0).clamp(min=1e-30)
            error = float((self.weight - _reconstruct(factors)).norm()) / size
            if before - error < ALS_TOLERANCE * error or error < 1e-9:
                break
            before = error
        outputs, inputs, down, along = _balance_columns(factors)
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
"""The kinds of ``models.factors``, with their arithmetic."""


def svd_by_eigh(
    matrix: Float[Tensor, "m n"],
) -> tuple[Float[Tensor, "m k"], Float[Tensor, " k"], Float[Tensor, "k n"]]:
    """``U, S, V^T`` by the eigenvectors of the smaller of W W^T and W^T W: many times faster for long matrices.

    U S V^T is the matrix, since one side is a whole orthonormal basis; S is exact to 1e-8 of its largest.
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
    """The fewest singular values whose squares are the share ``energy`` of the sum of all squares."""
    squares = values.square().cumsum(0)
    return 1 + int((squares < energy * squares[-1] * (1 - 1e-12)).sum()) if squares[-1] > 0 else 1


def _split_singular_values(
    left: Float[Tensor, "m k"], values: Float[Tensor, " k"], right: Float[Tensor, "k n"], rank: int
) -> tuple[Float[Tensor, "r n"], Float[Tensor, "m r"]]:
    """``S^1/2 V^T`` and ``U S^1/2``, so that both are as large."""
    root = values[:rank].sqrt()
    return root[:, None] * right[:rank], left[:, :rank] * root


def _initial_factor(weight: Tensor, axis: int, rank: int, chance: torch.Generator) -> Float[Tensor, "n R"]:
    leading = svd_by_eigh(weight.transpose(0, axis).flatten(1))[0][:, :rank]
    shape = (len(leading), rank - leading.shape[1])
    random = torch.randn(shape, generator=chance, dtype=weight.dtype) / len(leading) ** 0.5
    return torch.cat([leading, random], 1)


def _solve_factor(weight: Tensor, factors: Sequence[Tensor], axis: int) -> Float[Tensor, "n R"]:
    """The factor of one axis that is best while the others stay."""
    letters, others = "oihw", [place for place in range(4) if place != axis]
    given = ",".join(f"{letters[place]}r" for place in others)
    seen = torch.einsum(f"{letters},{given}->{letters[axis]}r", weight, *(factors[place] for place in others))
    gram = torch.stack([factors[place].T @ factors[place] for place in others]).prod(0)
    steadied = gram + 1e-12 * gram.diagonal().mean().clamp(min=1e-30) * torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve(steadied, seen.T).T


def _reconstruct(factors: Sequence[Tensor]) -> Float[Tensor, "O I h w"]:
    return torch.einsum("or,ir,hr,wr->oihw", *factors)


def _balance_columns(factors: Sequence[Tensor]) -> list[Tensor]:
    """The same product, its columns of equal length in each factor: small steps then move all of them alike."""
    lengths = torch.stack([factor.norm(dim=0).clamp(min=1e-30) for factor in factors])
    even = lengths.prod(0) ** (1 / len(factors))
    return [factor / length * even for factor, length in zip(factors, lengths, strict=True)]


def _as_pointwise(matrix: Float[Tensor, "O I"]) -> Float[Tensor, "O I 1 1"]:
    return matrix[:, :, None, None].contiguous()
