"""Accuracies that must be reached whatever the baselines have."""

from __future__ import annotations

from collections.abc import Iterator

from ..comparison import Case
from ..report import RuleResult
from .flips import share
from .judgement import judge


def judge_floor(case: Case) -> Iterator[RuleResult]:
    """Top-1 and top-5 with Wilson's interval against their floors."""
    rule, confidence = case.config.floor, case.config.confidence
    if rule is None:
        return
    for name, k, floor in (("top1", 1, rule.top1), ("top5", 5, rule.top5)):
        if floor is None:
            continue
        n = case.candidate.summary.n
        estimate = share(case.candidate.hits(k), n, confidence)
        judged = judge(estimate, floor, f"the floor of {floor:g} %", rule.policy or case.config.policy, confidence)
        yield RuleResult(
            name=f"min_{name}",
            metric=name,
            reference="",
            baseline=None,
            candidate=estimate.value,
            delta=None,
            interval=estimate.interval,
            margin=floor,
            unit="percent",
            verdict=judged.verdict,
            message=f"top-{k} is {estimate.value:.2f} % on {n:,} images: {judged.reason}.",
            images_needed=judged.images_needed,
        )
