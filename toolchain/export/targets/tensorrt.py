"""Target ``tensorrt``: explicit quantization as NVIDIA documents it. Not run here; ``tensorrt_rules`` checks the file.

Everything is int8 with zero point 0, Q and DQ side by side, in front of both operands of every product, biases float.
Fewer bits sit in int8 too, activations behind a clip of floats: TensorRT's INT4 is for weights alone, in blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import onnx_ir as ir

from ..passes.activations import Container
from ..passes.qdq import LowerToQdq
from .grids import Grids, RefuseOtherGrids
from .lint import Rule
from .target import ExportTarget
from .tensorrt_rules import RULES

INT8 = Container(ir.DataType.INT8)
GRIDS = Grids(symmetric_weights=True, symmetric_activations=True, activation_bits=range(2, 9), recipe="symmetric-w8a8")


@final
class _Containers:
    def left(self, bits: int) -> Container:
        """Always int8."""
        return INT8

    def right(self, bits: int, left_bits: int | None) -> Container:
        """Always int8."""
        return INT8

    def weight(self, bits: int, left_bits: int | None) -> Container:
        """Always int8."""
        return INT8

    def stored_weight(self, bits: int, read: Container) -> Container:
        """As it is read."""
        return read


@final
@dataclass(frozen=True)
class TensorRt(ExportTarget):
    """Symmetric int8 for TensorRT."""

    name: str = "tensorrt"
    rules: Sequence[Rule] = RULES

    def passes(self) -> Sequence[ir.passes.PassBase]:
        """One lowering pass, for symmetric recipes."""
        return [RefuseOtherGrids(self.name, GRIDS), LowerToQdq(_Containers(), before_layout=False, adjacent=True)]
