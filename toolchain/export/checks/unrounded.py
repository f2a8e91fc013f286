"""The finished file with every activation grid made continuous: what is left is smooth, and can be compared exactly.

Rounding turns a difference of 1e-7 into another code and drowns everything else: a wrong LayerNorm weight costs a
low-bit file less agreement than chance does. Without rounding and clipping (weights stay at their codes) the file must
compute what the torch model computes with identities for activation quantizers, up to the order of float sums. That
shows whether norms, embeddings, residuals and the order of the layers are right, on a few images; the grids left out
here are read back number by number (``stored``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ..passes.annotate import PART
from ..passes.integer_linear import OPERATOR

ZERO = "/zero_point.float"


def without_rounding(model: onnx.ModelProto, layers: Sequence[str], folder: Path | None = None) -> onnx.ModelProto:
    """A copy of a lowered ``model`` in which the activations of ``layers``, and those between them, keep their values.

    ``QuantizeLinear(x, s, z)`` becomes ``x / s + z``, ``DequantizeLinear(q, s, z)`` becomes ``(q - z) s``, also inside
    a fused product; rounding and clipping go. Scales and zero points stay where they are, so that two that do not fit
    together show. ``folder`` is where tensors lie that ``model`` only refers to.
    """
    base = str(folder or "")
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    fixed = set(constants)
    prefixes = tuple(f"{layer}{end}" for layer in layers for end in "/.")
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if fixed.issuperset(node.input):
            fixed.update(node.output)  # a weight, stored narrower than it is read
        continuous = CONTINUOUS.get(node.op_type)
        if (
            continuous is None
            or (node.op_type in GRIDS and node.input[0] in fixed)
            or not (node.name.startswith(prefixes) or f"/{PART}/" in node.name)
        ):
            nodes.append(node)
            continue
        node = _along_axis(node, constants, base)
        if node.op_type in ZERO_POINT:
            zero = node.input[ZERO_POINT[node.op_type]] + ZERO
            if zero not in constants:
                value = numpy_helper.to_array(constants[zero.removesuffix(ZERO)], base).astype(np.float32)
                constants[zero] = numpy_helper.from_array(value, zero)
        nodes += continuous(node)
    for repeated in (graph.node, graph.initializer, graph.value_info):
        del repeated[:]
    graph.node.extend(nodes)
    graph.initializer.extend(constants.values())
    return result


def _along_axis(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto], base: str) -> onnx.NodeProto:
    """The node with scales and zero points in a shape that broadcasts, where they run along an axis (from the end)."""
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), None)
    if node.op_type not in GRIDS or axis is None:
        return node
    result = onnx.NodeProto()
    result.CopyFrom(node)
    for place in (1, 2):
        name = f"{node.input[place]}/rows"
        array = numpy_helper.to_array(constants[node.input[place]], base).reshape(-1, *[1] * (-axis - 1))
        constants[name] = numpy_helper.from_array(array, name)
        result.input[place] = name
    return result


def _divided(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    x, scale, zero = node.input
    step = f"{node.output[0]}/steps"
    return [
        helper.make_node("Div", [x, scale], [step], f"{node.name}/steps"),
        helper.make_node("Add", [step, zero + ZERO], list(node.output), node.name),
    ]


def _multiplied(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    codes, scale, zero = node.input
    step = f"{node.output[0]}/steps"
    return [
        helper.make_node("Sub", [codes, zero + ZERO], [step], f"{node.name}/steps"),
        helper.make_node("Mul", [step, scale], list(node.output), node.name),
    ]


def _identity(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    return [helper.make_node("Identity", [node.input[0]], list(node.output), node.name)]


def _product(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    codes, weight, scale, weight_scale, zero, weight_zero, *bias = node.input
    left, right = (f"{node.output[0]}/{part}" for part in ("left", "right"))
    product = f"{node.output[0]}/product" if bias else node.output[0]
    dequantize = helper.make_node("DequantizeLinear", [codes, scale, zero], [left], f"{node.name}/left")
    return [
        *_multiplied(dequantize),
        helper.make_node(
            "DequantizeLinear", [weight, weight_scale, weight_zero], [right], f"{node.name}/right", axis=1
        ),
        helper.make_node("MatMul", [left, right], [product], f"{node.name}/product"),
        *(helper.make_node("Add", [product, addend], list(node.output), node.name) for addend in bias),
    ]


GRIDS = ("QuantizeLinear", "DequantizeLinear")
ZERO_POINT = {"QuantizeLinear": 2, "DequantizeLinear": 2, OPERATOR: 4}
"""Which input is the zero point of an activation."""

CONTINUOUS: dict[str, Callable[[onnx.NodeProto], list[onnx.NodeProto]]] = {
    "QuantizeLinear": _divided,
    "DequantizeLinear": _multiplied,
    OPERATOR: _product,
    **dict.fromkeys(("Clip", "Round", "Min", "Max"), _identity),
}
