"""Which range of values the 256 levels of an activation cover, from its histogram over a sample."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from ..layers import MAX_ACTIVATION_CODE

ACTIVATION_BINS = 2048
"""Bins of each activation's histogram."""

PERCENTILE_TAIL = 1e-4
"""Share of the values that ``percentile`` cuts off, at both ends together."""

MSE_SPAN_SHARES = torch.linspace(0.3, 1, 71)
"""Shares of the whole range that ``mse`` tries."""


@dataclass
class ActivationHistogram:
    """The range of one activation over a sample, and its histogram."""

    low: float = float("inf")
    high: float = float("-inf")
    counts: Tensor = field(default_factory=lambda: torch.zeros(ACTIVATION_BINS))

    def update_range(self, x: Tensor) -> None:
        """Extend the range by the values of a batch."""
        low, high = x.aminmax()
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))

    def update_counts(self, x: Tensor) -> None:
        """Count the values of a batch, once the range is known."""
        if self.high > self.low:
            self.counts += torch.histc(x.flatten().float(), ACTIVATION_BINS, self.low, self.high).cpu()

    @property
    def bin_centers(self) -> Float[Tensor, " bins"]:
        """The centre of each bin."""
        width = (self.high - self.low) / ACTIVATION_BINS
        return self.low + width * (torch.arange(ACTIVATION_BINS) + 0.5)


Span = tuple[float, float]
"""Lowest and highest value that an activation's levels cover."""


def minmax_span(seen: ActivationHistogram) -> Span:
    """From the smallest to the largest value."""
    return seen.low, seen.high


def percentile_span(seen: ActivationHistogram) -> Span:
    """All values but the share ``PERCENTILE_TAIL`` at the ends."""
    below = seen.counts.cumsum(0) / seen.counts.sum().clamp_min(1)
    kept = seen.bin_centers[(below >= PERCENTILE_TAIL / 2) & (below <= 1 - PERCENTILE_TAIL / 2)]
    return (float(kept[0]), float(kept[-1])) if len(kept) > 1 else minmax_span(seen)


def mse_span(seen: ActivationHistogram) -> Span:
    """The share of the whole range with the smallest squared rounding error."""
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    lows, highs, x = low * MSE_SPAN_SHARES[:, None], high * MSE_SPAN_SHARES[:, None], seen.bin_centers
    scale = ((highs - lows) / MAX_ACTIVATION_CODE).clamp_min(1e-12)
    zero = (-lows / scale).round().clamp(0, MAX_ACTIVATION_CODE)
    back = ((x / scale).round() + zero).clamp(0, MAX_ACTIVATION_CODE).sub(zero) * scale
    best = int(((back - x).square() @ seen.counts).argmin())
    return float(lows[best]), float(highs[best])


CALIBRATORS: Mapping[str, Callable[[ActivationHistogram], Span]] = {
    "minmax": minmax_span,
    "percentile": percentile_span,
    "mse": mse_span,
}
"""Name -> histogram of an activation -> the range its 256 levels cover."""
