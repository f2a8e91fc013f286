"""A results file as a Markdown table and as a drawing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tabulate import tabulate

from fimaq.toolchain.errors import InputError
from fimaq.toolchain.report.axis import around
from fimaq.toolchain.report.charts import Shape, bottom_ticks, dot, line, svg, text
from fimaq.toolchain.report.scatter import standalone

from .lineup import CONTESTANTS, FLOAT

LABELS, PITCH = 270.0, 16.0
"""Of the drawing, in pixels: the width of what is written at the left, and the height of a row."""


def newest(results: Path) -> tuple[dict[tuple[str, int], dict[str, Any]], dict[str, dict[str, Any]]]:
    """The last measurement by (key, batch size), and the last predictions of each contestant by key.

    Raises InputError for a file without a measurement, and where another file predicted than the one that was timed.
    """
    found = [json.loads(words) for words in results.read_text().splitlines()] if results.exists() else []
    timed = [row for row in found if row["kind"] == "speed"]
    if not timed:
        raise InputError(f"{results} holds no measurement. Make one: python benchmarks/deployed.py measure DIR")
    last = timed[-1]["measurement"]
    speeds = {(row["key"], row["batch_size"]): row for row in timed if row["measurement"] == last}
    predicted = {row["key"]: row for row in found if row["kind"] == "agreement"}
    for (key, _), row in speeds.items():
        if key in predicted and predicted[key]["sha256"] != row["sha256"]:
            raise InputError(f"{results}: the file that was timed as {key} is not the one that predicted. Run agree.")
    return speeds, predicted


def table(results: Path) -> str:
    """Markdown: a line for each contestant, ratios with their quartiles."""
    speeds, predicted = newest(results)
    batches = sorted({batch for _, batch in speeds})
    body = []
    for key in _present(speeds):
        own = {batch: speeds[key, batch] for batch in batches}
        first = own[batches[0]]
        cells = [first["title"], first["where"], f"{first['bytes'] / 1e6:.2f}", *_predicted(predicted.get(key))]
        for batch in batches:
            cells += [f"{own[batch]['median_ms']:.1f}", _ratio(own[batch])]
        body.append(cells)
    heads = ["file", "where", "MB", "top-1", "agrees with float"]
    heads += [words for batch in batches for words in (f"ms, batch {batch}", "times float (quartiles)")]
    return tabulate(body, heads, tablefmt="github", disable_numparse=True)


def plot(results: Path) -> str:
    """An SVG file: speeds as multiples of the float file's; the smallest batch open, the largest filled."""
    speeds, _ = newest(results)
    keys, batches = _present(speeds), [batch for _, batch in speeds]
    shapes: dict[int, Shape] = {min(batches): "open", max(batches): "filled"}
    ends = [end for row in speeds.values() for end in row["ratio_quartiles"]]
    across = around(ends, LABELS + 8, LABELS + 268, zero=True)
    bottom = PITCH * (len(keys) + 0.5)
    parts = []
    for number, key in enumerate(keys):
        y = PITCH * (number + 0.5)
        titles = speeds[key, min(batches)]
        words = f"{titles['title'].split(', --target')[0]}, {titles['where']}"
        parts += [line(across.start, y, across.end, y, "guide"), text(LABELS, y + 3.5, words, "end")]
        for batch, shape in shapes.items():
            low, high = (across.at(end) for end in speeds[key, batch]["ratio_quartiles"])
            parts += [line(low, y, high, y, "whisker"), dot(across.at(speeds[key, batch]["ratio"]), y, shape)]
    said = ", ".join(f"{shape}: batch {batch}" for batch, shape in shapes.items())
    title = f"times the speed of float in ONNX Runtime ({said})"
    parts += [*bottom_ticks(across, bottom), text(LABELS + 280, bottom + 28, title, "end")]
    return standalone(svg(LABELS + 290, bottom + 34, title, *parts))


def _present(speeds: Mapping[tuple[str, int], Any]) -> list[str]:
    keys = {key for key, _ in speeds}
    return [one.key for one in CONTESTANTS if one.key in keys]


def _predicted(row: Mapping[str, Any] | None) -> list[str]:
    return ["", ""] if row is None else [f"{row['top1']:.2f}", f"{row['agreement']:.1f}"]


def _ratio(row: Mapping[str, Any]) -> str:
    low, high = row["ratio_quartiles"]
    return "1.00" if row["key"] == FLOAT.key else f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})"
