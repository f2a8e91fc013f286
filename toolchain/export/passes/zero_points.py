"""Zero points beside the products instead of inside them, for kernels that multiply plain codes."""

from __future__ import annotations

from typing import final

import numpy as np
import onnx_ir as ir

from .emit import Emitter

ZERO_POINTS, SCALES = "zero_points", "scales"
"""Parts of a layer's name: ``<layer>/b/zero_points/DequantizeLinear`` reads the right operand's zero points,
``<layer>/scales/Mul`` multiplies its scales by the left operand's."""


@final
class ZeroPointsBesideProducts(ir.passes.InPlacePass):
    """``A B = s_a s_b (C_a C_b - (sums of C_a's rows) z_b)``, codes ``C`` less only zero points that kernels take.

    Done for a weight ``B``, whose zero points alone are left out, and for both operands of an attention product, where
    ``z_a (sums of C_b's columns)`` is subtracted too. Nothing is done where ``z`` is 0. The same codes are multiplied,
    and scales come last: everything before them is integers, exact in float32 up to 2^24, so that a difference of
    large sums costs no digits.

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
    a = _unscaled(emit, left, "a", keep_zero_point=not columns)
    b = _unscaled(emit, right, "b", keep_zero_point=not rows)
    result = emit.op("MatMul", [a, b])
    if columns:
        sums = emit.op("MatMul", [_ones(emit, (1, _terms(left))), b], "a")
        result = emit.op("Sub", [result, emit.op("Mul", [sums, _zero_points(emit, left, "a")], "a")])
    if rows:
        plain = _unscaled(emit, left, "a", keep_zero_point=True) if columns else a
        sums = emit.op("MatMul", [plain, _ones(emit, (_terms(left), 1))], "b")
        result = emit.op("Sub", [result, emit.op("Mul", [sums, _zero_points(emit, right, "b")], "b")])
    scales = emit.op("Mul", [right.inputs[1], left.inputs[1]], SCALES)
    emit.replace([product], emit.op("Mul", [result, scales], "scaled"), f"{emit.layer}/product")
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


def _unscaled(emit: Emitter, dequantize: ir.Node, part: str, *, keep_zero_point: bool) -> ir.Value:
    """An operand's codes as floats, less their zero point where it is kept."""
    codes, _, zero_point = dequantize.inputs
    assert zero_point is not None and zero_point.dtype is not None
    zero = zero_point if keep_zero_point else emit.scalar(0, zero_point.dtype)
    one = emit.scalar(1.0, ir.DataType.FLOAT)
    return emit.op("DequantizeLinear", [codes, one, zero], f"{part}/{'codes' if keep_zero_point else 'plain'}")


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


def _zero_points(emit: Emitter, dequantize: ir.Node, part: str) -> ir.Value:
    """The zero points of an operand as floats, read from where they are stored."""
    zero_point = dequantize.inputs[2]
    assert zero_point is not None and zero_point.dtype is not None
    grid = emit.scalar(1.0, ir.DataType.FLOAT), emit.scalar(0, zero_point.dtype)
    return emit.op("DequantizeLinear", [zero_point, *grid], f"{part}/{ZERO_POINTS}")
