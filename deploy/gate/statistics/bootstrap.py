"""Bootstrap interval (BCa) of a metric that has no interval of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .normal import cdf, quantile
from .tango import Floats

RESAMPLES = 2000
AT_ONCE = 2_000_000
"""Numbers held at a time."""

Statistic = Callable[[npt.NDArray[np.int64]], Floats]


def bootstrap_interval(
    counts: npt.NDArray[np.int64], statistic: Statistic, confidence: float, seed: int
) -> tuple[float, float]:
    """Both ends of the interval of ``statistic(counts)``, bias-corrected and accelerated (Efron 1987).

    ``counts`` ``[cells]`` says how many images had each outcome, all above 0; ``statistic`` maps such rows
    ``[b, cells]`` to values ``[b]``. Images of one outcome are interchangeable: drawing images with replacement is
    drawing the counts from a multinomial. Where all resamples agree the interval is a point.
    """
    n, rng = int(counts.sum()), np.random.default_rng(seed)
    value = float(statistic(counts[None])[0])
    values = _in_parts(RESAMPLES, len(counts), lambda rows: statistic(rng.multinomial(n, counts / n, len(rows))))
    without = _in_parts(len(counts), len(counts), lambda rows: statistic(counts - _one_hot(rows, len(counts))))
    share = (np.mean(values < value) + np.mean(values <= value)) / 2
    if not 0 < share < 1:
        low, high = (np.quantile(values, side) for side in ((1 - confidence) / 2, (1 + confidence) / 2))
        return float(low), float(high)
    bias, z = quantile(2 * float(share) - 1), quantile(confidence)
    acceleration = _acceleration(without, counts)
    ends = (bias + side for side in (-z, z))
    low, high = (np.quantile(values, cdf(bias + end / (1 - acceleration * end))) for end in ends)
    return float(low), float(high)


def _acceleration(without: Floats, counts: npt.NDArray[np.int64]) -> float:
    """A sixth of the skewness of the values with one image left out; each stands for ``counts`` images."""
    away = np.average(without, weights=counts) - without
    spread = float((counts * away**2).sum())
    return float((counts * away**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0


def _in_parts(rows: int, width: int, values: Callable[[npt.NDArray[Any]], Floats]) -> Floats:
    """``values`` of all row numbers, so many at a time that they fit in memory."""
    step = max(1, AT_ONCE // width)
    return np.concatenate([values(np.arange(start, min(start + step, rows))) for start in range(0, rows, step)])


def _one_hot(rows: npt.NDArray[Any], width: int) -> npt.NDArray[np.int64]:
    hot = np.zeros((len(rows), width), np.int64)
    hot[np.arange(len(rows)), rows] = 1
    return hot
