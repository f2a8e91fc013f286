"""What an export target is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import onnx_ir as ir


class ExportTarget(Protocol):
    """A runtime (or a family of them) and the passes that turn a traced model into what it runs well."""

    @property
    def name(self) -> str:
        """What ``--target`` calls it."""

    @property
    def default_opset(self) -> int:
        """The opset used when none is asked for."""

    def passes(self) -> Sequence[ir.passes.PassBase]:
        """Lowering passes, in order; the last leaves no ``fimaq::`` operator."""
