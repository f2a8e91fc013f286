"""One product for query, key and value each, instead of one that is cut apart."""

from __future__ import annotations

import math
from typing import final

import numpy as np
import onnx_ir as ir

from ..traced.ops import LinearOp, read_op, static_sizes
from .emit import Emitter

PARTS = ("codes", "scale", "zero_point", "bias")
"""Inputs 1 to 4 of a QLinear, a row (or number) of each for each output."""


@final
class SplitLinear(ir.passes.InPlacePass):
    """A QLinear of which only slices of a reshape are read becomes one QLinear for each slice.

    timm's ``qkv(x).reshape(b, t, 3, h, d)`` cut along the axis of 3: the parts ``<layer>.0``, ``<layer>.1``, ... hold
    the rows of the weight that make them. The slices' copies go away, and each part is quantized where it is made.
    Runs after ``SliceBeforeTranspose``, which brings the slices next to the reshape.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every such QLinear."""
        changed = False
        for node in model.graph:
            reshape = _only_reader(node) if node.op_type == "QLinear" else None
            if reshape is not None and (cuts := _cuts(node, reshape)):
                _split(model.graph, node, reshape, cuts)
                changed = True
        return ir.passes.PassResult(model, modified=changed)


def _only_reader(node: ir.Node) -> ir.Node | None:
    (output,) = node.outputs
    readers = list(output.uses())
    reshape = readers[0].node if len(readers) == 1 and not output.is_graph_output() else None
    return reshape if reshape is not None and reshape.op_type == "Reshape" else None


def _cuts(linear: ir.Node, reshape: ir.Node) -> list[tuple[ir.Node, int]]:
    """The slices that read ``reshape``, each with its place among the parts; nothing unless each is one whole part."""
    before, after = linear.outputs[0].shape, reshape.outputs[0].shape
    if before is None or after is None or reshape.outputs[0].is_graph_output():
        return []
    axis = len(before) - 1
    sizes = static_sizes(list(after)[axis:])
    if list(before)[1:axis] != list(after)[1:axis] or sizes is None or math.prod(sizes) != before[axis]:
        return []
    cuts = [(use.node, _place(use.node, axis, len(after))) for use in reshape.outputs[0].uses()]
    places = [place for _, place in cuts]
    if None in places or len(set(places)) < len(places):
        return []
    return [(cut, place) for cut, place in cuts if place is not None]


def _place(cut: ir.Node, axis: int, rank: int) -> int | None:
    """Which single index along ``axis`` a Slice takes; None where it takes anything else."""
    if cut.op_type != "Slice" or len(cut.inputs) < 4 or (len(cut.inputs) > 4 and cut.inputs[4] is not None):
        return None
    start, end, axes = (None if value is None else _constant(value) for value in cut.inputs[1:4])
    if start is None or end is None or axes is None or len(axes) != 1 or axes[0] % rank != axis:
        return None
    return int(start[0]) if end[0] == start[0] + 1 and start[0] >= 0 else None


def _constant(value: ir.Value) -> np.ndarray | None:
    return None if value.const_value is None else value.const_value.numpy()


def _split(graph: ir.Graph, node: ir.Node, reshape: ir.Node, cuts: list[tuple[ir.Node, int]]) -> None:
    op = read_op(node)
    assert isinstance(op, LinearOp) and node.outputs[0].shape is not None and reshape.outputs[0].shape is not None
    (batch, *lead, _), sizes = node.outputs[0].shape, static_sizes(list(reshape.outputs[0].shape)[1:])
    assert sizes is not None
    sizes[len(lead)], size = 1, op.weight.codes.shape[0] // sizes[len(lead)]
    for cut, place in cuts:
        emit = Emitter(graph, f"{op.layer}.{place}")
        rows = slice(place * size, (place + 1) * size)
        part = [_rows(emit, name, value, rows) for name, value in zip(PARTS, node.inputs[1:5], strict=True)]
        product = emit.layer_op(
            "QLinear", node, [node.inputs[0], *part, *node.inputs[5:]], ir.Shape([batch, *lead, size])
        )
        result = emit.op("Reshape", [product, emit.indices([-1, *sizes])], "part")
        result.shape, result.type = ir.Shape([batch, *sizes]), product.type
        emit.replace([cut], result)


def _rows(emit: Emitter, name: str, value: ir.Value | None, rows: slice) -> ir.Value | None:
    if value is None or value.const_value is None:
        return None
    return emit.constant(f"{emit.layer}.traced.{name}", value.const_value.numpy()[rows], value.const_value.dtype)
