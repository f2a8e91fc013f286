"""FIMA's diagonal: F is proportional to the gradient, not to its square."""

from __future__ import annotations

from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .base import FisherApproximation
from .rows import mean_abs, unit_peak


@final
class DiagonalFisher(FisherApproximation):
    """``mean_{b,a} e^2 * mean_k |g_k|``, ``|g_k| = mean_n |g_n|`` of probe k (after Theorem 3.2, g ~ F dz).

    As published the normalised loss carries a factor 2 (it starts at 2, not 1); inside ``dplr`` it does
    not. If every gradient so far is zero the weights are one (mse) and ``fallback`` says so.
    """

    needs_probes: ClassVar[int | None] = None

    def __init__(self) -> None:
        """One term with the published factor 2."""
        super().__init__((2.0,))
        self._sum: Float[Tensor, "a"] = torch.zeros(())
        self._weight: Float[Tensor, "a"] = torch.ones(())
        self._unit = 1.0
        self._probes = 0

    def terms(self, error: Float[Tensor, "b a"], index: Int[Tensor, "b"] | None = None) -> tuple[Tensor, ...]:
        """Weighted mean square; reduced over the batch first, so one ``[b, a]`` temporary."""
        return ((error.square().mean(0) * self._weight).mean(),)

    @property
    def units(self) -> tuple[float, ...]:
        """Largest mean gradient."""
        return (self._unit,)

    def _learn(
        self,
        error: Float[Tensor, "n a"],
        grad: Float[Tensor, "n a"],
        index: Int[Tensor, "n"] | None,
    ) -> str | None:
        """Add one gradient row."""
        row = mean_abs(grad)
        self._sum = row if self._probes == 0 else self._sum + row
        self._probes += 1
        self._weight, self._unit = unit_peak(self._sum / self._probes)
        if self._unit == 0.0:
            self._weight, self._unit = torch.ones_like(row), 1.0
            return "diagonal: all gradients are zero, mse is used"
        return None
