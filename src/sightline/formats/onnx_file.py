"""ONNX, a graph that onnxruntime runs anywhere, and OpenVINO, which is made from it.

int8 becomes QuantizeLinear and DequantizeLinear with the network's own scales. Weights are stored as int8, biases
as int32 with the scale of the sum of products (input scale times weight scale), as integer kernels expect.
OpenVINO's form is a folder with ``model.xml`` and ``model.bin``, for Intel's processors.
"""

import json
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int8, UInt8
from numpy import ndarray
from torch import Tensor

from ..classifier import Classifier
from ..errors import RequirementNotMet
from ..exported_model import EXPORT_INPUT, EXPORT_OUTPUTS, ExportedModel, open_exported
from ..layers import ActivationGrid, Int8Conv2d, Int8Layer, Int8Linear
from .module import ExportModule, example_images, export_metadata, silence_exporters
from .onnx_graph import absorb_padding, quantise_biases, read_bytes_as_codes

ONNX_OPSET = 18
"""ONNX operator set; programs since 2023 read it."""

MAX_ONNX_BYTES = 2_000_000_000
"""Largest size of one ONNX file, in bytes (the format's limit is 2 GiB)."""

FLOAT32_HINT = {"INFERENCE_PRECISION_HINT": "f32"}
"""Without it OpenVINO computes in bfloat16 where the processor can."""


def write_onnx(classifier: Classifier, path: Path) -> None:
    """Write the file; raises RequirementNotMet for a classifier that ONNX cannot hold."""
    model = build_onnx_model(classifier)
    for name, value in export_metadata(classifier).items():
        model.metadata_props.add(key=name, value=json.dumps(value, ensure_ascii=False))
    if model.ByteSize() > MAX_ONNX_BYTES:
        raise RequirementNotMet(
            "This classifier is larger than 2 GB, more than one ONNX file holds: compress it first."
        )
    path.write_bytes(model.SerializeToString())


def open_onnx(path: Path) -> ExportedModel:
    """Open a file with onnxruntime."""
    return open_exported(path)


def build_onnx_model(classifier: Classifier) -> Any:
    """The classifier as an ONNX model, without the exporter's own notes."""
    module = ExportModule(classifier, features=True)
    for part in [*module.modules()]:
        if isinstance(part, Int8Conv2d | Int8Linear):
            part.register_buffer("scale", (part.step * part.gain).detach().flatten())
            part.register_buffer("points", torch.zeros(len(part.codes), dtype=torch.int8))
            part.dequantise = partial(_weight_node, part)
        elif isinstance(part, ActivationGrid):
            part.register_buffer("point", part.zero.to(torch.uint8))
            part.fake_quantise = partial(_rounding_nodes, part)
    with silence_exporters(), torch.no_grad():
        try:
            program = torch.onnx.export(
                module,
                (example_images(classifier),),
                dynamo=True,
                input_names=[EXPORT_INPUT],
                output_names=list(EXPORT_OUTPUTS if module.has_features else EXPORT_OUTPUTS[:1]),
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
                opset_version=ONNX_OPSET,
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # the exporter raises many kinds, each with pages of its own workings
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            first = (str(cause).strip() or type(cause).__name__).splitlines()[0].strip().rstrip(".")[:200]
            raise RequirementNotMet(f"ONNX cannot hold this network: {first}. Ship the bundle instead.") from error
    assert program is not None
    model = program.model_proto
    _strip_exporter_traces(model)
    absorb_padding(model.graph)
    read_bytes_as_codes(model.graph)
    quantise_biases(model.graph)
    return model


def _weight_node(layer: Int8Layer, codes: Int8[Tensor, "..."], _: Tensor) -> Float[Tensor, "..."]:
    """Dequantisation as a node of the graph, so that the file holds the weight's codes."""
    inputs = (codes, layer.get_buffer("scale"), layer.get_buffer("points"))
    axis: dict[str, Any] = {"axis": 0}
    return torch.onnx.ops.symbolic("DequantizeLinear", inputs, axis, dtype=torch.float32, shape=codes.shape)


def _rounding_nodes(
    grid: ActivationGrid, x: Float[Tensor, "..."], scale: Tensor, zero: Tensor
) -> Float[Tensor, "..."]:
    """Rounding as two nodes of the graph, with integers between them."""
    del zero
    point = grid.get_buffer("point")
    codes = torch.onnx.ops.symbolic("QuantizeLinear", (x, scale, point), dtype=torch.uint8, shape=x.shape)
    return torch.onnx.ops.symbolic("DequantizeLinear", (codes, scale, point), dtype=x.dtype, shape=x.shape)


def _strip_exporter_traces(model: Any) -> None:
    """Remove the exporter's traces of source code, and name the batch dimension N."""
    model.ClearField("metadata_props")
    model.producer_name, model.producer_version, model.doc_string = "sightline", "", ""
    graph = model.graph
    graph.ClearField("value_info")
    graph.ClearField("metadata_props")
    graph.name, graph.doc_string = "classifier", ""
    for node in graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.ClearField("metadata_props")
        value.ClearField("doc_string")
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].ClearField("dim_value")
        value.type.tensor_type.shape.dim[0].dim_param = "N"


@dataclass(frozen=True, eq=False)
class OpenVINORunner:
    """A compiled OpenVINO model."""

    model: Any

    def probabilities(self, images: UInt8[ndarray, "N H W C"]) -> Float[ndarray, "N K"]:
        """The model's probabilities."""
        return self.model({EXPORT_INPUT: np.ascontiguousarray(images)})[EXPORT_OUTPUTS[0]]


def import_openvino() -> ModuleType:
    """The module, an optional extra; raises RequirementNotMet where it is not installed."""
    try:
        return import_module("openvino")
    except ImportError as error:
        raise RequirementNotMet(
            "OpenVINO is not installed: pip install 'sightline[openvino]', or use --to onnx."
        ) from error


def write_openvino(classifier: Classifier, path: Path) -> None:
    """Write the folder; raises RequirementNotMet for a classifier that ONNX cannot hold."""
    engine = import_openvino()
    path.mkdir()
    graph = path / "model.onnx"
    write_onnx(classifier, graph)
    # Not by its converter in Python, which reports each use to its makers.
    model = engine.Core().read_model(graph)
    engine.save_model(model, path / "model.xml", compress_to_fp16=False)
    del model
    graph.unlink()
    facts = json.dumps(export_metadata(classifier), indent=2, ensure_ascii=False)
    (path / "sightline.json").write_text(facts + "\n", encoding="utf-8")


def open_openvino(path: Path) -> OpenVINORunner:
    """Compile the model of a folder for the CPU."""
    return OpenVINORunner(import_openvino().Core().compile_model(path / "model.xml", "CPU", FLOAT32_HINT))
