"""Rank-k F from k probes; rows are appended and the inverse is taken anew with every probe."""

from __future__ import annotations

from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .base import FisherApproximation
from .rows import mean_abs, unit_peak

RELATIVE_CUTOFF = 1e-6
"""Eigenvalues of the unit-diagonal ``D D^T`` below this share of the largest are left out."""


@final
class LowRankFisher(FisherApproximation):
    """``mean_b A M A^T``, ``A = |e| G^T`` ``[b, k]``, ``M = (D D^T)^-1`` ``[k, k]`` (Corollary 3.1).

    As published, D and G rows are absolute values averaged over images, the loss is on ``|e|`` and each
    image's form is averaged over the batch. An exact symmetric F with ``F D^T = G^T`` need not exist for
    k > 1, hence this form; with exact probes ``G = D F`` it is ``|P F e|^2``, P projecting on D's rows.

    Differently from the authors' code (a float32 inverse): with ``M = R R^T`` from ``inverse_root`` the
    form is ``|A R|^2 = | |e| B^T |^2``, ``B = R^T G`` ``[r, a]``, which cannot be negative, costs one
    ``[b, a] x [a, r]`` product a step, and is finite for parallel probes. If no probe has both an error
    and a gradient, mse is used and ``fallback`` says so.
    """

    needs_probes: ClassVar[int | None] = None

    def __init__(self) -> None:
        """One term."""
        super().__init__()
        self._deltas: list[Float[Tensor, "a"]] = []
        self._grads: list[Float[Tensor, "a"]] = []
        self._factor: Float[Tensor, "r a"] | None = None
        self._unit = 1.0

    def terms(self, error: Float[Tensor, "b a"], index: Int[Tensor, "b"] | None = None) -> tuple[Tensor, ...]:
        """Mean over images of ``| |e| B^T |^2``."""
        if self._factor is None:
            return (error.square().mean(),)
        return ((error.abs() @ self._factor.to(error.dtype).T).square().sum(1).mean(),)

    @property
    def units(self) -> tuple[float, ...]:
        """Square of the largest entry of B."""
        return (self._unit,)

    def _learn(
        self,
        error: Float[Tensor, "n a"],
        grad: Float[Tensor, "n a"],
        index: Int[Tensor, "n"] | None,
    ) -> str | None:
        """Append the probe's rows and factor again, in float64."""
        self._deltas.append(mean_abs(error))
        self._grads.append(mean_abs(grad))
        root = inverse_root(torch.stack(self._deltas).double())
        factor, peak = unit_peak(root.T @ torch.stack(self._grads).double())
        if peak == 0.0:  # so were all before it: rows only come in
            return "low-rank: no probe with both an error and a gradient, mse is used"
        self._factor, self._unit = factor.to(self._grads[0].dtype), peak**2
        return None


def inverse_root(rows: Float[Tensor, "k a"]) -> Float[Tensor, "k r"]:
    """R with ``R R^T = (rows rows^T)^-1``, robust to probes that are nearly parallel.

    ``rows rows^T = S C S`` with S the row norms, so that C has a unit diagonal and only angles matter;
    ``R = S^-1 V L^-1/2`` over the eigenpairs of C with ``l > RELATIVE_CUTOFF * l_max`` (rows that differ
    by less than about 0.1 % of their norm count as one; a float32 inverse is rounding noise there). That
    is the exact inverse when nothing is cut, else the pseudo-inverse of C: repeating a probe, at any
    scale, changes nothing. A zero row gets zeros. r <= k.
    """
    norms = torch.linalg.vector_norm(rows, dim=1)
    unit = rows / torch.where(norms > 0, norms, 1.0)[:, None]
    values, vectors = torch.linalg.eigh(unit @ unit.T)
    kept = values > RELATIVE_CUTOFF * values[-1]
    root = vectors[:, kept] / values[kept].sqrt()
    return torch.where(norms > 0, 1.0 / norms, 0.0)[:, None] * root
