"""What a reconstruction step costs in one process, and in each of several that share its batch.

    python benchmarks/ranks.py MODEL
    torchrun --nproc-per-node 2 benchmarks/ranks.py MODEL

Prints milliseconds a step of the first process: of the clock, and of the processor. Random weights and inputs: the cost
does not depend on them. Needs a CPU only; one thread a process.
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
from recon_step import give_grids
from timm.layers import set_fused_attn

from fimaq.toolchain.allocator import keep_freed_memory
from fimaq.toolchain.distributed.launch import read_launch
from fimaq.toolchain.distributed.ranks import joined
from fimaq.toolchain.families import wrap
from fimaq.toolchain.progress import NullProgress
from fimaq.toolchain.recipe import load_recipe
from fimaq.toolchain.reconstruct.block import reconstruct_block
from fimaq.toolchain.reconstruct.cache import BlockCache


class Marks:
    """An objective that notes when each step begins; its loss is the mean square."""

    def __init__(self) -> None:
        self.clock: list[float] = []
        self.processor: list[float] = []

    def before_step(self, step: int, block: Any, cache: BlockCache) -> None:
        """Note the times."""
        self.clock.append(time.perf_counter())
        self.processor.append(time.process_time())

    def loss(self, output: torch.Tensor, target: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        """Mean square error."""
        return (output - target).square().mean()


def median(marks: list[float]) -> float:
    """Milliseconds a step; the first two, which claim memory, are left out."""
    return 1e3 * statistics.median(after - before for before, after in pairwise(marks[2:]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--block", default="blocks.3")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--recipe", default="fast-w4a4")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    set_fused_attn(enable=True, experimental=True)
    torch.manual_seed(0)
    module = timm.create_model(arguments.model)
    model = wrap(module, module.pretrained_cfg["input_size"])
    recipe = load_recipe(arguments.recipe).with_overrides(iters=arguments.steps, batch_size=arguments.batch_size)
    block = next(block for block in model.blocks if block.name == arguments.block)
    x = torch.randn(arguments.batch_size, *module.pretrained_cfg["input_size"])
    with torch.no_grad():
        for before in model.blocks[: model.blocks.index(block)]:
            x = before.module(x)
        cache = BlockCache(x, x + 0.01, torch.zeros_like(block.module(x)))
    layers = {name: model.layers[name] for name in model.block_layers[block.name]}
    give_grids(layers, recipe.weights.bits, recipe.activations.bits)
    marks = Marks()
    with joined(launch := read_launch(), torch.device("cpu")) as ranks, NullProgress().task("", 1) as task:
        reconstruct_block(block.name, block.module, layers, cache, marks, recipe, lambda row: None, task, ranks)
    if launch.first:
        sys.stdout.write(
            f"{arguments.model} {block.name}, batch {arguments.batch_size}, {launch.size} processes: "
            f"{median(marks.clock):.1f} ms of the clock, {median(marks.processor):.1f} ms of the processor\n"
        )


if __name__ == "__main__":
    main()
