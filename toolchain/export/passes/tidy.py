"""Passes over the finished graph: nothing unused, nothing that leaks how it was made, names that say where."""

from __future__ import annotations

import ast
from typing import final

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass

SCOPES = "pkg.torch.onnx.name_scopes"
"""Where torch.onnx notes the modules a node was traced in."""


@final
class NameByScope(ir.passes.InPlacePass):
    """Names each traced node ``<module path>/<operator>``, as lowered nodes are named ``<layer>/<part>/<operator>``."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rename; a second node of the same name in a module gets ``_1``, and so on."""
        taken = {node.name for node in model.graph if SCOPES not in node.metadata_props}
        for node in model.graph:
            if SCOPES in node.metadata_props:
                scopes = ast.literal_eval(node.metadata_props[SCOPES])
                module = scopes[-2] if len(scopes) > 1 and not scopes[-2].startswith("_") else ""
                path = ".".join(part for part in module.split(".") if part != "wrapped")
                stem = name = f"{path}/{node.op_type}" if path else node.op_type
                count = 0
                while name in taken:
                    count += 1
                    name = f"{stem}_{count}"
                node.name = name
                taken.add(name)
        return ir.passes.PassResult(model, modified=True)


@final
class DropTraces(ir.passes.InPlacePass):
    """Removes what torch.onnx notes on graph, nodes and values: stack traces, paths of this machine, module names."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Clear all metadata and doc strings of the graph."""
        graph = model.graph
        holders = [model, graph, *graph, *graph.inputs, *graph.initializers.values()]
        holders += [value for node in graph for value in node.outputs]
        for holder in holders:
            holder.metadata_props.clear()
            holder.doc_string = None
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """No path may be left."""
        if any(node.metadata_props for node in model.graph):
            raise ir.passes.PostconditionError("nodes still carry trace metadata.")


@final
class DropNoOps(ir.passes.InPlacePass):
    """Removes a Pad by zeros everywhere (timm's window attention pads every size to whole windows)."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Connect around each."""
        dropped = 0
        for node in model.graph:
            pads = node.inputs[1].const_value if node.op_type == "Pad" and node.inputs[1] is not None else None
            source = node.inputs[0] if node.inputs else None
            if pads is None or source is None or pads.numpy().any() or node.outputs[0].is_graph_output():
                continue
            ir.convenience.replace_all_uses_with(node.outputs[0], source)
            model.graph.remove(node, safe=True)
            dropped += 1
        return ir.passes.PassResult(model, modified=dropped > 0)


def before_lowering() -> list[ir.passes.PassBase]:
    """What every target wants done to a traced graph first."""
    return [DropNoOps()]


def after_lowering() -> list[ir.passes.PassBase]:
    """What every file wants done last; afterwards nothing in it is unused."""
    return [RemoveUnusedNodesPass(), NameByScope(), DropTraces(), TopologicalSortPass()]
