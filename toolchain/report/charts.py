"""The charts of a report as SVG: a curve, a histogram on its grid, and rows of marks on one axis.

Sizes are in CSS pixels and small enough for a phone; nothing is told by colour alone. Text is escaped where it goes in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

from markupsafe import Markup

from .axis import Axis, around, written

Shape = Literal["filled", "open"]

TICK = 3
"""Length of a tick."""

CHARACTER = 6.7
"""Width of a character, at most, on average over a name."""


@final
@dataclass(frozen=True)
class Mark:
    """A dot at ``value``, with a whisker over ``interval``."""

    value: float
    shape: Shape = "filled"
    interval: tuple[float, float] | None = None


@final
@dataclass(frozen=True)
class Row:
    """Marks that belong to one name; two or more are joined by a line."""

    label: str
    marks: tuple[Mark, ...]


def svg(width: float, height: float, title: str, *parts: Markup) -> Markup:
    """A drawing that says to those who cannot see it what it shows."""
    return Markup('<svg viewBox="0 0 {:g} {:g}" width="{:g}" height="{:g}" role="img" aria-label="{}">{}</svg>').format(
        width, height, width, height, title, Markup("").join(parts)
    )


def text(x: float, y: float, words: str, anchor: Literal["start", "middle", "end"] = "start") -> Markup:
    """Words at a place."""
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, words)


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    """A straight line of a kind that the style sheet knows."""
    return Markup('<path class="{}" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(kind, x1, y1, x2, y2)


def curve(points: Sequence[tuple[float, float]], x_label: str, y_label: str) -> Markup:
    """``y`` over ``x``, from 0 up, the last value written at its end."""
    width, height, left, right, top, bottom = 170.0, 118.0, 38.0, 118.0, 18.0, 84.0
    across = around([x for x, _ in points], left, right, zero=True)
    up = around([y for _, y in points], bottom, top, zero=True)
    path = "L".join(f"{across.at(x):.1f} {up.at(y):.1f}" for x, y in points)
    x, y = points[-1]
    return svg(
        width,
        height,
        f"{y_label} over {x_label}: from {points[0][1]:.3g} to {y:.3g}",
        text(0, 9, y_label),
        *left_ticks(up, left),
        *bottom_ticks(across, bottom, 2),
        text((left + right) / 2, height - 4, x_label, "middle"),
        Markup('<path class="curve" d="M{}"/>').format(path),
        dot(across.at(x), up.at(y), "filled"),
        text(across.at(x) + 6, up.at(y) + 3.5, f"{y:.3g}"),
    )


def histogram(counts: Sequence[int], low: float, high: float, levels: int) -> Markup:
    """Shares of values over codes ``low`` to ``high``; the grid, codes 0 to ``levels`` - 1, is shaded and ticked."""
    width, height, top, bottom = 170.0, 92.0, 14.0, 68.0
    across = Axis(low, high, 0, width)
    most = max(counts)
    up = Axis(0, most, bottom, top)
    steps = "".join(f"V{up.at(count):.1f}H{width * number / len(counts):.1f}" for number, count in enumerate(counts, 1))
    last = levels - 1
    shown = range(levels) if levels <= 16 else (0, last)
    peak = 100 * most / sum(counts)
    return svg(
        width,
        height,
        f"histogram of codes before rounding, highest bin {peak:.0f} % of the values, grid 0 to {last}",
        Markup('<rect class="grid" x="{:.1f}" y="{:g}" width="{:.1f}" height="{:g}"/>').format(
            across.at(-0.5), top, across.at(last + 0.5) - across.at(-0.5), bottom - top
        ),
        Markup('<path class="bars" d="M0 {:g}{}V{:g}Z"/>').format(bottom, steps, bottom),
        line(0, bottom, width, bottom, "axis"),
        *(line(across.at(code), bottom, across.at(code), bottom + TICK, "axis") for code in shown),
        text(across.at(0), bottom + 14, "0", "middle"),
        text(across.at(last), bottom + 14, str(last), "middle"),
        text(across.at(last / 2), bottom + 14, "code", "middle"),
        text(0, 9, f"highest bin {peak:.3g} %"),
    )


def rows(data: Sequence[Row], x_label: str, *, label_width: float = 116, over: Sequence[Row] = ()) -> Markup:
    """A line for each row, marks on a common axis; ``over`` are the rows the axis must hold, where that is more.

    The value of a mark that is alone on its line is written at the line's end.
    """
    pitch, width, top = 16.0, 340.0, 6.0
    ends = [end for row in (over or data) for mark in row.marks for end in (mark.value, *(mark.interval or ()))]
    across = around(ends, label_width + 6, width - 34)
    bottom = top + pitch * len(data)
    parts = []
    for number, row in enumerate(data):
        y = top + pitch * (number + 0.5)
        parts += [
            line(across.start, y, across.end, y, "guide"),
            text(label_width, y + 3.5, shorten(row.label, int(label_width / CHARACTER)), "end"),
            *_marks(row, across, y),
        ]
        if len(row.marks) == 1:
            parts.append(text(width, y + 3.5, f"{row.marks[0].value:.1f}", "end"))
    return svg(
        width,
        bottom + 30,
        f"{x_label} of {len(data)} rows",
        *parts,
        *bottom_ticks(across, bottom),
        text((across.start + across.end) / 2, bottom + 27, x_label, "middle"),
    )


def shorten(words: str, most: int) -> str:
    """The words, without their middle where they are longer than ``most`` characters."""
    if len(words) <= most:
        return words
    tail = (most - 1) // 2
    return f"{words[: most - 1 - tail]}…{words[-tail:]}"


def _marks(row: Row, across: Axis, y: float) -> list[Markup]:
    places = [across.at(mark.value) for mark in row.marks]
    parts = [line(min(places), y, max(places), y, "join")] if len(places) > 1 else []
    for mark, x in zip(row.marks, places, strict=True):
        if mark.interval is not None:
            parts.append(line(across.at(mark.interval[0]), y, across.at(mark.interval[1]), y, "whisker"))
        parts.append(dot(x, y, mark.shape))
    return parts


def dot(x: float, y: float, shape: Shape) -> Markup:
    """A round mark."""
    return Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="3.5"/>').format(shape, x, y)


def bottom_ticks(across: Axis, y: float, most: int = 4) -> list[Markup]:
    """The axis at the foot of a chart, with at most ``most`` + 1 ticks."""
    parts = [line(across.start, y, across.end, y, "axis")]
    for tick in across.ticks(most):
        x = across.at(tick)
        parts += [line(x, y, x, y + TICK, "axis"), text(x, y + 14, written(tick), "middle")]
    return parts


def left_ticks(up: Axis, x: float) -> list[Markup]:
    """The axis at the left."""
    parts = [line(x, up.start, x, up.end, "axis")]
    for tick in up.ticks():
        y = up.at(tick)
        parts += [line(x - TICK, y, x, y, "axis"), text(x - 5, y + 3.5, written(tick), "end")]
    return parts
