"""Hand-crafted features: pixels (B C H W) in [0, 1] become vectors (B D), as before neural networks.

Each is a frozen dataclass that computes a whole batch at once; tests compare it with a library's per-image
version.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from torch import Tensor

from ..checks import check_choice, check_int, check_positive

GREY_WEIGHTS = (0.299, 0.587, 0.114)
"""Weights of R, G and B in grey (ITU-R BT.601)."""


class Feature(ABC):
    """``pixels (B C H W) in [0, 1] -> vectors (B D)``, float32, deterministic, each image independently."""

    separate_units: bool = False
    """Whether its numbers are of different kinds, so that each is standardised on its own."""

    @abstractmethod
    def __call__(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """The vectors of these images."""

    def config(self) -> dict[str, Any]:
        """Its arguments, as JSON."""
        return dict(vars(self))


def to_grey(pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B H W"]:
    """Luminance (ITU-R BT.601); grey images unchanged."""
    if pixels.shape[1] == 1:
        return pixels[:, 0]
    return torch.einsum("bchw,c->bhw", pixels, pixels.new_tensor(GREY_WEIGHTS))


@dataclass(frozen=True)
class RawPixels(Feature):
    """The pixels themselves, flattened."""

    def __call__(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """C H W numbers in [0, 1]."""
        return pixels.flatten(1)


@dataclass(frozen=True)
class HOG(Feature):
    """Histograms of oriented gradients (Dalal and Triggs 2005): the direction of edges, cell by cell.

    ``cell`` is the side of a cell in pixels, by default an eighth of the shorter side. Blocks of 2 x 2 cells are
    normalised by L2-Hys. In colour images the channel with the strongest gradient counts.
    """

    orientations: int = 9
    cell: int | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for no orientations or cells without pixels."""
        check_int("orientations", self.orientations, 1)
        if self.cell is not None:
            check_int("cell", self.cell, 1)

    def __call__(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """The values of scikit-image's ``hog`` with 2 x 2 cells per block."""
        side = min(pixels.shape[2:])
        cell = self.cell or max(2, round(side / 8))
        if 2 * cell > side:
            raise ValueError(f"hog needs two cells of {cell} pixels a side, and the images have {side}")
        down, along = torch.zeros_like(pixels), torch.zeros_like(pixels)  # differences; 0 at the border
        down[:, :, 1:-1] = pixels[:, :, 2:] - pixels[:, :, :-2]
        along[..., 1:-1] = pixels[..., 2:] - pixels[..., :-2]
        magnitude = torch.hypot(down, along)
        strongest = magnitude.argmax(1, keepdim=True)
        down, along, magnitude = (t.gather(1, strongest) for t in (down, along, magnitude))
        angle = torch.remainder(torch.rad2deg(torch.atan2(down, along)), 180)
        which = (angle * (self.orientations / 180)).long().clamp(max=self.orientations - 1)
        shares = magnitude.new_zeros(len(pixels), self.orientations, *pixels.shape[2:])
        cells = F.avg_pool2d(shares.scatter_(1, which, magnitude), cell)  # (B O h w)
        blocks = cells.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 4, 5, 1).flatten(3)  # (B h-1 w-1 4 O)
        blocks = (blocks / _block_norm(blocks)).clamp(max=0.2)
        return (blocks / _block_norm(blocks)).flatten(1)


def _block_norm(blocks: Tensor, eps: float = 1e-5) -> Tensor:
    return (blocks.square().sum(-1, keepdim=True) + eps**2).sqrt()


