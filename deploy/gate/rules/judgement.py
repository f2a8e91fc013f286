"""From an estimate with its interval to a verdict: the policies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from ..report import Policy, Verdict


@final
@dataclass(frozen=True)
class Estimate:
    """A value and its two-sided interval, in points or percent.

    ``needed`` says with how many images the interval would leave a bound out, were the rates to stay.
    """

    value: float
    low: float
    high: float
    needed: Callable[[float], int | None]

    @property
    def interval(self) -> tuple[float, float]:
        """Both ends."""
        return self.low, self.high


@final
@dataclass(frozen=True)
class Judgement:
    """A verdict, why in words, and how many images would decide where it is inconclusive."""

    verdict: Verdict
    reason: str
    images_needed: int | None = None


def judge(
    estimate: Estimate, bound: float, limit: str, policy: Policy, confidence: float, *, at_least: bool = True
) -> Judgement:
    """Hold an estimate that should be ``at_least`` the bound (or else at most) against it; ``limit`` names the bound.

    strict: pass if the whole interval keeps the bound, fail if none of it does, else inconclusive. lenient: fail if
    none of it does, else pass. point: as the value does.
    """
    sign = 1 if at_least else -1
    worst, best = sorted((sign * estimate.low, sign * estimate.high))
    shown = f"the {100 * confidence:.4g} % interval, {estimate.low:.2f} to {estimate.high:.2f},"
    if policy == "point":
        return Judgement("pass" if sign * estimate.value >= sign * bound else "fail", f"allowed is {limit}")
    if best < sign * bound:
        return Judgement("fail", f"{shown} lies wholly beyond {limit}")
    if worst >= sign * bound:
        return Judgement("pass", f"{shown} keeps within {limit}")
    if policy == "lenient":
        return Judgement("pass", f"{shown} does not lie wholly beyond {limit}")
    needed = estimate.needed(bound)
    return Judgement("inconclusive", f"{shown} reaches beyond {limit}; {enough(needed)}", needed)


def enough(needed: int | None) -> str:
    """How many images would decide, in words."""
    if needed is None:
        return "no realistic number of images would decide at these rates"
    return f"at these rates {needed:,} images would decide"
