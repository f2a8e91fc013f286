"""Passes that give layers a shape integer kernels accept, while they are still single ``fimaq::`` operators."""

from __future__ import annotations

from typing import final

import onnx_ir as ir

from ..traced.ops import DOMAIN, ConvOp, read_op
from .emit import Emitter


@final
class PatchesToLinear(ir.passes.InPlacePass):
    """A convolution whose kernel is its stride becomes a QLinear over patches: ONNX Runtime's Conv stays float.

    The same codes multiply the same codes; only the order of the sum is the product's.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every such QConv."""
        changed = False
        for node in model.graph:
            if node.domain == DOMAIN and node.op_type == "QConv":
                op = read_op(node)
                size = _static_size(op.x.value) if isinstance(op, ConvOp) else None
                if isinstance(op, ConvOp) and size is not None and _is_patches(op, size):
                    _rewrite_patches(model.graph, node, op, size)
                    changed = True
        return ir.passes.PassResult(model, modified=changed)


def _static_size(image: ir.Value) -> tuple[int, int] | None:
    """Height and width of ``[b, i, h, w]``, where both are known."""
    size = [] if image.shape is None else list(image.shape)[2:]
    return (size[0], size[1]) if len(size) == 2 and isinstance(size[0], int) and isinstance(size[1], int) else None


def _is_patches(op: ConvOp, size: tuple[int, int]) -> bool:
    kernel = op.weight.codes.shape[2:]
    scalar = op.x.scale.size == op.x.zero_point.size == 1
    plain = op.stride == kernel and op.padding == (0, 0) and op.dilation == (1, 1) and op.groups == 1
    return plain and scalar and all(n % k == 0 for n, k in zip(size, kernel, strict=True))


def _rewrite_patches(graph: ir.Graph, node: ir.Node, op: ConvOp, size: tuple[int, int]) -> None:
    """``[b, i, y kh, x kw] -> [b, y, x, i kh kw] -> QLinear -> [b, y, x, o] -> [b, o, y, x]``."""
    emit = Emitter(graph, op.layer)
    image = op.x.value
    batch = None if image.shape is None else image.shape[0]
    o, i, kh, kw = op.weight.codes.shape
    y, x = size[0] // kh, size[1] // kw
    patches = emit.op("Reshape", [image, emit.indices([0, i, y, kh, x, kw])], "patches")
    patches = emit.op("Transpose", [patches], "patches", perm=[0, 2, 4, 1, 3, 5])
    patches = emit.op("Reshape", [patches, emit.indices([0, y, x, i * kh * kw])], "patches")
    patches.shape, patches.type = ir.Shape([batch, y, x, i * kh * kw]), image.type
    weight = [
        emit.constant(f"{op.weight.name}.patches", op.weight.codes.reshape(o, -1), ir.DataType.UINT8),
        emit.constant(f"{op.weight.name}.patches.scale", op.weight.scale, ir.DataType.FLOAT),
        emit.constant(f"{op.weight.name}.patches.zero_point", op.weight.zero_point, ir.DataType.FLOAT),
    ]
    product = emit.layer_op("QLinear", node, [patches, *weight, *node.inputs[4:]], ir.Shape([batch, y, x, o]))
    readers = _flattened_to_tokens(node, [o, y * x])
    if readers:
        tokens = emit.op("Reshape", [product, emit.indices([0, y * x, o])], "tokens")
        emit.replace([*readers, node], tokens)
    else:
        emit.replace([node], emit.op("Transpose", [product], "patches", perm=[0, 3, 1, 2]))


def _flattened_to_tokens(node: ir.Node, shape: list[int]) -> list[ir.Node]:
    """The ``flatten(2).transpose(1, 2)`` that alone reads the node's output, last first; nothing if that is not so."""
    flatten = _only_reader(node)
    transpose = None if flatten is None else _only_reader(flatten)
    if flatten is None or transpose is None or (flatten.op_type, transpose.op_type) != ("Reshape", "Transpose"):
        return []
    flat = flatten.outputs[0].shape
    fits = flat is not None and list(flat)[1:] == shape and list(transpose.attributes["perm"].value) == [0, 2, 1]
    return [transpose, flatten] if fits else []


def _only_reader(node: ir.Node) -> ir.Node | None:
    (output,) = node.outputs
    readers = list(output.uses())
    return readers[0].node if len(readers) == 1 and not output.is_graph_output() else None
