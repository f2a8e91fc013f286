"""What is documented about quantized ONNX files for Qualcomm's HTP, as rules a file is checked against."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from .lint import PRODUCTS, Reader, Rule, unsupported

MODEL = "ONNX Runtime documentation, QNN Execution Provider, Model requirements"
OPERATORS = "ONNX Runtime documentation, QNN Execution Provider, Supported ONNX operators"
QUANTIZING = "ONNX Runtime documentation, QNN Execution Provider, Generating a quantized model"
HTP = "Qualcomm AI Engine Direct SDK, HTP Op Definition Supplement"

Q, DQ = "QuantizeLinear", "DequantizeLinear"
TYPE = onnx.TensorProto
WEIGHTS = (TYPE.INT8, TYPE.INT4)
OPERANDS: dict[int, tuple[int, ...]] = {
    TYPE.UINT16: (TYPE.UINT8, *WEIGHTS),
    TYPE.UINT8: (TYPE.UINT8, TYPE.UINT16, *WEIGHTS),
}
"""Type of the left operand -> types of the right one."""

# fmt: off
SUPPORTED = frozenset(
    (
        "Abs", "Add", "AveragePool", "Cast", "Clip", "Concat", "Conv", "DequantizeLinear", "Div", "Exp", "Expand",
        "Flatten", "Gather", "Gelu", "Gemm", "GlobalAveragePool", "LayerNormalization", "MatMul", "Max", "Min", "Mul",
        "Neg", "Pad", "Pow", "QuantizeLinear", "ReduceMean", "ReduceSum", "Relu", "Reshape", "Round", "Sigmoid",
        "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Tile", "Transpose", "Unsqueeze", "Where",
    )
)
# fmt: on
"""Those of the documented operators that transformers are made of."""


def _shapes(graph: Reader) -> Iterator[str]:
    values = (*graph.model.graph.input, *graph.model.graph.output)
    for value in values:
        if any(not size.dim_value for size in value.type.tensor_type.shape.dim):
            yield f"{value.name} has a dimension of no fixed size"


def _indices(graph: Reader) -> Iterator[str]:
    for node in graph.of_type("Gather"):
        indices = graph.array(node.input[1])
        if indices is None or bool(np.any(indices < 0)):
            yield f"{node.name} has indices that are negative or not constant"


def _scales(graph: Reader) -> Iterator[str]:
    for node in graph.of_type(Q, DQ):
        scale, zero_point = (graph.array(name) for name in node.input[1:3])
        if scale is None or zero_point is None or not bool(np.all(scale > 0)):
            yield f"{node.name} has no constant, positive scale"


def _activations(graph: Reader) -> Iterator[str]:
    for node in graph.of_type(Q):
        if _type(graph, node) not in (TYPE.UINT8, TYPE.UINT16):
            yield f"{node.name} is neither uint8 nor uint16"
        elif graph.constants[node.input[1]].dims:
            yield f"{node.name} has several scales"


def _weights(graph: Reader) -> Iterator[str]:
    for node, product in _weight_nodes(graph):
        zero_point = graph.array(node.input[2])
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        if _type(graph, node) not in WEIGHTS:
            yield f"{node.name} is neither int8 nor int4"
        elif zero_point is None or zero_point.any():
            yield f"{node.name} has zero points"
        elif axis != (0 if product.op_type == "Conv" else 1):
            yield f"{node.name} has its scales along axis {axis}"


def _operands(graph: Reader) -> Iterator[str]:
    for product in graph.of_type(*PRODUCTS):
        left, right = (graph.producers.get(name) for name in product.input[:2])
        if left is None or right is None or {left.op_type, right.op_type} != {DQ}:
            yield f"{product.name} has an operand that is not quantized"
        elif _type(graph, right) not in OPERANDS.get(_type(graph, left), ()):
            yield f"{product.name} multiplies types that the HTP does not"


def _results(graph: Reader) -> Iterator[str]:
    for product in graph.of_type(*PRODUCTS):
        left = graph.producers.get(product.input[0])
        readers = graph.consumers(product.output[0])
        if left is not None and any(_type(graph, r) != _type(graph, left) for r in readers if r.op_type == Q):
            yield f"{product.name} has a result of another width than its left operand"


def _annotated(graph: Reader) -> Iterator[str]:
    outputs = {value.name for value in graph.model.graph.output}
    for node in graph.nodes:
        if node.op_type in (Q, DQ):
            continue
        for name in node.input:
            tensor = graph.constants.get(name)
            if (tensor is not None and tensor.data_type == TYPE.FLOAT) or (
                name and tensor is None and (graph.producer_type(name) != DQ)
            ):
                yield f"{node.name} reads {name}, which is on no grid"
        for name in node.output:
            if name in outputs or any(reader.op_type != Q for reader in graph.consumers(name)):
                yield f"{node.name} makes {name}, which is put on no grid"


def _pairs(graph: Reader) -> Iterator[str]:
    for node in graph.of_type(Q):
        readers = graph.consumers(node.output[0])
        if not readers or any(reader.op_type != DQ or reader.input[1:] != node.input[1:] for reader in readers):
            yield f"{node.name} is not followed by {DQ} on its own grid"


def _type(graph: Reader, node: onnx.NodeProto) -> int:
    tensor = graph.constants.get(node.input[2]) if len(node.input) > 2 else None
    return TYPE.UNDEFINED if tensor is None else tensor.data_type


def _weight_nodes(graph: Reader) -> Iterator[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """DequantizeLinear of each weight, and the product that reads it."""
    for product in graph.of_type(*PRODUCTS):
        node = graph.producers.get(product.input[1])
        if node is not None and node.op_type == DQ and graph.is_weight(node):
            yield node, product


RULES = (
    Rule("every size is fixed", MODEL, _shapes),
    Rule("operators are those the provider lists", OPERATORS, unsupported(SUPPORTED)),
    Rule("Gather has indices that are not negative", OPERATORS, _indices),
    Rule("scales are positive constants", MODEL, _scales),
    Rule("activations are uint8 or uint16 with one scale", QUANTIZING, _activations),
    Rule("weights are signed, without zero points, with a scale for each output", HTP, _weights),
    Rule("a product multiplies types the HTP has a kernel for", OPERATORS, _operands),
    Rule("a product's result is as wide as its left operand", HTP, _results),
    Rule("every tensor is on a grid", MODEL, _annotated),
    Rule("Q and DQ stand side by side", MODEL, _pairs),
)
