"""What a reconstruction step of a block costs, against the same written out plainly, and the float block.

    python benchmarks/recon_step.py MODEL ...   (see --help)

Milliseconds of processor time; step and plain step (``toolchain/reconstruct/plain.py``) take turns. Random weights and
inputs: the cost does not depend on them. The float block's time is that of a forward and backward, gradients of weights
included.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from itertools import pairwise
from typing import Any

import timm
import torch
from timm.layers import set_fused_attn

from fimaq.toolchain.allocator import keep_freed_memory
from fimaq.toolchain.families import wrap
from fimaq.toolchain.nn import QuantLayer, QuantMatMul, float_layers, quantizer_slots
from fimaq.toolchain.progress import NullProgress
from fimaq.toolchain.quantizers import UniformQuantizer
from fimaq.toolchain.recipe import load_recipe
from fimaq.toolchain.reconstruct.block import reconstruct_block
from fimaq.toolchain.reconstruct.cache import BlockCache
from fimaq.toolchain.reconstruct.plain import reconstruct_plainly
from fimaq.toolchain.reconstruct.precision import matmul_precision
from fimaq.toolchain.spec import QuantSpec


class Stopwatch:
    """An objective that notes when each step begins; its loss is the mean square."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def before_step(self, step: int, block: Any, cache: BlockCache) -> None:
        """Note the time."""
        self.marks.append(time.process_time())

    def loss(self, output: torch.Tensor, target: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        """Mean square error."""
        return (output - target).square().mean()

    def median(self) -> float:
        """Milliseconds a step; the first two, which claim memory, are left out."""
        return 1e3 * statistics.median(after - before for before, after in pairwise(self.marks[2:]))


def give_grids(layers: dict[str, QuantLayer], weight_bits: int, bits: int) -> None:
    """Put grids into the layers as after a calibration: 2.5 standard deviations of a weight, and of a unit normal."""
    for layer in layers.values():
        for slot in quantizer_slots(layer):
            if slot == "weight_quantizer":
                spec, reach = QuantSpec(weight_bits, "channel"), 2.5 * layer.weight.flatten(1).std(1)
                scale = (2 * reach / spec.qmax).view(-1, *[1] * (layer.weight.ndim - 1))
            else:
                spec = QuantSpec(bits)
                scale = torch.tensor(5 / spec.qmax)
            setattr(layer, slot, UniformQuantizer(spec, scale, torch.full_like(scale, (spec.qmax + 1) // 2)))


def float_time(module: Any, layers: dict[str, QuantLayer], x: torch.Tensor) -> float:
    """Milliseconds of a forward and backward of the float block, its weights' gradients included."""
    times = []
    with float_layers(layers.values()):
        for layer in layers.values():
            if not isinstance(layer, QuantMatMul):
                layer.weight.requires_grad_(True)
        for _ in range(7):
            leaf, began = x.clone().requires_grad_(), time.process_time()
            module(leaf).sum().backward()
            times.append(time.process_time() - began)
        for layer in layers.values():
            if not isinstance(layer, QuantMatMul):
                layer.weight.requires_grad_(False)
    return 1e3 * statistics.median(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--block", default="blocks.3")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5, help="How often either loop is run, in turns.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--recipe", default="fast-w4a4")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    set_fused_attn(enable=True, experimental=True)
    torch.manual_seed(0)
    module = timm.create_model(arguments.model)
    model = wrap(module, module.pretrained_cfg["input_size"])
    recipe = load_recipe(arguments.recipe).with_overrides(iters=arguments.steps, batch_size=arguments.batch_size)
    number = [block.name for block in model.blocks].index(arguments.block)
    x = torch.randn(arguments.batch_size, *module.pretrained_cfg["input_size"])
    with torch.no_grad():
        for block in model.blocks[:number]:
            x = block.module(x)
        block = model.blocks[number]
        cache = BlockCache(x, x + 0.01, torch.zeros_like(block.module(x)))
    layers = {name: model.layers[name] for name in model.block_layers[block.name]}
    bits = recipe.weights.bits, recipe.activations.bits
    fast, plain, floating = [], [], []
    for _ in range(arguments.rounds):
        with matmul_precision(recipe.reconstruct.matmul_precision):
            floating.append(float_time(block.module, layers, x))
            give_grids(layers, *bits)
            watch = Stopwatch()
            reconstruct_plainly(block.name, block.module, layers, cache, watch, recipe)
            plain.append(watch.median())
        give_grids(layers, *bits)
        watch = Stopwatch()
        with NullProgress().task("", 0) as task:
            reconstruct_block(block.name, block.module, layers, cache, watch, recipe, lambda row: None, task)
        fast.append(watch.median())
    ratios = [slow / quick for slow, quick in zip(plain, fast, strict=True)]
    sys.stdout.write(
        f"{arguments.model} {arguments.block}, batch {arguments.batch_size}, {arguments.threads} thread(s): "
        f"{statistics.median(fast):.0f} ms a step, plain {statistics.median(plain):.0f} ms "
        f"({statistics.median(ratios):.2f} times, {min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} turns), "
        f"float forward and backward {statistics.median(floating):.0f} ms\n"
    )


if __name__ == "__main__":
    main()
