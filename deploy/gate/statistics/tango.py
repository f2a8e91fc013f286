"""Difference of two proportions on the same images: Tango's score test and the interval that inverts it.

T. Tango, Equivalence test and confidence interval for the difference in proportions for the paired-sample design,
Statistics in Medicine 17 (1998). Only images that one model gets right and the other wrong carry information; the
interval holds its level where Wald's fails, down to none and up to all of such images.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .normal import images_needed, quantile

Floats = npt.NDArray[np.float64]

HALVINGS = 60
"""Of a bracket of length 2: to below the spacing of floats."""


def paired_score(fixed: Any, broken: Any, n: Any, delta: Any) -> Floats:
    """The score statistic of ``p_candidate - p_baseline = delta``, elementwise; standard normal where that holds.

    ``z = (fixed - broken - n delta) / sqrt(n (2 q + delta (1 - delta)))``, with ``q`` the likelihood's estimate of the
    probability of ``broken`` under the hypothesis: the larger root of ``2n q^2 + B q - broken delta (1 - delta) = 0``,
    ``B = (2n - fixed + broken) delta - fixed - broken``. Where the variance is 0, so is ``z`` or it is infinite.
    """
    fixed, broken, n, delta = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in (fixed, broken, n, delta)))
    # Swapping the models flips the sign: a delta of 0 or more leaves a root in which nothing cancels.
    negative = delta < 0
    fixed, broken, delta = np.where(negative, broken, fixed), np.where(negative, fixed, broken), np.abs(delta)
    middle = (2 * n - fixed + broken) * delta - fixed - broken
    product = broken * delta * (1 - delta)
    root = np.sqrt(middle * middle + 8 * n * product)
    with np.errstate(invalid="ignore", divide="ignore"):
        q = np.where(middle > 0, 2 * product / (middle + root), (root - middle) / (4 * n))
        numerator = fixed - broken - n * delta
        z = numerator / np.sqrt(n * (2 * q + delta * (1 - delta)))
    z = np.where(numerator == 0, 0.0, z)
    return np.where(negative, -z, z)


def paired_interval(fixed: Any, broken: Any, n: Any, confidence: float) -> tuple[Floats, Floats]:
    """Both ends of the interval of ``p_candidate - p_baseline``, elementwise: the deltas that are not rejected."""
    z = quantile(confidence)
    difference = (np.asarray(fixed, np.float64) - broken) / n
    outside, inside = np.full_like(difference, -1.0), difference.copy()
    low = _boundary(outside, inside, lambda delta: paired_score(fixed, broken, n, delta) > z)
    outside, inside = np.full_like(difference, 1.0), difference.copy()
    high = _boundary(outside, inside, lambda delta: paired_score(fixed, broken, n, delta) < -z)
    return low, high


def _boundary(outside: Floats, inside: Floats, rejected: Any) -> Floats:
    """Where the statistic, which falls with delta, crosses from rejected to not, between the two."""
    for _ in range(HALVINGS):
        middle = (outside + inside) / 2
        out = rejected(middle)
        outside, inside = np.where(out, middle, outside), np.where(out, inside, middle)
    return inside


def paired_images_needed(fixed: int, broken: int, n: int, delta: float, confidence: float) -> int | None:
    """With how many images the interval would leave ``delta`` out, were the rates of flips to stay."""
    return images_needed(n, float(paired_score(fixed, broken, n, delta)), confidence)
