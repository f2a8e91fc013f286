"""F ~ I: plain squared error."""

from __future__ import annotations

from typing import ClassVar, final

from jaxtyping import Float, Int
from torch import Tensor

from .base import FisherApproximation


@final
class MseFisher(FisherApproximation):
    """``mean_{b,a} e^2``; wants no probe. As published it is normalised like the others."""

    needs_probes: ClassVar[int | None] = 0

    def terms(self, error: Float[Tensor, "b a"], index: Int[Tensor, "b"] | None = None) -> tuple[Tensor, ...]:
        """Mean squared error."""
        return (error.square().mean(),)

    @property
    def units(self) -> tuple[float, ...]:
        """Nothing is scaled."""
        return (1.0,)

    def _learn(
        self,
        error: Float[Tensor, "n a"],
        grad: Float[Tensor, "n a"],
        index: Int[Tensor, "n"] | None,
    ) -> str | None:
        """A probe tells this class nothing."""
        return None
