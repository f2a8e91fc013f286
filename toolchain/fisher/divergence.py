"""KL divergence of the quantized output from the float one: what is minimised, and the head's loss."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UsageError


def kl_divergence(
    logits_p: Float[Tensor, "n classes"],
    logits_q: Float[Tensor, "n classes"],
    temperature: float,
) -> Float[Tensor, "n"]:
    """``KL(p || q)`` per image in nats, ``p = softmax(logits_p / T)`` of the float model, q of the quantized one.

    Its gradient by ``logits_q`` is ``(q - p) / T`` and its Fisher ``1/T^2`` times that of logits at T = 1.
    Computed in float64 (logits are small): q - p cancels when the block is nearly float, and g is all a
    probe has. Returned in the logits' dtype, at least float32; the values can be below zero by rounding.

    Raises:
        UsageError: temperature not finite and above zero.
    """
    if not (math.isfinite(temperature) and temperature > 0.0):
        raise UsageError(f"temperature {temperature}: wanted a finite number above 0. Published: 20.")
    log_p = torch.log_softmax(logits_p.double() / temperature, dim=-1)
    log_q = torch.log_softmax(logits_q.double() / temperature, dim=-1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
    return divergence.to(torch.promote_types(logits_q.dtype, torch.float32))
