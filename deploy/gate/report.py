"""What the gate found: a verdict per rule and over all, with the numbers behind it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, final

Verdict = Literal["pass", "fail", "inconclusive"]
Unit = Literal["points", "percent", "bytes", "ratio"]
Policy = Literal["strict", "point", "lenient"]


@final
@dataclass(frozen=True)
class Flips:
    """Images on which one model is right and the other wrong, and those that got another prediction at all.

    ``fixed``: the candidate is right where the baseline was wrong; ``broken``: the reverse; ``changed``: the first
    predictions differ, which includes both and the images where both are wrong in different ways.
    """

    fixed: int
    broken: int
    changed: int


@final
@dataclass(frozen=True)
class EvidenceSummary:
    """The model one result is of: which file, and its accuracies in percent on ``n`` images."""

    path: str
    model: str
    sha256: str
    bytes: int
    n: int
    top1: float
    top5: float


@final
@dataclass(frozen=True)
class BaselineSummary:
    """One model that the candidate is compared with.

    ``reference`` is its name in the rules, such as ``float`` or ``release``. ``flips`` and the two-sided exact McNemar
    p-value ``mcnemar_p`` are None where the baseline has no per-image data (``paired`` is False).
    """

    reference: str
    evidence: EvidenceSummary
    paired: bool
    flips: Flips | None
    mcnemar_p: float | None


@final
@dataclass(frozen=True)
class RuleResult:
    """One rule against one baseline.

    ``name`` is the rule's name in gate.toml (``top1``, ``worst_class``, ``size``, ``min_top1``, ...), and ``reference``
    the baseline's name, empty for a rule on the candidate alone; the two together are unique in a report. ``baseline``
    and ``candidate`` are the compared values, ``delta`` candidate minus baseline, all in ``unit``. ``interval`` is
    around ``delta``, or around ``candidate`` where there is no ``delta``; None for what is counted exactly and for
    classes, which p-values judge. ``margin`` is the limit: the allowed drop, the largest value or ratio, or the floor.

    ``message`` is one sentence with the numbers. ``images_needed``: with how many images the rule would decide, were
    the observed rates to stay; only where it is inconclusive and such a number exists. A rule that is not ``blocking``
    is a warning: it does not enter the report's verdict.
    """

    name: str
    metric: str
    reference: str
    baseline: float | None
    candidate: float
    delta: float | None
    interval: tuple[float, float] | None
    margin: float | None
    unit: Unit
    verdict: Verdict
    message: str
    images_needed: int | None = None
    blocking: bool = True

    @property
    def title(self) -> str:
        """``top1 vs float``, or the bare name of a rule on the candidate alone."""
        return f"{self.name} vs {self.reference}" if self.reference else self.name


@final
@dataclass(frozen=True)
class GateReport:
    """Every rule's result. ``n`` images were compared; ``confidence`` is that of the two-sided intervals.

    ``baselines`` are in the order they were given, which makes the first the one ``flips`` and ``mcnemar_p`` speak of.
    ``warnings`` are sentences a person must see whatever the verdict. ``configured``: the rules are those of a
    gate.toml, as opposed to options alone.
    """

    candidate: EvidenceSummary
    baselines: tuple[BaselineSummary, ...]
    rules: tuple[RuleResult, ...]
    policy: Policy
    confidence: float
    warnings: tuple[str, ...] = ()
    configured: bool = False

    @property
    def verdict(self) -> Verdict:
        """``fail`` where a blocking rule fails, else ``inconclusive`` where one is, else ``pass``."""
        found = {rule.verdict for rule in self.rules if rule.blocking}
        return "fail" if "fail" in found else "inconclusive" if "inconclusive" in found else "pass"

    @property
    def n(self) -> int:
        """How many images were compared."""
        return self.candidate.n

    @property
    def flips(self) -> Flips | None:
        """Flips against the first baseline; None without one, or without its per-image data."""
        return self.baselines[0].flips if self.baselines else None

    @property
    def mcnemar_p(self) -> float | None:
        """Exact McNemar p-value against the first baseline; None where ``flips`` is."""
        return self.baselines[0].mcnemar_p if self.baselines else None

    @property
    def images_needed(self) -> int | None:
        """The images with which every inconclusive rule would decide; None where none is, or one never would."""
        waiting = [rule.images_needed for rule in self.rules if rule.blocking and rule.verdict == "inconclusive"]
        known = [needed for needed in waiting if needed is not None]
        return max(known) if known and len(known) == len(waiting) else None

    def to_json(self) -> dict[str, Any]:
        """The whole report as plain JSON values."""
        return {
            "verdict": self.verdict,
            "n": self.n,
            "flips": None if self.flips is None else asdict(self.flips),
            "mcnemar_p": self.mcnemar_p,
            "images_needed": self.images_needed,
            "policy": self.policy,
            "confidence": self.confidence,
            "rules": [{**asdict(rule), "interval": rule.interval and list(rule.interval)} for rule in self.rules],
            "warnings": list(self.warnings),
            "candidate": asdict(self.candidate),
            "baselines": [asdict(baseline) for baseline in self.baselines],
        }
