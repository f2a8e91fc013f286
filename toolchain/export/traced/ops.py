"""The ``fimaq::`` operators a traced model consists of, and how each is read from a graph. No torch.

One operator is one quantized layer with everything that defines it, so a lowering pass sees a layer as a whole and
never has to recognise one. Inputs (constants hold float32 unless said; a scale broadcasts against what it scales):

=============  =====================================================================================
operator       inputs
=============  =====================================================================================
QLinear        x, codes uint8 [o, i], weight scale [o, 1], weight zero point [o, 1], bias [o] or none,
               x scale, x zero point
QConv          the same with codes [o, i, kh, kw] and scale, zero point [o, 1, 1, 1]
QMatMul        a, b, a scale, a zero point, b scale, b zero point
=============  =====================================================================================
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import onnx_ir as ir

from ..errors import ExportError

DOMAIN = "fimaq"
VERSION = 1
TOKEN = "token"
"""Attribute of an operator whose first operand is only one token: the axis, counted from the end, and the place."""


def static_sizes(sizes: Iterable[int | ir.SymbolicDim]) -> list[int] | None:
    """The sizes as numbers; None where one is only known when the graph runs."""
    known = list(sizes)
    return [size for size in known if isinstance(size, int)] if all(isinstance(n, int) for n in known) else None


@final
@dataclass(frozen=True)
class Token:
    """The one place along an axis, counted from the end, at which a tensor is computed."""

    axis: int
    place: int


@final
@dataclass(frozen=True)
class Activation:
    """A tensor to quantize: ``code = clamp(round(value / scale) + zero_point, 0, 2**bits - 1)``.

    ``name`` is what the run folder calls it (``<layer>.input``, ``<product>.a``, ``<product>.b``). With ``token`` the
    grid is that of all tokens, and ``value`` only the one of them.
    """

    name: str
    value: ir.Value
    scale: np.ndarray
    zero_point: np.ndarray
    bits: int
    token: Token | None = None


@final
@dataclass(frozen=True)
class Weight:
    """``(codes - zero_point) * scale``: codes uint8 ``[o, ...]``, scale float32 ``[o]``, zero point uint8 ``[o]``."""

    name: str
    codes: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    bits: int


@final
@dataclass(frozen=True)
class LinearOp:
    """``x @ weight^T + bias``."""

    layer: str
    x: Activation
    weight: Weight
    bias: np.ndarray | None


@final
@dataclass(frozen=True)
class ConvOp:
    """2-D convolution; ``padding`` is (y, x), both sides alike."""

    layer: str
    x: Activation
    weight: Weight
    bias: np.ndarray | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


@final
@dataclass(frozen=True)
class MatMulOp:
    """``a @ b``, or ``a @ b^T`` over the last two axes with ``transpose_b``."""

    layer: str
    a: Activation
    b: Activation
    transpose_b: bool


QuantOp = LinearOp | ConvOp | MatMulOp
OpType = Literal["QLinear", "QConv", "QMatMul"]


def read_op(node: ir.Node) -> QuantOp:
    """The layer a ``fimaq::`` node stands for; raises ExportError where the node is not one of the table above."""
    attributes: dict[str, Any] = {name: attribute.value for name, attribute in node.attributes.items()}
    layer, token = attributes["layer"], Token(*attributes[TOKEN]) if TOKEN in attributes else None
    match node.op_type:
        case "QLinear" | "QConv":
            x, codes, scale, zero_point, bias, x_scale, x_zero_point = node.inputs
            bits = attributes["activation_bits"]
            activation = _activation(f"{layer}.input", x, x_scale, x_zero_point, bits, token)
            weight = Weight(
                f"{layer}.weight",
                _array(layer, codes),
                _array(layer, scale).reshape(-1),
                _integers(layer, _array(layer, zero_point), attributes["weight_bits"]).reshape(-1),
                attributes["weight_bits"],
            )
            offset = None if bias is None else _array(layer, bias)
            if node.op_type == "QLinear":
                return LinearOp(layer, activation, weight, offset)
            stride, padding, dilation = (_pair(attributes[name]) for name in ("stride", "padding", "dilation"))
            return ConvOp(layer, activation, weight, offset, stride, padding, dilation, attributes["groups"])
        case "QMatMul":
            a, b, a_scale, a_zero_point, b_scale, b_zero_point = node.inputs
            return MatMulOp(
                layer,
                _activation(f"{layer}.a", a, a_scale, a_zero_point, attributes["a_bits"], token),
                _activation(f"{layer}.b", b, b_scale, b_zero_point, attributes["b_bits"]),
                bool(attributes["transpose_b"]),
            )
        case other:
            raise ExportError(f"operator {DOMAIN}::{other} is unknown: wanted QLinear, QConv or QMatMul.")


def _activation(
    name: str,
    value: ir.Value | None,
    scale: ir.Value | None,
    zero_point: ir.Value | None,
    bits: int,
    token: Token | None = None,
) -> Activation:
    if value is None:
        raise ExportError(f"{name} has no tensor in the traced graph.")
    scales = _array(name, scale)
    if not bool((scales > 0).all()) or not bool(np.isfinite(scales).all()):
        raise ExportError(f"{name} has a scale that is not a positive number. Quantize the model again.")
    return Activation(name, value, scales, _integers(name, _array(name, zero_point), bits), bits, token)


def _array(owner: str, value: ir.Value | None) -> np.ndarray:
    if value is None or value.const_value is None:
        raise ExportError(
            f"{owner}: {'a missing input' if value is None else value.name} is not a constant of the traced graph. "
            "Quantizers must hold fixed scales, zero points and codes before export."
        )
    return np.array(value.const_value.numpy())


def _integers(owner: str, zero_point: np.ndarray, bits: int) -> np.ndarray:
    """Zero points as uint8; raises ExportError for one that has no code."""
    if not bool(((zero_point == np.round(zero_point)) & (zero_point >= 0) & (zero_point < 2**bits)).all()):
        raise ExportError(f"{owner} has a zero point that is not an integer from 0 to {2**bits - 1}.")
    return zero_point.astype(np.uint8)


def _pair(values: Any) -> tuple[int, int]:
    first, second = values
    return int(first), int(second)
