"""An axis of a chart: where a value lies between two pixels, and which values are written beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

NICE = (1, 2, 5, 10)
"""Steps between ticks, times a power of ten."""

SAME = 1e-6
"""Values whose difference is a smaller part of them are drawn as one."""


@final
@dataclass(frozen=True)
class Axis:
    """A straight axis from value ``low`` at pixel ``start`` to ``high`` at ``end``; both must differ."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """The pixel of ``value``, which may lie beyond the axis."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, most: int = 4) -> list[float]:
        """Round values on the axis, at most ``most`` + 1 of them."""
        step = _nice_step(self.high - self.low, most)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


def around(values: Iterable[float], start: float, end: float, *, zero: bool = False) -> Axis:
    """The axis that holds all ``values`` (and 0, with ``zero``), its ends rounded outwards to ticks."""
    known = [*values, 0.0] if zero else list(values)
    low, high = min(known), max(known)
    if high - low <= SAME * max(abs(low), abs(high)):
        low, high = (low - 1, high + 1) if not zero else (min(low, 0.0), max(high, 1.0))
    step = _nice_step(high - low, 4)
    return Axis(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, start, end)


def written(value: float) -> str:
    """A tick's text: ``1,000`` and ``0.25``, never an exponent."""
    return f"{value:,.10f}".rstrip("0").rstrip(".") if value % 1 else f"{value:,.0f}"


def _nice_step(span: float, most: int) -> float:
    """The smallest nice step that divides ``span`` into at most ``most`` parts."""
    power = 10.0 ** math.floor(math.log10(span / most))
    return next(power * nice for nice in NICE if span / (power * nice) <= most * (1 + 1e-9))
