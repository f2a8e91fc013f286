"""A block's reconstruction written out: autograd throughout, nothing fused. Slow, and what the fast one is held to.

``tests/test_plain_step.py`` compares them, ``benchmarks/recon_step.py`` times them. The random draws are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from ..calibrate.candidates import SMALLEST_SCALE
from ..nn import QuantLayer, QuantMatMul, quantizer_slots
from ..quantizers import UniformQuantizer, random_mask
from ..recipe import Recipe
from .cache import BlockCache
from .objective import Objective
from .schedule import rounding_beta
from .streams import draw_batch, seed_at


@final
class PlainActivation(nn.Module):
    """Fake quantization with a learned scale (LSQ), of elements that are not left float (QDrop)."""

    def __init__(self, quantizer: UniformQuantizer, drop: float, generator: torch.Generator) -> None:
        super().__init__()
        self.scale = nn.Parameter(quantizer.scale.detach().clone())
        self.zero_point, self.qmax = quantizer.zero_point, quantizer.spec.qmax
        self.drop, self.generator = drop, generator

    def forward(self, x: Tensor) -> Tensor:
        """A random part of ``x`` is quantized; all of it with ``drop`` = 0."""
        ratio = x / self.scale
        rounded = ratio.round().detach()
        level = rounded.clamp(-self.zero_point, self.qmax - self.zero_point)
        straight_through = ratio + (rounded - ratio).detach()
        value = torch.where(level == rounded, straight_through, level) * self.scale
        if self.drop == 0:
            return value
        return torch.where(random_mask(x.shape, self.drop, self.generator).bool(), x, value)


@final
class PlainWeight(nn.Module):
    """AdaRound: ``floor(w / s) + h(alpha)`` on the grid."""

    def __init__(self, quantizer: UniformQuantizer, weight: Tensor) -> None:
        super().__init__()
        self.scale, self.zero_point, self.qmax = quantizer.scale.detach(), quantizer.zero_point, quantizer.spec.qmax
        ratio = weight.detach() / self.scale
        self.floor = ratio.floor()
        self.alpha = nn.Parameter(-torch.log(1.2 / (ratio - self.floor + 0.1) - 1))

    def rounding(self) -> Tensor:
        """h in [0, 1]."""
        return (torch.sigmoid(self.alpha) * 1.2 - 0.1).clamp(0, 1)

    def forward(self, weight: Tensor) -> Tensor:
        """The soft weight."""
        codes = (self.floor + self.rounding() + self.zero_point).clamp(0, self.qmax)
        return (codes - self.zero_point) * self.scale


def reconstruct_plainly(
    name: str,
    module: Callable[[Tensor], Tensor],
    layers: dict[str, QuantLayer],
    cache: BlockCache,
    objective: Objective,
    recipe: Recipe,
) -> list[float]:
    """Learn rounding and scales as ``reconstruct_block`` does; returns the loss of each step.

    The layers keep their ``PlainWeight`` and ``PlainActivation``, so that what was learned can be looked at.
    """
    config, generator = recipe.reconstruct, torch.Generator(cache.target.device)
    weights, activations = [], []
    for layer in layers.values():
        for slot in quantizer_slots(layer):
            if slot == "weight_quantizer":
                assert not isinstance(layer, QuantMatMul) and layer.weight is not None
                weights.append(PlainWeight(getattr(layer, slot), layer.weight))
                setattr(layer, slot, weights[-1])
            else:
                activations.append(PlainActivation(getattr(layer, slot), config.drop_inside, generator))
                setattr(layer, slot, activations[-1])
    rounding = torch.optim.Adam([weight.alpha for weight in weights], lr=config.alpha_lr, foreach=False)
    scales = torch.optim.Adam([activation.scale for activation in activations], lr=config.scale_lr, foreach=False)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(scales, T_max=config.iterations)
    losses = []
    for step in range(config.iterations):
        for activation in activations:
            activation.drop = 0.0
        objective.before_step(step, module, cache)
        for activation in activations:
            activation.drop = config.drop_inside
        seed_at(generator, recipe.seed, name, step)
        images = draw_batch(generator, len(cache.target), config.batch_size)
        clean, quant = cache.clean_in[images], cache.quant_in[images]
        x = torch.where(random_mask(clean.shape, config.quantized_input, generator).bool(), quant, clean)
        loss = objective.loss(module(x), cache.target[images], images)
        losses.append(float(loss.detach()))
        beta = rounding_beta(step, config)
        if beta is not None:
            for weight in weights:
                loss = loss + config.round_weight * (1 - (2 * weight.rounding() - 1).abs().pow(beta)).sum()
        rounding.zero_grad()
        scales.zero_grad()
        loss.backward()
        rounding.step()
        scales.step()
        cosine.step()
        with torch.no_grad():
            for activation in activations:
                activation.scale.clamp_(min=SMALLEST_SCALE)
    return losses
