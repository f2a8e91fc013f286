"""Learned rounding of weights (AdaRound, arXiv:2004.10568, eq. 22-24)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ..spec import QuantSpec
from .base import Quantizer

STRETCH_HIGH, STRETCH_LOW = 1.1, -0.1
STRETCH = STRETCH_HIGH - STRETCH_LOW


class _SoftWeight(torch.autograd.Function):
    """``(clamp(floor + h(alpha) + zero_point, 0, qmax) - zero_point) * scale`` and its gradient by alpha."""

    @staticmethod
    def forward(ctx: Any, alpha: Tensor, floor: Tensor, scale: Tensor, zero_point: Tensor, qmax: int) -> Tensor:
        """The soft weight."""
        sigmoid = torch.sigmoid(alpha)
        codes = (floor + _stretched(sigmoid)).add_(zero_point)
        clamped = codes.clamp(0, qmax)
        ctx.save_for_backward(sigmoid, codes.eq_(clamped), scale)
        return clamped.sub_(zero_point).mul_(scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]  # torch types it loosely
        """Through both clamps where they do nothing."""
        sigmoid, inside, scale = ctx.saved_tensors
        return _slope(sigmoid).mul_(inside).mul_(scale).mul_(grad), None, None, None, None


def _stretched(sigmoid: Tensor) -> Tensor:
    """h of ``sigmoid(alpha)``."""
    return (sigmoid * STRETCH).add_(STRETCH_LOW).clamp_(0, 1)


def _slope(sigmoid: Tensor) -> Tensor:
    """Derivative of h by alpha, 0 where h is clamped."""
    stretched = (sigmoid * STRETCH).add_(STRETCH_LOW)
    inside = stretched.eq_(stretched.clamp(0, 1))
    return torch.addcmul(sigmoid, sigmoid, sigmoid, value=-1).mul_(inside).mul_(STRETCH)


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
        self.alpha = nn.Parameter(-torch.log(STRETCH / (fraction - STRETCH_LOW) - 1))

    def soft_rounding(self) -> Float[Tensor, "o ..."]:
        """h(alpha) in [0, 1]."""
        return _stretched(torch.sigmoid(self.alpha))

    def forward(self, x: Tensor) -> Float[Tensor, "o ..."]:
        """Soft-rounded weight; ``x`` (the float weight it was made from) is not read again."""
        return _SoftWeight.apply(self.alpha, self.floor, self.scale, self.zero_point, self.spec.qmax)

    @torch.no_grad()
    def regularizer_gradient(self, beta: float | Float[Tensor, ""]) -> Float[Tensor, "o ..."]:
        """Gradient by alpha of ``sum(1 - |2h - 1|^beta)``, which pushes h to 0 or 1 (AdaRound eq. 24).

        ``-2 beta sign(2h - 1) |2h - 1|^(beta - 1) h'``; the sum itself is never needed.
        """
        sigmoid = torch.sigmoid(self.alpha)
        decided = _stretched(sigmoid).mul_(2).sub_(1)
        steepness = decided.abs().pow_(beta - 1)
        return steepness.mul_(decided.sign_()).mul_(_slope(sigmoid)).mul_(-2 * beta)

    def to_codes(self, x: Tensor) -> UInt8[Tensor, "o ..."]:
        """Hard codes: rounded up where ``alpha >= 0``; ``x`` is not read."""
        up = (self.alpha >= 0).to(self.floor.dtype)
        return torch.clamp(self.floor + up + self.zero_point, 0, self.spec.qmax).to(torch.uint8)

    def harden(self) -> UInt8[Tensor, "o ..."]:
        """The codes that are deployed."""
        return self.to_codes(self.floor)
