"""What the gate asks of a candidate: gate.toml as frozen data, checked when made."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

from fimaq.toolchain.errors import InputError, UsageError
from fimaq.toolchain.recipe_fields import nearest

from .keys import (
    Bytes,
    Confidence,
    Files,
    Limit,
    NamedFiles,
    Percent,
    PercentLimit,
    PolicyName,
    RatioLimit,
    Table,
    Truth,
)

DEFAULT_MAX_DROP = 1.0
"""Points of top-1, where no rule is given."""

TEMPLATE = Path(__file__).with_name("template.toml")
"""What ``gate init`` writes: every key with its meaning."""


@final
@dataclass(frozen=True)
class DropConfig(Table):
    """The largest drop of a metric, in percentage points."""

    max_drop: PercentLimit
    policy: PolicyName | None = None


@final
@dataclass(frozen=True)
class FlipsConfig(Table):
    """The largest share of images on which one model is right and the other wrong, in percent."""

    max_percent: PercentLimit
    policy: PolicyName | None = None


@final
@dataclass(frozen=True)
class FloorConfig(Table):
    """The smallest accuracies, in percent, whatever the baselines have."""

    top1: Percent | None = None
    top5: Percent | None = None
    policy: PolicyName | None = None

    def check_together(self) -> None:
        """Refuse a table that sets no floor."""
        if self.top1 is None and self.top5 is None:
            raise UsageError("gate table [floor]: wanted top1 or top5. Set one, or leave out the table.")


@final
@dataclass(frozen=True)
class SizeConfig(Table):
    """The largest file, as a ratio to the baseline's or in bytes."""

    max_ratio: RatioLimit | None = None
    max_bytes: Bytes | None = None

    def check_together(self) -> None:
        """Refuse a table that sets no limit."""
        if self.max_ratio is None and self.max_bytes is None:
            raise UsageError("gate table [size]: wanted max_ratio or max_bytes. Set one, or leave out the table.")


@final
@dataclass(frozen=True)
class LatencyConfig(Table):
    """The largest ratio of the median latencies to the baseline's, and the measurements they are in."""

    max_ratio: RatioLimit
    evidence: Files = ()


@final
@dataclass(frozen=True)
class GateConfig(Table):
    """All of it. A rule that is None is not judged; where there is none, top-1 may drop by ``DEFAULT_MAX_DROP``."""

    policy: PolicyName = "strict"
    confidence: Confidence = 0.9
    require_paired: Truth = False
    baselines: NamedFiles = field(default_factory=dict)
    top1: DropConfig | None = None
    top5: DropConfig | None = None
    mean_class: DropConfig | None = None
    worst_class: DropConfig | None = None
    flips: FlipsConfig | None = None
    floor: FloorConfig | None = None
    size: SizeConfig | None = None
    latency: LatencyConfig | None = None

    def check_together(self) -> None:
        """Put in the default rule where there is none."""
        if not any((*self.compared(), self.floor, self.size)):
            object.__setattr__(self, "top1", DropConfig(DEFAULT_MAX_DROP))

    def compared(self) -> dict[str, Limit]:
        """The limits of the rules that compare with a baseline, by the rule's name."""
        limits = {
            "top1": self.top1 and self.top1.max_drop,
            "top5": self.top5 and self.top5.max_drop,
            "mean_class": self.mean_class and self.mean_class.max_drop,
            "worst_class": self.worst_class and self.worst_class.max_drop,
            "flips": self.flips and self.flips.max_percent,
            "size": self.size and self.size.max_ratio,
            "latency": self.latency and self.latency.max_ratio,
        }
        return {name: limit for name, limit in limits.items() if limit is not None}

    def with_options(
        self,
        *,
        baselines: Mapping[str, Path] | None = None,
        max_drop: float | None = None,
        policy: str | None = None,
        confidence: float | None = None,
        require_paired: bool = False,
        latency: tuple[Path, ...] = (),
    ) -> GateConfig:
        """The configuration with command-line options on top; what is None, empty or False leaves a key as it is.

        ``baselines`` join those of the file and beat them by name. Raises UsageError for a value its key refuses, for
        limits of an unknown baseline, for a rule left without a baseline and for a baseline that no rule compares with.
        """
        given = {"policy": policy, "confidence": confidence, "require_paired": require_paired or None}
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if max_drop is not None:
            own_policy = {"policy": self.top1.policy} if self.top1 and self.top1.policy else {}
            changes["top1"] = DropConfig.read("top1", {"max_drop": max_drop, **own_policy})
        if latency and self.latency is None:
            raise UsageError("--latency needs a limit. Set [latency] max_ratio in gate.toml.")
        if latency and self.latency is not None:
            changes["latency"] = replace(self.latency, evidence=latency)
        changed = replace(self, baselines={**self.baselines, **(baselines or {})}, **changes)
        changed._check_baselines()
        return changed

    def against(self, references: Mapping[str, Path]) -> GateConfig:
        """The same rules with those baselines only."""
        return replace(self, baselines=references)

    def _check_baselines(self) -> None:
        known, used = set(self.baselines), set[str]()
        for rule, limits in self.compared().items():
            named = set(limits) if isinstance(limits, Mapping) else known
            for name in sorted(named - known):
                raise UsageError(
                    f"gate rule {rule} has a limit for baseline {name!r}, which is not there.{nearest(name, known)} "
                    f"Name it in [baselines], or give --baseline {name}=RESULT.json."
                )
            if not named:
                raise UsageError(
                    f"gate rule {rule} has no baseline to compare with. Give --baseline float=RESULT.json, or leave "
                    "out the rule."
                )
            used |= named
        for name in self.baselines:
            if name not in used:
                raise UsageError(
                    f"baseline {name!r} is compared by no rule: limits are for {', '.join(sorted(used)) or 'none'}. "
                    "Name it as in gate.toml, --baseline NAME=RESULT.json, or set a limit for it."
                )


def load_config(path: Path) -> GateConfig:
    """Read gate.toml; its paths are relative to its folder.

    Raises InputError for a file that is missing or not TOML, UsageError for a key that is unknown or has a bad value.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}). `fimaq-tool gate init` writes one.") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not TOML: {error}. `fimaq-tool gate init` writes one to start from.") from error
    config = GateConfig.read("", values)
    config = replace(config, baselines={name: path.parent / file for name, file in config.baselines.items()})
    if config.latency is not None:
        evidence = tuple(path.parent / file for file in config.latency.evidence)
        config = replace(config, latency=replace(config.latency, evidence=evidence))
    return config
