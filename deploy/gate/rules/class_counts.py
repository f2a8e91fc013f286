"""Top-1 answers counted by class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self, final

import numpy as np
import numpy.typing as npt

from ..comparison import Comparison

Counts = npt.NDArray[np.int64]


@final
@dataclass(frozen=True, eq=False)
class ClassCounts:
    """For each class that has images ``[k]``: its label, its images, and the top-1 answers in them."""

    labels: Counts
    n: Counts
    right: Counts
    fixed: Counts
    broken: Counts

    @classmethod
    def of(cls, comparison: Comparison, rule: str) -> Self:
        """Count; ``right`` are the candidate's. Raises InputError where per-image predictions are missing."""
        candidate, _ = comparison.predictions(rule)
        labels, place = np.unique(candidate.labels, return_inverse=True)
        counted = (
            np.bincount(place[which], minlength=len(labels))
            for which in (candidate.correct, *comparison.flips(1, rule))
        )
        return cls(labels, np.bincount(place), *counted)
