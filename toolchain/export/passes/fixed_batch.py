"""One image at a time, for runtimes that want every size known."""

from __future__ import annotations

from typing import final

import onnx_ir as ir
from onnxscript import optimizer


@final
class FixBatch(ir.passes.InPlacePass):
    """Makes the batch dimension 1, and a constant of what was computed from it.

    Sizes that are multiples of the batch (windows) become unknown, for shape inference to find.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the shapes of inputs, outputs and everything between."""
        (image,) = model.graph.inputs
        batch = image.shape[0] if image.shape is not None else None
        for value in [image, *(value for node in model.graph for value in node.outputs)]:
            if value.shape is not None:
                value.shape = ir.Shape([1 if size == batch else _known(size) for size in value.shape])
        optimizer.fold_constants(model)
        return ir.passes.PassResult(model, modified=True)


def _known(size: int | ir.SymbolicDim) -> int | None:
    return size if isinstance(size, int) else None
