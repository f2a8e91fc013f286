"""The standard normal distribution, and what follows from a statistic that grows with the root of the images."""

from __future__ import annotations

import math
from statistics import NormalDist

_NORMAL = NormalDist()

LARGEST = 10_000_000
"""More images than any test set has: beyond it, a number of images is no advice."""


def quantile(confidence: float) -> float:
    """Half the width, in standard errors, of a two-sided interval of that confidence."""
    return _NORMAL.inv_cdf((1 + confidence) / 2)


def cdf(z: float) -> float:
    """The chance of a value of at most ``z``."""
    return _NORMAL.cdf(z)


def images_needed(n: float, score: float, confidence: float) -> int | None:
    """With how many images a ``score`` seen on ``n`` would leave the interval, were the rates to stay.

    A score statistic is ``sqrt(n)`` times what depends on the rates alone, hence ``n (z / score)^2``. None for a score
    of 0 and for more than ``LARGEST``.
    """
    if score == 0:
        return None
    needed = n * (quantile(confidence) / score) ** 2
    return math.ceil(needed) if needed <= LARGEST else None
