"""A product of two activations, both quantized."""

from __future__ import annotations

from typing import Final

from jaxtyping import Float
from torch import Tensor, nn


class QuantMatMul(nn.Module):
    """``a_quantizer(a) @ b_quantizer(b)``, or with ``b`` transposed after its quantization."""

    transpose_b: Final[bool]

    def __init__(self, transpose_b: bool) -> None:
        super().__init__()
        self.transpose_b = transpose_b
        self.a_quantizer: nn.Module = nn.Identity()
        self.b_quantizer: nn.Module = nn.Identity()

    def forward(self, a: Float[Tensor, "b h t k"], b: Float[Tensor, "b h _ _"]) -> Float[Tensor, "b h t n"]:
        """Multiply; ``b`` is ``[b, h, n, k]`` with ``transpose_b`` and ``[b, h, k, n]`` without."""
        b = self.b_quantizer(b)
        return self.a_quantizer(a) @ (b.transpose(-2, -1) if self.transpose_b else b)
