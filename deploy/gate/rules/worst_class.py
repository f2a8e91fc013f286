"""The class that dropped most, corrected for having looked at all of them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ..comparison import Case, Comparison
from ..report import Policy, RuleResult, Verdict
from ..statistics import LARGEST, class_p_values, holm, paired_images_needed, paired_interval
from .accuracy import points
from .class_counts import ClassCounts, Counts
from .judgement import enough


def judge_worst_class(case: Case) -> Iterator[RuleResult]:
    """The drop of the class with the most evidence of a drop beyond the limit.

    A class is called worse where its p-value, after Holm's correction over all classes, is below one side of the
    confidence. strict passes only where every class's interval keeps within the limit, which needs no correction.
    """
    rule = case.config.worst_class
    if rule is None:
        return
    for comparison, max_drop in case.limited(rule.max_drop):
        counts = ClassCounts.of(comparison, "worst_class")
        yield _judge(counts, comparison, max_drop, rule.policy or case.config.policy, case.config.confidence)


def _judge(
    counts: ClassCounts, comparison: Comparison, max_drop: float, policy: Policy, confidence: float
) -> RuleResult:
    change = 100 * (counts.fixed - counts.broken) / counts.n
    p = holm(class_p_values(counts.fixed, counts.broken, counts.n, max_drop / 100))
    lows, _ = paired_interval(counts.fixed, counts.broken, counts.n, confidence)
    unsure = 100 * lows < -max_drop
    called = change < -max_drop if policy == "point" else p <= (1 - confidence) / 2
    needed = None
    if called.any():
        verdict: Verdict = "fail"
    elif policy == "strict" and unsure.any():
        verdict, needed = "inconclusive", _images_needed(counts, np.flatnonzero(unsure), max_drop, confidence)
    else:
        verdict = "pass"
    worst = np.lexsort((-counts.n, change, np.zeros_like(p) if policy == "point" else p))[0]
    n, right = int(counts.n[worst]), int(counts.right[worst])
    before = right + int(counts.broken[worst] - counts.fixed[worst])
    return RuleResult(
        name="worst_class",
        metric="worst_class",
        reference=comparison.reference,
        baseline=100 * before / n,
        candidate=100 * right / n,
        delta=float(change[worst]),
        interval=None,
        margin=max_drop,
        unit="points",
        verdict=verdict,
        message=f"class {counts.labels[worst]} has {right} of {n} images right, {before} with {comparison.reference} "
        f"(p {p[worst]:.2g} for a drop beyond {points(max_drop)}, corrected for {len(p)} classes); "
        f"{_conclusion(verdict, counts.labels[called], int(unsure.sum()), needed)}.",
        images_needed=needed,
    )


def _conclusion(verdict: Verdict, called: Counts, unsure: int, needed: int | None) -> str:
    if verdict == "fail":
        more = ", ..." if len(called) > 5 else ""
        return f"beyond the limit: {len(called)} ({', '.join(map(str, called[:5]))}{more})"
    if verdict == "inconclusive":
        return f"{unsure} classes may have dropped further; {enough(needed)}"
    return "no class is beyond the limit"


def _images_needed(counts: ClassCounts, unsure: Counts, max_drop: float, confidence: float) -> int | None:
    """How many images of the whole set, whose classes keep their shares, would decide on each unsure class."""
    total, most = int(counts.n.sum()), 0
    for k in unsure:
        n = int(counts.n[k])
        own = paired_images_needed(int(counts.fixed[k]), int(counts.broken[k]), n, -max_drop / 100, confidence)
        if own is None:
            return None
        most = max(most, math.ceil(own * total / n))
    return most if most <= LARGEST else None
