"""A weight that exists only as integer codes: what is stored, exported and served."""

from __future__ import annotations

from jaxtyping import Float, UInt8
from torch import Tensor

from ..spec import QuantSpec
from .base import Quantizer


class CodedWeight(Quantizer):
    """``(codes - zero_point) * scale``; the input of ``forward`` is not read."""

    codes: Tensor

    def __init__(
        self,
        spec: QuantSpec,
        codes: UInt8[Tensor, "o ..."],
        scale: Float[Tensor, "o ..."],
        zero_point: Float[Tensor, "o ..."],
    ) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("codes", codes.clone())
        self.register_buffer("scale", scale.detach().clone())
        self.register_buffer("zero_point", zero_point.detach().clone())

    def forward(self, x: Tensor | None) -> Float[Tensor, "o ..."]:
        """The dequantized weight, in the scale's dtype."""
        return (self.codes.to(self.scale.dtype) - self.zero_point) * self.scale

    def to_codes(self, x: Tensor | None) -> UInt8[Tensor, "o ..."]:
        """The stored codes."""
        return self.codes
