"""Approximations of the Fisher information at a block's output; tensors only.

==========  =======  ==========================================================
name        probes   loss on the error ``e [b, a]``
==========  =======  ==========================================================
mse         0        ``mean e^2``
brecq       1        ``mean e^2 g_n^2``, the image's own gradient
diagonal    k        ``mean e^2 mean_k |g_k|``
rank-one    1        ``mean_b (u^T |e|)^2``
low-rank    k        ``mean_b A M A^T``
dplr        k        ``p1`` low-rank + ``p2`` diagonal, each normalised
==========  =======  ==========================================================
"""

from __future__ import annotations

from ..errors import UsageError
from .base import FisherApproximation
from .brecq import BrecqFisher
from .diagonal import DiagonalFisher
from .divergence import kl_divergence
from .dplr import DplrFisher
from .low_rank import LowRankFisher
from .mse import MseFisher
from .rank_one import RankOneFisher

FISHER: dict[str, type[FisherApproximation]] = {
    "mse": MseFisher,
    "brecq": BrecqFisher,
    "diagonal": DiagonalFisher,
    "rank-one": RankOneFisher,
    "low-rank": LowRankFisher,
    "dplr": DplrFisher,
}

__all__ = ["FISHER", "FisherApproximation", "kl_divergence", "make_fisher"]


def make_fisher(name: str, *, p1: float = 1.0, p2: float = 1.0) -> FisherApproximation:
    """Return a fresh approximation for one block; p1 (low-rank) and p2 (diagonal) are read by ``dplr`` only.

    Raises:
        UsageError: unknown name, or dplr weights that cannot be meant.
    """
    if name not in FISHER:
        raise UsageError(f"Fisher approximation {name!r} is unknown: wanted one of {', '.join(FISHER)}.")
    return DplrFisher(p1=p1, p2=p2) if name == "dplr" else FISHER[name]()
