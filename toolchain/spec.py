"""What a quantizer is, as frozen data without torch: bit-width and granularity.

A grid is unsigned affine: ``code = clamp(round(x / scale) + zero_point, qmin, qmax)`` and
``value = (code - zero_point) * scale``, with true division and round-half-even, as
ONNX QuantizeLinear defines it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from .errors import UsageError

Granularity = Literal["tensor", "channel", "token", "head", "head-token"]
"""The axes that KEEP a scale of their own.

==============  ======================  =========================================
name            tensor quantized        shape of the scale
==============  ======================  =========================================
``tensor``      any                     ``[]``
``channel``     weight ``[o, ...]``     ``[o, 1, ...]``
``token``       input ``[b, t, c]``     ``[1, t, 1]`` (``[b, y, x, c]``: ``[1, y, x, 1]``)
``head``        operand ``[b, h, t, c]``  ``[1, h, 1, 1]``
``head-token``  operand ``[b, h, t, c]``  ``[1, h, t, 1]``
==============  ======================  =========================================
"""

MIN_BITS, MAX_BITS = 2, 8


@dataclass(frozen=True)
class QuantSpec:
    """Bit-width (2..8) and granularity of one quantizer; codes are unsigned.

    ``symmetric`` fixes the zero point at the middle code ``2**(bits - 1)``: as a signed integer it is 0.
    """

    bits: int
    granularity: Granularity = "tensor"
    symmetric: bool = False

    def __post_init__(self) -> None:
        """Raise UsageError for a bit-width or granularity that has no grid."""
        if not MIN_BITS <= self.bits <= MAX_BITS:
            raise UsageError(
                f"bit-width {self.bits} is out of range: wanted {MIN_BITS} to {MAX_BITS} bits. "
                "Choose another --wbits or --abits."
            )
        if self.granularity not in get_args(Granularity):
            raise UsageError(
                f"granularity {self.granularity!r} is unknown: wanted one of {', '.join(get_args(Granularity))}."
            )

    @property
    def qmin(self) -> int:
        """Smallest code."""
        return 0

    @property
    def qmax(self) -> int:
        """Largest code."""
        return (1 << self.bits) - 1
