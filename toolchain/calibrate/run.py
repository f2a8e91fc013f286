"""Calibration of a whole model, block by block, each block's float input computed once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..distributed.ranks import ALONE, Ranks
from ..families import Block, QuantModel
from ..nn import QuantConv2d, QuantLayer, QuantMatMul, quantizer_slots
from ..progress import Progress
from ..recipe import Recipe
from .collect import Observed, observing
from .grids import fold_norms, grids_of, put_grid, slot_spec
from .linear import Grid, search_channels, search_linear
from .matmul import search_matmul

CHUNK = 32
"""Images a forward."""


def run_block(block: Block, x: Tensor, chunk: int = CHUNK) -> Tensor:
    """The block's output for all images, without gradients, ``chunk`` images at a time."""
    with torch.no_grad():
        return torch.cat([block.module(part) for part in x.split(chunk)])


@torch.no_grad()
def calibrate(
    model: QuantModel, images: Tensor, recipe: Recipe, progress: Progress, ranks: Ranks = ALONE
) -> dict[str, np.ndarray]:
    """Give every layer its quantizers: weights rounded to nearest, activations on searched grids.

    ``images`` is ``[n, 3, h, w]``, preprocessed, on the model's device. The float function of the model stays the same
    (LayerNorm re-parameterisation moves scales between layers); its layers must still be float. Each of ``ranks``
    looks at all images and searches the grids of its part of the layers.

    Returns the grids, from which ``restore_grids`` makes the same of another copy of the model.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    folded: dict[str, Grid] = {}
    x = images
    with progress.task("calibrate", len(model.layers)) as task:
        for block in model.blocks:
            layers = {name: model.layers[name] for name in model.block_layers[block.name]}
            channels = _search_norms(block, layers, x, recipe, generator) if recipe.calibrate.reparam_layernorm else {}
            starts = fold_norms(block, channels)
            folded |= {name: channels[layer] for name, layer in layers.items() if layer in channels}
            seen, output = _observe(block, layers, x, generator)
            for number, (name, layer) in enumerate(layers.items()):
                inputs = seen.pop(name)
                if number % ranks.size == ranks.launch.rank:
                    _calibrate_layer(layer, inputs, recipe, starts.get(layer))
                task.advance(1, layer=name)
            _exchange(list(layers.values()), images.device, ranks)
            x = output
    ranks.take_first([parameter.data for parameter in model.parameters()])
    return grids_of(model, folded)


def _exchange(layers: list[QuantLayer], device: torch.device, ranks: Ranks) -> None:
    """Give each layer the quantizers that the process which searched for them found."""
    if ranks.size == 1:
        return
    mine = {
        number: {slot: getattr(layers[number], slot).cpu() for slot in quantizer_slots(layers[number])}
        for number in range(ranks.launch.rank, len(layers), ranks.size)
    }
    for found in ranks.gather(mine):
        for number, quantizers in found.items():
            for slot, quantizer in quantizers.items():
                setattr(layers[number], slot, quantizer.to(device))


def _observe(
    block: Block, layers: dict[str, QuantLayer], x: Tensor, generator: torch.Generator
) -> tuple[dict[str, Observed], Tensor]:
    with observing(layers, -(-len(x) // CHUNK), generator) as seen:
        return seen, run_block(block, x)


def _search_norms(
    block: Block, layers: dict[str, QuantLayer], x: Tensor, recipe: Recipe, generator: torch.Generator
) -> dict[nn.Module, Grid]:
    """A grid per input channel of each layer that a LayerNorm feeds."""
    fed = {name: layer for name, layer in layers.items() if any(layer is linear for _, linear in block.norm_pairs)}
    if not fed:
        return {}
    seen, _ = _observe(block, fed, x, generator)
    found: dict[nn.Module, Grid] = {}
    for name, layer in fed.items():
        spec = slot_spec(layer, "input_quantizer", recipe)
        found[layer] = search_channels(torch.cat(seen[name].rows), spec, recipe.calibrate.candidates)
    return found


def _calibrate_layer(layer: QuantLayer, seen: Observed, recipe: Recipe, start: Grid | None) -> None:
    if isinstance(layer, QuantMatMul):
        _calibrate_matmul(layer, seen, recipe)
        return
    assert layer.weight is not None
    by_token = recipe.activations.granularity == "token" and not isinstance(layer, QuantConv2d) and len(seen.shape) > 2
    rows = torch.cat(seen.rows)
    weight = layer.weight.detach().flatten(1)
    if isinstance(layer, QuantConv2d) and layer.groups > 1:  # rows hold all groups; each is judged on those of all
        rows = rows.reshape(len(rows) * layer.groups, -1)
    weight_spec, input_spec = (slot_spec(layer, slot, recipe) for slot in ("weight_quantizer", "input_quantizer"))
    (scale, zero), (in_scale, in_zero) = search_linear(
        weight, rows, weight_spec, input_spec, recipe.calibrate.candidates, recipe.calibrate.rounds, start
    )
    ones = [1] * (layer.weight.ndim - 1)
    put_grid(layer, "weight_quantizer", recipe, (scale.view(-1, *ones), zero.view(-1, *ones)))
    if by_token:
        in_scale = in_scale.expand(1, *seen.shape[1:-1], 1)
    put_grid(layer, "input_quantizer", recipe, (in_scale, in_zero))


def _calibrate_matmul(layer: QuantMatMul, seen: Observed, recipe: Recipe) -> None:
    spec = slot_spec(layer, "a_quantizer", recipe)  # that of both
    a, b = torch.cat(seen.a), torch.cat(seen.b)
    grids = search_matmul(a, b, spec, recipe.calibrate.candidates, recipe.calibrate.rounds)
    tokens = (a.shape[-2], b.shape[-1] if layer.transpose_b else b.shape[-2])
    for slot, (scale, zero), count in zip(quantizer_slots(layer), grids, tokens, strict=True):
        if spec.granularity == "head-token":
            scale = scale.expand(1, -1, count, 1)
        put_grid(layer, slot, recipe, (scale, zero))
