"""Sketches are made behind the answers: an answer leaves its inputs, and the journal's writer makes many at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from .reference import Reference
from .sketches import make_sketches

_BATCH_BYTES, _MAX_BATCH_ANSWERS = 300_000, 256
"""Pixels, in bytes, and answers that are sketched at once. Floats of these pixels fit into the
cache, which those of many photos at once do not."""


@dataclass(frozen=True, eq=False, slots=True)
class SketchInputs:
    """What the sketch of one answer is made of."""

    reference: Reference
    probabilities: Float[ndarray, " K"]
    energy: float | None
    features: Float[ndarray, " D"] | None
    pixels: UInt8[ndarray, "H W C"]
    size: tuple[int, int, int]
    """Width and height of the file, in pixels, and its bytes."""

    @property
    def nbytes(self) -> int:
        """Bytes that it keeps in memory."""
        return self.pixels.nbytes + self.probabilities.nbytes + getattr(self.features, "nbytes", 0)


def sketch_answers(inputs: Sequence[SketchInputs]) -> list[bytes | None]:
    """The sketches of answers of any releases; None where the network gives other features than the reference's."""
    found: list[bytes | None] = [None] * len(inputs)
    for reference in {id(one.reference): one.reference for one in inputs}.values():
        places = [i for i, one in enumerate(inputs) if one.reference is reference]
        count = max(1, min(_MAX_BATCH_ANSWERS, _BATCH_BYTES // inputs[places[0]].pixels.nbytes))
        for start in range(0, len(places), count):
            here = places[start : start + count]
            some = [inputs[i] for i in here]
            held = [one.features for one in some if one.features is not None]
            features = np.stack(held) if len(held) == len(some) else None
            if features is not None and features.shape[1] != len(reference.projection.mean):
                continue
            projected = reference.projection.project(features, len(some))
            if projected.shape[1] != reference.projection.components.shape[1]:
                continue
            energy = None if some[0].energy is None else np.array([one.energy for one in some])
            made = make_sketches(
                np.stack([one.probabilities for one in some]), energy, projected,
                np.stack([one.pixels for one in some]), [one.size for one in some],
            )  # fmt: skip
            for i, one in zip(here, made, strict=True):
                found[i] = one.tobytes()
    return found
