"""What an export target is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from .lint import Rule

OPSETS = range(21, 24)
"""4-bit types came with 21."""


@dataclass(frozen=True)
class ExportTarget(ABC):
    """A runtime (or a family of them) and the passes that turn a traced model into what it runs well.

    ``name`` is what ``--target`` calls it, ``opsets`` what may be asked for, and ``rules`` what is documented of the
    files it takes, where it is not run when a file is checked. ``companion_kinds`` are the keys of
    ``companions``. With ``integer`` a layer that runs on a float kernel of ONNX Runtime refuses the file.
    """

    name: str
    opsets: range = OPSETS
    rules: Sequence[Rule] = ()
    companion_kinds: Sequence[str] = ()
    integer: bool = False

    @abstractmethod
    def passes(self) -> Sequence[ir.passes.PassBase]:
        """Lowering passes, in order; the last leaves no ``fimaq::`` operator."""

    def default_opset(self, weight_bits: Collection[int]) -> int:
        """The opset used when none is asked for, where quantized weights have ``weight_bits``."""
        return self.opsets.start

    def calibrated(self, images: np.ndarray) -> Sequence[ir.passes.PassBase]:
        """Passes that round more than the run does, on grids from ``images`` ``[n, 3, h, w]``; none by default."""
        return ()

    def companions(self, model: onnx.ModelProto) -> Mapping[str, bytes]:
        """What is written beside the file: kind -> content, as ``MODEL.<kind>.json``; nothing by default."""
        return {}
