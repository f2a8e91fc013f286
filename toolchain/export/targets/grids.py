"""Refusing a recipe whose grids a runtime does not take, before anything is lowered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import onnx_ir as ir

from ..errors import ExportError
from ..traced.ops import DOMAIN, Activation, MatMulOp, QuantOp, Weight, read_op


@final
@dataclass(frozen=True)
class Grids:
    """What a runtime takes: symmetric grids only, or zero points too; which widths of activations.

    ``recipe`` is the preset to name to who brings another.
    """

    symmetric_weights: bool
    symmetric_activations: bool
    activation_bits: range
    recipe: str


@final
class RefuseOtherGrids(ir.passes.InPlacePass):
    """Raises ExportError for a layer quantized otherwise than ``target`` takes; one scale a tensor, always."""

    def __init__(self, target: str, wanted: Grids) -> None:
        self.target = target
        self.wanted = wanted

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Look at every layer; nothing is changed."""
        for node in model.graph:
            if node.domain == DOMAIN:
                for name, wanted, got in _unfit(read_op(node), self.wanted):
                    raise ExportError(
                        f"target {self.target} takes {wanted}; {name} has {got}. Nothing was written. "
                        f"Quantize with --recipe {self.wanted.recipe}, or give another --target."
                    )
        return ir.passes.PassResult(model, modified=False)


def _unfit(op: QuantOp, wanted: Grids) -> Iterator[tuple[str, str, str]]:
    """Name, what is wanted and what is there."""
    for x in (op.a, op.b) if isinstance(op, MatMulOp) else (op.x,):
        if x.scale.size > 1 or x.zero_point.size > 1:
            yield x.name, "one scale for each activation", f"{x.scale.size} scales"
        if x.bits not in wanted.activation_bits:
            yield x.name, f"activations of {_widths(wanted.activation_bits)} bits", f"{x.bits} bits"
        if wanted.symmetric_activations and _is_asymmetric(x):
            yield x.name, "symmetric activations", "a zero point"
    if not isinstance(op, MatMulOp) and wanted.symmetric_weights and _is_asymmetric(op.weight):
        yield op.weight.name, "symmetric weights", "zero points"


def _widths(bits: range) -> str:
    return f"{bits.start}" if len(bits) == 1 else f"{bits.start} to {bits.stop - 1}"


def _is_asymmetric(x: Activation | Weight) -> bool:
    return bool((x.zero_point != 2 ** (x.bits - 1)).any())
