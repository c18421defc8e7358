"""``torch.export``: a file for programs that have torch and not Sightline.

Reading such a file unpickles parts of it, which can run any code of its author, so Sightline opens only a file
that it has just written itself, to compare it.
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
from ..errors import RequirementNotMet
from ..layers import MAX_ACTIVATION_CODE, ActivationGrid
from .module import ExportModule, example_images, export_metadata, silence_exporters

PROGRAM_METADATA_FILE = "sightline.json"
"""The extra file in the archive that holds the metadata."""


@dataclass(frozen=True, eq=False)
class ProgramRunner:
    """An exported program as a runner."""

    module: Any

    def probabilities(self, images: UInt8[ndarray, "N H W C"]) -> Float[ndarray, "N K"]:
        """The program's probabilities."""
        with torch.inference_mode():
            return self.module(torch.from_numpy(np.ascontiguousarray(images))).numpy()


def write_torch(classifier: Classifier, path: Path) -> None:
    """Write the file; raises RequirementNotMet for a classifier that cannot be traced."""

    def round_to_grid(step: float, point: int, x: Float[Tensor, "..."], *_: Tensor) -> Float[Tensor, "..."]:
        # in plain operators: torch.export does not support the fused one
        return ((x / step).round() + point).clamp(0, MAX_ACTIVATION_CODE).sub(point) * step

    module = ExportModule(classifier)
    for part in module.modules():
        if isinstance(part, ActivationGrid):
            part.fake_quantise = partial(round_to_grid, float(part.scale), int(part.zero))
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    with silence_exporters(), torch.no_grad():
        try:
            program = torch.export.export(
                module, (example_images(classifier),), dynamic_shapes=shapes, strict=False
            )
        except Exception as error:  # torch raises many kinds, each with pages of its own workings
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise RequirementNotMet(f"torch.export cannot trace this network: {reason}. Use --to onnx.") from error
        facts = json.dumps(export_metadata(classifier), ensure_ascii=False)
        torch.export.save(program, path, extra_files={PROGRAM_METADATA_FILE: facts})


def open_torch_program(path: Path) -> ProgramRunner:
    """Open a file that was just written here."""
    with silence_exporters():
        return ProgramRunner(torch.export.load(path).module())
