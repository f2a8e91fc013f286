"""The fast reconstruction step against the same one written out in plain autograd."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from one_block_vit import IMAGES, calibrated
from timm.layers import set_fused_attn
from torch import Tensor

from fimaq.toolchain.families import QuantModel
from fimaq.toolchain.nn import QuantMatMul, float_layers, quantizer_slots
from fimaq.toolchain.quantizers import AdaRoundWeight, UniformQuantizer
from fimaq.toolchain.recipe import Recipe
from fimaq.toolchain.reconstruct.block import reconstruct_block
from fimaq.toolchain.reconstruct.cache import BlockCache
from fimaq.toolchain.reconstruct.plain import PlainActivation, PlainWeight, reconstruct_plainly

STEPS = 40


def settings(**reconstruct: Any) -> Recipe:
    values = {"samples": IMAGES, "iterations": STEPS, "batch_size": 4, "alpha_lr": 0.02, "scale_lr": 1e-3}
    return Recipe.from_dict(
        {
            "name": "plain",
            "weights": {"bits": 3},
            "activations": {"bits": 4, "granularity": "token", "matmul_granularity": "head"},
            "calibrate": {"samples": IMAGES, "candidates": 16, "rounds": 1},
            "fisher": {"samples": 8, "rank": 2},
            "reconstruct": values | reconstruct,
        }
    )


@pytest.fixture(autouse=True)
def _fused_attention() -> Iterator[None]:
    """As ``load_float`` builds models."""
    set_fused_attn(enable=True, experimental=True)
    yield
    set_fused_attn(enable=True, experimental=False)


class Square:
    """The objective: mean square error, its values kept."""

    settled = True

    def __init__(self) -> None:
        self.losses: list[float] = []

    def before_step(self, step: int, block: Any, cache: BlockCache) -> None:
        block(cache.clean_in)

    def loss(self, output: Tensor, target: Tensor, batch: Tensor) -> Tensor:
        loss = (output - target).square().mean() * 100
        self.losses.append(float(loss.detach()))
        return loss


class Watching:
    """A task that looks at the learned values once the last step is done."""

    def __init__(self, layers: dict[str, Any]) -> None:
        self.layers, self.alphas, self.step = layers, {}, 0

    def advance(self, n: int = 1, **info: object) -> None:
        self.step += n
        if self.step == STEPS:
            for name, layer in self.layers.items():
                if not isinstance(layer, QuantMatMul):
                    assert isinstance(layer.weight_quantizer, AdaRoundWeight)
                    self.alphas[name] = layer.weight_quantizer.alpha.detach().clone()


def block_of(model: QuantModel) -> tuple[Any, dict[str, Any], BlockCache]:
    block = model.blocks[1]
    layers = {name: model.layers[name] for name in model.block_layers[block.name]}
    generator = torch.Generator().manual_seed(1)
    clean = torch.randn(IMAGES, 5, 16, generator=generator)
    quant = clean + 0.05 * torch.randn(clean.shape, generator=generator)
    with torch.no_grad(), float_layers(layers.values()):
        return block, layers, BlockCache(clean, quant, block.module(clean))


@pytest.mark.parametrize("how", [{}, {"drop_inside": 0.0}, {"round_weight": 0.0}, {"warmup": 0.0}], ids=str)
def test_the_fast_step_learns_what_the_plain_one_learns(how):
    recipe = settings(**how)
    block, layers, cache = block_of(calibrated(settings()))
    objective, watching = Square(), Watching(layers)
    reconstruct_block(block.name, block.module, layers, cache, objective, recipe, lambda row: None, watching)
    block, plain, cache = block_of(calibrated(settings()))
    losses = reconstruct_plainly(block.name, block.module, plain, cache, Square(), recipe)
    # Float32 sums in another order; Adam divides by the square root of what it sums, near 0 a difference of sign.
    torch.testing.assert_close(torch.tensor(objective.losses), torch.tensor(losses), rtol=2e-3, atol=1e-5)
    moved = 0.0
    for name, layer in plain.items():
        for slot in quantizer_slots(layer):
            theirs, ours = getattr(layer, slot), getattr(layers[name], slot)
            if isinstance(theirs, PlainWeight):
                difference = (watching.alphas[name] - theirs.alpha.detach()).abs()
                assert difference.median() < 1e-3, name  # a twentieth of a step
                assert (difference > 0.02).float().mean() < 0.01, name  # a step
                start = -torch.log(1.2 / (layer.weight / theirs.scale - theirs.floor + 0.1) - 1)
                moved = max(moved, float((theirs.alpha - start).detach().abs().max()))
            else:
                assert isinstance(theirs, PlainActivation)
                assert isinstance(ours, UniformQuantizer)
                torch.testing.assert_close(ours.scale.detach(), theirs.scale.detach(), rtol=2e-3, atol=1e-5)
    assert moved > 0.1  # many steps' worth
