"""An exported ONNX file as a network, so that every verb works on it."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import OutputError
from ..exported_model import ExportedModel
from ..layers import Network


class ExportedNetwork(Network):
    """``pixels (B C H W) in [0, 1] -> log probabilities (B K)``, computed by the file, without a gradient."""

    differentiable = False
    export_refusal = "This is an exported file already: copy it, or export the run it came from."

    known: Tensor

    def __init__(self, found: ExportedModel):
        super().__init__()
        self.found = found
        self.register_buffer("known", torch.ones(len(found.classes), dtype=torch.bool))

    @property
    def n_classes(self) -> int:
        """Number of classes K."""
        return len(self.known)

    def logits(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Logarithms of the file's probabilities for the pixels rounded to 8 bits."""
        whole = (pixels.detach() * 255).round().clamp(0, 255).to(torch.uint8)
        answers = self.found.probabilities(whole.permute(0, 2, 3, 1).cpu().numpy())
        tiny = float(np.finfo(np.float32).tiny)
        return torch.from_numpy(answers).clamp_min(tiny).log().to(pixels.device)

    def save_extra_files(self, folder: Path) -> None:
        """Raise OutputError: an exported file has no tensors that a bundle could hold."""
        del folder
        raise OutputError("An exported file cannot be saved as a bundle: copy the file instead.")
