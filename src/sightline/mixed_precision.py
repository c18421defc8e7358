"""Answers in bfloat16 where that pays: the device multiplies it, it measures faster, and it agrees with float32.

Labels and abstentions stay those of float32, because close calls are answered again in float32.
"""

from collections.abc import Callable
from functools import partial
from threading import Lock
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor

from . import progress, runtime
from .data import to_tensor
from .predictions import Answer

Precision = Literal["auto", "float32"]
"""Of predictions: bfloat16 where it pays, or float32 for all."""

Probabilities = Callable[[Float[Tensor, "B C H W"]], Float[Tensor, "B K"]]
"""Pixels in [0, 1] to probabilities."""

MIN_SPEEDUP = 1.2
"""Gain in speed from which bfloat16 is used."""

MAX_CONFIDENCE_ERROR = 0.05
"""Largest difference of a probability, among the images of the trial, at which bfloat16 is used."""

MIN_MARGIN = 0.03
"""Smallest distance of the two most probable classes that is never a close call."""

_TRIAL_SHARE, _TRIAL_SECONDS = 4, 1.0


class MixedPrecision:
    """Probabilities in bfloat16, and of close calls in float32, once a trial has shown that it pays; else in float32.

    The first call is the trial; calls of other threads wait for it, so that all images get the same precision. An
    image is a close call where its two most probable classes, or its confidence and the ``threshold``, are nearer to
    each other than four times the largest difference seen in the trial.
    """

    def __init__(self, threshold: float = 0.0):
        self.threshold = threshold
        self.margin: float | None = None
        """Distance below which a call is close; infinite where all are answered in float32, None before the trial."""
        self._deciding = Lock()

    @torch.inference_mode()
    def __call__(self, probabilities: Probabilities, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """The probabilities of these pixels; ``probabilities`` may be another replica's at each call."""
        with self._deciding:
            if self.margin is None:
                return self._try(probabilities, pixels)
        if self.margin == float("inf"):
            return probabilities(pixels)
        found = _in_bfloat16(probabilities, pixels)
        best = found.topk(min(2, found.shape[1])).values
        close = (best[:, 0] - best[:, -1] < self.margin) | ((best[:, 0] - self.threshold).abs() < self.margin)
        if count := int(close.sum()):
            size = 1 << (count - 1).bit_length()  # a few sizes only: kernels are compiled for each
            again = F.pad(pixels[close], (0, 0, 0, 0, 0, 0, 0, size - count))
            found[close] = probabilities(again)[:count]
        return found

    def _try(self, probabilities: Probabilities, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        wanted, self.margin = probabilities(pixels), float("inf")
        some = pixels[: max(1, len(pixels) // _TRIAL_SHARE)]
        both = {
            "float32": partial(probabilities, some),
            "bfloat16": partial(_in_bfloat16, probabilities, some),
        }
        times = runtime.time_interleaved(both, 2, seconds=_TRIAL_SECONDS, give_up=MIN_SPEEDUP)
        if not all(times.values()):
            return wanted
        speedup = min(times["float32"]) / min(times["bfloat16"])
        if speedup < MIN_SPEEDUP:
            return wanted
        error = float((_in_bfloat16(probabilities, pixels) - wanted).abs().max())
        if error <= MAX_CONFIDENCE_ERROR:
            self.margin = max(MIN_MARGIN, 4 * error)
            progress.notify(
                f"Classifying in bfloat16, {speedup:.1f} times as fast here as float32, and close calls again in "
                "float32: labels are the same, and confidences differ a little (--precision float32)."
            )
        return wanted


def _in_bfloat16(probabilities: Probabilities, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
    with torch.autocast(pixels.device.type, torch.bfloat16):
        return probabilities(pixels)


def make_answer(probabilities: Probabilities, device: torch.device, mixed: MixedPrecision | None = None) -> Answer:
    """Images (B H W C), uint8, to probabilities on the CPU, one call at a time; in float32 without ``mixed``."""
    lock = Lock()

    @torch.inference_mode()
    def answer(images: UInt8[ndarray, "B H W C"]) -> Float[ndarray, "B K"]:
        with lock:
            pixels = to_tensor(images, device)
            found = probabilities(pixels) if mixed is None else mixed(probabilities, pixels)
            return found.cpu().numpy()

    return answer
