"""How fast the model is, by what ``fimaq-tool bench`` measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from fimaq.toolchain.errors import InputError

from ..bench import Bench, read_bench
from ..comparison import Case, Comparison
from ..report import RuleResult


def judge_latency(case: Case) -> Iterator[RuleResult]:
    """The ratio of median latencies to each baseline's; of several batch sizes the one with the largest ratio.

    Raises InputError where a model was not measured. Medians from two kinds of hardware cannot be compared: their ratio
    is a warning.
    """
    rule = case.config.latency
    if rule is None:
        return
    benches = [read_bench(path) for path in rule.evidence]
    for comparison, largest in case.limited(rule.max_ratio):
        candidate, baseline = _find(benches, comparison, rule.evidence)
        own = candidate.medians[comparison.candidate.summary.sha256]
        other = baseline.medians[comparison.baseline.summary.sha256]
        ratio, batch_size = max((own[size] / other[size], size) for size in own.keys() & other.keys())
        how, comparable = _how(candidate, baseline)
        yield RuleResult(
            name="latency",
            metric="median_ms",
            reference=comparison.reference,
            baseline=None,
            candidate=ratio,
            delta=None,
            interval=None,
            margin=largest,
            unit="ratio",
            verdict="pass" if ratio <= largest else "fail",
            message=f"the median latency at batch {batch_size} is {own[batch_size]:.4g} ms, {ratio:.3g} of "
            f"{comparison.reference}'s {other[batch_size]:.4g} ms; allowed is {largest:g} ({how}).",
            blocking=comparable,
        )


def _find(benches: Sequence[Bench], comparison: Comparison, files: Sequence[Path]) -> tuple[Bench, Bench]:
    """Measurements of candidate and baseline at the same batch size: in one file where there is one, else the last."""
    own, other = comparison.candidate.summary, comparison.baseline.summary
    pairs = [
        (candidate, baseline)
        for candidate in benches
        for baseline in benches
        if candidate.medians.get(own.sha256, {}).keys() & baseline.medians.get(other.sha256, {}).keys()
    ]
    if not pairs:
        raise InputError(
            f"rule latency: {own.model} and {other.model} were not both measured at one batch size in "
            f"{', '.join(map(str, files)) or 'any file'}. Run fimaq-tool bench {other.model} {own.model} -o BENCH.json "
            "and give it with --latency."
        )
    return max(pairs, key=lambda pair: pair[0] is pair[1])


def _how(candidate: Bench, baseline: Bench) -> tuple[str, bool]:
    """How the two were measured, in words, and whether that can be compared."""
    if candidate is baseline:
        return "measured in turns", True
    files = f"in {candidate.path} and {baseline.path}"
    if candidate.hardware == baseline.hardware:
        return f"measured one after the other, {files}", True
    return f"a warning only: measured on different hardware, {files}", False
