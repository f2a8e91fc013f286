"""What a person does next, given a verdict."""

from __future__ import annotations

from ..report import GateReport


def advice(report: GateReport) -> str:
    """One or two sentences; commands stand in backticks."""
    if report.verdict == "pass":
        return "Nothing. To make this candidate the next baseline, run `fimaq-tool gate update`."
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
