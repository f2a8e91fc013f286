"""A float graph in half precision, for runtimes whose fast path that is (ONNX Runtime on CUDA)."""

from __future__ import annotations

from typing import final

import numpy as np
import onnx_ir as ir

from ..errors import ExportError
from .emit import Emitter

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16

LAYER = "half"
"""What the names of the casts at both ends begin with."""


@final
class ToHalf(ir.passes.InPlacePass):
    """Weights and activations become float16; the graph still takes and gives float32.

    LayerNormalization keeps ``stash_type`` 1: the standard has it compute mean and variance in float32. Softmax is in
    float16 as the rest; its sums lie between 1 and the number of tokens.
    Raises ExportError for a weight that float16 cannot hold; one nearer to zero than float16's numbers is rounded.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Convert constants and casts, then put casts behind the inputs and before the outputs."""
        graph = model.graph
        for value in graph.initializers.values():
            if value.dtype == FLOAT and value.const_value is not None:
                value.const_value = _halved(value.const_value)
                value.type = ir.TensorType(HALF)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == FLOAT:
                    node.attributes[name] = ir.AttrTensor(name, _halved(attribute.as_tensor()))
                elif node.op_type == "Cast" and name == "to" and attribute.as_int() == FLOAT:
                    node.attributes[name] = ir.AttrInt64(name, HALF)
            for value in node.outputs:
                if value.dtype == FLOAT:
                    value.type = ir.TensorType(HALF)
        for image in graph.inputs:
            _cast_input(graph, image)
        for place in range(len(graph.outputs)):
            _cast_output(graph, place)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Only what goes in and comes out is float32."""
        graph = model.graph
        values = [*graph.initializers.values(), *(value for node in graph for value in node.outputs)]
        left = [value.name for value in values if value.dtype == FLOAT and not value.is_graph_output()]
        if left or any(value.dtype != FLOAT for value in (*graph.inputs, *graph.outputs)):
            raise ir.passes.PostconditionError(f"{left[:5]} are float32, or an input or output is not.")


def _halved(tensor: ir.TensorProtocol) -> ir.Tensor:
    array = tensor.numpy()
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if lost := np.sum(np.isinf(half) & np.isfinite(array)):
        raise ExportError(
            f"{lost} numbers of {tensor.name!r} are beyond {np.finfo(np.float16).max:.0f}, the most that float16 "
            "holds. Nothing was written. Leave out --dtype float16."
        )
    return ir.Tensor(half, name=tensor.name)


def _cast_input(graph: ir.Graph, image: ir.Value) -> None:
    emit = Emitter(graph, LAYER)
    half = emit.op("Cast", [image], "input", to=HALF)
    half.shape, half.type = image.shape, ir.TensorType(HALF)
    ir.convenience.replace_all_uses_with([image], [half])
    (cast,) = emit.nodes
    cast.replace_input_with(0, image)
    graph.insert_before(graph[0], cast)


def _cast_output(graph: ir.Graph, place: int) -> None:
    logits = graph.outputs[place]
    name, logits.name = logits.name, f"{logits.name}.float16"
    emit = Emitter(graph, LAYER)
    result = emit.op("Cast", [logits], "output", to=FLOAT)
    result.name, result.shape, result.type = name, logits.shape, ir.TensorType(FLOAT)
    graph.outputs[place] = result
    graph.insert_after(graph[-1], emit.nodes)
