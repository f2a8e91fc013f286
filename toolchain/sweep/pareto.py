"""Accuracy against what it costs, as one SVG file, with the runs that none beats in both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..report.scatter import Point, scatter, standalone
from .table import bits


def pareto_plot(
    rows: Sequence[Mapping[str, Any]], costs: Mapping[str, float], label: str, *, more_is_better: bool = False
) -> str:
    """Top-1 with its interval over ``costs`` (by identity); the front is joined and named."""
    sign = -1 if more_is_better else 1
    places = [(sign * costs[row["identity"]], row["top1"]) for row in rows]
    best = front(places)
    several = len({row["config"]["model"] for row in rows}) > 1
    points = [
        Point(
            x=costs[row["identity"]],
            y=row["top1"],
            interval=(row["top1_interval"][0], row["top1_interval"][1]),
            label=f"{row['config']['model']} {bits(row)}" if several else bits(row),
            best=number in best,
        )
        for number, row in enumerate(rows)
    ]
    return standalone(scatter(points, label, "top-1, %"))


def front(places: Sequence[tuple[float, float]]) -> set[int]:
    """Numbers of the (cost, gain) pairs than which no other costs no more and gains no less, one of them strictly."""
    return {
        number
        for number, (cost, gain) in enumerate(places)
        if not any(
            other_cost <= cost and other_gain >= gain and (other_cost, other_gain) != (cost, gain)
            for other_cost, other_gain in places
        )
    }
