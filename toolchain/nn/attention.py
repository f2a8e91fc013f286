"""Quantized products inside an attention module whose own forward is left untouched.

timm's attention modules differ in what surrounds the two products (norms, gates, windows, bias) but
all of them can call ``scaled_dot_product_attention``. That one call is intercepted and carried out
as two quantized products with a float softmax between, so no attention is written again here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import UnsupportedModelError
from .matmul import QuantMatMul


class InterceptAttention(TorchFunctionMode):
    """While active, ``scaled_dot_product_attention`` calls ``attend`` instead."""

    def __init__(self, attend: Callable[..., Tensor]) -> None:
        super().__init__()
        self.attend = attend

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Route the one call; everything else passes."""
        if func is F.scaled_dot_product_attention:
            return self.attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class QuantAttention(nn.Module):
    """Runs ``wrapped`` with both attention products quantized: ``qk`` (scores) and ``av`` (values)."""

    def __init__(self, wrapped: nn.Module) -> None:
        super().__init__()
        self.wrapped = wrapped
        self.qk = QuantMatMul(transpose_b=True)
        self.av = QuantMatMul(transpose_b=False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The wrapped module's own forward."""
        with InterceptAttention(self._attend):
            return self.wrapped(*args, **kwargs)

    def _attend(
        self,
        query: Float[Tensor, "b h t c"],
        key: Float[Tensor, "b h n c"],
        value: Float[Tensor, "b h n c"],
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Float[Tensor, "b h t c"]:
        """``softmax(query key^T * scale + mask) value``, the scale applied to the query as timm does."""
        if dropout_p or is_causal or enable_gqa:
            raise UnsupportedModelError(
                f"attention with dropout_p={dropout_p}, is_causal={is_causal}, enable_gqa={enable_gqa} is not "
                "supported: wanted plain attention in evaluation mode."
            )
        scores = self.qk(query * (query.shape[-1] ** -0.5 if scale is None else scale), key)
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                scores = scores.masked_fill(~attn_mask, float("-inf"))
            else:
                scores = scores + attn_mask
        return self.av(scores.softmax(dim=-1), value)
