"""A candidate beside its baselines: what a rule gets to see."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt

from fimaq.toolchain.errors import InputError
from fimaq.toolchain.evaluate import Predictions

from .config import GateConfig
from .evidence import Evidence
from .keys import Limit
from .report import Flips


@final
@dataclass(frozen=True, eq=False)
class Comparison:
    """The candidate and one baseline on the same images; ``reference`` is the baseline's name."""

    reference: str
    candidate: Evidence
    baseline: Evidence

    @property
    def n(self) -> int:
        """How many images both were scored on."""
        return self.candidate.summary.n

    @property
    def paired(self) -> bool:
        """Whether both have per-image predictions."""
        return self.candidate.predictions is not None and self.baseline.predictions is not None

    def predictions(self, rule: str) -> tuple[Predictions, Predictions]:
        """Those of candidate and baseline. Raises InputError, for ``rule``, where one has none."""
        candidate, baseline = self.candidate.predictions, self.baseline.predictions
        if candidate is None or baseline is None:
            raise InputError(
                f"rule {rule} needs per-image predictions, and {self.baseline.summary.path} has no RESULT.npz beside "
                f"it. Evaluate {self.reference} again with -o, or leave out the rule for it."
            )
        return candidate, baseline

    def flips(self, k: int, rule: str) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Which images ``[n]`` the candidate fixed and which it broke, judged by the first ``k`` predictions."""
        candidate, baseline = (_right(each, k) for each in self.predictions(rule))
        return candidate & ~baseline, baseline & ~candidate

    def count_flips(self) -> Flips:
        """How many top-1 answers flipped, and how many predictions changed."""
        fixed, broken = self.flips(1, "flips")
        candidate, baseline = self.predictions("flips")
        changed = candidate.top5[:, 0] != baseline.top5[:, 0]
        return Flips(int(fixed.sum()), int(broken.sum()), int(changed.sum()))


def _right(predictions: Predictions, k: int) -> npt.NDArray[np.bool_]:
    right: npt.NDArray[np.bool_] = (predictions.top5[:, :k] == predictions.labels[:, None]).any(axis=1)
    return right


@final
@dataclass(frozen=True, eq=False)
class Case:
    """Everything there is to judge."""

    config: GateConfig
    candidate: Evidence
    comparisons: tuple[Comparison, ...]

    def limited(self, limit: Limit) -> Iterator[tuple[Comparison, float]]:
        """The comparisons that have a limit, each with its own."""
        for comparison in self.comparisons:
            own = limit_for(limit, comparison.reference)
            if own is not None:
                yield comparison, own


def limit_for(limit: Limit, reference: str) -> float | None:
    """The limit that holds against that baseline; None where there is none."""
    return limit if isinstance(limit, float) else limit.get(reference)
