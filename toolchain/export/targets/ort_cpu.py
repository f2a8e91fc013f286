"""Target ``ort-cpu``: ONNX Runtime's integer kernels on a CPU.

A product of two DequantizeLinear becomes MatMulIntegerToFloat. Codes are 8-bit integers whatever their bits, since
4-bit types have no integer kernel there; weights of up to 4 bits are stored as INT4 (of 2 bits as INT2, from opset 25
on) and cast, which ONNX Runtime does once when it loads the file. The left operand is unsigned, weights are signed: on
a CPU with AVX512-VNNI, onnxruntime 1.31 took 57 us for [197, 192] x [192, 576] with signed weights, 115 with unsigned
ones and 160 in float (one thread).

An x86 CPU without VNNI adds two neighbouring products in 16 bits and saturates where both sides have 8 bits. Sessions
of this tool ask ONNX Runtime for exact kernels there (``runtime.EXACT_PAIRS``; it then reads the weights as
unsigned); a file says in its metadata ``fimaq.session`` what other sessions have to ask for. Two activations of 8 bits
are not covered by that, so the right one of them is unsigned.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import final

import onnx_ir as ir

from ..passes.activations import Container
from ..passes.integer_linear import FuseIntegerLinear
from ..passes.layout import SliceBeforeTranspose
from ..passes.patches import PatchesToLinear
from ..passes.qdq import LowerToQdq
from ..passes.read_tokens import KeepReadToken
from ..passes.scale_arrays import lower_array
from ..passes.split_linear import SplitLinear
from ..passes.two_bits import TWO_BITS, StoreTwoBits
from .target import ExportTarget

UINT8, INT8, INT4 = (Container(dtype) for dtype in (ir.DataType.UINT8, ir.DataType.INT8, ir.DataType.INT4))

INT16_MAX = 2**15 - 1


def signed_is_exact(left_bits: int, right_bits: int) -> bool:
    """Whether two neighbouring products ``2 (2^left - 1) 2^(right - 1)`` fit 16 bits; 8 bits on both sides do not."""
    return 2 * (2**left_bits - 1) * 2 ** (right_bits - 1) <= INT16_MAX


@final
class _Containers:
    def left(self, bits: int) -> Container:
        """Always uint8."""
        return UINT8

    def right(self, bits: int, left_bits: int | None) -> Container:
        """int8 where that is exact on every CPU, else uint8."""
        return INT8 if left_bits is not None and signed_is_exact(left_bits, bits) else UINT8

    def weight(self, bits: int, left_bits: int | None) -> Container:
        """int8, unless a float kernel reads it."""
        return UINT8 if left_bits is None else INT8

    def stored_weight(self, bits: int, read: Container) -> Container:
        """Four bits an element where they suffice."""
        if bits > 4:
            return read
        return INT4 if read == INT8 else Container(ir.DataType.UINT4)


@final
@dataclass(frozen=True)
class OrtCpu(ExportTarget):
    """Integer kernels of ONNX Runtime on a CPU."""

    name: str = "ort-cpu"
    opsets: range = range(21, 26)
    integer: bool = True

    def passes(self) -> Sequence[ir.passes.PassBase]:
        """Shapes first, then Q/DQ, then what ONNX Runtime has one operator for."""
        return [
            SliceBeforeTranspose(),
            PatchesToLinear(),
            SplitLinear(),
            KeepReadToken(),
            LowerToQdq(_Containers(), before_layout=True, arrays=lower_array),
            FuseIntegerLinear(),
            StoreTwoBits(),
        ]

    def default_opset(self, weight_bits: Collection[int]) -> int:
        """The one that has 2-bit types where weights fit them."""
        return TWO_BITS if min(weight_bits, default=8) <= 2 else self.opsets.start
