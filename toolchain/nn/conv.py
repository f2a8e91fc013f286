"""Convolution with quantized input and weight."""

from __future__ import annotations

from typing import Self

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import UnsupportedModelError


class QuantConv2d(nn.Module):
    """Conv2d that keeps stride, padding, dilation and groups; quantizers start as identities."""

    weight: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int,
    ) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.input_quantizer: nn.Module = nn.Identity()
        self.weight_quantizer: nn.Module = nn.Identity()

    @classmethod
    def from_float(cls, conv: nn.Conv2d) -> Self:
        """Share the parameters of ``conv``; raise UnsupportedModelError for other than explicit zero padding."""
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise UnsupportedModelError(
                f"Conv2d with padding={conv.padding!r}, padding_mode={conv.padding_mode!r} is not supported: "
                "wanted explicit zero padding. Replace the padding by numbers before quantizing."
            )
        return cls(conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o y x"]:
        """Apply the layer."""
        return F.conv2d(
            self.input_quantizer(x),
            self.weight_quantizer(self.weight),
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )
