"""Target ``portable``: what the ONNX standard says about low-bit types, for any runtime that reads it.

Four-bit tensors are UINT4, weights and activations alike; every other width up to 8 sits in UINT8 and is clipped.
No layer changes its shape, no code its sign. ONNX Runtime runs such a file exactly but not fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import onnx_ir as ir

from ..passes.activations import Container
from ..passes.qdq import LowerToQdq
from .target import ExportTarget

UINT8, UINT4 = Container(ir.DataType.UINT8), Container(ir.DataType.UINT4)


@final
class _Containers:
    def left(self, bits: int) -> Container:
        """UINT4 for 4 bits, else UINT8."""
        return UINT4 if bits == 4 else UINT8

    def right(self, bits: int, left_bits: int | None) -> Container:
        """The same."""
        return self.left(bits)

    def weight(self, bits: int, left_bits: int | None) -> Container:
        """The smallest type that holds the codes: weights need no clip."""
        return UINT4 if bits <= 4 else UINT8

    def stored_weight(self, bits: int, read: Container) -> Container:
        """As it is read."""
        return read


@final
@dataclass(frozen=True)
class Portable(ExportTarget):
    """Standard QuantizeLinear and DequantizeLinear."""

    name: str = "portable"

    def passes(self) -> Sequence[ir.passes.PassBase]:
        """One lowering pass."""
        return [LowerToQdq(_Containers(), before_layout=False)]
