"""Uniform affine fake-quantization with a learnable scale."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ..spec import QuantSpec
from .base import Quantizer


def encode(x: Tensor, scale: Tensor, zero_point: Tensor, qmax: int) -> Tensor:
    """``clamp(round(x / scale) + zero_point, 0, qmax)`` as floats: ONNX QuantizeLinear, exactly.

    True division and round-half-even; ``torch.fake_quantize_*`` multiplies by the reciprocal and
    differs on ties.
    """
    return torch.clamp(torch.round(x / scale) + zero_point, 0, qmax)


class _FakeQuantize(torch.autograd.Function):
    """Straight-through rounding; the scale's gradient is that of LSQ (arXiv:1902.08153, eq. 3).

    A value counts as inside the grid by its rounded level, as in the authors' code; LSQ's own text decides before
    rounding, half a step earlier.

    ``keep`` (1 or 0 per element) passes an element through unquantized (QDrop, arXiv:2203.05740). Masks are floats and
    selections are ``lerp`` (exact at 0 and 1): on a CPU ``where`` takes ten times as long as a multiplication.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, qmax: int, keep: Tensor | None) -> Tensor:
        """Quantize and dequantize."""
        ctx.save_for_backward(x, scale, zero_point, keep)
        ctx.qmax = qmax
        y = torch.clamp((x / scale).round_(), -zero_point, qmax - zero_point).mul_(scale)
        return y if keep is None else torch.lerp(y, x, keep)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]  # torch types it loosely
        """Gradients of ``x`` and ``scale``; the value's ratio to its code is recomputed rather than stored."""
        x, scale, zero_point, keep = ctx.saved_tensors
        ratio = x / scale
        rounded = ratio.round()
        level = torch.clamp(rounded, -zero_point, ctx.qmax - zero_point)
        inside = torch.eq(rounded, level).to(grad.dtype)
        passed = inside if keep is None else torch.maximum(inside, keep)
        if not ctx.needs_input_grad[1]:
            return grad * passed, None, None, None, None
        by_scale = torch.addcmul(level, ratio, inside, value=-1)
        quantized = grad if keep is None else torch.addcmul(grad, grad, keep, value=-1)
        return grad * passed, by_scale.mul_(quantized).sum_to_size(scale.shape), None, None, None


class UniformQuantizer(Quantizer):
    """``value = (clamp(round(x / scale) + zero_point, 0, qmax) - zero_point) * scale``.

    ``scale`` is a parameter that reconstruction may learn; zero points stay fixed. Both broadcast
    against the input (shapes: see ``spec.Granularity``).
    """

    def __init__(self, spec: QuantSpec, scale: Float[Tensor, "..."], zero_point: Float[Tensor, "..."]) -> None:
        super().__init__()
        self.spec = spec
        self.scale = nn.Parameter(scale.clone(), requires_grad=False)
        self.register_buffer("zero_point", zero_point.clone())

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Fake-quantize ``x``; elements where ``keep`` is 1 (else 0) are left as they are."""
        return _FakeQuantize.apply(x, self.scale, self.zero_point, self.spec.qmax, keep)

    def to_codes(self, x: Float[Tensor, "..."]) -> UInt8[Tensor, "..."]:
        """Codes of ``x`` on this grid."""
        return encode(x, self.scale, self.zero_point, self.spec.qmax).to(torch.uint8)
