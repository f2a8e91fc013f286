"""Folding per-channel input scales into a LayerNorm and the layer it feeds (RepQ-ViT, arXiv:2212.08254, eq. 6-9)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..nn import QuantLinear


@torch.no_grad()
def fold_channel_scales(
    norm: nn.LayerNorm,
    linear: QuantLinear,
    scale: Float[Tensor, "i"],
    zero_point: Float[Tensor, "i"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Change ``norm`` and ``linear`` so that one per-tensor grid does what per-channel grids did before.

    With target ``s = mean(scale)``, ``z = round(mean(zero_point))`` and ``r = scale / s``, the norm's output becomes
    ``x / r + s * (zero_point - z)`` and the layer undoes it, so the float function stays the same.
    Returns the target scale and zero point. A layer without bias gets one.
    """
    assert linear.weight is not None
    target_scale, target_zero = scale.mean(), zero_point.mean().round()
    ratio = scale / target_scale
    shift = target_scale * (zero_point - target_zero)
    norm.weight.copy_(norm.weight / ratio)
    norm.bias.copy_(norm.bias / ratio + shift)
    weight = linear.weight * ratio
    bias = -(weight @ shift)
    linear.weight.copy_(weight)
    if linear.bias is None:
        linear.bias = nn.Parameter(bias)
    else:
        linear.bias.add_(bias)
    return target_scale, target_zero