@dataclass(frozen=True)
class LBP(Feature):
    """Histograms of uniform local binary patterns (Ojala et al. 2002): texture, in ``grid`` x ``grid`` cells.

    A pattern tells which of 8 neighbours at ``radius`` pixels are at least as bright as the centre. Uniform
    patterns (at most two changes around the circle) count by their bright neighbours, 0 to 8; all others share one
    bin.
    """

    radius: float = 1
    grid: int = 4

    def __post_init__(self) -> None:
        """Raise ValueError for an impossible radius or grid."""
        check_int("grid", self.grid, 1)
        check_positive("radius", self.radius, 16)

    def __call__(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """10 shares per cell, from the luminance in 256 steps; outside the border is black."""
        image = (to_grey(pixels).double() * 255).round()  # integers, so that equal pixels compare as equal
        angles = [2 * math.pi * i / 8 for i in range(8)]  # offsets rounded as scikit-image rounds them
        circle = [(round(-self.radius * math.sin(a), 5), round(self.radius * math.cos(a), 5)) for a in angles]
        bright = torch.stack([_shift_image(image, *offset) >= image - 1e-6 for offset in circle], 1)
        changes = (bright != bright.roll(1, 1)).sum(1)
        code = torch.where(changes <= 2, bright.sum(1), 9)
        shares = F.one_hot(code, 10).permute(0, 3, 1, 2).float()
        return _cell_means(shares, self.grid)


def _cell_means(maps: Float[Tensor, "B C H W"], grid: int) -> Float[Tensor, "B D"]:
    """The mean of each map in each of ``grid`` x ``grid`` cells, at most one cell per pixel."""
    height, width = maps.shape[2:]
    return F.adaptive_avg_pool2d(maps, (min(grid, height), min(grid, width))).flatten(1)


def _shift_image(image: Float[Tensor, "B H W"], down: float, along: float) -> Float[Tensor, "B H W"]:
    """The image shifted by (down, along) pixels, bilinear between pixels, 0 outside."""
    (row, part), (column, share) = ((math.floor(v), v - math.floor(v)) for v in (down, along))
    reach, (height, width) = math.ceil(max(abs(down), abs(along))) + 1, image.shape[1:]
    wide = F.pad(image, (reach,) * 4)

    def at(r: int, c: int) -> Tensor:
        return wide[:, reach + r : reach + r + height, reach + c : reach + c + width]

    top = (1 - share) * at(row, column) + share * at(row, column + 1)
    return (1 - part) * top + part * ((1 - share) * at(row + 1, column) + share * at(row + 1, column + 1))


@dataclass(frozen=True)
class EdgeStrength(Feature):
    """Edges in ``grid`` x ``grid`` cells: the strength of Sobel's gradient, or Canny's thin lines.

    ``by`` is sobel or canny; canny smooths by ``sigma`` pixels and is slower, because scikit-image's follows lines
    one image at a time.
    """

    by: Literal["sobel", "canny"] = "sobel"
    grid: int = 14
    sigma: float = 1.0

    def __post_init__(self) -> None:
        """Raise ValueError for an unknown kind of edge or an impossible number."""
        check_choice("by", self.by, ("sobel", "canny"))
        check_int("grid", self.grid, 1)
        check_positive("sigma", self.sigma, 16)

    def __call__(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """The mean edge in each cell of the luminance."""
        image = to_grey(pixels)
        if self.by == "sobel":
            return _cell_means(sobel(image)[:, None], self.grid)
        from skimage.feature import canny

        found = np.stack([canny(one, sigma=self.sigma) for one in image.double().cpu().numpy()])
        edges = torch.from_numpy(found).to(image)
        return _cell_means(edges[:, None], self.grid)


def sobel(image: Float[Tensor, "B H W"]) -> Float[Tensor, "B H W"]:
    """sqrt((gx^2 + gy^2) / 2) with Sobel's kernels over 4, borders repeated: scikit-image's ``sobel``."""
    wide = F.pad(image[:, None], (1, 1, 1, 1), mode="replicate")
    smooth, change = image.new_tensor([1.0, 2, 1]) / 4, image.new_tensor([1.0, 0, -1])
    down = F.conv2d(wide, (change[:, None] * smooth)[None, None])
    along = F.conv2d(wide, (smooth[:, None] * change)[None, None])
    return ((down.square() + along.square()) / 2).sqrt()[:, 0]


@dataclass(frozen=True)
class ShapeMoments(Feature):
    """The shape as a whole: Hu's seven invariants and the magnitudes of Zernike's moments.

    ``by`` is both, hu (1962; unchanged by shifting, size and turning) or zernike (up to ``degree``, in the disc
    inscribed in the image; unchanged by turning and by contrast). Bright is what has mass.
    """

    by: Literal["both", "hu", "zernike"] = "both"
    degree: int = 8
    separate_units = True

    def __post_init__(self) -> None:
        """Raise ValueError for an unknown kind of moment or an impossible degree."""
        check_choice("by", self.by, ("both", "hu", "zernike"))
        check_int("degree", self.degree, 1, 20)

    def __call__(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """Hu's as asinh(1e8 h), for they span many powers of ten; Zernike's over the mass in the disc."""
        image = to_grey(pixels).double()
        parts = []
        if self.by in ("both", "hu"):
            parts.append(torch.asinh(hu_moments(image) * 1e8))
        if self.by in ("both", "zernike"):
            parts.append(zernike_moments(image, self.degree))
        return torch.cat(parts, 1).float()


def hu_moments(image: Float[Tensor, "B H W"]) -> Float[Tensor, "B 7"]:
    """Hu's invariants of the images as masses (Hu 1962); 0 for a black image."""
    height, width = image.shape[1:]
    rows, columns = (torch.arange(side, dtype=image.dtype, device=image.device) for side in (height, width))
    mass = image.sum((1, 2)).clamp(min=1e-12)
    middle = [torch.einsum("bhw,h->b", image, rows) / mass, torch.einsum("bhw,w->b", image, columns) / mass]
    y, x = rows - middle[0][:, None], columns - middle[1][:, None]  # (B H), (B W)

    def n(p: int, q: int) -> Tensor:
        return torch.einsum("bhw,bh,bw->b", image, y**p, x**q) / mass ** (1 + (p + q) / 2)

    n20, n02, n11, n30, n03, n21, n12 = (n(*pq) for pq in ((2, 0), (0, 2), (1, 1), (3, 0), (0, 3), (2, 1), (1, 2)))
    a, b = n30 + n12, n21 + n03
    c, d = n30 - 3 * n12, 3 * n21 - n03
    invariants = [
        n20 + n02,
        (n20 - n02) ** 2 + 4 * n11**2,
        c**2 + d**2,
        a**2 + b**2,
        c * a * (a**2 - 3 * b**2) + d * b * (3 * a**2 - b**2),
        (n20 - n02) * (a**2 - b**2) + 4 * n11 * a * b,
        d * a * (a**2 - 3 * b**2) - c * b * (3 * a**2 - b**2),
    ]
    return torch.stack(invariants, 1)


def zernike_moments(image: Float[Tensor, "B H W"], degree: int) -> Float[Tensor, "B D"]:
    """|A_nm| for 1 <= n <= ``degree``, m >= 0, n - m even, over the mass in the inscribed disc (Teague 1980)."""
    basis, inside = zernike_basis(image.shape[1], image.shape[2], degree)
    basis, inside = basis.to(image.device), inside.to(image.device)
    mass = torch.einsum("bhw,hw->b", image, inside.to(image.dtype)).clamp(min=1e-12)
    return (torch.einsum("bhw,dhw->bd", image.to(basis.dtype), basis).abs() / mass[:, None]).to(image.dtype)


def zernike_basis(height: int, width: int, degree: int) -> tuple[Complex[Tensor, "D H W"], Float[Tensor, "H W"]]:
    """(n + 1) / pi conj(V_nm) at the pixels' centres, 0 outside the inscribed disc; and the disc, as 0 or 1."""
    side = min(height, width)
    y = (2 * torch.arange(height, dtype=torch.float64) + 1 - height) / side
    x = (2 * torch.arange(width, dtype=torch.float64) + 1 - width) / side
    radius, angle = torch.hypot(y[:, None], x[None]), torch.atan2(y[:, None], x[None])
    inside = (radius <= 1).double()
    members = [(n, m) for n in range(1, degree + 1) for m in range(n % 2, n + 1, 2)]
    waves = [
        (n + 1) / math.pi * torch.polar(zernike_radial(radius, n, m) * inside, -m * angle) for n, m in members
    ]
    return torch.stack(waves), inside


def zernike_radial(radius: Tensor, n: int, m: int) -> Tensor:
    """Zernike's radial polynomial R_nm: sum over k of (-1)^k (n-k)! / (k! ((n+m)/2-k)! ((n-m)/2-k)!) r^(n-2k)."""
    total = torch.zeros_like(radius)
    for k in range((n - m) // 2 + 1):
        below = math.factorial(k) * math.factorial((n + m) // 2 - k) * math.factorial((n - m) // 2 - k)
        total += (-1) ** k * math.factorial(n - k) / below * radius ** (n - 2 * k)
    return total


HANDCRAFTED_FEATURES: dict[str, type[Feature]] = {
    "pixels": RawPixels,
    "hog": HOG,
    "lbp": LBP,
    "edges": EdgeStrength,
    "moments": ShapeMoments,
}
"""Name -> the feature; its fields are the arguments of the word: ``hog:cell=4``."""
