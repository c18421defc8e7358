"""A changed graph gives the same answers as before, by onnxruntime; and what may not change does not."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from sightline.formats.onnx_graph import absorb_padding, read_bytes_as_codes

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 2, 7, 9), np.uint8)


def model_of(nodes, constants, given=TensorProto.FLOAT):
    held = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    ends = [helper.make_tensor_value_info(n, k, None) for n, k in (("x", given), ("y", TensorProto.FLOAT))]
    graph = helper.make_graph(nodes, "test", ends[:1], ends[1:], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def answer(model, x):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def padded_convolution(margins, value=0.0, mode="constant", rounded=False, twice=False):
    """Padding, rounding where it is asked for, and a convolution of stride 2."""
    rng = np.random.default_rng(1)
    constants = {
        "margins": np.array(margins, np.int64), "value": np.float32(value), "scale": np.float32(0.7),
        "point": np.uint8(9), "weight": rng.normal(size=(3, 2, 3, 3)).astype(np.float32),
    }  # fmt: skip
    nodes = [helper.make_node("Pad", ["x", "margins", "value"], ["padded"], mode=mode)]
    name = "padded"
    if rounded:
        nodes.append(helper.make_node("QuantizeLinear", ["padded", "scale", "point"], ["codes"]))
        nodes.append(helper.make_node("DequantizeLinear", ["codes", "scale", "point"], ["levels"]))
        name = "levels"
    out = "found" if twice else "y"
    nodes.append(helper.make_node("Conv", [name, "weight"], [out], pads=[1, 0, 0, 0], strides=[2, 2]))
    if twice:
        nodes += [
            helper.make_node("ReduceSum", ["padded"], ["sum"]),
            helper.make_node("Add", ["found", "sum"], ["y"]),
        ]
    return model_of(nodes, constants)


@pytest.mark.parametrize("rounded", [False, True])
def test_zeros_around_an_image_become_part_of_the_convolution(rounded):
    model, x = padded_convolution([0, 0, 0, 1, 0, 0, 1, 2], rounded=rounded), IMAGES.astype(np.float32)
    before = answer(model, x)
    absorb_padding(model.graph)
    assert "Pad" not in {node.op_type for node in model.graph.node}
    assert "margins" not in {one.name for one in model.graph.initializer}
    assert np.abs(answer(model, x) - before).max() < 1e-5


@pytest.mark.parametrize(
    "change", [{"value": 1.0}, {"mode": "reflect"}, {"twice": True}, {"margins": [0, 1, 0, 0, 0, -1, 0, 0]},
               {"margins": [0, 0, 0, -1, 0, 0, 1, 0]}],
)  # fmt: skip
def test_other_padding_stays(change):
    model = padded_convolution(**{"margins": [0, 0, 0, 1, 0, 0, 1, 2], **change})
    before, x = answer(model, IMAGES.astype(np.float32)), IMAGES.astype(np.float32)
    absorb_padding(model.graph)
    assert "Pad" in {node.op_type for node in model.graph.node}
    assert np.array_equal(answer(model, x), before)


def rounded_pixels(shift, factor=1 / 127.5, scale=1 / 127.5, point=128):
    constants = {
        "factor": np.full((2, 1, 1), factor, np.float32), "shift": np.full((2, 1, 1), shift, np.float32),
        "scale": np.float32(scale), "point": np.uint8(point),
    }  # fmt: skip
    nodes = [
        helper.make_node("Cast", ["x"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "factor"], ["product"]),
        helper.make_node("Add", ["product", "shift"], ["normalised"]),
        helper.make_node("QuantizeLinear", ["normalised", "scale", "point"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "point"], ["y"]),
    ]
    return model_of(nodes, constants, TensorProto.UINT8)


def test_pixels_that_are_codes_are_read_directly():
    model = rounded_pixels(-128 / 127.5)
    before = answer(model, IMAGES)
    read_bytes_as_codes(model.graph)
    assert [node.op_type for node in model.graph.node] == ["DequantizeLinear"]
    assert np.array_equal(answer(model, IMAGES), before)


@pytest.mark.parametrize("change", [{"shift": -1.0}, {"shift": -128 / 127.5, "scale": 1 / 120}])
def test_pixels_that_are_rounded_stay(change):
    model = rounded_pixels(**change)
    read_bytes_as_codes(model.graph)
    assert len(model.graph.node) == 5
