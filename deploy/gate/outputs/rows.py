"""A rule as the cells of a table."""

from __future__ import annotations

from ..report import RuleResult
from .quantities import change, interval, limit, value

COLUMNS = ("", "rule", "baseline", "candidate", "change", "interval", "limit")
NUMBERS_FROM = 2
"""The first column that is aligned to the right."""


def outcome(rule: RuleResult) -> str:
    """The verdict in a word; ``warning`` where a rule that is not blocking did not pass."""
    return rule.verdict if rule.blocking or rule.verdict == "pass" else "warning"


def cells(rule: RuleResult) -> tuple[str, ...]:
    """One text for each of ``COLUMNS``."""
    return (
        outcome(rule),
        rule.title,
        value(rule.baseline, rule.unit),
        value(rule.candidate, rule.unit),
        change(rule),
        interval(rule),
        limit(rule),
    )
