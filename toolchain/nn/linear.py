"""Linear layer with quantized input and weight."""

from __future__ import annotations

from typing import Self

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class QuantLinear(nn.Module):
    """``linear(input_quantizer(x), weight_quantizer(weight), bias)``; both start as identities."""

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.input_quantizer: nn.Module = nn.Identity()
        self.weight_quantizer: nn.Module = nn.Identity()

    @classmethod
    def from_float(cls, linear: nn.Linear) -> Self:
        """Share the parameters of ``linear``."""
        return cls(linear.weight, linear.bias)

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        """Apply the layer."""
        return F.linear(self.input_quantizer(x), self.weight_quantizer(self.weight), self.bias)
