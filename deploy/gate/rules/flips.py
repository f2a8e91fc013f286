"""How many images flip between right and wrong, in either direction."""

from __future__ import annotations

from collections.abc import Iterator

from ..comparison import Case
from ..report import RuleResult
from ..statistics import proportion_images_needed, proportion_interval
from .judgement import Estimate, judge


def judge_flips(case: Case) -> Iterator[RuleResult]:
    """The share of images that flip against each baseline, in percent with Wilson's interval."""
    rule, confidence = case.config.flips, case.config.confidence
    if rule is None:
        return
    for comparison, largest in case.limited(rule.max_percent):
        flips, n = comparison.count_flips(), comparison.n
        estimate = share(flips.fixed + flips.broken, n, confidence)
        policy = rule.policy or case.config.policy
        judged = judge(estimate, largest, f"the allowed {largest:g} %", policy, confidence, at_least=False)
        yield RuleResult(
            name="flips",
            metric="flips",
            reference=comparison.reference,
            baseline=None,
            candidate=estimate.value,
            delta=None,
            interval=estimate.interval,
            margin=largest,
            unit="percent",
            verdict=judged.verdict,
            message=f"{flips.broken} images are newly wrong and {flips.fixed} newly right against "
            f"{comparison.reference}, {estimate.value:.2f} % of {n:,}: {judged.reason}.",
            images_needed=judged.images_needed,
        )


def share(count: int, n: int, confidence: float) -> Estimate:
    """``count / n`` in percent."""
    low, high = proportion_interval(count, n, confidence)
    return Estimate(
        value=100 * count / n,
        low=100 * low,
        high=100 * high,
        needed=lambda bound: proportion_images_needed(count, n, bound / 100, confidence),
    )
