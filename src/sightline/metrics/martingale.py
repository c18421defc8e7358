"""Evidence that a stream has changed, valid at any number of looks: conformal ranks, bets against them, e-detectors.

If reference and answers are exchangeable, the rank of each new score among all scores seen so far is uniform and
independent of the earlier ranks, whatever the score (Vovk, Gammerman and Shafer 2005). A bet against uniform ranks is
a martingale: its capital exceeds c with probability at most 1/c, ever. Every array has one column for each of the Q
scores of an answer, the channels.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

JUMP = 0.001
"""Share of the capital that changes sides at each answer: slow, which finds small lasting shifts soonest."""

_SIDES = np.array([-1.0, 0.0, 1.0])
"""The bets: on high ranks being rare, on nothing, on low ranks being rare."""

_BYTE = np.arange(256)


@dataclass(eq=False)
class ScoreRanks:
    """How often each score was seen, rounded to float16: exact ranks in bounded memory (256 kB a channel).

    Rounding costs no validity, because ties are broken by chance.
    """

    counts: Int[ndarray, "Q 256 256"]
    """Number of scores by channel and by the high and the low byte of their code."""

    @classmethod
    def of(cls, scores: Float[ndarray, "N Q"]) -> "ScoreRanks":
        """The ranks among the N scores of a reference."""
        codes, n_channels = _ordered_codes(scores), scores.shape[1]
        counts = np.zeros((n_channels, 256 * 256), np.int32)
        for channel in range(n_channels):
            counts[channel] = np.bincount(codes[:, channel], minlength=256 * 256)
        return cls(counts.reshape(n_channels, 256, 256))

    def __post_init__(self) -> None:
        self._by_high_byte = self.counts.sum(2)
        self.seen = int(self._by_high_byte[0].sum()) if len(self.counts) else 0
        """Number of scores of each channel."""
        self._channels = np.arange(len(self.counts))

    def add(self, scores: Float[ndarray, " Q"], chance: Float[ndarray, " Q"]) -> Float[ndarray, " Q"]:
        """Count the scores of one answer and return their p-values: the share of scores that are higher.

        ``chance``, uniform in [0, 1), breaks ties, the score itself included. The p-values are uniform and independent
        of all earlier ones as long as nothing has changed.
        """
        codes = _ordered_codes(scores)
        high, low = codes >> 8, codes & 255
        self.counts[self._channels, high, low] += 1
        self._by_high_byte[self._channels, high] += 1
        self.seen += 1
        row = self.counts[self._channels, high]
        greater = (self._by_high_byte * (high[:, None] < _BYTE)).sum(1) + (row * (low[:, None] < _BYTE)).sum(1)
        return (greater + chance * row[self._channels, low]) / self.seen


def _ordered_codes(scores: Float[ndarray, "*shape"]) -> Int[ndarray, "*shape"]:
    """Integers from 0 to 65,535 in the order of the scores as float16; NaN counts as the largest."""
    with np.errstate(over="ignore"):  # what float16 cannot hold is infinite, and in order
        halves = np.nan_to_num(scores.astype(np.float16), nan=np.inf, posinf=np.inf, neginf=-np.inf)
    bits = (halves + np.float16(0)).view(np.uint16).astype(np.int64)  # + 0 makes -0 equal to 0
    return np.where(bits < 0x8000, bits + 0x8000, 0xFFFF - bits)


@dataclass(eq=False)
class Bets:
    """The Simple Jumper's capital in each channel (Vovk 2021), as a martingale and as an e-detector.

    A constructor without ``sides`` starts with capital 1, divided equally.
    """

    sides: Float[ndarray, "Q 3"]
    """Shares of the capital on each side; they add up to one."""
    log_capital: Float[ndarray, " Q"]
    detector: Float[ndarray, " Q"]
    """Shiryaev-Roberts statistic: its mean over quiet answers grows by one at each answer."""

    @classmethod
    def start(cls, channels: int) -> "Bets":
        """Capital 1 in each channel."""
        return cls(np.full((channels, 3), 1 / 3), np.zeros(channels), np.zeros(channels))

    def bet(self, p: Float[ndarray, " Q"], *, jump: float = JUMP) -> None:
        """Bet on the p-values of one answer."""
        sides = (1 - jump) * self.sides + jump / 3
        sides = sides * (1 + _SIDES * (p[:, None] - 0.5))
        growth = sides.sum(1)
        self.sides = sides / growth[:, None]
        self.log_capital = self.log_capital + np.log(growth)
        self.detector = np.minimum((self.detector + 1) * growth, 1e300)

    @property
    def capital(self) -> float:
        """Mean capital of the channels: a martingale, so it ever reaches c with probability at most 1/c.

        The mean of martingales is a martingale: no correction for the number of channels is needed.
        """
        return float(np.exp(np.minimum(self.log_capital, 600.0)).mean()) if len(self.log_capital) else 1.0

    @property
    def evidence(self) -> float:
        """Mean of the e-detectors: the mean number of answers until it reaches A without a change is at least A.

        (Shin, Ramdas and Rinaldo 2022.) Unlike the capital it forgets a long quiet past.
        """
        return float(self.detector.mean()) if len(self.detector) else 0.0
