"""Which classes dropped by more than a margin: an exact p-value per class, and Holm's correction over all of them.

A class has few images and the correction asks for small p-values, which the score's normal tail gets wrong: of ten
classes of 100 images that dropped by exactly the margin, it calls one worse in up to 10 % of cases where 5 % are
promised. So the outcomes of small classes are enumerated, which keeps the promise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .normal import cdf
from .tango import Floats, paired_score

EXACT = 200
"""Images of a class up to which every outcome is enumerated; their number grows with the square."""

NUISANCE = 64
"""Values tried for the probability of ``fixed``, which the hypothesis leaves open; denser near 0."""

TIES = 1e-9
"""Scores this close are the same score, computed in another order."""


def class_p_values(fixed: npt.NDArray[Any], broken: npt.NDArray[Any], n: npt.NDArray[Any], margin: float) -> Floats:
    """One-sided p-values ``[k]`` of "class k dropped by ``margin`` or less", from its counts ``[k]``.

    The p-value is the largest probability, over all probabilities of ``fixed``, of a score (``paired_score`` at
    ``-margin``) as low as the one seen; that is Barnard's unconditional test. Above ``EXACT`` images it is the score's
    normal tail. Classes whose drop is no larger than the margin get 1.
    """
    scores = paired_score(fixed, broken, n, -margin)
    p = np.ones(len(scores))
    suspects = np.flatnonzero(scores < 0)
    for images in np.unique(n[suspects]):
        those = suspects[n[suspects] == images]
        if images > EXACT:
            p[those] = [cdf(score) for score in scores[those]]
        else:
            p[those] = _exact(int(images), margin, scores[those])
    return p


def _exact(n: int, margin: float, scores: Floats) -> Floats:
    """The largest probability of each of the ``scores`` or a lower one with ``n`` images and a drop of ``margin``."""
    fixed, broken = (counts.ravel() for counts in np.indices((n + 1, n + 1)))
    possible = fixed + broken <= n
    fixed, broken = fixed[possible], broken[possible]
    reference = paired_score(fixed, broken, n, -margin)
    order = np.argsort(reference)
    fixed, broken, reference = fixed[order], broken[order], reference[order]
    chances = np.linspace(0, 1, NUISANCE)[:, None] ** 2 * (1 - margin) / 2
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    ways = log_factorial[n] - log_factorial[fixed] - log_factorial[broken] - log_factorial[n - fixed - broken]
    log_probability = (
        ways
        + fixed * _log(chances)
        + broken * _log(chances + margin)
        + (n - fixed - broken) * _log(1 - 2 * chances - margin)
    )
    tail = np.cumsum(np.exp(log_probability), axis=1).max(axis=0)
    p: Floats = np.minimum(tail[np.searchsorted(reference, scores + TIES, side="right") - 1], 1.0)
    return p


def _log(p: Floats) -> Floats:
    """The logarithm, with a finite value for 0, so that zero times it is zero."""
    logarithm: Floats = np.log(np.maximum(p, 1e-300))
    return logarithm


def holm(p: Floats) -> Floats:
    """Holm's adjusted p-values: those below alpha may all be called, with a chance of alpha that any call is wrong."""
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order]), 1.0)
    return adjusted
