"""What a reconstruction step costs in one process, and in each of several that share its batch.

    python benchmarks/ranks.py MODEL
    torchrun --nproc-per-node 2 benchmarks/ranks.py MODEL

Prints milliseconds a step of the first process: of the clock, and of the processor. Random weights and inputs: the cost
does not depend on them. Needs a CPU only; one thread a process.
"""

from __future__ import annotations

import argparse
import sys

import torch
from one_block import Marks, give_grids, median_step, one_block

from fimaq.toolchain.distributed.launch import read_launch
from fimaq.toolchain.distributed.ranks import joined
from fimaq.toolchain.progress import NullProgress
from fimaq.toolchain.recipe import load_recipe
from fimaq.toolchain.reconstruct.block import reconstruct_block


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--block", default="blocks.3")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--recipe", default="fast-w4a4")
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe).with_overrides(iters=arguments.steps, batch_size=arguments.batch_size)
    one = one_block(arguments.model, arguments.block, arguments.batch_size, threads=1)
    block, layers, cache = one.block, one.layers, one.cache
    give_grids(layers, recipe.weights.bits, recipe.activations.bits)
    marks = Marks()
    with joined(launch := read_launch(), torch.device("cpu")) as ranks, NullProgress().task("", 1) as task:
        reconstruct_block(block.name, block.module, layers, cache, marks, recipe, lambda row: None, task, ranks)
    if launch.first:
        sys.stdout.write(
            f"{arguments.model} {block.name}, batch {arguments.batch_size}, {launch.size} processes: "
            f"{median_step(marks.clock):.1f} ms of the clock, {median_step(marks.processor):.1f} ms of the processor\n"
        )


if __name__ == "__main__":
    main()
