"""The numbers of a rule as people read them."""

from __future__ import annotations

from typing import NamedTuple, final

from ..report import RuleResult, Unit

ABSENT = "-"


@final
class Style(NamedTuple):
    """How a unit is written: divided, rounded, and what follows a value and a change."""

    divisor: float
    digits: int
    value: str
    change: str


STYLES: dict[Unit, Style] = {
    "points": Style(1, 2, " %", " points"),
    "percent": Style(1, 2, " %", " points"),
    "bytes": Style(1e6, 2, " MB", " MB"),
    "ratio": Style(1, 3, "", ""),
}


def value(number: float | None, unit: Unit) -> str:
    """A compared value: ``81.54 %``."""
    return ABSENT if number is None else _written(number, unit) + STYLES[unit].value


def change(rule: RuleResult) -> str:
    """Candidate minus baseline, always signed: ``-0.46 points``."""
    return ABSENT if rule.delta is None else _written(rule.delta, rule.unit, "+") + STYLES[rule.unit].change


def interval(rule: RuleResult) -> str:
    """Signed around a change, plain around a value: ``-1.31 to +0.38 points``, ``79.38 to 83.55 %``."""
    if rule.interval is None:
        return ABSENT
    style, sign = STYLES[rule.unit], "" if rule.delta is None else "+"
    suffix = style.value if rule.delta is None else style.change
    return " to ".join(_written(end, rule.unit, sign) for end in rule.interval) + suffix


def limit(rule: RuleResult) -> str:
    """What change or value and interval are held against: ``≥ -1.00 points``, ``≤ 8.00 MB``, ``≥ 80.00 %``."""
    if rule.margin is None:
        return ABSENT
    style = STYLES[rule.unit]
    if rule.unit == "points":
        return f"≥ {_written(0 - rule.margin, rule.unit)}{style.change}"
    return f"{'≥' if rule.name.startswith('min_') else '≤'} {_written(rule.margin, rule.unit)}{style.value}"


def _written(number: float, unit: Unit, sign: str = "") -> str:
    style = STYLES[unit]
    return f"{number / style.divisor:{sign}.{style.digits}f}"
