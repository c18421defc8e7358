"""``torch.export``: the waist for programs that have torch and not Sightline.

Reading such a file unpickles parts of it, which runs whatever its author wished, so only a file just written here
is read back, to compare it; nobody else's ever is.
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor

from ..classifier import Classifier
from ..errors import Refused
from ..models.quantised import LEVELS, Grid
from .waist import Waist, example, facts_of, quietly

FACTS = "sightline.json"
"""The extra file in the archive that says what ``open_exported`` would."""


@dataclass(frozen=True, eq=False)
class Program:
    """A program just written, ready to answer."""

    module: Any

    def probabilities(self, images: UInt8[ndarray, "N H W C"]) -> Float[ndarray, "N K"]:
        """The file's answers."""
        with torch.inference_mode():
            return self.module(torch.from_numpy(np.ascontiguousarray(images))).numpy()


def write_torch(classifier: Classifier, path: Path) -> None:
    """Write the file; raises Refused for a classifier that cannot be followed."""
    module = Waist(classifier)
    for part in module.modules():
        if isinstance(part, Grid):
            part.nearest = partial(_fixed, float(part.scale), int(part.zero))
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    with quietly(), torch.no_grad():
        try:
            program = torch.export.export(module, (example(classifier),), dynamic_shapes=shapes, strict=False)
        except Exception as error:  # torch raises many kinds, each with pages of its own workings
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise Refused(f"torch.export cannot follow this network: {reason}. Use --to onnx.") from error
        facts = json.dumps(facts_of(classifier), ensure_ascii=False)
        torch.export.save(program, path, extra_files={FACTS: facts})


def _fixed(step: float, point: int, x: Float[Tensor, "..."], *_: Tensor) -> Float[Tensor, "..."]:
    """Rounding in plain operators: torch.export does not know the one that has it all."""
    return ((x / step).round() + point).clamp(0, LEVELS).sub(point) * step


def opened(path: Path) -> Program:
    """A file just written here, ready to answer."""
    with quietly():
        return Program(torch.export.load(path).module())
