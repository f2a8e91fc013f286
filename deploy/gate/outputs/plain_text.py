"""Plain text for a terminal or a test's report: a table, and a sentence for each rule that did not pass."""

from __future__ import annotations

from ..report import GateReport
from .advice import advice
from .rows import COLUMNS, NUMBERS_FROM, cells


def text(report: GateReport) -> str:
    """The report as lines, the verdict first and what to do next last."""
    from tabulate import tabulate

    align = ["left" if column < NUMBERS_FROM else "right" for column in range(len(COLUMNS))]
    table = tabulate(map(cells, report.rules), headers=COLUMNS, disable_numparse=True, colalign=align)
    failed = [f"{rule.title}: {rule.message}" for rule in report.rules if rule.verdict != "pass"]
    flips = [
        f"against {each.reference}: {each.flips.broken:,} images newly wrong, {each.flips.fixed:,} newly right, "
        f"exact McNemar p {each.mcnemar_p:.2g}"
        for each in report.baselines
        if each.flips is not None
    ]
    parts = [
        f"accuracy gate: {report.verdict} on {report.n:,} images, policy {report.policy}, "
        f"{100 * report.confidence:g} % intervals",
        table,
        "\n".join(failed),
        "\n".join(flips),
        "\n".join(f"warning: {warning}" for warning in report.warnings),
        f"what next: {advice(report).replace('`', '')}",
    ]
    return "\n\n".join(part for part in parts if part)
