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


def _decode(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """``(codes - zero_point) * scale``, in place."""
    return codes.sub_(zero_point).mul_(scale)


class _FakeQuantize(torch.autograd.Function):
    """Straight-through rounding; the scale's gradient is that of LSQ (arXiv:1902.08153, eq. 3).

    A value counts as inside the grid by its rounded level, as in the authors' code; LSQ's own text decides before
    rounding, half a step earlier.

    ``keep`` (1 or 0 per element) passes an element through unquantized (QDrop, arXiv:2203.05740). Masks are floats and
    selections are ``lerp`` (exact at 0 and 1): on a CPU ``where`` and bools take ten times as long as a multiplication.

    With ``p`` 1 where x's gradient passes (inside, or kept) the scale's is ``(y - p x) / scale`` per element: level
    minus ratio inside, level outside, 0 where kept. So both need only x, p and y, which the product that reads it holds
    anyway.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, qmax: int, keep: Tensor | None) -> Tensor:
        """Quantize and dequantize."""
        places = (x / scale).round_().add_(zero_point)
        codes = places.clamp(0, qmax)
        passed = places.eq_(codes)
        y = _decode(codes, scale, zero_point)
        if keep is not None:
            torch.maximum(passed, keep, out=passed)
            torch.lerp(y, x, keep, out=y)
        ctx.save_for_backward(x, y, passed, scale)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]  # torch types it loosely
        """Gradients of ``x`` and ``scale``, where they are wanted."""
        x, y, passed, scale = ctx.saved_tensors
        by_x = grad * passed if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return by_x, None, None, None, None
        by_scale = torch.addcmul(y, passed, x, value=-1).mul_(grad).sum_to_size(scale.shape)
        return by_x, by_scale / scale, None, None, None


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
        if torch.is_grad_enabled():
            return _FakeQuantize.apply(x, self.scale, self.zero_point, self.spec.qmax, keep)
        y = _decode(encode(x, self.scale, self.zero_point, self.spec.qmax), self.scale, self.zero_point)
        return y if keep is None else torch.lerp(y, x, keep)

    def to_codes(self, x: Float[Tensor, "..."]) -> UInt8[Tensor, "..."]:
        """Codes of ``x`` on this grid."""
        return encode(x, self.scale, self.zero_point, self.spec.qmax).to(torch.uint8)
