"""Top-k predictions, and accuracy with its interval. Percent throughout."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

K = 5
"""Predictions kept of each image."""


def top_k(logits: npt.NDArray[np.floating[Any]]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Classes and logits ``[b, min(5, c)]`` of logits ``[b, c]``, best first; of equal logits the lower class first."""
    order = np.argsort(-logits, axis=1, kind="stable")[:, :K]
    return order.astype(np.int32), np.take_along_axis(logits, order, axis=1).astype(np.float32)


def hits(predicted: npt.NDArray[np.int32], labels: npt.NDArray[np.int64], k: int) -> int:
    """How many labels ``[n]`` are among the first ``k`` predictions ``[n, 5]``."""
    return int((predicted[:, :k] == labels[:, None]).any(axis=1).sum())


def percent(count: int, n: int) -> float:
    """``count`` of ``n`` in percent."""
    return 100.0 * count / n


def wilson_interval(count: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of the share ``count / n``, in percent.

    ``(p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)`` with ``z`` the two-sided normal quantile.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p = count / n
    middle = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At 0 and n the ends are exactly 0 and 1; rounding may miss them by an ulp.
    low = 0.0 if count == 0 else (middle - half) / scale
    high = 1.0 if count == n else (middle + half) / scale
    return 100 * low, 100 * high
