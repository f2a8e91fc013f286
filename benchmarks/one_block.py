"""One block of a timm model with random weights, ready for reconstruction steps; what they cost depends on no value."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import timm
import torch
from timm.layers import set_fused_attn

from fimaq.toolchain.allocator import keep_freed_memory
from fimaq.toolchain.families import Block, wrap
from fimaq.toolchain.nn import QuantLayer, quantizer_slots
from fimaq.toolchain.quantizers import UniformQuantizer
from fimaq.toolchain.reconstruct.cache import BlockCache
from fimaq.toolchain.spec import QuantSpec


class Marks:
    """An objective that notes when each step begins, in seconds; its loss is the mean square."""

    settled = True

    def __init__(self) -> None:
        self.clock: list[float] = []
        self.processor: list[float] = []

    def before_step(self, step: int, block: Any, cache: BlockCache) -> None:
        """Note the times, of a GPU once it has done what it was given."""
        if cache.target.device.type == "cuda":
            torch.cuda.synchronize()
        self.clock.append(time.perf_counter())
        self.processor.append(time.process_time())

    def loss(self, output: torch.Tensor, target: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        """Mean square error."""
        return (output - target).square().mean()


def median_step(marks: list[float]) -> float:
    """Milliseconds a step; the first two, which claim memory, are left out."""
    return 1e3 * statistics.median(after - before for before, after in pairwise(marks[2:]))


@dataclass(frozen=True)
class OneBlock:
    """A block, its layers, its float input ``x`` and the caches of a batch."""

    block: Block
    layers: dict[str, QuantLayer]
    x: torch.Tensor
    cache: BlockCache


def one_block(model_name: str, block_name: str, batch_size: int, threads: int, device: str = "cpu") -> OneBlock:
    """The block ``block_name`` behind the network in front of it, on ``batch_size`` random images."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    set_fused_attn(enable=True, experimental=True)
    torch.manual_seed(0)
    module = timm.create_model(model_name)
    size = module.pretrained_cfg["input_size"]
    model = wrap(module, size).to(device)
    number = [block.name for block in model.blocks].index(block_name)
    x = torch.randn(batch_size, *size, device=device)
    block = model.blocks[number]
    with torch.no_grad():
        for before in model.blocks[:number]:
            x = before.module(x)
        cache = BlockCache(x, x + 0.01, torch.zeros_like(block.module(x)))
    return OneBlock(block, {name: model.layers[name] for name in model.block_layers[block.name]}, x, cache)


def give_grids(layers: dict[str, QuantLayer], weight_bits: int, bits: int, device: str = "cpu") -> None:
    """Put grids into the layers as after a calibration: 2.5 standard deviations of a weight, and of a unit normal."""
    for layer in layers.values():
        for slot in quantizer_slots(layer):
            if slot == "weight_quantizer":
                spec, reach = QuantSpec(weight_bits, "channel"), 2.5 * layer.weight.flatten(1).std(1)
                scale = (2 * reach / spec.qmax).view(-1, *[1] * (layer.weight.ndim - 1))
            else:
                spec = QuantSpec(bits)
                scale = torch.tensor(5 / spec.qmax)
            grid = UniformQuantizer(spec, scale, torch.full_like(scale, (spec.qmax + 1) // 2))
            setattr(layer, slot, grid.to(device))
