"""Weights of two bits stored in two bits: INT2 and UINT2 of opset 25, which ONNX Runtime reads from 1.24 on."""

from __future__ import annotations

from typing import final

import numpy as np
import onnx_ir as ir

TWO_BITS = 25
"""The first opset with 2-bit types."""

NARROWER = {
    ir.DataType.INT4: (ir.DataType.INT2, range(-2, 2)),
    ir.DataType.UINT4: (ir.DataType.UINT2, range(4)),
}


@final
class StoreTwoBits(ir.passes.InPlacePass):
    """A cast 4-bit constant becomes a cast 2-bit one where every code fits and the opset has the type."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Narrow every such constant."""
        if model.graph.opset_imports[""] < TWO_BITS:
            return ir.passes.PassResult(model, modified=False)
        narrowed = [_narrow(node.inputs[0]) for node in model.graph if node.op_type == "Cast" and node.inputs[0]]
        return ir.passes.PassResult(model, modified=any(narrowed))


def _narrow(value: ir.Value) -> bool:
    """Store a constant in two bits if it can be; whether it was."""
    if value.const_value is None or value.dtype not in NARROWER:
        return False
    dtype, codes = NARROWER[value.dtype]
    array = value.const_value.numpy().astype(np.int8)
    if not np.isin(array, codes).all():
        return False
    value.const_value = ir.Tensor(array.astype(dtype.numpy()), dtype=dtype, name=value.name)
    value.type = ir.TensorType(dtype)
    return True
