"""Integer products of a weight, with the bias inside, as ONNX Runtime's own operator."""

from __future__ import annotations

from typing import final

import numpy as np
import onnx_ir as ir

from .emit import Emitter

MICROSOFT = "com.microsoft"
OPERATOR = "MatMulIntegerToFloat"


@final
class FuseIntegerLinear(ir.passes.InPlacePass):
    """``DequantizeLinear, DequantizeLinear -> MatMul (-> Add)`` of constants becomes one MatMulIntegerToFloat.

    That is what ONNX Runtime makes of the first three by itself, but for two cases. The bias it leaves out, as an Add
    that passes over all activations again (and that pairs with Gelu into the slower BiasGelu, or with MatMul into a
    float Gemm where the batch is fixed); inside the operator it costs nothing. And a product without bias it leaves in
    float where only a signed QuantizeLinear reads it, as that of a key.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every such product."""
        fused = 0
        for node in model.graph:
            if node.op_type == "MatMul" and _is_integer(node):
                _fuse(model.graph, node, _bias(node))
                fused += 1
        if fused:
            model.graph.opset_imports[MICROSOFT] = 1
        return ir.passes.PassResult(model, modified=fused > 0)


def _bias(product: ir.Node) -> ir.Node | None:
    """The Add of one number per column that alone reads the product."""
    uses = list(product.outputs[0].uses())
    add = uses[0].node if len(uses) == 1 and not product.outputs[0].is_graph_output() else None
    bias = add.inputs[1] if add is not None and add.op_type == "Add" else None
    constant = None if bias is None else bias.const_value
    return add if constant is not None and constant.shape and constant.size == constant.shape[-1] else None


def _is_integer(product: ir.Node) -> bool:
    """Whether the left operand has one scale and the right one is a constant."""
    left, right = (None if value is None else value.producer() for value in product.inputs)
    if left is None or right is None or {left.op_type, right.op_type} != {"DequantizeLinear"}:
        return False
    scale, codes = left.inputs[1], right.inputs[0]
    if codes is not None and (cast := codes.producer()) is not None and cast.op_type == "Cast":
        codes = cast.inputs[0]
    scalar = scale is not None and scale.const_value is not None and scale.const_value.size == 1
    return scalar and codes is not None and codes.const_value is not None


def _fuse(graph: ir.Graph, product: ir.Node, add: ir.Node | None) -> None:
    left, right = (value.producer() for value in product.inputs if value is not None)
    assert left is not None and right is not None and product.name is not None
    emit = Emitter(graph, product.name.rpartition("/")[0])
    pairs = zip(left.inputs, right.inputs, strict=True)
    inputs = [value for pair in pairs for value in pair]
    if add is not None:
        flat = _array(add.inputs[1]).reshape(-1)
        inputs.append(emit.constant(f"{emit.layer}.bias.flat", flat, ir.DataType.FLOAT))
    result = emit.op(OPERATOR, inputs, domain=MICROSOFT)
    emit.replace([product] if add is None else [add, product], result)


def _array(constant: ir.Value | None) -> np.ndarray:
    assert constant is not None and constant.const_value is not None
    return constant.const_value.numpy()
