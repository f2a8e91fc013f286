"""What a reconstruction step of a block costs, against the same written out plainly, and the float block.

    python benchmarks/recon_step.py MODEL ...   (see --help)

Milliseconds, of processor time on a CPU and of the clock on a GPU, where the step is a CUDA graph; step and plain step
(``toolchain/reconstruct/plain.py``) take turns. Random weights and inputs: the cost does not depend on them. The float
block's time is that of a forward and backward, gradients of weights included.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

import torch
from one_block import Marks, give_grids, median_step, one_block

from fimaq.toolchain.nn import QuantLayer, QuantMatMul, float_layers
from fimaq.toolchain.progress import NullProgress
from fimaq.toolchain.recipe import load_recipe
from fimaq.toolchain.reconstruct.block import reconstruct_block
from fimaq.toolchain.reconstruct.plain import reconstruct_plainly
from fimaq.toolchain.reconstruct.precision import matmul_precision


def now(device: torch.device) -> float:
    """Seconds as they count on ``device``."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def float_time(module: Any, layers: dict[str, QuantLayer], x: torch.Tensor) -> float:
    """Milliseconds of a forward and backward of the float block, its weights' gradients included."""
    times = []
    with float_layers(layers.values()):
        for layer in layers.values():
            if not isinstance(layer, QuantMatMul):
                layer.weight.requires_grad_(True)
        for _ in range(7):
            leaf, began = x.clone().requires_grad_(), now(x.device)
            module(leaf).sum().backward()
            times.append(now(x.device) - began)
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
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--recipe", default="fast-w4a4")
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe).with_overrides(iters=arguments.steps, batch_size=arguments.batch_size)
    where = arguments.device
    one = one_block(arguments.model, arguments.block, arguments.batch_size, arguments.threads, where)
    block, layers, cache = one.block, one.layers, one.cache
    bits = recipe.weights.bits, recipe.activations.bits
    fast, plain, floating = [], [], []
    for _ in range(arguments.rounds):
        with matmul_precision(recipe.reconstruct.matmul_precision):
            floating.append(float_time(block.module, layers, one.x))
            give_grids(layers, *bits, where)
            marks = Marks()
            reconstruct_plainly(block.name, block.module, layers, cache, marks, recipe)
            plain.append(median_step(marks.processor if where == "cpu" else marks.clock))
        give_grids(layers, *bits, where)
        marks = Marks()
        with NullProgress().task("", 0) as task:
            reconstruct_block(block.name, block.module, layers, cache, marks, recipe, lambda row: None, task)
        fast.append(median_step(marks.processor if where == "cpu" else marks.clock))
    ratios = [slow / quick for slow, quick in zip(plain, fast, strict=True)]
    sys.stdout.write(
        f"{arguments.model} {arguments.block}, batch {arguments.batch_size}, {where}, {arguments.threads} thread(s): "
        f"{statistics.median(fast):.3g} ms a step, plain {statistics.median(plain):.3g} ms "
        f"({statistics.median(ratios):.2f} times, {min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} turns), "
        f"float forward and backward {statistics.median(floating):.3g} ms\n"
    )


if __name__ == "__main__":
    main()
