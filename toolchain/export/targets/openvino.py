"""Target ``openvino``: integer kernels of OpenVINO's CPU plugin.

What it takes, by experiment (openvino 2026.4, the execution graph of ``compiled.get_runtime_model()``): a product runs
on ``brgemm_avx512_I8`` where the weight is signed and has no zero point, or where two activations have none; with a
zero point on a weight or in an attention product it runs in float, slower than the float model. So zero points are
moved beside the products (``zero_points``); a recipe with symmetric weights needs no such correction in its linear
layers. Unsigned weights with zero points gave wrong results, 4-bit activation types ended the process. Q and DQ stand
side by side with a clip of floats in front: with a clip of integers between them the pair is not merged into one
operation. A scale array for an activation does not compile.

OpenVINO multiplies by the reciprocal of the scale where ONNX divides, so values on a tie may round to the other code.
On CPUs with bfloat16 its default precision for what is left of floats is bfloat16: ask for ``INFERENCE_PRECISION_HINT:
f32`` to have what was checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import onnx_ir as ir

from ..passes.activations import Container
from ..passes.patches import PatchesToLinear
from ..passes.qdq import LowerToQdq
from ..passes.zero_points import ZeroPointsBesideProducts
from .grids import Grids, RefuseOtherGrids
from .target import ExportTarget

GRIDS = Grids(symmetric_weights=False, symmetric_activations=False, activation_bits=range(2, 9), recipe="deploy-w8a8")
UINT8, INT8, INT4 = (Container(dtype) for dtype in (ir.DataType.UINT8, ir.DataType.INT8, ir.DataType.INT4))


@final
class _Containers:
    def left(self, bits: int) -> Container:
        """uint8: softmax has zero point 0 there."""
        return UINT8

    def right(self, bits: int, left_bits: int | None) -> Container:
        """int8."""
        return INT8

    def weight(self, bits: int, left_bits: int | None) -> Container:
        """int8."""
        return INT8

    def stored_weight(self, bits: int, read: Container) -> Container:
        """Four bits an element where they suffice; a Cast reads them, once."""
        return INT4 if bits <= 4 else read


@final
@dataclass(frozen=True)
class OpenVino(ExportTarget):
    """Integer kernels of OpenVINO on a CPU."""

    name: str = "openvino"

    def passes(self) -> Sequence[ir.passes.PassBase]:
        """Patches first, then Q/DQ pairs, then zero points out of the way."""
        return [
            RefuseOtherGrids(self.name, GRIDS),
            PatchesToLinear(),
            LowerToQdq(_Containers(), before_layout=False, adjacent=True),
            ZeroPointsBesideProducts(),
        ]
