"""Quantizing an activation in the graph: every granularity in a form that computes exactly the run's codes.

``v = clamp(round(x / s) + z, 0, qmax) - z`` is what a quantized product multiplies. Four forms compute it exactly, in
ONNX Runtime at every optimisation level and in ``onnx.reference`` (all divide truly and round half to even):

===================  ==========================================================  ==============================
scale, zero point    nodes                                                       what follows the product
===================  ==========================================================  ==============================
one number each      Q(s, z) -> Clip(integers) -> DQ(s, z)                       nothing
array, one number    Div(s) -> Q(1, z) -> Clip(integers) -> DQ(1, z)             Mul(s)
array, array         Div(s) -> Max(-z) -> Min(qmax - z) -> Q(1, Z) -> DQ(1, Z)   Mul(s)
array, no room       Div(s) -> Max(-z) -> Min(qmax - z) -> Round                 Mul(s); the product stays float
===================  ==========================================================  ==============================

A scale array cannot go into QuantizeLinear itself: it takes one axis only, and ONNX Runtime turns per-axis scales on
a product's operands into an integer kernel that fails when run ("zero point must be a scalar"). Clipping at integers
commutes with rounding, so the third form may clip first; its shared zero point ``Z = max(z)`` only moves the codes,
and needs ``Z - min(z) + qmax`` to fit the container. Where the scale varies along the contracted axis it cannot leave
the product: the fourth form is used and multiplied by ``s`` at once.

Runtimes that look for QuantizeLinear and DequantizeLinear side by side get ``adjacent`` pairs: what stands between them
in the table comes first, and the clip is one of floats, ``Clip(-z s, (qmax - z) s) -> Q(s, z) -> DQ(s, z)``. Its ends
divided by ``s`` are within a rounding of the integers they stand for, so the codes are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import onnx_ir as ir

from ..traced.ops import Activation, Token
from .emit import Emitter

FLOAT = ir.DataType.FLOAT
LAYOUT = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze"})


@final
@dataclass(frozen=True)
class Container:
    """The integer type codes are stored in; a code ``c`` of ``bits`` bits is stored as ``c - offset(bits)``.

    Signed containers are centred: 4-bit codes 0..15 are stored as -8..7, so that magnitudes stay as small as the
    bits allow.
    """

    dtype: ir.DataType

    def offset(self, bits: int) -> int:
        """What is subtracted from a code."""
        return 2 ** (bits - 1) if self.dtype.is_signed() else 0

    def bounds(self, bits: int) -> tuple[int, int]:
        """Smallest and largest stored code."""
        return -self.offset(bits), 2**bits - 1 - self.offset(bits)

    def is_filled_by(self, bits: int) -> bool:
        """Whether saturation of the type is already the clip that ``bits`` need."""
        return bits == int(self.dtype.bitwidth)


Choose = Callable[[int], Container]
"""Bits needed (more than the grid's where zero points differ) -> container."""


@final
@dataclass(frozen=True)
class Operand:
    """One side of a product: its float ``value``, the scale still missing from it (None: none), bits of its codes.

    ``bits`` is None for an operand that no integer kernel can read. With ``token``, of ``factor`` only that is meant.
    """

    value: ir.Value
    factor: np.ndarray | None
    bits: int | None
    token: Token | None = None


ArrayLowering = Callable[[Emitter, Activation, Choose, bool, bool], Operand]
"""Operand of an activation with a scale array; the last two are ``factored`` and ``transpose`` of ``operand``."""


@final
class ActivationLowering:
    """Emits the table above; the same tensor on the same grid is quantized once in a graph.

    ``before_layout`` quantizes before the reshapes and transposes that only this tensor goes through, which then move
    bytes instead of floats. ONNX Runtime does the same but leaves a second QuantizeLinear behind for signed codes.
    ``adjacent`` leaves nothing between QuantizeLinear and DequantizeLinear where there is one scale; it cannot be had
    together with that.
    ``arrays`` is a target's own way with scale arrays, instead of the table's.
    """

    def __init__(self, before_layout: bool, adjacent: bool = False, arrays: ArrayLowering | None = None) -> None:
        self.before_layout = before_layout
        self.adjacent = adjacent
        self.arrays = arrays
        self._known: dict[tuple[object, ...], Operand] = {}

    def operand(
        self, emit: Emitter, x: Activation, choose: Choose, *, factored: bool, transpose: bool = False
    ) -> Operand:
        """The quantized ``x``, its last two axes swapped with ``transpose``.

        ``factored`` leaves a scale array for after the product; otherwise the operand is multiplied by it at once.
        """
        grid = (x.scale.shape, x.scale.tobytes(), x.zero_point.shape, x.zero_point.tobytes(), x.bits)
        scalar = x.scale.size == x.zero_point.size == 1
        key = (x.value, grid, choose(x.bits), scalar or factored, transpose)
        if key not in self._known:
            if scalar:
                self._known[key] = self._scalar(emit, x, choose, transpose)
            elif self.arrays is not None:
                self._known[key] = self.arrays(emit, x, choose, factored, transpose)
            else:
                lower = _factored if factored else _dequantized
                self._known[key] = lower(emit, x, choose, transpose)
        return self._known[key]

    def _scalar(self, emit: Emitter, x: Activation, choose: Choose, transpose: bool) -> Operand:
        step = emit.constant(f"{x.name}.scale", x.scale.reshape(()), FLOAT)
        value, layout = _before_layout(x.value) if self.before_layout else (x.value, [])
        container, zero_point = choose(x.bits), x.zero_point.reshape(())
        if self.adjacent:
            return Operand(_adjacent(emit, x, value, step, zero_point, container, transpose), None, x.bits)
        return Operand(_integer(emit, x, value, step, zero_point, container, transpose, layout=layout), None, x.bits)


def _before_layout(value: ir.Value) -> tuple[ir.Value, list[ir.Node]]:
    """The tensor before the layout operators that end in ``value`` and feed nothing else, and those operators."""
    layout: list[ir.Node] = []
    while (node := value.producer()) is not None and node.op_type in LAYOUT and not node.domain:
        source = node.inputs[0]
        if len(value.uses()) > 1 or value.is_graph_output() or source is None:
            break
        layout.insert(0, node)
        value = source
    return value, layout


def _factored(emit: Emitter, x: Activation, choose: Choose, transpose: bool) -> Operand:
    factor = np.swapaxes(x.scale, -1, -2) if transpose and x.scale.ndim > 1 else x.scale
    low, high = int(x.zero_point.min()), int(x.zero_point.max())
    one = emit.scalar(1.0, FLOAT)
    if low == high:
        value = _integer(emit, x, _divided(emit, x), one, np.array(high), choose(x.bits), transpose)
        return Operand(value, factor, x.bits)
    bits = (2**x.bits - 1 + high - low).bit_length()
    value = _clipped(emit, x)
    if bits <= int(choose(x.bits).dtype.bitwidth):
        value = _integer(emit, x, value, one, np.array(high), choose(bits), transpose, bits)
        return Operand(value, factor, bits)
    return Operand(swapped(emit, x, _op(emit, x, "Round", value), transpose), factor, None)


def _dequantized(emit: Emitter, x: Activation, choose: Choose, transpose: bool) -> Operand:
    step = emit.constant(f"{x.name}.scale", x.scale, FLOAT)
    value = _op(emit, x, "Mul", _op(emit, x, "Round", _clipped(emit, x)), step)
    return Operand(swapped(emit, x, value, transpose), None, None)


def _divided(emit: Emitter, x: Activation) -> ir.Value:
    return _op(emit, x, "Div", x.value, emit.constant(f"{x.name}.scale", x.scale, FLOAT))


def _clipped(emit: Emitter, x: Activation) -> ir.Value:
    """``x / s`` between ``-z`` and ``qmax - z``, each its own."""
    zero_point = x.zero_point.astype(np.float32)
    low = emit.constant(f"{x.name}.low", -zero_point, FLOAT)
    high = emit.constant(f"{x.name}.high", 2**x.bits - 1 - zero_point, FLOAT)
    return _op(emit, x, "Min", _op(emit, x, "Max", _divided(emit, x), low), high)


def _integer(
    emit: Emitter,
    x: Activation,
    value: ir.Value,
    step: ir.Value,
    zero_point: np.ndarray,
    container: Container,
    transpose: bool,
    bits: int | None = None,
    layout: Sequence[ir.Node] = (),
) -> ir.Value:
    """``QuantizeLinear -> Clip -> DequantizeLinear``, the clip only where the container holds more than the bits.

    The clip acts on integers, between the two: ONNX Runtime then still sees a quantized product, exact at every
    level (a clip of floats after DequantizeLinear becomes another product, which is not). A transpose goes there
    too, so that DequantizeLinear sits directly on the product and a quarter of the bytes are moved.
    ``bits`` is given where the values have already been clipped; ``layout`` is repeated on the codes.
    """
    grid = bits or x.bits
    zero = emit.constant(f"{x.name}.zero_point", zero_point.astype(np.int64) - container.offset(grid), container.dtype)
    codes = _op(emit, x, "QuantizeLinear", value, step, zero)
    if bits is None and not container.is_filled_by(x.bits):
        low, high = (emit.scalar(bound, container.dtype) for bound in container.bounds(x.bits))
        codes = _op(emit, x, "Clip", codes, low, high)
    for node in layout:
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        codes = emit.op(node.op_type, [codes, *node.inputs[1:]], part_of(emit, x), **attributes)
    return _op(emit, x, "DequantizeLinear", swapped(emit, x, codes, transpose), step, zero)


def _adjacent(
    emit: Emitter,
    x: Activation,
    value: ir.Value,
    step: ir.Value,
    zero_point: np.ndarray,
    container: Container,
    transpose: bool,
) -> ir.Value:
    """``Clip -> QuantizeLinear -> DequantizeLinear`` behind the transpose; parameters as for ``_integer``."""
    value = swapped(emit, x, value, transpose)
    if not container.is_filled_by(x.bits):
        assert step.const_value is not None
        low, high = clip_ends(step.const_value.numpy(), zero_point, x.bits)
        ends = emit.constant(f"{x.name}.low", low, FLOAT), emit.constant(f"{x.name}.high", high, FLOAT)
        value = _op(emit, x, "Clip", value, *ends)
    stored = zero_point.astype(np.int64) - container.offset(x.bits)
    zero = emit.constant(f"{x.name}.zero_point", stored, container.dtype)
    return _op(emit, x, "DequantizeLinear", _op(emit, x, "QuantizeLinear", value, step, zero), step, zero)


def clip_ends(step: np.ndarray, zero_point: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """The floats that the smallest and the largest code of a grid with one scale stand for."""
    zero = zero_point.astype(np.float32)
    return -zero * step, (np.float32(2**bits - 1) - zero) * step


def swapped(emit: Emitter, x: Activation, value: ir.Value, transpose: bool) -> ir.Value:
    """``value``, of the shape of ``x``, with its last two axes swapped if ``transpose``."""
    if not transpose:
        return value
    rank = len(x.value.shape) if x.value.shape is not None else 4
    return emit.op("Transpose", [value], part_of(emit, x), perm=[*range(rank - 2), rank - 1, rank - 2])


def _op(emit: Emitter, x: Activation, op_type: str, *inputs: ir.Value) -> ir.Value:
    return emit.op(op_type, list(inputs), part_of(emit, x))


def part_of(emit: Emitter, x: Activation) -> str:
    """What the layer calls ``x``: input, a or b."""
    return x.name.removeprefix(f"{emit.layer}.")
