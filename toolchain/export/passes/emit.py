"""Building the nodes that stand in for one layer, with names that say whose they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import numpy as np
import onnx_ir as ir

from ..errors import ExportError
from ..traced.ops import DOMAIN

UNIT = "float.1"
"""Name of the constant 1.0 that stands in for a scale which is applied elsewhere."""

BITS = ("weight_bits", "activation_bits")


@final
class Emitter:
    """Collects the nodes of ``layer``; every node is called ``<layer>/<part>/<operator>``.

    Constants become initializers of ``graph`` at once. One name has one content: a second constant of the same name
    must be equal and is not stored again.
    """

    def __init__(self, graph: ir.Graph, layer: str) -> None:
        self.graph = graph
        self.layer = layer
        self.nodes: list[ir.Node] = []
        self._count: dict[str, int] = {}

    def constant(self, name: str, array: np.ndarray, dtype: ir.DataType) -> ir.Value:
        """The initializer ``name`` with the values of ``array``, stored as ``dtype``."""
        stored = np.ascontiguousarray(array).astype(dtype.numpy()).reshape(array.shape)
        known = self.graph.initializers.get(name)
        if known is not None:
            value = known.const_value
            if known.dtype != dtype or value is None or not np.array_equal(value.numpy(), stored):
                raise ExportError(f"two different constants want the name {name!r}: this is a fault of the exporter.")
            return known
        tensor = ir.Tensor(stored, dtype=dtype, name=name)
        constant = ir.Value(name=name, shape=ir.Shape(stored.shape), type=ir.TensorType(dtype), const_value=tensor)
        self.graph.register_initializer(constant)
        return constant

    def scalar(self, number: float, dtype: ir.DataType) -> ir.Value:
        """A scalar constant shared by the whole graph."""
        return self.constant(f"{dtype.name.lower()}.{number:g}", np.array(number), dtype)

    def indices(self, values: list[int]) -> ir.Value:
        """A one-dimensional int64 constant (a shape) shared by the whole graph."""
        return self.constant(f"int64.{'x'.join(map(str, values))}", np.array(values), ir.DataType.INT64)

    def op(
        self, op_type: str, inputs: Sequence[ir.Value | None], part: str = "", domain: str = "", **attributes: Any
    ) -> ir.Value:
        """Append an operator, of the standard domain unless said, and return its output."""
        stem = "/".join(filter(None, (self.layer, part, op_type)))
        count = self._count[stem] = self._count.get(stem, -1) + 1
        name = f"{stem}_{count}" if count else stem
        output = ir.Value(name=f"{name}_output")
        self.nodes.append(ir.node(op_type, inputs, attributes, domain=domain, outputs=[output], name=name))
        return output

    def layer_op(self, op_type: str, node: ir.Node, inputs: list[ir.Value | None], shape: ir.Shape) -> ir.Value:
        """Append a ``fimaq::`` operator that computes in another shape what ``node`` does; return its output."""
        attributes = {name: node.attributes[name].value for name in BITS} | {"layer": self.layer}
        name = f"{self.layer}/{op_type}"
        output = ir.Value(name=f"{name}_output", shape=shape, type=ir.TensorType(ir.DataType.FLOAT))
        self.nodes.append(ir.node(op_type, inputs, attributes, domain=DOMAIN, outputs=[output], name=name))
        return output

    def replace(self, nodes: list[ir.Node], result: ir.Value, name: str = "") -> None:
        """Put the collected nodes in the place of ``nodes``, the first of which makes the output ``result`` replaces.

        ``name`` becomes the result's unless it is an output of the graph.
        """
        (old,) = nodes[0].outputs
        keep = old.name if old.is_graph_output() or not name else name
        ir.convenience.replace_nodes_and_values(self.graph, nodes[0], nodes, self.nodes, [old], [result])
        result.name = keep
