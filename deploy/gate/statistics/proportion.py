"""One proportion (Wilson), and the difference of two on different or unknown images (Newcombe)."""

from __future__ import annotations

import math

from fimaq.toolchain.evaluate.metrics import wilson_interval

from .normal import images_needed


def proportion_interval(count: int, n: int, confidence: float) -> tuple[float, float]:
    """Wilson's interval of ``count / n``."""
    low, high = wilson_interval(count, n, confidence)
    return low / 100, high / 100


def proportion_images_needed(count: int, n: int, bound: float, confidence: float) -> int | None:
    """With how many images Wilson's interval would leave ``bound`` out, were the proportion to stay.

    It inverts the score ``(p - bound) / sqrt(bound (1 - bound) / n)``.
    """
    variance = bound * (1 - bound) / n
    return images_needed(n, (count / n - bound) / math.sqrt(variance), confidence) if variance > 0 else None


def unpaired_interval(candidate: tuple[int, int], baseline: tuple[int, int], confidence: float) -> tuple[float, float]:
    """Newcombe's interval of ``p_candidate - p_baseline`` from two Wilson intervals; each model is ``(count, n)``.

    R. G. Newcombe, Interval estimation for the difference between independent proportions, Statistics in Medicine 17
    (1998), method 10. On the same images it is too wide, as their answers go together.
    """
    (one, n_one), (two, n_two) = candidate, baseline
    p_one, p_two = one / n_one, two / n_two
    low_one, high_one = proportion_interval(one, n_one, confidence)
    low_two, high_two = proportion_interval(two, n_two, confidence)
    difference = p_one - p_two
    return (
        difference - math.hypot(p_one - low_one, high_two - p_two),
        difference + math.hypot(high_one - p_one, p_two - low_two),
    )
