"""Learned rounding of weights (AdaRound, arXiv:2004.10568, eq. 22-24)."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ..spec import QuantSpec
from .base import Quantizer

STRETCH_HIGH, STRETCH_LOW = 1.1, -0.1


class AdaRoundWeight(Quantizer):
    """``floor(w / s) + h(alpha)`` with ``h = clamp(1.2 sigmoid(alpha) - 0.1, 0, 1)``.

    ``alpha`` (the weight's shape) starts where ``h`` equals the fractional part of ``w / s``, so the
    soft weight starts as the float weight, clamped to the grid. Unlike the authors' code the sum is
    clamped to ``[0, qmax]`` before and after hardening, so that every value has a code.
    """

    floor: Tensor

    def __init__(
        self,
        spec: QuantSpec,
        weight: Float[Tensor, "o ..."],
        scale: Float[Tensor, "o ..."],
        zero_point: Float[Tensor, "o ..."],
    ) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("scale", scale.clone())
        self.register_buffer("zero_point", zero_point.clone())
        ratio = weight.detach() / scale
        self.register_buffer("floor", torch.floor(ratio))
        fraction = ratio - self.floor
        self.alpha = nn.Parameter(-torch.log((STRETCH_HIGH - STRETCH_LOW) / (fraction - STRETCH_LOW) - 1))

    def soft_rounding(self) -> Float[Tensor, "o ..."]:
        """h(alpha) in [0, 1]."""
        return torch.clamp(torch.sigmoid(self.alpha) * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW, 0, 1)

    def forward(self, x: Tensor) -> Float[Tensor, "o ..."]:
        """Soft-rounded weight; ``x`` (the float weight it was made from) is not read again."""
        codes = torch.clamp(self.floor + self.soft_rounding() + self.zero_point, 0, self.spec.qmax)
        return (codes - self.zero_point) * self.scale

    def regularizer(self, beta: float) -> Float[Tensor, ""]:
        """``sum(1 - |2h - 1|^beta)``: pushes h to 0 or 1 (AdaRound eq. 24)."""
        return (1 - (2 * self.soft_rounding() - 1).abs().pow(beta)).sum()

    def to_codes(self, x: Tensor) -> UInt8[Tensor, "o ..."]:
        """Hard codes: rounded up where ``alpha >= 0``; ``x`` is not read."""
        up = (self.alpha >= 0).to(self.floor.dtype)
        return torch.clamp(self.floor + up + self.zero_point, 0, self.spec.qmax).to(torch.uint8)

    def harden(self) -> UInt8[Tensor, "o ..."]:
        """The codes that are deployed."""
        return self.to_codes(self.floor)
