"""The gradient step of a reconstruction."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from ..calibrate.candidates import SMALLEST_SCALE
from ..distributed.ranks import ALONE, Ranks
from ..quantizers import AdaRoundWeight, DropQuantizer
from ..recipe import ReconstructConfig


@final
class BlockOptimizer:
    """Adam on the rounding of a block's weights and on its activation scales, whose rate follows a cosine to 0.

    Fused, and the regularizer enters by its gradient: ``plain`` has the same steps written out. Each of ``ranks`` gives
    the loss of its share of a batch; a step goes down the sum.
    """

    def __init__(
        self,
        weights: list[AdaRoundWeight],
        drops: list[DropQuantizer],
        config: ReconstructConfig,
        ranks: Ranks = ALONE,
    ) -> None:
        self._ranks = ranks
        self._weights = weights
        self._scales = [drop.quantizer.scale for drop in drops]
        self._round_weight = config.round_weight
        self._optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Adam([weight.alpha for weight in weights], lr=config.alpha_lr, fused=True)
        ]
        self._schedules = []
        if config.scale_lr > 0:
            self._optimizers.append(torch.optim.Adam(self._scales, lr=config.scale_lr, fused=True))
            self._schedules.append(
                torch.optim.lr_scheduler.CosineAnnealingLR(self._optimizers[-1], T_max=config.iterations)
            )

    def step(self, loss: Tensor, beta: float | None) -> None:
        """One step down ``loss`` plus the rounding regularizer with exponent ``beta`` (None: without it)."""
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        self.backward(loss, beta)
        for optimizer in self._optimizers:
            optimizer.step()
        for schedule in self._schedules:
            schedule.step()
        self._keep_positive()

    def backward(self, loss: Tensor, beta: float | None) -> None:
        """The gradients of that sum."""
        loss.backward()
        self._ranks.sum_gradients([weight.alpha for weight in self._weights] + self._scales)
        if beta is not None and self._round_weight > 0:
            for weight in self._weights:
                assert weight.alpha.grad is not None
                weight.alpha.grad.add_(weight.regularizer_gradient(beta), alpha=self._round_weight)

    @torch.no_grad()
    def _keep_positive(self) -> None:
        """A step larger than a scale must not carry it past zero, where there is no grid."""
        for scale in self._scales:
            scale.clamp_(min=SMALLEST_SCALE)
