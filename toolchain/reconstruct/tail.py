"""The float network behind a block."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..families import QuantModel
from ..nn import float_layers


def tail_after(model: QuantModel, number: int) -> Callable[[Tensor], Tensor]:
    """Output of block ``number`` to logits; no block in front of it runs."""
    blocks = model.blocks[number + 1 :]
    layers = [model.layers[name] for block in blocks for name in model.block_layers[block.name]]

    def run(x: Tensor) -> Tensor:
        with float_layers(layers):
            for block in blocks:
                x = block.module(x)
        return x

    return run
