"""The axes along which a grid varies, as the one axis that QuantizeLinear takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import onnx_ir as ir

from ..traced.ops import Activation, static_sizes
from .emit import Emitter


@final
@dataclass(frozen=True)
class Rows:
    """``[..., *sizes, *tail]`` read as ``[..., n, *tail]``: one number of the grid for each of ``n`` rows."""

    before: int
    sizes: Sequence[int]
    tail: Sequence[int]

    @property
    def axis(self) -> int:
        """Where the rows lie in the tensor, counted from its end."""
        return -len(self.tail) - 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an array with a number for each row, as it broadcasts against the tensor."""
        return (*[1] * self.before, *self.sizes, *[1] * len(self.tail))

    def flat(self, array: np.ndarray) -> np.ndarray:
        """``[n]`` of an array that broadcasts against the tensor."""
        return np.broadcast_to(array, self.shape).reshape(-1)

    def fold(self, emit: Emitter, value: ir.Value, part: str) -> ir.Value:
        """The tensor with its rows along one axis."""
        return self._reshaped(emit, value, part, [math.prod(self.sizes)])

    def unfold(self, emit: Emitter, value: ir.Value, part: str) -> ir.Value:
        """The tensor as it was."""
        return self._reshaped(emit, value, part, self.sizes)

    def _reshaped(self, emit: Emitter, value: ir.Value, part: str, sizes: Sequence[int]) -> ir.Value:
        if len(self.sizes) == 1:
            return value
        return emit.op("Reshape", [value, emit.indices([*[0] * self.before, *sizes, *self.tail])], part)


def rows_of(x: Activation) -> Rows | None:
    """The rows of ``x``; None where the axes do not lie side by side, begin with the first or are of unknown size."""
    if x.value.shape is None or x.token is not None:
        return None
    dims = list(x.value.shape)
    varying = {axis for array in (x.scale, x.zero_point) for axis in range(-array.ndim, 0) if array.shape[axis] > 1}
    first, last = len(dims) + min(varying), len(dims) + max(varying)
    sizes, tail = static_sizes(dims[first : last + 1]), static_sizes(dims[last + 1 :])
    if first < 1 or sizes is None or tail is None:
        return None
    return Rows(first, sizes, tail)
