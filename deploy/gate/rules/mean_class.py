"""The mean over classes of their accuracies: each class counts the same, however many images it has."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ..comparison import Case
from ..report import RuleResult
from ..statistics import bootstrap_interval, images_needed, paired_interval, paired_score
from .accuracy import drop
from .class_counts import ClassCounts, Counts
from .judgement import Estimate

SEED = 0
"""Of the bootstrap: the same results give the same interval."""


def judge_mean_class(case: Case) -> Iterator[RuleResult]:
    """The drop of the mean over classes of their top-1 accuracies."""
    rule = case.config.mean_class
    if rule is None:
        return
    for comparison, max_drop in case.limited(rule.max_drop):
        counts = ClassCounts.of(comparison, "mean_class")
        candidate = 100 * float(np.mean(counts.right / counts.n))
        estimate = mean_difference(counts, case.config.confidence)
        values = candidate - estimate.value, candidate
        yield drop("mean_class", "mean class accuracy", comparison, values, estimate, max_drop, rule, case)


def mean_difference(counts: ClassCounts, confidence: float) -> Estimate:
    """Candidate minus baseline in points, with a bootstrap interval over images.

    A bootstrap does not see flips that have not happened yet. So the interval is at least as wide as Tango's with as
    many images as an unweighted mean would need for the same precision, ``k^2 / sum(1 / n_k)`` (Kish).
    """
    effective = len(counts.n) ** 2 / float(np.sum(1 / counts.n))
    fixed, broken = (effective * float(np.mean(flips / counts.n)) for flips in (counts.fixed, counts.broken))
    low, high = paired_interval(fixed, broken, effective, confidence)
    lower, upper = _bootstrap(counts, confidence)
    n = int(counts.n.sum())
    return Estimate(
        value=100 * (fixed - broken) / effective,
        low=100 * min(float(low), lower),
        high=100 * max(float(high), upper),
        needed=lambda bound: images_needed(n, float(paired_score(fixed, broken, effective, bound / 100)), confidence),
    )


def _bootstrap(counts: ClassCounts, confidence: float) -> tuple[float, float]:
    outcomes = np.stack([counts.fixed, counts.broken, counts.n - counts.fixed - counts.broken])
    outcome, place = np.nonzero(outcomes)
    order = np.argsort(place, kind="stable")
    sign, place = np.array([1, -1, 0])[outcome[order]], place[order]
    starts = np.flatnonzero(np.diff(place, prepend=-1))

    def statistic(rows: Counts) -> npt.NDArray[np.float64]:
        """The mean difference over the classes that a resample has."""
        n = np.add.reduceat(rows, starts, axis=1)
        difference = np.add.reduceat(rows * sign, starts, axis=1)
        mean: npt.NDArray[np.float64] = (difference / np.maximum(n, 1)).sum(axis=1) / np.maximum((n > 0).sum(axis=1), 1)
        return mean

    return bootstrap_interval(outcomes[outcomes > 0][order], statistic, confidence, SEED)
