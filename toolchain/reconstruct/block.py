"""Reconstruction of one block: learned rounding and activation scales against its float output."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..distributed.ranks import ALONE, Ranks
from ..distributed.share import Share
from ..nn import QuantLayer, QuantMatMul, quantizer_slots
from ..progress import Task
from ..quantizers import AdaRoundWeight, CodedWeight, DropQuantizer, UniformQuantizer, without_drop
from ..recipe import Recipe
from .batch import Batch, mixed_batch
from .cache import BlockCache
from .captured import CapturedStep, Step, make_graph, side_stream
from .objective import Objective
from .optimizer import BlockOptimizer
from .precision import matmul_precision
from .schedule import rounding_beta
from .streams import draw_batch, seed_at

LOG_EVERY = 50
"""Steps between two log lines."""


def reconstruct_block(
    name: str,
    module: Callable[[Tensor], Tensor],
    layers: dict[str, QuantLayer],
    cache: BlockCache,
    objective: Objective,
    recipe: Recipe,
    log: Callable[[dict[str, Any]], None],
    task: Task,
    ranks: Ranks = ALONE,
) -> tuple[float, float]:
    """Learn the block's weight rounding and activation scales; afterwards its weights are stored codes.

    Returns the mean loss over the first and over the last tenth of the steps. Each step reads a batch whose input mixes
    the quantized and the float prefix element by element, with each activation element inside left float at random
    (QDrop). Adam throughout; scales follow a cosine to 0; zero points stay.

    All of ``ranks`` draw the same batch and masks, each runs its share of the images, and gradients are summed. With
    caches on the device no step waits for it, so what is logged of steps is logged after the last.
    """
    config = recipe.reconstruct
    device = _device(layers)
    generator = torch.Generator(device)
    share = ranks.share(config.batch_size)
    make = make_graph(ranks, device)
    with (
        matmul_precision(config.matmul_precision),
        side_stream(device),
        learning(layers, config.drop_inside, generator, share) as (weights, drops),
    ):
        optimizer = BlockOptimizer(weights, drops, config, ranks, recordable=make is not None)

        def descend(batch: Batch) -> Tensor:
            loss = objective.loss(module(batch.x), batch.target, batch.images) * (len(share) / share.of)
            optimizer.step(loss)
            return loss.detach()

        def fall_back(reason: str) -> None:
            log({"event": "fallback", "block": name, "step": step, "reason": reason})

        take: Step = descend
        if make is not None:
            take = CapturedStep(descend, objective, optimizer, generator, make, fall_back)
        losses = torch.zeros(config.iterations, device=device)
        for step in range(config.iterations):
            with without_drop(drops):
                note = objective.before_step(step, module, cache)
            if note is not None:
                fall_back(note)
            seed_at(generator, recipe.seed, name, step)
            images = draw_batch(generator, len(cache.target), config.batch_size)[share.rows]
            optimizer.prepare(step)
            losses[step] = take(mixed_batch(cache, images, config.quantized_input, generator, share))
            task.advance(1, block=name)
        losses = ranks.total(losses)
    for done, loss in enumerate(losses.tolist(), 1):
        if done % LOG_EVERY == 0 or done == config.iterations:
            log({"event": "step", "block": name, "step": done, "loss": loss, "beta": rounding_beta(done - 1, config)})
    tenth = max(1, config.iterations // 10)
    return float(losses[:tenth].mean()), float(losses[-tenth:].mean())


def _device(layers: dict[str, QuantLayer]) -> torch.device:
    """Where the block computes."""
    layer = next(iter(layers.values()))
    return getattr(layer, quantizer_slots(layer)[0]).scale.device


@contextmanager
def learning(
    layers: dict[str, QuantLayer], drop: float, generator: torch.Generator, share: Share | None = None
) -> Iterator[tuple[list[AdaRoundWeight], list[DropQuantizer]]]:
    """Put learnable quantizers into the layers; on leaving, weights become codes and scales stay as learned."""
    weights: list[AdaRoundWeight] = []
    drops: list[DropQuantizer] = []
    for layer in layers.values():
        for slot in quantizer_slots(layer):
            quantizer = getattr(layer, slot)
            if slot == "weight_quantizer":
                assert not isinstance(layer, QuantMatMul) and layer.weight is not None
                rounding = AdaRoundWeight(quantizer.spec, layer.weight, quantizer.scale.detach(), quantizer.zero_point)
                weights.append(rounding)
                layer.weight_quantizer = rounding
            else:
                quantizer.scale.requires_grad_(True)
                drops.append(DropQuantizer(quantizer, drop, generator, share))
                setattr(layer, slot, drops[-1])
    try:
        yield weights, drops
    finally:
        for layer in layers.values():
            for slot in quantizer_slots(layer):
                quantizer = getattr(layer, slot)
                if isinstance(quantizer, AdaRoundWeight):
                    codes = CodedWeight(quantizer.spec, quantizer.harden(), quantizer.scale, quantizer.zero_point)
                    setattr(layer, slot, codes)
                elif isinstance(quantizer, DropQuantizer):
                    quantizer.quantizer.scale.requires_grad_(False)
                    quantizer.quantizer.scale.grad = None  # memory of a recorded step
                    setattr(layer, slot, quantizer.quantizer)


def round_to_nearest(layers: dict[str, QuantLayer]) -> None:
    """Turn calibrated weights into the codes nearest to them."""
    for layer in layers.values():
        if not isinstance(layer, QuantMatMul):
            quantizer = layer.weight_quantizer
            assert isinstance(quantizer, UniformQuantizer) and layer.weight is not None
            codes = quantizer.to_codes(layer.weight.detach())
            layer.weight_quantizer = CodedWeight(quantizer.spec, codes, quantizer.scale, quantizer.zero_point)
