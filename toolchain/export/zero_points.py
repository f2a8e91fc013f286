"""Zero points beside the products instead of inside them, for kernels that multiply plain codes."""

from __future__ import annotations

from typing import final

import numpy as np
import onnx_ir as ir

from .emit import Emitter

ZERO_POINTS = "zero_points"
"""Part of a layer's name under which its weight's zero points are multiplied by their scales."""


@final
class ZeroPointsBesideProducts(ir.passes.InPlacePass):
    """``A B = A B' - (sum of A's rows) z s``, where ``B' = s q`` is ``B = s (q - z)`` with its zero point left out.

    Done for a weight ``B``, and for both operands of an attention product: ``A B = A' B' - z_a s_a (sum of columns of
    B') - (sum of rows of A) z_b s_b``. Nothing is done where ``z`` is 0. The same codes are multiplied; the correction
    is one more rounded sum.

    Sums are products with ones, on the same integer kernels: OpenVINO 2026.4 sums 8-bit codes wrongly with ReduceSum
    where there are several images of several windows (all but the first).
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every MatMul of two DequantizeLinear."""
        moved = 0
        for node in model.graph:
            operands = [_dequantize(value) for value in node.inputs[:2]] if node.op_type == "MatMul" else []
            if operands and None not in operands:
                left, right = (operand for operand in operands if operand is not None)
                moved += _rewrite(model.graph, node, left, right)
        return ir.passes.PassResult(model, modified=moved > 0)


def _dequantize(value: ir.Value | None) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _rewrite(graph: ir.Graph, product: ir.Node, left: ir.Node, right: ir.Node) -> bool:
    assert product.name is not None
    emit = Emitter(graph, product.name.rpartition("/")[0])
    weight = _is_constant(right)
    rows, columns = _zero(right).any(), not weight and _zero(left).any()
    if not rows and not columns:
        return False
    a = _without_zero_point(emit, left, "a") if columns else product.inputs[0]
    b = _without_zero_point(emit, right, "b") if rows else product.inputs[1]
    assert product.inputs[0] is not None and product.inputs[1] is not None
    result = emit.op("MatMul", [a, b])
    if columns:
        step = _multiple(emit, left, "a")
        sums = emit.op("MatMul", [_ones(emit, (1, _terms(left))), b], "a")
        result = emit.op("Sub", [result, emit.op("Mul", [sums, step], "a")])
    if rows:
        step = _weight_multiple(emit, right) if weight else _multiple(emit, right, "b")
        sums = emit.op("MatMul", [product.inputs[0], _ones(emit, (_terms(left), 1))], "b")
        result = emit.op("Sub", [result, emit.op("Mul", [sums, step], "b")])
    emit.replace([product], result, f"{emit.layer}/product")
    return True


def _is_constant(dequantize: ir.Node) -> bool:
    codes = dequantize.inputs[0]
    if codes is not None and (cast := codes.producer()) is not None and cast.op_type == "Cast":
        codes = cast.inputs[0]
    return codes is not None and codes.const_value is not None


def _zero(dequantize: ir.Node) -> np.ndarray:
    return _array(dequantize.inputs[2])


def _array(constant: ir.Value | None) -> np.ndarray:
    assert constant is not None and constant.const_value is not None
    return constant.const_value.numpy()


def _without_zero_point(emit: Emitter, dequantize: ir.Node, part: str) -> ir.Value:
    codes, scale, zero_point = dequantize.inputs
    assert zero_point is not None and zero_point.dtype is not None
    zero = emit.constant(f"{emit.layer}.{part}.zero", np.zeros_like(_array(zero_point)), zero_point.dtype)
    attributes = {name: attribute.value for name, attribute in dequantize.attributes.items()}
    return emit.op("DequantizeLinear", [codes, scale, zero], f"{part}/plain", **attributes)


def _ones(emit: Emitter, shape: tuple[int, int]) -> ir.Value:
    ones = emit.constant(f"int8.ones.{shape[0]}x{shape[1]}", np.ones(shape), ir.DataType.INT8)
    grid = emit.scalar(1.0, ir.DataType.FLOAT), emit.scalar(0, ir.DataType.INT8)
    return emit.op("DequantizeLinear", [ones, *grid], "ones")


def _terms(left: ir.Node) -> int:
    """How many products a sum has: the last size of what the left operand is quantized from."""
    value = left.inputs[0]
    while value is not None and value.shape is None:
        node = value.producer()
        value = None if node is None else node.inputs[0]
    assert value is not None and value.shape is not None and isinstance(value.shape[-1], int)
    return value.shape[-1]


def _multiple(emit: Emitter, dequantize: ir.Node, part: str) -> ir.Value:
    """``z s`` of an activation, one number."""
    zero_point = _zero(dequantize).astype(np.float32)
    return emit.constant(f"{emit.layer}.{part}.shift", zero_point * _array(dequantize.inputs[1]), ir.DataType.FLOAT)


def _weight_multiple(emit: Emitter, dequantize: ir.Node) -> ir.Value:
    """``z s`` of a weight, ``[o]``, made in the graph of the zero points and scales it is the product of."""
    _, scale, zero_point = dequantize.inputs
    assert zero_point is not None and zero_point.dtype is not None
    zero = emit.constant(f"{emit.layer}.b.zero", np.zeros_like(_array(zero_point)), zero_point.dtype)
    return emit.op("DequantizeLinear", [zero_point, scale, zero], ZERO_POINTS, axis=0)
