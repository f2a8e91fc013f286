"""From a torch model to a finished ONNX graph: trace, lower, tidy, describe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir
from torch import nn

from ..errors import UsageError
from .metadata import Description, FloatType
from .passes.half import ToHalf
from .passes.raw_image import TakeRawImage
from .passes.tidy import after_lowering, before_lowering
from .targets.target import OPSETS, ExportTarget
from .traced.trace import trace, trace_float

LAST_TRACED = 23
"""What torch.onnx writes. The operators of these graphs have only got more types since."""


def build_quantized(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    input_size: tuple[int, int, int],
    target: ExportTarget,
    opset: int | None,
    description: Description,
) -> ir.Model:
    """The graph of a quantized model for ``target``; ``layers`` are its quantized layers by name."""
    weight_bits = {row["weight_bits"] for row in description.layers if row["weight_bits"]}
    wanted = checked_opset(opset, target.opsets, target.default_opset(weight_bits))
    traced = trace(model, layers, input_size, min(wanted, LAST_TRACED))
    traced.graph.opset_imports[""] = wanted
    return _finish(traced, target.passes(), description)


def build_float(
    model: nn.Module,
    input_size: tuple[int, int, int],
    opset: int | None,
    description: Description,
    dtype: FloatType = "float32",
) -> ir.Model:
    """The graph of a float model that computes in ``dtype``."""
    passes = (ToHalf(),) if dtype == "float16" else ()
    return _finish(trace_float(model, input_size, checked_opset(opset, OPSETS, OPSETS.start)), passes, description)


def checked_opset(opset: int | None, allowed: range, default: int) -> int:
    """The opset to use; raises UsageError for one that cannot hold the graph."""
    if opset is None:
        return default
    if opset not in allowed:
        raise UsageError(
            f"--opset is {opset}; wanted {allowed.start} to {allowed.stop - 1}, or none for the target's own."
        )
    return opset


def with_raw_image(model: ir.Model, description: Description) -> ir.Model:
    """A copy of a finished graph that takes uint8 ``[batch, h, w, 3]`` and normalises by itself."""
    return _finish(model.clone(), (TakeRawImage(description.preprocessing),), description)


def calibrated(model: ir.Model, passes: Sequence[ir.passes.PassBase], description: Description) -> ir.Model:
    """A finished graph after the passes of ``ExportTarget.calibrated``."""
    return _finish(model, passes, description)


def _finish(model: ir.Model, passes: Sequence[ir.passes.PassBase], description: Description) -> ir.Model:
    for step in (*before_lowering(), *passes, *after_lowering()):
        model = step(model).model
    description.write_to(model)
    return model
