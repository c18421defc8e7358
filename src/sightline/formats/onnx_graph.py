"""Changes of an ONNX graph that leave its answers as they are and let a runtime use its integer kernels."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray


def absorb_padding(graph: Any) -> None:
    """Make zeros added around an image part of the convolution that reads it, also where it is rounded between.

    Zero is always a level, so it does not matter whether zeros are added before or after the rounding. A padding of
    its own keeps int8 convolutions from being fused with the rounding before them.
    """
    from onnx import numpy_helper

    held = {one.name: one for one in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    uses = Counter([name for node in graph.node for name in node.input] + [one.name for one in graph.output])
    for conv in graph.node:
        if conv.op_type != "Conv":
            continue
        reader, maker = conv, makers.get(conv.input[0])
        while maker is not None and maker.op_type in ("DequantizeLinear", "QuantizeLinear"):
            if uses[reader.input[0]] != 1:
                break
            reader, maker = maker, makers.get(maker.input[0])
        if maker is None or maker.op_type != "Pad" or uses[maker.output[0]] != 1:
            continue
        names = [name for name in maker.input[1:] if name]
        mode = next((one.s for one in maker.attribute if one.name == "mode"), b"constant")
        if mode != b"constant" or len(names) > 2 or any(name not in held for name in names):
            continue
        margins, *values = [numpy_helper.to_array(held[name]) for name in names]
        before, after = np.split(margins, 2)
        if any(before[:2]) or any(after[:2]) or min(margins) < 0 or any(value != 0 for value in values):
            continue
        pads = next((one for one in conv.attribute if one.name == "pads"), None)
        if pads is None:
            continue
        pads.ints[:] = [int(own + more) for own, more in zip(pads.ints, [*before[2:], *after[2:]], strict=True)]
        reader.input[0] = maker.input[0]
    _remove_unused(graph)


def read_bytes_as_codes(graph: Any) -> None:
    """Let 8-bit pixels be codes themselves where normalising and rounding them gives every value back."""
    from onnx import numpy_helper

    held = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type != "QuantizeLinear":
            continue
        chain, name = [], node.input[0]
        for kind in ("Add", "Mul", "Cast"):
            maker = makers.get(name)
            if maker is None or maker.op_type != kind:
                break
            chain.append(maker)
            name = maker.input[0]
        numbers = [held.get(one) for one in (*(maker.input[1] for maker in chain[:2]), *node.input[1:3])]
        if len(chain) < 3 or any(one is None for one in numbers):
            continue
        shift, factor, scale, point = (np.float32(one) for one in numbers)
        every = np.arange(256, dtype=np.float32).reshape(-1, 1, 1, 1)
        codes = np.rint((every * factor + shift) / scale) + point
        if np.array_equal(codes, np.broadcast_to(every, codes.shape)):
            for reader in graph.node:
                if reader.input[:1] == node.output[:1]:
                    reader.input[0] = name
    _remove_unused(graph)


def _remove_unused(graph: Any) -> None:
    """Remove nodes and constants that nothing uses."""
    nodes, wanted = [], {one.name for one in graph.output}
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            nodes.append(node)
            wanted.update(node.input)
    _set_content(graph, nodes[::-1], [one for one in graph.initializer if one.name in wanted])


def _set_content(graph: Any, nodes: Sequence[Any], constants: Sequence[Any]) -> None:
    """Set the nodes and constants of a graph, given from among its own or new."""
    for repeated, values in ((graph.node, nodes), (graph.initializer, constants)):
        copies = [type(one).FromString(one.SerializeToString()) for one in values]
        del repeated[:]
        repeated.extend(copies)


def quantise_biases(graph: Any) -> None:
    """Store the bias of each int8 layer as int32, in units of input scale times weight scale."""
    from onnx import helper, numpy_helper

    held = {one.name: one for one in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    nodes, spent = [], set()
    for node in graph.node:
        scales = _bias_scales(node, makers, held) if node.op_type in ("Conv", "Gemm") else None
        if scales is not None and len(node.input) == 3 and node.input[2] in held:
            bias, scale = numpy_helper.to_array(held[node.input[2]]), scales.astype(np.float32)
            codes = np.clip(np.rint(bias.astype(np.float64) / scale), -(2**31), 2**31 - 1).astype(np.int32)
            spent.add(node.input[2])
            names = [f"{node.input[2]}.{what}" for what in ("codes", "scale", "dequantised")]
            for name, values in zip(names, (codes, scale), strict=False):
                graph.initializer.append(numpy_helper.from_array(values, name))
            nodes.append(helper.make_node("DequantizeLinear", names[:2], names[2:], axis=0))
            node.input[2] = names[2]
        nodes.append(node)
    _set_content(graph, nodes, [one for one in graph.initializer if one.name not in spent])


def _bias_scales(node: Any, makers: Any, held: Any) -> Float[ndarray, " O"] | None:
    """Input scale times weight scales of a layer whose input and weight are dequantised; None for others."""
    from onnx import numpy_helper

    found = []
    for name in node.input[:2]:
        maker = makers.get(name)
        if maker is None or maker.op_type != "DequantizeLinear" or maker.input[1] not in held:
            return None
        found.append(numpy_helper.to_array(held[maker.input[1]]))
    return np.float64(found[0]) * found[1]
