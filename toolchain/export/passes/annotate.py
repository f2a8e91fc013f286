"""A 16-bit grid on every float tensor, for runtimes that compute nothing in float.

Quantized products keep their own grids. Around them each tensor gets QuantizeLinear and DequantizeLinear of uint16 over
the range it had on calibration images, each float constant becomes uint16 codes (the bias of a convolution int32 ones).
A left operand is widened, since a product of 8-bit codes would have to be stored in 8 bits too: ``(c - z) s`` becomes
``(256 c - 256 z) (s / 256)``, the same number. On the full range, because the HTP drops low bits of 16-bit products:
with the codes as they were a product was wrong by a tenth.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import numpy as np
import onnx
import onnx_ir as ir

from ...runtime import open_session
from .emit import Emitter

UINT16, INT32, FLOAT = ir.DataType.UINT16, ir.DataType.INT32, ir.DataType.FLOAT
LEVELS = 2**16 - 1
INT32_MAX = 2**31 - 1
WIDER = 2**8

MARGIN = 0.25
"""How much further than on the calibration images a tensor may reach, as a share of its range: 0.6 bits of 16."""

MOVES = frozenset({"Reshape", "Transpose", "Slice", "Gather", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
"""Operators whose output holds numbers of their first input: it keeps their grid."""

PAIR = frozenset({"QuantizeLinear", "DequantizeLinear"})

PART = "16-bit"
"""End of the names of what is added."""

Grid = tuple[ir.Value, ir.Value]
"""Scale and zero point."""


@final
class AnnotateActivations(ir.passes.InPlacePass):
    """Annotates a lowered graph of fixed batch; ``images`` ``[n, 3, h, w]`` are what ranges are taken from."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Observe, then put a pair behind every float tensor and constant, and widen left operands."""
        ranges = observed_ranges(ir.serde.serialize_model(model), self.images)
        graph, grids = model.graph, dict[ir.Value, Grid]()
        for value in [*graph.inputs, *(output for node in graph for output in node.outputs)]:
            if value.name in ranges and not _only_quantized(value):
                grids[value] = _annotate(graph, value, ranges[value.name], grids)
        for node in list(graph):
            if node.op_type not in PAIR:
                _quantize_constants(graph, node)
            if node.op_type in ("MatMul", "Conv"):
                _widen(graph, node)
        return ir.passes.PassResult(model, modified=True)


