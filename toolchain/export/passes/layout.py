"""Moving slices before transposes, so that what follows can be quantized before it is moved."""

from __future__ import annotations

from typing import final

import numpy as np
import onnx_ir as ir


@final
class SliceBeforeTranspose(ir.passes.InPlacePass):
    """``Transpose -> several Slice`` becomes a Slice and a Transpose for each: timm's ``qkv.permute(...).unbind(0)``.

    Query, key and value then have transposes of their own, before which each can be quantized on its own grid. Left
    to itself ONNX Runtime makes the same move later and leaves a second QuantizeLinear behind.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every transpose that only slices read."""
        changed = False
        for node in model.graph:
            if node.op_type == "Transpose" and not node.domain and _only_slices_read(node.outputs[0]):
                _rewrite(model.graph, node)
                changed = True
        return ir.passes.PassResult(model, modified=changed)


def _only_slices_read(value: ir.Value) -> bool:
    return not value.is_graph_output() and all(
        use.node.op_type == "Slice" and use.idx == 0 and _axes(use.node) is not None for use in value.uses()
    )


def _axes(node: ir.Node) -> np.ndarray | None:
    """The axes a Slice names, if it names constant ones."""
    axes = node.inputs[3] if len(node.inputs) > 3 else None
    return None if axes is None or axes.const_value is None else axes.const_value.numpy()


def _rewrite(graph: ir.Graph, transpose: ir.Node) -> None:
    (source,), (moved,) = transpose.inputs, transpose.outputs
    perm = list(transpose.attributes["perm"].value)
    for use in list(moved.uses()):
        cut = use.node
        axes = _axes(cut)
        assert source is not None and axes is not None
        name = f"{transpose.name}/{cut.name}"
        before = ir.tensor(np.array([perm[axis] for axis in axes]), name=f"{name}/axes")
        value = ir.Value(
            name=before.name, shape=ir.Shape([len(axes)]), type=ir.TensorType(before.dtype), const_value=before
        )
        graph.register_initializer(value)
        part = ir.node("Slice", [source, *cut.inputs[1:3], value, *cut.inputs[4:]], name=name)
        part.metadata_props.update(cut.metadata_props)
        part.outputs[0].name = f"{name}_output"
        back = ir.node("Transpose", [part.outputs[0]], {"perm": perm}, name=f"{name}/Transpose")
        back.metadata_props.update(transpose.metadata_props)
        ir.convenience.replace_nodes_and_values(graph, cut, [cut], [part, back], [cut.outputs[0]], [back.outputs[0]])
    graph.remove(transpose, safe=True)
