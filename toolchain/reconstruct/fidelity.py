"""How faithful a finished block is: lines for the log that say what quantization did to its layers and its output.

Measured on the first ``SAMPLE`` images, which are calibration images. Nothing here changes a result.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..families import Block
from ..nn import QuantLayer, QuantMatMul, float_layers, quantizer_slots
from ..quantizers import Quantizer
from ..run_folder import TENSOR_NAMES

SAMPLE = 16
"""Images; a ViT's layer reads half a million values of them."""

BINS = 48
"""Of a histogram: with the quarter of a grid it shows on either side, 32 of them lie on the grid."""


@torch.no_grad()
def grid_lines(block: Block, layers: dict[str, QuantLayer], images: Tensor) -> list[dict[str, Any]]:
    """A line for each thing a layer of ``block`` quantizes: its weight, its input, the operands of a product.

    ``images`` ``[n, ...]`` are the block's inputs in the float network, and every layer is looked at by itself: what it
    reads is not quantized before.
    """
    lines: list[dict[str, Any]] = []

    def record(name: str, quantizers: dict[str, Quantizer], layer: QuantLayer, arguments: tuple[Tensor, ...]) -> None:
        values = arguments if isinstance(layer, QuantMatMul) else (arguments[0], layer.weight)
        for (slot, quantizer), value in zip(quantizers.items(), values, strict=True):
            assert value is not None
            line = {"event": "grid", "block": block.name, "layer": name, "operand": TENSOR_NAMES[slot]}
            lines.append(line | on_grid(value, quantizer))

    hooks = [
        layer.register_forward_pre_hook(
            partial(record, name, {slot: getattr(layer, slot) for slot in quantizer_slots(layer)})
        )
        for name, layer in layers.items()
    ]
    try:
        with float_layers(layers.values()):
            block.module(images[:SAMPLE])
    finally:
        for hook in hooks:
            hook.remove()
    return lines


def on_grid(value: Tensor, quantizer: Quantizer) -> dict[str, Any]:
    """What is lost of ``value``, and where on its grid it lies.

    ``snr_db`` is that of the quantized value; ``clipped`` the share that lies beyond either end of the grid; ``counts``
    a histogram of ``value / scale + zero_point``, that is of codes before they are rounded, over ``range``. Values
    beyond the range are counted in its first and last bin.
    """
    levels = quantizer.spec.qmax + 1
    low, high = -levels / 4, levels * 5 / 4
    place = value / quantizer.scale + quantizer.zero_point
    rounded = place.round()
    outside = (rounded < 0) | (rounded > quantizer.spec.qmax)
    bins = ((place - low) * (BINS / (high - low))).floor_().clamp_(0, BINS - 1).to(torch.int64)
    return {
        "bits": quantizer.spec.bits,
        "snr_db": snr_db(quantizer(value), value),
        "clipped": float(outside.double().mean()),
        "range": [low, high],
        "counts": torch.bincount(bins.flatten(), minlength=BINS).tolist(),
    }


def snr_db(found: Tensor, wanted: Tensor) -> float | None:
    """``10 log10(sum wanted^2 / sum (found - wanted)^2)``; None where either sum is 0, which has no decibels."""
    signal = float(wanted.square().sum(dtype=torch.float64))
    noise = float((found - wanted).square().sum(dtype=torch.float64))
    return 10 * math.log10(signal / noise) if signal and noise else None
