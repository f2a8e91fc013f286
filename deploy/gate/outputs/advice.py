"""What a person does next, given a verdict."""

from __future__ import annotations

from ..report import GateReport

COSTS = frozenset({"latency", "size"})
"""Rules about what a model costs, not what it knows."""

RELEASE = "release"
"""The baseline that `fimaq-tool gate update` replaces."""

FEASIBLE = 10
"""Times as many images as there were are worth labelling; where it takes more, the drop all but equals the limit."""


def advice(report: GateReport) -> str:
    """One or two sentences; commands stand in backticks."""
    limit = "the limit in gate.toml" if report.configured else "the limit (`--max-drop`)"
    if report.verdict == "pass" and updatable(report):
        return "Nothing. To make this candidate the next baseline, run `fimaq-tool gate update`."
    if report.verdict == "pass":
        return (
            f"Nothing. To make this candidate the next baseline, name one ({RELEASE}) in gate.toml (`fimaq-tool gate "
            "init` writes it) and run `fimaq-tool gate update`."
        )
    failed = {rule.name for rule in report.rules if rule.blocking and rule.verdict == "fail"}
    if failed and failed <= COSTS:
        return (
            f"The model is accurate enough and misses {' and '.join(sorted(failed))}: quantize with fewer bits, or "
            "export for another target. If it is worth the cost, raise the limit and say why in the same commit."
        )
    if report.verdict == "fail":
        return (
            f"Quantize with more bits or a longer recipe. If the loss is worth it, raise {limit} and say why in the "
            "same commit."
        )
    if report.images_needed is None:
        return (
            f"The candidate is too close to the limit for any number of images to decide. Raise {limit}, or quantize "
            "with a longer recipe."
        )
    if not more_images_decide(report):
        return (
            f"The candidate is all but at the limit: raise {limit}, or quantize with a longer recipe. At the rates "
            f"seen here it takes about {report.images_needed:,} images to decide."
        )
    return (
        f"Evaluate both models on about {report.images_needed:,} images: at the rates seen here, that many decide. "
        f"Or raise {limit}."
    )


def updatable(report: GateReport) -> bool:
    """Whether there is a baseline that `fimaq-tool gate update` replaces when nothing else is said."""
    return report.configured and any(baseline.reference == RELEASE for baseline in report.baselines)


def more_images_decide(report: GateReport) -> bool:
    """Whether an inconclusive gate is worth more images."""
    return report.images_needed is not None and report.images_needed <= FEASIBLE * report.n
