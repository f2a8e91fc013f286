"""Target ``qnn``: Qualcomm's HTP through ONNX Runtime's QNN provider.

One image at a time; weights signed without zero points, per output channel; every tensor on a grid. The 8-bit grids of
the run are kept, what lies between products gets 16 bits (``annotate``). ``qnn_rules`` checks the file against what is
documented.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import onnx
import onnx_ir as ir

from ..passes.activations import Container
from ..passes.annotate import AnnotateActivations
from ..passes.fixed_batch import FixBatch
from ..passes.qdq import LowerToQdq
from .encodings import encodings
from .grids import Grids, RefuseOtherGrids
from .lint import Rule
from .qnn_rules import RULES
from .target import ExportTarget

UINT8, INT8, INT4 = (Container(dtype) for dtype in (ir.DataType.UINT8, ir.DataType.INT8, ir.DataType.INT4))
GRIDS = Grids(symmetric_weights=True, symmetric_activations=False, activation_bits=range(8, 9), recipe="symmetric-w4a8")


@final
class _Containers:
    def left(self, bits: int) -> Container:
        """uint8."""
        return UINT8

    def right(self, bits: int, left_bits: int | None) -> Container:
        """uint8."""
        return UINT8

    def weight(self, bits: int, left_bits: int | None) -> Container:
        """The smaller signed type that holds the codes."""
        return INT4 if bits <= 4 else INT8

    def stored_weight(self, bits: int, read: Container) -> Container:
        """As it is read."""
        return read


@final
@dataclass(frozen=True)
class Qnn(ExportTarget):
    """Quantized throughout, for Qualcomm's HTP."""

    name: str = "qnn"
    rules: Sequence[Rule] = RULES
    companion_kinds: Sequence[str] = ("encodings",)

    def passes(self) -> Sequence[ir.passes.PassBase]:
        """One image, then Q/DQ pairs."""
        return [
            RefuseOtherGrids(self.name, GRIDS),
            FixBatch(),
            LowerToQdq(_Containers(), before_layout=False, adjacent=True),
        ]

    def calibrated(self, images: np.ndarray) -> Sequence[ir.passes.PassBase]:
        """Grids for what lies between the products."""
        return [AnnotateActivations(images)]

    def companions(self, model: onnx.ModelProto) -> Mapping[str, bytes]:
        """The grids again, as Qualcomm's converters read them."""
        return {"encodings": encodings(model)}
