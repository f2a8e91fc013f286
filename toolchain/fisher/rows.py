"""Probe rows: the per-element statistics of one probe, and the scaling that keeps them in range.

Gradients of a temperature-20 KL are about 1e-8 per element and their products about 1e-16. Every
approximation is therefore kept with its largest entry at one, beside the Python float (the *unit*)
that was taken out.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def widen(x: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """``x`` in float32, or float64 if it already is: half precision has no range for squares."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def mean_abs(x: Float[Tensor, "n a"]) -> Float[Tensor, "a"]:
    """Row of a probe: mean over images of ``|x_n|``, at least float32, without an ``[n, a]`` temporary."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.linalg.vector_norm(x.detach(), ord=1, dim=0, dtype=wide) / x.shape[0]


def unit_peak(x: Float[Tensor, "*s"]) -> tuple[Float[Tensor, "*s"], float]:
    """Return ``x / max|x|`` and ``max|x|``; an all-zero or empty ``x`` comes back as it is with 0.0.

    The divisor stays a tensor: CUDA divides by a Python number through its reciprocal, which is
    infinite for a subnormal one.
    """
    if x.numel() == 0:
        return x, 0.0
    peak = torch.linalg.vector_norm(x, ord=float("inf"))
    value = float(peak)
    return (x, 0.0) if value == 0.0 else (x / peak, value)
