"""How large the file is."""

from __future__ import annotations

from collections.abc import Iterator

from ..comparison import Case
from ..report import RuleResult


def judge_size(case: Case) -> Iterator[RuleResult]:
    """Bytes against each baseline's, and against an absolute limit."""
    rule, size = case.config.size, case.candidate.summary.bytes
    if rule is None:
        return
    for comparison, ratio in case.limited(rule.max_ratio) if rule.max_ratio is not None else ():
        other = comparison.baseline.summary.bytes
        words = f", {size / other:.3g} of {comparison.reference}'s {other:,}; allowed is {ratio:g}"
        yield _result(comparison.reference, size, other, ratio * other, words)
    if rule.max_bytes is not None:
        yield _result("", size, None, rule.max_bytes, f"; allowed are {rule.max_bytes:,}")


def _result(reference: str, size: int, other: int | None, largest: float, words: str) -> RuleResult:
    return RuleResult(
        name="size",
        metric="bytes",
        reference=reference,
        baseline=other,
        candidate=size,
        delta=None if other is None else size - other,
        interval=None,
        margin=largest,
        unit="bytes",
        verdict="pass" if size <= largest else "fail",
        message=f"the file has {size:,} bytes{words}.",
    )
