"""What a person does next, given a verdict."""

from __future__ import annotations

from ..report import GateReport

COSTS = frozenset({"latency", "size"})
"""Rules about what a model costs, not what it knows."""


def advice(report: GateReport) -> str:
    """One or two sentences; commands stand in backticks."""
    if report.verdict == "pass":
        return (
            "Nothing. To make this candidate the next baseline, name one in gate.toml (`fimaq-tool gate init` writes "
            "it) and run `fimaq-tool gate update`."
        )
    failed = {rule.name for rule in report.rules if rule.blocking and rule.verdict == "fail"}
    if failed and failed <= COSTS:
        return (
            f"The model is accurate enough and misses {' and '.join(sorted(failed))}: quantize with fewer bits, or "
            "export for another target. If it is worth the cost, raise the limit and say why in the same commit."
        )
    if report.verdict == "fail":
        return (
            "Quantize with more bits or a longer recipe. If the loss is worth it, raise the limit in gate.toml and say "
            "why in the same commit."
        )
    if report.images_needed is None:
        return (
            "The candidate is too close to the limit for any number of images to decide. Raise the limit in gate.toml, "
            "or quantize with a longer recipe."
        )
    return (
        f"Evaluate both models on about {report.images_needed:,} images: at the rates seen here, that many decide. "
        "Or raise the limit in gate.toml."
    )
