"""OpenVINO: a folder with the waist as ``model.xml`` and ``model.bin``, for Intel's processors."""

import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from ..classifier import Classifier
from ..errors import RequirementNotMet
from ..models import EXPORT_INPUT, EXPORT_OUTPUT
from .module import export_metadata
from .onnx_file import write_onnx

FLOAT32_HINT = {"INFERENCE_PRECISION_HINT": "f32"}
"""OpenVINO computes in bfloat16 where the processor can, unless told not to."""


@dataclass(frozen=True, eq=False)
class OpenVINORunner:
    """A model just written, ready to answer."""

    model: Any

    def probabilities(self, images: UInt8[ndarray, "N H W C"]) -> Float[ndarray, "N K"]:
        """The file's answers."""
        return self.model({EXPORT_INPUT: np.ascontiguousarray(images)})[EXPORT_OUTPUT]


def import_openvino() -> ModuleType:
    """OpenVINO, an optional extra; raises Refused where it is not installed."""
    try:
        return import_module("openvino")
    except ImportError as error:
        raise RequirementNotMet(
            "OpenVINO is not installed: pip install 'sightline[openvino]', or use --to onnx."
        ) from error


def write_openvino(classifier: Classifier, path: Path) -> None:
    """Write the folder; raises Refused for a classifier that cannot be held."""
    engine = import_openvino()
    path.mkdir()
    graph = path / "model.onnx"
    write_onnx(classifier, graph)
    # Read by the library itself: its converter in Python tells its makers of each use.
    model = engine.Core().read_model(graph)
    engine.save_model(model, path / "model.xml", compress_to_fp16=False)
    del model
    graph.unlink()
    facts = json.dumps(export_metadata(classifier), indent=2, ensure_ascii=False)
    (path / "sightline.json").write_text(facts + "\n", encoding="utf-8")


def open_openvino(path: Path) -> OpenVINORunner:
    """A folder just written, ready to answer."""
    return OpenVINORunner(import_openvino().Core().compile_model(path / "model.xml", "CPU", FLOAT32_HINT))
