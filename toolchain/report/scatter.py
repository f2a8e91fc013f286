"""Points with intervals over two axes, the best of them joined and named, as a file of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from markupsafe import Markup

from .axis import around
from .charts import bottom_ticks, dot, left_ticks, line, svg, text

STYLE = Path(__file__).parent / "templates" / "chart.css"

LINE_HEIGHT = 12


@final
@dataclass(frozen=True)
class Point:
    """One thing measured: its place, the interval of ``y``, and whether it is among the best."""

    x: float
    y: float
    interval: tuple[float, float]
    label: str
    best: bool


def scatter(points: Sequence[Point], x_label: str, y_label: str) -> Markup:
    """The points; filled and named where they are best, open where another beats them."""
    width, height, left, right, top, bottom = 560.0, 360.0, 44.0, 440.0, 24.0, 310.0
    across = around([point.x for point in points], left, right, zero=True)
    up = around([end for point in points for end in point.interval], bottom, top)
    best = sorted((point for point in points if point.best), key=lambda point: point.x)
    joined = "L".join(f"{across.at(point.x):.1f} {up.at(point.y):.1f}" for point in best)
    parts = [
        text(0, 11, y_label),
        *left_ticks(up, left),
        *bottom_ticks(across, bottom),
        text((left + right) / 2, height - 10, x_label, "middle"),
        Markup('<path class="join" d="M{}"/>').format(joined),
    ]
    for point in points:
        x, y = across.at(point.x), up.at(point.y)
        parts.append(line(x, up.at(point.interval[0]), x, up.at(point.interval[1]), "axis" if point.best else "guide"))
        parts.append(dot(x, y, "filled" if point.best else "open"))
    taken: list[tuple[float, float]] = []
    for point in sorted(best, key=lambda point: -point.y):
        x, y = across.at(point.x) + 7, up.at(point.y) - 5
        while any(abs(y - other_y) < LINE_HEIGHT and abs(x - other_x) < right / 4 for other_x, other_y in taken):
            y += LINE_HEIGHT
        taken.append((x, y))
        parts.append(text(x, y, point.label))
    return svg(width, height, f"{y_label} over {x_label}: {len(points)} points, {len(best)} best", *parts)


def standalone(chart: Markup) -> str:
    """The chart as a file that needs no page around it."""
    style = Markup("<style>{}</style>").format(Markup(STYLE.read_text(encoding="utf-8")))
    head = '<svg xmlns="http://www.w3.org/2000/svg" '
    return str(chart).replace("<svg ", head, 1).replace(">", f">{style}", 1) + "\n"
