"""Computing only the token the head reads, from where the others are no longer needed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import final

import numpy as np
import onnx_ir as ir

from ..traced.ops import DOMAIN, TOKEN, static_sizes
from .emit import Emitter

POINTWISE = frozenset({"Gelu", "Erf", "Tanh", "Sigmoid", "Relu", "Identity", "Cast"})
BROADCAST = frozenset({"Add", "Sub", "Mul", "Div"})
OVER_LAST = frozenset({"LayerNormalization", "Softmax"})
"""Operators that work along the last axis, as timm's do."""


@final
class KeepReadToken(ir.passes.InPlacePass):
    """Takes ``x[:, 0]`` in front of a ViT's head back through everything that treats tokens alike.

    Of the last block only the class token is read: its query, its row of the attention, its projection and MLP. Keys
    and values are needed of all tokens; there the slice stops. The same codes come out for the token that is left.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Move every Gather of one token as far back as it goes."""
        changed = False
        for node in list(model.graph):
            if node.op_type == "Gather" and (place := _one_of_an_axis(node)) is not None:
                changed |= _take_back(model.graph, node, *place)
        return ir.passes.PassResult(model, modified=changed)


def _one_of_an_axis(gather: ir.Node) -> tuple[int, int] | None:
    """The axis and the place of ``x[:, place]``, where both are known and the axis is not the batch's."""
    index = None if gather.inputs[1] is None else gather.inputs[1].const_value
    axis = int(gather.attributes["axis"].value) if "axis" in gather.attributes else 0
    if axis < 1 or index is None or index.numpy().ndim or index.numpy() < 0:
        return None
    return axis, int(index.numpy())


def _take_back(graph: ir.Graph, gather: ir.Node, axis: int, token: int) -> bool:
    narrow: dict[ir.Value, int] = {}
    edges: dict[tuple[ir.Node, int], int] = {(gather, 0): axis}
    order = {node: place for place, node in enumerate(graph)}
    for node in sorted(order, key=lambda node: -order[node]):
        if len(node.outputs) != 1 or node is gather:
            continue
        (value,) = node.outputs
        axes = {edges.get((use.node, use.idx)) for use in value.uses()}
        if len(axes) != 1 or None in axes or value.is_graph_output():
            continue
        (own,) = axes
        if own is not None and (inputs := _through(node, own)) is not None:
            narrow[value] = own
            edges |= {(node, index): along for index, along in inputs.items()}
    if not narrow:
        return False
    emit = Emitter(graph, "token")
    slices: dict[tuple[ir.Value, int], ir.Value] = {}
    for (node, index), along in reversed(edges.items()):
        whole = node.inputs[index]
        if whole is not None and whole not in narrow:
            if (whole, along) not in slices:
                slices[whole, along] = _slice(graph, node, whole, along, token)
            node.replace_input_with(index, slices[whole, along])
    for value, along in narrow.items():
        _narrow(emit, value, along, token)
    for (node, _), along in edges.items():
        if node.domain == DOMAIN:
            node.attributes[TOKEN] = ir.AttrInt64s(TOKEN, [along - len(node.outputs[0].shape or ()), token])
    gather.replace_input_with(1, emit.constant("token.first", np.array(0), ir.DataType.INT64))
    return True


def _through(node: ir.Node, axis: int) -> Mapping[int, int] | None:
    """Input index -> axis along which that input is to be narrowed too; None where it cannot be."""
    shape = node.outputs[0].shape
    if shape is None:
        return None
    rank, kind = len(shape), node.op_type
    if node.domain == DOMAIN:
        rows = (kind == "QLinear" and axis != rank - 1) or (kind == "QMatMul" and axis == rank - 2)
        return {0: axis} if rows else None
    if kind in POINTWISE or (kind in OVER_LAST and axis != rank - 1):
        return {0: axis}
    if kind in BROADCAST:
        return _broadcast(node, axis, rank, shape[axis])
    if kind == "Transpose":
        return {0: list(node.attributes["perm"].value)[axis]}
    if kind in ("Reshape", "Squeeze", "Unsqueeze"):
        return _same_place(node, axis)
    return None


def _broadcast(node: ir.Node, axis: int, rank: int, tokens: object) -> Mapping[int, int] | None:
    found = {}
    for index, value in enumerate(node.inputs):
        if value is None or value.shape is None:
            return None
        own = axis - (rank - len(value.shape))
        if own >= 0 and value.shape[own] == tokens:
            found[index] = own
        elif own >= 0 and value.shape[own] != 1:
            return None
    return found


def _same_place(node: ir.Node, axis: int) -> Mapping[int, int] | None:
    """The axis of the input that a Reshape leaves as it is: as long, with as many numbers behind it."""
    before, after = node.inputs[0], node.outputs[0]
    if before is None or before.shape is None or after.shape is None:
        return None
    behind = static_sizes(list(after.shape)[axis:])
    for own in range(1, len(before.shape)):
        other = static_sizes(list(before.shape)[own:])
        if behind and other and other[0] == behind[0] and math.prod(other) == math.prod(behind):
            return {0: own}
    return None


def _slice(graph: ir.Graph, before: ir.Node, value: ir.Value, axis: int, token: int) -> ir.Value:
    """One token of a value that others read whole, made in front of a node."""
    emit = Emitter(graph, f"token/{value.name}/{axis}")
    result = emit.op("Slice", [value, *(emit.indices([n]) for n in (token, token + 1, axis))])
    result.shape, result.type = _with_one(value.shape, axis), value.type
    graph.insert_before(before, emit.nodes)
    return result


def _narrow(emit: Emitter, value: ir.Value, axis: int, token: int) -> None:
    """Bring what the producer knows of its shape in line with one token."""
    node = value.producer()
    assert node is not None
    value.shape = _with_one(value.shape, axis)
    if node.op_type == "Reshape":
        sizes = static_sizes(list(value.shape)[1:]) if value.shape is not None else None
        assert sizes is not None
        node.replace_input_with(1, emit.indices([-1, *sizes]))


def _with_one(shape: ir.Shape | None, axis: int) -> ir.Shape | None:
    return None if shape is None else ir.Shape([1 if place == axis else n for place, n in enumerate(shape)])
