"""Scale arrays where integers are what is fast: codes on one zero point for every product that can have them.

The values are those of ``activations``, and so is what follows the product. Bounds are on integers, a quarter of the
bytes, and the array goes into QuantizeLinear itself:

===================  ===========================================================  =============================
scale, zero point    nodes                                                        what follows the product
===================  ===========================================================  =============================
array, one number    Q(s, z) -> Clip -> DQ(1, z)                                  Mul(s)
array, array         Q(s, Z) -> Max(Z - z) -> Min(Z - z + qmax) -> DQ(1, Z)       Mul(s)
array, no room       Div(s) -> Max(-z) -> Min(qmax - z) -> Round                  Mul(s); the product stays float
array along the sum  Q(s, z) -> Clip -> DQ(s, z)                                  nothing; the product stays float
===================  ===========================================================  =============================

QuantizeLinear takes an array along one axis: axes side by side become one by a Reshape (``rows``). Where they do not,
and for one token, ``Div(s) -> Q(1, z)`` does the same.

An array does not go into a DequantizeLinear in front of a product: ONNX Runtime would turn that into an integer kernel
that fails when run ("zero point must be a scalar"). In the last form a Reshape or a Mul stands between.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..traced.ops import Activation
from .activations import FLOAT, Choose, Container, Operand, part_of, swapped
from .emit import Emitter
from .one_token import of_token
from .rows import Rows, rows_of


def lower_array(emit: Emitter, x: Activation, choose: Choose, factored: bool, transpose: bool) -> Operand:
    """An operand with a scale array; the array is left for after the product where it may be ``factored`` out."""
    return (_factored if factored else _dequantized)(emit, x, choose, transpose)


def _factored(emit: Emitter, x: Activation, choose: Choose, transpose: bool) -> Operand:
    factor = np.swapaxes(x.scale, -1, -2) if transpose and x.scale.ndim > 1 else x.scale
    low, high = int(x.zero_point.min()), int(x.zero_point.max())
    bits = (2**x.bits - 1 + high - low).bit_length()
    container = choose(bits)
    if bits > int(container.dtype.bitwidth):
        value = _op(emit, x, "Round", _bounded_steps(emit, x))
        return Operand(swapped(emit, x, value, transpose), factor, None, x.token)
    rows, shared = rows_of(x), high - container.offset(bits)
    zero, one = emit.constant(f"{x.name}.zero_point", np.array(shared), container.dtype), emit.scalar(1.0, FLOAT)
    if rows is None:
        codes = _op(emit, x, "QuantizeLinear", _steps(emit, x), one, zero)
    else:
        codes, _, _ = _along_rows(emit, x, rows, np.array(shared), container)
        codes = rows.unfold(emit, codes, part_of(emit, x))
    if low == high:
        codes = _clipped(emit, x, codes, container)
    else:
        codes = _bounded(emit, x, codes, shared - x.zero_point.astype(np.int64), container.dtype)
    value = _op(emit, x, "DequantizeLinear", swapped(emit, x, codes, transpose), one, zero)
    return Operand(value, factor, bits, x.token)


def _dequantized(emit: Emitter, x: Activation, choose: Choose, transpose: bool) -> Operand:
    rows = rows_of(x)
    if rows is None or len(rows.sizes) == 1:
        value = _op(emit, x, "Mul", _op(emit, x, "Round", _bounded_steps(emit, x)), _scale(emit, x))
    else:
        container = choose(x.bits)
        stored = x.zero_point.astype(np.int64) - container.offset(x.bits)
        codes, scale, zero = _along_rows(emit, x, rows, stored, container)
        codes = _clipped(emit, x, codes, container)
        value = emit.op("DequantizeLinear", [codes, scale, zero], part_of(emit, x), axis=rows.axis)
        value = rows.unfold(emit, value, part_of(emit, x))
    return Operand(swapped(emit, x, value, transpose), None, None)


def _along_rows(
    emit: Emitter, x: Activation, rows: Rows, zero_point: np.ndarray, container: Container
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Codes as far as the container goes, the rows along one axis, and their scales and zero points ``[n]``."""
    scale = emit.constant(f"{x.name}.scale", rows.flat(x.scale), FLOAT)
    zero = emit.constant(f"{x.name}.zero_points", rows.flat(zero_point), container.dtype)
    value = rows.fold(emit, x.value, part_of(emit, x))
    return emit.op("QuantizeLinear", [value, scale, zero], part_of(emit, x), axis=rows.axis), scale, zero


def _scale(emit: Emitter, x: Activation) -> ir.Value:
    return of_token(emit, emit.constant(f"{x.name}.scale", x.scale, FLOAT), x.token, part_of(emit, x))


def _steps(emit: Emitter, x: Activation) -> ir.Value:
    return _op(emit, x, "Div", x.value, _scale(emit, x))


def _bounded_steps(emit: Emitter, x: Activation) -> ir.Value:
    """``x / s`` between ``-z`` and ``qmax - z``, each its own."""
    return _bounded(emit, x, _steps(emit, x), -x.zero_point.astype(np.int64), FLOAT)


def _bounded(emit: Emitter, x: Activation, value: ir.Value, least: np.ndarray, dtype: ir.DataType) -> ir.Value:
    """``value`` between ``least`` and ``least + qmax``."""
    low, high = (
        of_token(emit, emit.constant(f"{x.name}.{end}", array, dtype), x.token, part_of(emit, x))
        for end, array in (("low", least), ("high", least + 2**x.bits - 1))
    )
    return _op(emit, x, "Min", _op(emit, x, "Max", value, low), high)


def _clipped(emit: Emitter, x: Activation, codes: ir.Value, container: Container) -> ir.Value:
    if container.is_filled_by(x.bits):
        return codes
    return _op(emit, x, "Clip", codes, *(emit.scalar(bound, container.dtype) for bound in container.bounds(x.bits)))


def _op(emit: Emitter, x: Activation, op_type: str, *inputs: ir.Value) -> ir.Value:
    return emit.op(op_type, list(inputs), part_of(emit, x))
