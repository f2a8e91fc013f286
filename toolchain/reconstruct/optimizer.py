"""The gradient step of a reconstruction."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from ..calibrate.candidates import SMALLEST_SCALE
from ..distributed.ranks import ALONE, Ranks
from ..quantizers import AdaRoundWeight, DropQuantizer
from ..recipe import ReconstructConfig
from .schedule import rounding_beta, scale_rate


@final
class BlockOptimizer:
    """Adam on the rounding of a block's weights and on its activation scales, whose rate follows a cosine to 0.

    Fused, and the regularizer enters by its gradient: ``plain`` has the same steps written out. Each of ``ranks`` gives
    the loss of its share of a batch; a step goes down the sum. With ``recordable`` what changes from step to step is a
    tensor on the device, so that a step that was recorded reads it anew.
    """

    def __init__(
        self,
        weights: list[AdaRoundWeight],
        drops: list[DropQuantizer],
        config: ReconstructConfig,
        ranks: Ranks = ALONE,
        *,
        recordable: bool = False,
    ) -> None:
        self._config = config
        self._ranks = ranks
        self._weights = weights
        self._alphas = [weight.alpha for weight in weights]
        self._scales = [drop.quantizer.scale for drop in drops]
        device = (self._alphas + self._scales)[0].device
        self._beta: Tensor | float = torch.zeros((), dtype=torch.float64, device=device) if recordable else 0.0
        self._rate: Tensor | float = torch.zeros((), device=device) if recordable else 0.0
        capturable = recordable and device.type == "cuda"
        self._optimizers = [torch.optim.Adam(self._alphas, lr=config.alpha_lr, fused=True, capturable=capturable)]
        if config.scale_lr > 0:
            self._optimizers.append(torch.optim.Adam(self._scales, lr=self._rate, fused=True, capturable=capturable))
        self.regularizes = False
        """Whether the step that was prepared pushes the rounding to 0 or 1."""

    def prepare(self, step: int) -> None:
        """What follows is step number ``step``: its rate, and the regularizer's exponent."""
        beta, rate = rounding_beta(step, self._config), scale_rate(step, self._config)
        self.regularizes = beta is not None and self._config.round_weight > 0
        self._beta = _put(self._beta, beta or 0.0)
        self._rate = _put(self._rate, rate)
        for optimizer in self._optimizers[1:]:
            optimizer.param_groups[0]["lr"] = self._rate

    def step(self, loss: Tensor) -> None:
        """One step down ``loss`` and, where it has set in, the rounding regularizer."""
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        self.backward(loss)
        for optimizer in self._optimizers:
            optimizer.step()
        self._keep_positive()

    def backward(self, loss: Tensor) -> None:
        """The gradients of that sum."""
        loss.backward()
        self._ranks.sum_gradients(self._alphas + self._scales)
        if self.regularizes:
            for weight in self._weights:
                assert weight.alpha.grad is not None
                weight.alpha.grad.add_(weight.regularizer_gradient(self._beta), alpha=self._config.round_weight)

    def state(self) -> list[Tensor]:
        """Every tensor that a step changes, once the first step has made them."""
        moments = [value for optimizer in self._optimizers for of in optimizer.state.values() for value in of.values()]
        return [tensor.detach() for tensor in (*self._alphas, *self._scales, *moments)]

    @torch.no_grad()
    def _keep_positive(self) -> None:
        """A step larger than a scale must not carry it past zero, where there is no grid."""
        for scale in self._scales:
            scale.clamp_(min=SMALLEST_SCALE)


def _put(place: Tensor | float, value: float) -> Tensor | float:
    """``value``, in the same tensor where ``place`` is one."""
    return place.fill_(value) if isinstance(place, Tensor) else value
