"""GitHub-flavoured Markdown: the verdict, a line per rule, and what to do next."""

from __future__ import annotations

import re

from ..report import GateReport, RuleResult
from .advice import advice
from .rows import COLUMNS, NUMBERS_FROM, cells, outcome

SIGNS = {"pass": "✅ pass", "fail": "❌ fail", "inconclusive": "❔ inconclusive", "warning": "⚠️ warning"}

MARKUP = re.compile(r"[\\`*_\[\]<>~|&$]|^[-+#]")
"""What GitHub could read as markup in a line; a backslash makes any punctuation literal."""


def markdown(report: GateReport) -> str:
    """The report as a page: step summaries, comments on pull requests and issues all read it."""
    parts = [
        f"## Accuracy gate: {SIGNS[report.verdict]}",
        _summary(report),
        *(f"> [!WARNING]\n> {_plain(warning)}" for warning in report.warnings),
        _table(report.rules),
        *_open_rules(report.rules),
        f"**What next:** {advice(report)}",
    ]
    return "\n\n".join(parts) + "\n"


def _summary(report: GateReport) -> str:
    """Which models, how many images, and in which direction they moved."""
    names = " and ".join(_plain(baseline.reference) for baseline in report.baselines)
    against = f" against {names}" if names else ""
    text = (
        f"{_code(report.candidate.model)}{against} on {report.n:,} images, policy {report.policy}, "
        f"{100 * report.confidence:g} % intervals."
    )
    if report.flips is not None:
        text += f" Flips against {_plain(report.baselines[0].reference)}: {report.flips.fixed:,} newly right, "
        text += f"{report.flips.broken:,} newly wrong"
        text += "." if report.mcnemar_p is None else f" (exact McNemar p = {report.mcnemar_p:.3g})."
    return text


def _table(rules: tuple[RuleResult, ...]) -> str:
    ruler = ["---" if column < NUMBERS_FROM else "--:" for column in range(len(COLUMNS))]
    rows = [[SIGNS[outcome(rule)], _plain(rule.title), *cells(rule)[NUMBERS_FROM:]] for rule in rules]
    return "\n".join(f"| {' | '.join(row)} |" for row in ([name.capitalize() for name in COLUMNS], ruler, *rows))


def _open_rules(rules: tuple[RuleResult, ...]) -> list[str]:
    """What each rule that did not pass says, as one list."""
    lines = [f"- {_plain(rule.title)}: {_plain(rule.message)}" for rule in rules if rule.verdict != "pass"]
    return ["\n".join(lines)] if lines else []


def _plain(text: str) -> str:
    """Text that means itself: one line, no markup."""
    return MARKUP.sub(r"\\\g<0>", " ".join(text.split()))


def _code(text: str) -> str:
    """Text in a code span: fenced by one backtick more than it has in a row."""
    text = " ".join(text.split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if "`" in text else f"{fence}{text}{fence}"
