"""Rank-one F from one probe."""

from __future__ import annotations

import math
from typing import ClassVar, final

from jaxtyping import Float, Int
from torch import Tensor

from .base import FisherApproximation
from .rows import mean_abs, unit_peak, widen


@final
class RankOneFisher(FisherApproximation):
    """``mean_b (u^T e)^2``, ``F = u u^T``, ``u = g / sqrt(g^T d)`` (Eq. 15, 40-45); a later probe replaces u.

    Default, as in the authors' code throughout: g, d are the absolute means ``mean_n |g_n|``,
    ``mean_n |e_n|`` and the loss is on ``|e|``, so ``g^T d >= 0``. ``signed=True`` is the equations to the
    letter, with signed means and e; then ``g^T d <= 0`` (no u exists) falls back to the absolute means
    for that probe. If the absolute ``g^T d`` is zero too, the probe says nothing and mse is used.
    ``fallback`` names what happened. The dot product is float64.
    """

    needs_probes: ClassVar[int | None] = 1

    def __init__(self, *, signed: bool = False) -> None:
        """One term."""
        super().__init__()
        self.signed = signed
        self._absolute = not signed
        self._u: Float[Tensor, "a"] | None = None
        self._unit = 1.0

    def terms(self, error: Float[Tensor, "b a"], index: Int[Tensor, "b"] | None = None) -> tuple[Tensor, ...]:
        """Mean squared projection; no ``[b, a]`` temporary but ``|e|``."""
        if self._u is None:
            return (error.square().mean(),)
        values = error.abs() if self._absolute else error
        return ((values @ self._u.to(error.dtype)).square().mean(),)

    @property
    def units(self) -> tuple[float, ...]:
        """Square of the largest entry of u."""
        return (self._unit,)

    def _learn(
        self,
        error: Float[Tensor, "n a"],
        grad: Float[Tensor, "n a"],
        index: Int[Tensor, "n"] | None,
    ) -> str | None:
        """Replace u."""
        if self.signed and self._set(widen(grad).mean(0), widen(error).mean(0)):
            self._absolute = False
            return None
        self._absolute = True
        if self._set(mean_abs(grad), mean_abs(error)):
            return "rank-one: signed g^T d <= 0, absolute means are used" if self.signed else None
        self._u, self._unit = None, 1.0
        return "rank-one: g^T d is zero, mse is used"

    def _set(self, grad: Float[Tensor, "a"], delta: Float[Tensor, "a"]) -> bool:
        """Set u where it exists."""
        scaled, peak = unit_peak(grad)
        product = peak * float(scaled.double() @ delta.double())
        if product <= 0.0:
            return False
        self._u, self._unit = scaled, (peak / math.sqrt(product)) ** 2
        return True
