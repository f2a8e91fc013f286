"""The results of a sweep as a markdown table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

HEADERS = (
    "model",
    "bits",
    "loss",
    "seed",
    "top-1 (95 %)",
    "agreement / floor",
    "seconds",
    "MB",
    "command without paths",
)
SPEED = "images/s"


def markdown(rows: Sequence[Mapping[str, Any]], speeds: Mapping[str, float]) -> str:
    """A line a run in the plan's order, then what went wrong with those that failed.

    ``agreement / floor``: percent of images on which the file predicts what the torch model predicts, and on which that
    model predicts what its float64 copy does. ``speeds``, by identity, become a column where there are any.
    """
    good = [row for row in rows if "error" not in row]
    headers = [*HEADERS[:-1], *([SPEED] if speeds else []), HEADERS[-1]]
    lines = [_cells(row, speeds) for row in good]
    parts = [tabulate(lines, headers, tablefmt="github", disable_numparse=True)] if good else []
    if failed := [row for row in rows if "error" in row]:
        parts.append("Failed:")
        parts.append("\n".join(f"* `{row['command']}`: {_safe(row['error']['message'])}" for row in failed))
    return "\n\n".join(parts)


def bits(row: Mapping[str, Any]) -> str:
    """``W4/A4``, or that nothing is quantized."""
    return "float" if row["wbits"] is None else f"W{row['wbits']}/A{row['abits']}"


def _cells(row: Mapping[str, Any], speeds: Mapping[str, float]) -> list[str]:
    rounded = row["config"].get("iters") == 0
    low, high = row["top1_interval"]
    cells = [
        row["config"]["model"],
        bits(row),
        "round to nearest" if rounded else row["fisher"] or "",
        "" if row["seed"] is None else str(row["seed"]),
        f"{row['top1']:.2f} ({low:.1f} to {high:.1f})",
        f"{row['parity']['top1_agreement']:.1f} / {row['parity']['noise_floor']:.1f}",
        f"{row['seconds']['total']:.0f}" if row["seconds"] else "",
        f"{row['bytes'] / 1e6:.2f}",
        *([f"{speeds[row['identity']]:.1f}"] if speeds else []),
        f"`{row['command']}`",
    ]
    return [_safe(cell) for cell in cells]


def _safe(text: str) -> str:
    """A bar would end the cell."""
    return text.replace("|", "\\|")
