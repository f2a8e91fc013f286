"""The grids that calibration finds: as a layer's quantizers, and as arrays to keep and to put back."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ..families import Block, QuantModel
from ..nn import QuantConv2d, QuantLayer, QuantLinear, QuantMatMul, quantizer_slots
from ..quantizers import UniformQuantizer
from ..recipe import Recipe
from ..spec import QuantSpec
from .layernorm import fold_channel_scales
from .linear import Grid

FOLDED = "folded"
"""Stands beside a layer's slots for the grid per input channel that went into its LayerNorm."""


def slot_spec(layer: QuantLayer, slot: str, recipe: Recipe, by_token: bool = False) -> QuantSpec:
    """What the recipe wants in ``slot``; an input has a scale for each token (``by_token``) or one."""
    if isinstance(layer, QuantMatMul):
        return QuantSpec(recipe.activations.bits, recipe.activations.matmul_granularity, recipe.activations.symmetric)
    if slot == "weight_quantizer":
        return QuantSpec(recipe.weights.bits, "channel", recipe.weights.symmetric)
    bits = recipe.first_conv_input_bits if isinstance(layer, QuantConv2d) else recipe.activations.bits
    return QuantSpec(bits, "token" if by_token else "tensor", recipe.activations.symmetric)


def put_grid(layer: QuantLayer, slot: str, recipe: Recipe, grid: Grid) -> None:
    """Give the layer the quantizer of ``grid``, whose scale has the shape of its granularity."""
    scale, zero_point = grid
    setattr(layer, slot, UniformQuantizer(slot_spec(layer, slot, recipe, scale.ndim > 0), scale, zero_point))


def fold_norms(block: Block, channels: Mapping[nn.Module, Grid]) -> dict[nn.Module, Grid]:
    """Fold the grid per input channel of each layer into its LayerNorm; the grid each is left with.

    Without ``channels`` nothing is folded.
    """
    return {linear: _folded(norm, linear, channels[linear]) for norm, linear in block.norm_pairs if channels}


def _folded(norm: nn.LayerNorm, linear: nn.Module, channels: Grid) -> Grid:
    assert isinstance(linear, QuantLinear)
    return fold_channel_scales(norm, linear, *channels)


def grids_of(model: QuantModel, folded: Mapping[str, Grid]) -> dict[str, np.ndarray]:
    """Every grid of a calibrated model, and those ``folded`` into LayerNorms by the layer they feed, by name."""
    found: dict[tuple[str, str], Grid] = {(name, FOLDED): grid for name, grid in folded.items()}
    for name, layer in model.layers.items():
        for slot in quantizer_slots(layer):
            quantizer = getattr(layer, slot)
            found[name, slot] = quantizer.scale, quantizer.zero_point
    return {
        f"{name}.{slot}.{part}": value.detach().cpu().numpy()
        for (name, slot), grid in found.items()
        for part, value in zip(("scale", "zero_point"), grid, strict=True)
    }


@torch.no_grad()
def restore_grids(model: QuantModel, grids: Mapping[str, np.ndarray], recipe: Recipe) -> None:
    """Make a float ``model`` what ``calibrate`` made of it when it returned ``grids``."""
    device = next(model.parameters()).device
    names: dict[nn.Module, str] = {layer: name for name, layer in model.layers.items()}

    def grid(layer: nn.Module, slot: str) -> Grid:
        scale, zero_point = (_tensor(grids[f"{names[layer]}.{slot}.{part}"]) for part in ("scale", "zero_point"))
        return scale.to(device), zero_point.to(device)

    for block in model.blocks if recipe.calibrate.reparam_layernorm else ():
        fold_norms(block, {linear: grid(linear, FOLDED) for _, linear in block.norm_pairs})
    for layer in model.layers.values():
        for slot in quantizer_slots(layer):
            put_grid(layer, slot, recipe, grid(layer, slot))


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.copy())  # an array from a file or another process may be read-only
