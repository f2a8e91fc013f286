"""Lowering quantized layers to QuantizeLinear and DequantizeLinear around standard products."""

from __future__ import annotations

from typing import Protocol, final

import numpy as np
import onnx_ir as ir

from ..traced.ops import DOMAIN, TOKEN, ConvOp, LinearOp, MatMulOp, QuantOp, Weight, read_op
from .activations import FLOAT, ActivationLowering, ArrayLowering, Container, Operand
from .emit import Emitter
from .one_token import of_token


class Containers(Protocol):
    """What integer types a target wants values in; ``left_bits`` None: no integer kernel can run the product."""

    def left(self, bits: int) -> Container:
        """For the left operand of a product, which is always an activation."""

    def right(self, bits: int, left_bits: int | None) -> Container:
        """For an activation on the right of a product."""

    def weight(self, bits: int, left_bits: int | None) -> Container:
        """For a weight as the kernel reads it."""

    def stored_weight(self, bits: int, read: Container) -> Container:
        """For a weight in the file; where it differs from ``read`` a Cast follows."""


@final
class LowerToQdq(ir.passes.InPlacePass):
    """Replaces every ``fimaq::`` operator; afterwards the graph holds standard operators only.

    ``before_layout``, ``adjacent`` and ``arrays`` are those of ``ActivationLowering``.
    """

    def __init__(
        self,
        containers: Containers,
        *,
        before_layout: bool,
        adjacent: bool = False,
        arrays: ArrayLowering | None = None,
    ) -> None:
        self.containers = containers
        self.before_layout = before_layout
        self.adjacent = adjacent
        self.arrays = arrays
        self.activations = ActivationLowering(before_layout, adjacent, arrays)

    def requires(self, model: ir.Model) -> None:
        """Every operator of the ``fimaq`` domain must be known and hold constants; scale arrays are read whole."""
        for node in model.graph:
            if node.domain == DOMAIN:
                read_op(node)
                if TOKEN in node.attributes and self.arrays is None:
                    raise ir.passes.PreconditionError(
                        f"{node.name} computes one token; only ``arrays`` reads its scale."
                    )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Lower all layers."""
        self.activations = ActivationLowering(self.before_layout, self.adjacent, self.arrays)
        lowered = 0
        for node in model.graph:
            if node.domain == DOMAIN:
                op = read_op(node)
                emit = Emitter(model.graph, op.layer)
                emit.replace([node], self._lower(emit, op), f"{op.layer}/output")
                lowered += 1
        model.graph.opset_imports.pop(DOMAIN, None)
        return ir.passes.PassResult(model, modified=lowered > 0)

    def ensures(self, model: ir.Model) -> None:
        """No ``fimaq`` operator may be left."""
        left = [node.name or node.op_type for node in model.graph.all_nodes() if node.domain == DOMAIN]
        if left:
            raise ir.passes.PostconditionError(f"operators {', '.join(left)} were not lowered.")

    def _lower(self, emit: Emitter, op: QuantOp) -> ir.Value:
        match op:
            case LinearOp():
                return self._linear(emit, op)
            case ConvOp():
                return self._conv(emit, op)
            case MatMulOp():
                return self._matmul(emit, op)

    def _linear(self, emit: Emitter, op: LinearOp) -> ir.Value:
        x = self.activations.operand(emit, op.x, self.containers.left, factored=True)
        weight = self._weight(emit, op.weight, op.weight.codes.T, 1, x.bits)
        product = _scale(emit, emit.op("MatMul", [x.value, weight]), x)
        if op.bias is None:
            return product
        # With a bias of the product's rank ONNX Runtime leaves it alone. A flat one it would merge into BiasGelu, which
        # is slower than Add and Gelu, or into a float Gemm where the batch is fixed.
        rank = 1 if op.x.value.shape is None else len(op.x.value.shape)
        return emit.op("Add", [product, _bias(emit, op.bias.reshape(*[1] * (rank - 1), -1))])

    def _conv(self, emit: Emitter, op: ConvOp) -> ir.Value:
        x = self.activations.operand(emit, op.x, self.containers.left, factored=False)
        weight = self._weight(emit, op.weight, op.weight.codes, 0, x.bits)
        return emit.op(
            "Conv",
            [x.value, weight, None if op.bias is None else _bias(emit, op.bias)],
            strides=list(op.stride),
            pads=[*op.padding, *op.padding],
            dilations=list(op.dilation),
            group=op.groups,
            kernel_shape=list(op.weight.codes.shape[2:]),
        )

    def _matmul(self, emit: Emitter, op: MatMulOp) -> ir.Value:
        """A scale leaves the product unless it varies along the axis that is summed over."""
        a = self.activations.operand(emit, op.a, self.containers.left, factored=not _varies(op.a.scale, -1))
        b = self.activations.operand(
            emit,
            op.b,
            lambda bits: self.containers.right(bits, a.bits),
            factored=not _varies(op.b.scale, -1 if op.transpose_b else -2),
            transpose=op.transpose_b,
        )
        return _scale(emit, emit.op("MatMul", [a.value, b.value]), a, b)

    def _weight(self, emit: Emitter, weight: Weight, codes: np.ndarray, axis: int, left_bits: int | None) -> ir.Value:
        """The dequantized weight, its ``codes`` in the layout they are read in, scales along ``axis``."""
        read = self.containers.weight(weight.bits, left_bits)
        stored = self.containers.stored_weight(weight.bits, read)
        offset = read.offset(weight.bits)
        value = emit.constant(f"{weight.name}.codes", codes.astype(np.int64) - offset, stored.dtype)
        if stored != read:
            value = emit.op("Cast", [value], "weight", to=read.dtype)
        scale = emit.constant(f"{weight.name}.scale", weight.scale, FLOAT)
        zero_point = emit.constant(f"{weight.name}.zero_point", weight.zero_point.astype(np.int64) - offset, read.dtype)
        return emit.op("DequantizeLinear", [value, scale, zero_point], "weight", axis=axis)


def _varies(scale: np.ndarray, axis: int) -> bool:
    return scale.ndim >= -axis and scale.shape[axis] > 1


def _bias(emit: Emitter, bias: np.ndarray) -> ir.Value:
    return emit.constant(f"{emit.layer}.bias", bias, FLOAT)


def _scale(emit: Emitter, product: ir.Value, left: Operand, right: Operand | None = None) -> ir.Value:
    """Multiply by the scales left out of the operands, as one array where that is no larger than the larger of them."""
    factors = [operand.factor for operand in (left, right) if operand is not None and operand.factor is not None]
    if len(factors) == 2:
        both = factors[0] * factors[1]
        if both.size <= max(factor.size for factor in factors):
            factors = [both]
    for i, factor in enumerate(factors):
        scale = emit.constant(f"{emit.layer}.factor{i or ''}", factor, FLOAT)
        product = emit.op("Mul", [product, of_token(emit, scale, left.token, "factor")])
    return product
