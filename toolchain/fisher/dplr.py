"""Diagonal plus low rank, the default."""

from __future__ import annotations

import math
from typing import ClassVar, final

from jaxtyping import Float, Int
from torch import Tensor

from ..errors import UsageError
from .base import FisherApproximation
from .diagonal import DiagonalFisher
from .low_rank import LowRankFisher


@final
class DplrFisher(FisherApproximation):
    """``p1 * low_rank / low_rank_0 + p2 * diagonal / diagonal_0``; starts at ``p1 + p2`` after every probe.

    The diagonal enters without the factor 2 it carries alone, as published.
    """

    needs_probes: ClassVar[int | None] = None

    def __init__(self, *, p1: float = 1.0, p2: float = 1.0) -> None:
        """Weights of the low-rank and the diagonal term; UsageError unless >= 0 and not both zero."""
        if not (math.isfinite(p1) and math.isfinite(p2) and min(p1, p2) >= 0.0 and max(p1, p2) > 0.0):
            raise UsageError(
                f"dplr weights p1 = {p1}, p2 = {p2}: wanted finite numbers >= 0, at least one above 0. Published: 1, 1."
            )
        super().__init__((p1, p2))
        self._low_rank = LowRankFisher()
        self._diagonal = DiagonalFisher()

    def terms(self, error: Float[Tensor, "b a"], index: Int[Tensor, "b"] | None = None) -> tuple[Tensor, ...]:
        """Low-rank form, diagonal form."""
        return (*self._low_rank.terms(error, index), *self._diagonal.terms(error, index))

    @property
    def units(self) -> tuple[float, ...]:
        """Those of the two parts."""
        return (*self._low_rank.units, *self._diagonal.units)

    def _learn(
        self,
        error: Float[Tensor, "n a"],
        grad: Float[Tensor, "n a"],
        index: Int[Tensor, "n"] | None,
    ) -> str | None:
        """Give the probe to both parts."""
        reasons = [part._learn(error, grad, index) for part in (self._low_rank, self._diagonal)]
        return "; ".join(reason for reason in reasons if reason) or None
