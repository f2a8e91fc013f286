"""What NVIDIA documents about quantized ONNX files for TensorRT 10 and 11, as rules a file is checked against."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from .lint import PRODUCTS, Reader, Rule, unsupported

TYPES = "TensorRT documentation, Working with Quantized Types, Introduction"
QUANTIZE = "TensorRT C++ API, IQuantizeLayer and IDequantizeLayer"
EXPLICIT = "TensorRT documentation, Explicit Quantization"
PLACEMENT = "TensorRT documentation, Explicit Quantization, Q/DQ Layer-Placement Recommendations"
OPSETS = "TensorRT documentation, ONNX Opset Guide"
OPERATORS = "onnx-tensorrt, docs/operators.md"

Q, DQ = "QuantizeLinear", "DequantizeLinear"

OPSET_RANGE = range(9, 26)

# fmt: off
SUPPORTED = frozenset(
    (
        "Add", "AveragePool", "Cast", "Clip", "Concat", "Conv", "DequantizeLinear", "Div", "Erf", "Expand", "Flatten",
        "Gather", "Gelu", "Gemm", "GlobalAveragePool", "Identity", "LayerNormalization", "MatMul", "Max", "Min", "Mul",
        "Neg", "Pad", "Pow", "QuantizeLinear", "ReduceMean", "ReduceSum", "Relu", "Reshape", "Round", "Shape",
        "Sigmoid", "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze", "Where",
    )
)
# fmt: on
"""What timm's transformers are made of, of the operators that the parser lists."""


def _zero_points(graph: Reader) -> Iterator[str]:
    for node in graph.of_type(Q, DQ):
        zero_point = graph.array(node.input[2]) if len(node.input) > 2 else np.zeros(1)
        if zero_point is None or zero_point.any():
            yield f"{node.name} has a zero point that is not 0"


def _types(graph: Reader) -> Iterator[str]:
    for node in graph.of_type(Q, DQ):
        tensor = graph.constants.get(node.input[2]) if len(node.input) > 2 else None
        if tensor is None or tensor.data_type != onnx.TensorProto.INT8:
            yield f"{node.name} is not int8"


def _scales(graph: Reader) -> Iterator[str]:
    for node in graph.of_type(Q, DQ):
        scale = graph.array(node.input[1])
        if scale is None or not bool(np.all(scale > 0)):
            yield f"{node.name} has a scale that is not a positive constant"


def _granularity(graph: Reader) -> Iterator[str]:
    for node in graph.of_type(Q, DQ):
        scale = graph.array(node.input[1])
        if scale is not None and scale.ndim > 0 and not graph.is_weight(node):
            yield f"{node.name} has {scale.size} scales for an activation"


def _channels(graph: Reader) -> Iterator[str]:
    for product in graph.of_type(*PRODUCTS):
        node = graph.producers.get(product.input[1])
        if node is not None and node.op_type == DQ and graph.is_weight(node):
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
            if axis != (0 if product.op_type == "Conv" else 1):
                yield f"{node.name} has its scales along axis {axis}"


def _pairs(graph: Reader) -> Iterator[str]:
    for node in graph.of_type(Q):
        readers = graph.consumers(node.output[0])
        if not readers or any(reader.op_type != DQ or reader.input[1] != node.input[1] for reader in readers):
            yield f"{node.name} is not followed by {DQ} on its own grid"


def _operands(graph: Reader) -> Iterator[str]:
    for product in graph.of_type(*PRODUCTS):
        for place, name in enumerate(product.input[:2]):
            if graph.producer_type(name) != DQ:
                yield f"operand {place} of {product.name} does not come from {DQ}"


def _biases(graph: Reader) -> Iterator[str]:
    for product in graph.of_type("Conv"):
        if len(product.input) > 2 and graph.array(product.input[2]) is None:
            yield f"{product.name} has a bias that is not a float constant"
    for add in graph.of_type("Add"):
        types = [graph.producer_type(name) for name in add.input]
        if "MatMul" in types and any(
            graph.producer_type(name) == DQ and graph.is_weight(graph.producers[name]) for name in add.input
        ):
            yield f"{add.name} adds a quantized bias"


def _opset(graph: Reader) -> Iterator[str]:
    if graph.opset not in OPSET_RANGE:
        yield f"opset {graph.opset} is not one of {OPSET_RANGE.start} to {OPSET_RANGE.stop - 1}"


RULES = (
    Rule("zero points are 0", QUANTIZE, _zero_points),
    Rule("codes are signed 8-bit integers", TYPES, _types),
    Rule("scales are positive constants", QUANTIZE, _scales),
    Rule("an activation has one scale", TYPES, _granularity),
    Rule("weight scales run along the output channels", EXPLICIT, _channels),
    Rule("Q and DQ stand side by side", EXPLICIT, _pairs),
    Rule("all inputs of a product are quantized", PLACEMENT, _operands),
    Rule("biases are float", PLACEMENT, _biases),
    Rule("the opset is one the parser reads", OPSETS, _opset),
    Rule("operators are those the parser reads", OPERATORS, unsupported(SUPPORTED)),
)
