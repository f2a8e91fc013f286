"""The gate itself: evidence and rules in, report out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from fimaq.toolchain.errors import UsageError

from .comparison import Case, Comparison
from .config import GateConfig
from .evidence import Evidence, check_comparable, read_evidence
from .report import BaselineSummary, GateReport
from .rules import RULES
from .statistics import mcnemar


def run_gate(candidate: Path, config: GateConfig, *, configured: bool = False) -> GateReport:
    """Judge the candidate's RESULT.json against the baselines' of the configuration; was it read from a gate.toml?

    A baseline that has lost its RESULT.npz is compared without pairing, unless ``require_paired``; the candidate was
    evaluated just now and needs its own. Raises InputError for evidence that is missing, damaged, or not of the same
    images and preprocessing; UsageError where no rule has anything to compare.
    """
    baselines = {
        reference: read_evidence(path, figures_suffice=not config.require_paired)
        for reference, path in config.baselines.items()
    }
    report = judge(read_evidence(candidate), baselines, config)
    if not report.rules:
        raise UsageError("no rule has anything to compare. Give --baseline RESULT.json, or set a floor in gate.toml.")
    return replace(report, configured=configured)


def judge(candidate: Evidence, baselines: Mapping[str, Evidence], config: GateConfig) -> GateReport:
    """The report of every rule that applies. Raises InputError where the evidence cannot be compared."""
    for baseline in baselines.values():
        check_comparable(candidate, baseline)
    comparisons = tuple(Comparison(reference, candidate, baseline) for reference, baseline in baselines.items())
    case = Case(config, candidate, comparisons)
    return GateReport(
        candidate=candidate.summary,
        baselines=tuple(_summary(comparison) for comparison in comparisons),
        rules=tuple(result for rule in RULES.values() for result in rule(case)),
        policy=config.policy,
        confidence=config.confidence,
        warnings=tuple(_warnings(case)),
    )


def _summary(comparison: Comparison) -> BaselineSummary:
    flips = comparison.count_flips() if comparison.paired else None
    return BaselineSummary(
        reference=comparison.reference,
        evidence=comparison.baseline.summary,
        paired=comparison.paired,
        flips=flips,
        mcnemar_p=None if flips is None else mcnemar(flips.fixed, flips.broken),
    )


def _warnings(case: Case) -> Iterator[str]:
    """What a person must see whatever the verdict."""
    candidate = case.candidate
    if candidate.skipped:
        yield (
            f"{len(candidate.skipped)} of {candidate.dataset.n} images could not be decoded: "
            "no model was scored on them."
        )
    for comparison in case.comparisons:
        reference, baseline = comparison.reference, comparison.baseline
        if not comparison.paired:
            yield (
                f"UNPAIRED against {reference}: {baseline.summary.path} has no RESULT.npz. Its figures cannot be "
                "checked, and intervals are two to four times as wide as they need to be. Evaluate it again with -o."
            )
        if baseline.summary.sha256 == candidate.summary.sha256:
            yield f"the candidate and {reference} are the same file, sha256 {candidate.summary.sha256[:12]}..."
        if baseline.provider != candidate.provider:
            yield (
                f"the candidate was evaluated by {candidate.provider} and {reference} by {baseline.provider}: part of "
                "a difference may come from there."
            )
