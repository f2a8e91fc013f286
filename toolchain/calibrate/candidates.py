"""Candidate grids: which (scale, zero point) pairs a search tries."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

MAX_QUANTILE_ELEMENTS = 1 << 20
"""Quantiles, whose cost is a sort, are taken of a random sample of this size. (An even stride would see the same few
channels of every token wherever it divides the width.)"""

SMALLEST_SCALE = 1e-8
"""A constant-zero tensor still needs a scale that can be divided by."""


def grid_from_range(
    low: Float[Tensor, "*s"], high: Float[Tensor, "*s"], qmax: int, symmetric: bool = False
) -> tuple[Float[Tensor, "*s"], Float[Tensor, "*s"]]:
    """Scale and zero point whose grid spans ``[low, high]``, widened to hold zero (which has then an exact code).

    A ``symmetric`` grid has its zero point at the middle code and the smallest scale that spans both ends.
    """
    low, high = low.clamp(max=0), high.clamp(min=0)
    if symmetric:
        middle = (qmax + 1) // 2
        scale = torch.maximum(-low / middle, high / (qmax - middle)).clamp_min(SMALLEST_SCALE)
        return scale, torch.full_like(scale, middle)
    scale = ((high - low) / qmax).clamp_min(SMALLEST_SCALE)
    return scale, torch.round(-low / scale).clamp(0, qmax)


def candidate_grids(
    rows: Float[Tensor, "g n"], quantile: float, count: int, qmax: int, symmetric: bool = False
) -> tuple[Float[Tensor, "k g"], Float[Tensor, "k g"]]:
    """About ``count`` grids for each of g groups, from the full range down to the central ``quantile`` of its values.

    Ranges shrink linearly from ``[min, max]`` to ``[quantile(1 - q), quantile(q)]``; each scale is tried with up to
    eight zero points around its own, a ``symmetric`` one with the middle code only. The first candidate is the full
    range.
    """
    offsets = [0] if symmetric else sorted(range(-(min(8, qmax + 1) // 2), (min(8, qmax + 1) + 1) // 2), key=abs)
    low, high = rows.amin(1), rows.amax(1)
    if rows.shape[1] > MAX_QUANTILE_ELEMENTS:
        picks = torch.randint(rows.shape[1], (MAX_QUANTILE_ELEMENTS,), generator=torch.Generator().manual_seed(0))
        rows = rows[:, picks.to(rows.device)]
    ordered = rows.sort(dim=1).values
    last = rows.shape[1] - 1
    inner_low, inner_high = ordered[:, round((1 - quantile) * last)], ordered[:, round(quantile * last)]
    steps = torch.linspace(0, 1, max(2, count // len(offsets)), dtype=rows.dtype, device=rows.device)[:, None]
    ends = torch.lerp(low, inner_low, steps), torch.lerp(high, inner_high, steps)
    scale, zero = grid_from_range(*ends, qmax, symmetric)
    scales = torch.cat([scale for _ in offsets])
    zeros = torch.cat([(zero + offset).clamp(0, qmax) for offset in offsets])
    return scales, zeros
