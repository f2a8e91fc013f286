"""What a reconstruction step of a block costs: milliseconds a step, against the float block's forward and backward.

    python benchmarks/recon_step.py MODEL ...   (see --help)

Random weights and inputs: the cost does not depend on them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

import timm
import torch
from timm.layers import set_fused_attn

from fimaq.toolchain.allocator import keep_freed_memory
from fimaq.toolchain.families import wrap
from fimaq.toolchain.nn import QuantMatMul, float_layers, quantizer_slots
from fimaq.toolchain.progress import NullProgress
from fimaq.toolchain.quantizers import UniformQuantizer
from fimaq.toolchain.recipe import load_recipe
from fimaq.toolchain.reconstruct.block import reconstruct_block
from fimaq.toolchain.reconstruct.cache import BlockCache
from fimaq.toolchain.reconstruct.precision import matmul_precision
from fimaq.toolchain.spec import QuantSpec


class Stopwatch:
    """An objective that notes when each step begins; its loss is the mean square."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def before_step(self, step: int, block: Any, cache: BlockCache) -> None:
        """Note the time."""
        self.marks.append(time.perf_counter())

    def loss(self, output: torch.Tensor, target: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        """Mean square error."""
        return (output - target).square().mean()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--block", default="blocks.3")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--recipe", default="fast-w4a4")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    set_fused_attn(enable=True, experimental=True)
    module = timm.create_model(arguments.model)
    model = wrap(module, module.pretrained_cfg["input_size"])
    recipe = load_recipe(arguments.recipe).with_overrides(iters=arguments.steps, batch_size=arguments.batch_size)
    number = [block.name for block in model.blocks].index(arguments.block)
    x = torch.randn(arguments.batch_size, *module.pretrained_cfg["input_size"])
    with torch.no_grad():
        for block in model.blocks[:number]:
            x = block.module(x)
    block = model.blocks[number]
    layers = {name: model.layers[name] for name in model.block_layers[block.name]}
    for layer in layers.values():
        for slot in quantizer_slots(layer):
            spec, shape = QuantSpec(4), ()
            if slot == "weight_quantizer" and not isinstance(layer, QuantMatMul):
                spec, shape = QuantSpec(4, "channel"), (layer.weight.shape[0], *[1] * (layer.weight.ndim - 1))
            setattr(layer, slot, UniformQuantizer(spec, torch.full(shape, 0.1), torch.full(shape, 8.0)))
    cache = BlockCache(x, x, torch.zeros_like(block.module(x)))
    with float_layers(layers.values()), matmul_precision(recipe.reconstruct.matmul_precision):
        whole = []
        for _ in range(5):
            leaf = x.clone().requires_grad_()
            began = time.perf_counter()
            block.module(leaf).sum().backward()
            whole.append(time.perf_counter() - began)
    watch = Stopwatch()
    with NullProgress().task("", 0) as task:
        reconstruct_block(block.name, block.module, layers, cache, watch, recipe, lambda row: None, task)
    steps = [after - before for before, after in zip(watch.marks[2:], watch.marks[3:], strict=False)]
    step, base = 1e3 * statistics.median(steps), 1e3 * statistics.median(whole)
    sys.stdout.write(
        f"{arguments.model} {arguments.block}, batch {arguments.batch_size}, {arguments.threads} thread(s): "
        f"{step:.0f} ms a step; float forward and backward {base:.0f} ms; ratio {step / base:.2f}\n"
    )


if __name__ == "__main__":
    main()
