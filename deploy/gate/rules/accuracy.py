"""Drops of top-1 and top-5 accuracy: paired where both models have per-image predictions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from ..comparison import Case, Comparison
from ..config import DropConfig
from ..report import RuleResult
from ..statistics import images_needed, paired_images_needed, paired_interval, quantile, unpaired_interval
from .judgement import Estimate, judge


def judge_accuracy(name: str, k: int, case: Case) -> Iterator[RuleResult]:
    """The drop against each baseline of the share of labels among the first ``k`` predictions."""
    rule: DropConfig | None = getattr(case.config, name)
    if rule is None:
        return
    for comparison, max_drop in case.limited(rule.max_drop):
        candidate, baseline = (
            100 * each.hits(k) / comparison.n for each in (comparison.candidate, comparison.baseline)
        )
        estimate = _difference(comparison, k, name, case.config.confidence)
        yield drop(name, f"top-{k}", comparison, (baseline, candidate), estimate, max_drop, rule, case)


def drop(
    name: str,
    words: str,
    comparison: Comparison,
    values: tuple[float, float],
    estimate: Estimate,
    max_drop: float,
    rule: DropConfig,
    case: Case,
) -> RuleResult:
    """Hold a difference, in points, against the largest drop; ``values`` are the baseline's and the candidate's."""
    policy = rule.policy or case.config.policy
    judged = judge(estimate, -max_drop, f"the allowed drop of {points(max_drop)}", policy, case.config.confidence)
    baseline, candidate = values
    return RuleResult(
        name=name,
        metric=name,
        reference=comparison.reference,
        baseline=baseline,
        candidate=candidate,
        delta=estimate.value,
        interval=estimate.interval,
        margin=max_drop,
        unit="points",
        verdict=judged.verdict,
        message=f"{words} is {candidate:.2f} %, {estimate.value:+.2f} points from {comparison.reference}'s "
        f"{baseline:.2f} %: {judged.reason}.",
        images_needed=judged.images_needed,
    )


def points(number: float) -> str:
    """``1 point``, ``1.5 points``."""
    return f"{number:g} point{'' if number == 1 else 's'}"


def _difference(comparison: Comparison, k: int, rule: str, confidence: float) -> Estimate:
    """Candidate minus baseline in points."""
    n = comparison.n
    if not comparison.paired:
        return _unpaired_difference(comparison.candidate.hits(k), comparison.baseline.hits(k), n, confidence)
    fixed, broken = (int(flips.sum()) for flips in comparison.flips(k, rule))
    low, high = paired_interval(fixed, broken, n, confidence)
    return Estimate(
        value=100 * (fixed - broken) / n,
        low=100 * float(low),
        high=100 * float(high),
        needed=lambda bound: paired_images_needed(fixed, broken, n, bound / 100, confidence),
    )


def _unpaired_difference(candidate: int, baseline: int, n: int, confidence: float) -> Estimate:
    low, high = unpaired_interval((candidate, n), (baseline, n), confidence)
    value = (candidate - baseline) / n

    def needed(bound: float) -> int | None:
        """Widths go with one over the root of the images."""
        bound /= 100
        width = value - low if bound < value else high - value
        return images_needed(n, quantile(confidence) * (value - bound) / width, confidence)

    return Estimate(100 * value, 100 * low, 100 * high, needed)


judge_top1 = partial(judge_accuracy, "top1", 1)
judge_top5 = partial(judge_accuracy, "top5", 5)