def observed_ranges(model: onnx.ModelProto, images: np.ndarray) -> dict[str, tuple[float, float]]:
    """Least and largest number of each float tensor that an operator other than DequantizeLinear makes, and the input.

    ``model`` takes one image at a time.
    """
    inferred = onnx.shape_inference.infer_shapes(model)
    floats = {v.name for v in inferred.graph.value_info if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    (output,) = (value.name for value in model.graph.output)
    names = [name for node in model.graph.node if node.op_type not in PAIR for name in node.output if name in floats]
    exposed = onnx.ModelProto()
    exposed.CopyFrom(inferred)
    exposed.graph.output.extend(v for v in inferred.graph.value_info if v.name in set(names))
    session = open_session(exposed.SerializeToString(), optimize=False)
    wanted = [output, *names]
    low, high = np.full(len(wanted), np.inf), np.full(len(wanted), -np.inf)
    for index in range(len(images)):
        for place, array in enumerate(session.run(wanted, {"image": images[index : index + 1]})):
            low[place], high[place] = min(low[place], array.min()), max(high[place], array.max())
    ranges = {name: (float(a), float(b)) for name, a, b in zip(wanted, low, high, strict=True)}
    return ranges | {"image": (float(images.min()), float(images.max()))}


def grid_over(low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point of 16 bits over ``[low, high]``, widened to hold zero."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32(max(high - low, 1e-8) / LEVELS)
    return np.array(scale), np.array(np.clip(np.round(-low / scale), 0, LEVELS))


def _only_quantized(value: ir.Value) -> bool:
    """Whether nothing but QuantizeLinear reads an input of the graph, which then does so itself."""
    return value.is_graph_input() and all(use.node.op_type == "QuantizeLinear" for use in value.uses())


def _annotate(graph: ir.Graph, value: ir.Value, seen: tuple[float, float], grids: Mapping[ir.Value, Grid]) -> Grid:
    node = value.producer()
    emit = Emitter(graph, f"{value.name}/{PART}")
    source = _before_pair(node.inputs[0]) if node is not None and node.op_type in MOVES else None
    if source is not None and source in grids:
        grid = grids[source]
    else:
        room = MARGIN / 2 * (seen[1] - seen[0])
        scale, zero_point = grid_over(seen[0] - room, seen[1] + room)
        zero = emit.constant(f"{emit.layer}.zero", zero_point, UINT16)
        grid = emit.constant(f"{emit.layer}.scale", scale, FLOAT), zero
    uses, is_output = list(value.uses()), value.is_graph_output()
    result = emit.op("DequantizeLinear", [emit.op("QuantizeLinear", [value, *grid]), *grid])
    result.type, result.shape = value.type, value.shape
    for use in uses:
        use.node.replace_input_with(use.idx, result)
    if is_output:
        graph.outputs[list(graph.outputs).index(value)] = result
        value.name, result.name = f"{value.name}/float", value.name
    if node is None:
        graph.insert_before(graph[0], emit.nodes)
    else:
        graph.insert_after(node, emit.nodes)
    return grid


def _before_pair(value: ir.Value | None) -> ir.Value | None:
    """The tensor that a pair quantizes and dequantizes, if ``value`` is what a pair makes."""
    for op_type in ("DequantizeLinear", "QuantizeLinear"):
        node = None if value is None else value.producer()
        value = node.inputs[0] if node is not None and node.op_type == op_type else None
    return value


def _quantize_constants(graph: ir.Graph, node: ir.Node) -> None:
    for place, value in enumerate(node.inputs):
        if value is None or value.const_value is None or value.dtype != FLOAT:
            continue
        array = value.const_value.numpy()
        emit = Emitter(graph, f"{value.name}/{PART}")
        if node.op_type == "Conv":
            scale, dtype = _product_scale(node), INT32
            zero_point, least, most = np.zeros_like(scale), -INT32_MAX, INT32_MAX
        else:
            scale, zero_point = grid_over(float(array.min()), float(array.max()))
            dtype, least, most = UINT16, 0, LEVELS
        step = emit.constant(f"{emit.layer}.scale", scale, FLOAT)
        zero = emit.constant(f"{emit.layer}.zero", zero_point, dtype)
        codes = np.clip(np.round(array.astype(np.float64) / scale) + zero_point, least, most)
        constant = emit.constant(f"{emit.layer}.codes", codes, dtype)
        part, operands = f"{node.name}/{place}", [constant, step, zero]
        if scale.ndim:
            result = emit.op("DequantizeLinear", operands, part, axis=0)
        else:
            result = emit.op("DequantizeLinear", operands, part)
        graph.insert_before(node, emit.nodes)
        node.replace_input_with(place, result)


def _product_scale(conv: ir.Node) -> np.ndarray:
    """Scale of the input times scales of the weight, ``[o]``: integer kernels add the bias to the product's codes."""
    return _scale_of(conv.inputs[0]) * _scale_of(conv.inputs[1])


def _scale_of(dequantized: ir.Value | None) -> np.ndarray:
    node = None if dequantized is None else dequantized.producer()
    assert node is not None and node.op_type == "DequantizeLinear"
    return _array(node.inputs[1])


def _array(constant: ir.Value | None) -> np.ndarray:
    assert constant is not None and constant.const_value is not None
    return constant.const_value.numpy()


def _widen(graph: ir.Graph, product: ir.Node) -> None:
    """Repeat the left operand's grid in 16 bits."""
    operand = product.inputs[0]
    node = None if operand is None else operand.producer()
    assert operand is not None and node is not None
    emit = Emitter(graph, f"{product.name}/{PART}")
    (scale, step), (zero_point, zero) = ((value.name, _array(value)) for value in node.inputs[1:3] if value is not None)
    grid = (
        emit.constant(f"{scale}/{PART}", step / np.float32(WIDER), FLOAT),
        emit.constant(f"{zero_point}/{PART}", zero.astype(np.int64) * WIDER, UINT16),
    )
    wide = emit.op("DequantizeLinear", [emit.op("QuantizeLinear", [operand, *grid]), *grid])
    graph.insert_before(product, emit.nodes)
    product.replace_input_with(0, wide)
