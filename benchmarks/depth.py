"""Where a reconstruction's time goes as a network gets deeper: seconds a block, by part.

    python benchmarks/depth.py [--depths 6 12 24] [--iters 100] [--recipe fast-w4a4]

A ViT with random weights on random images; the cost does not depend on them. Times are processor time of one thread,
which a busy machine disturbs less than the wall clock.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import timm
import torch
from timm.layers import set_fused_attn

from fimaq.toolchain.allocator import keep_freed_memory
from fimaq.toolchain.calibrate import calibrate
from fimaq.toolchain.checkpoint import Checkpoint
from fimaq.toolchain.families import wrap
from fimaq.toolchain.progress import NullProgress
from fimaq.toolchain.recipe import Recipe, load_recipe
from fimaq.toolchain.reconstruct import reconstruct, stopwatch
from fimaq.toolchain.reconstruct.cache import BlockInputs
from fimaq.toolchain.reconstruct.store import RamStore

PARTS = ("advance", "probes", "steps", "bookkeeping")

PUBLISHED_STEPS, PUBLISHED_PROBES = 20000, 5
"""A block's, in the paper."""

SIDE = 32


def measure(depth: int, recipe: Recipe, width: int) -> tuple[float, list[dict[str, float]], float]:
    """Seconds of calibration, of each transformer block by part, and of the whole reconstruction."""
    torch.manual_seed(0)
    sizes = {"img_size": SIDE, "patch_size": 4, "embed_dim": width, "depth": depth, "num_heads": 3, "num_classes": 10}
    model = wrap(timm.create_model("vit_tiny_patch16_224", **sizes), (3, SIDE, SIDE))
    images = torch.randn(recipe.reconstruct.samples, 3, SIDE, SIDE)
    began = time.process_time()
    calibrate(model, images[: recipe.calibrate.samples], recipe, NullProgress())
    calibrated = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        inputs = BlockInputs(images, images)
        rows = reconstruct(
            model, inputs, recipe, NullProgress(), lambda row: None, Checkpoint(Path(folder)), RamStore()
        )
    blocks = [row["seconds_by_part"] for row in rows if row["kind"] == "transformer"]
    return calibrated - began, blocks, time.process_time() - calibrated


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="+", default=[6, 12, 24])
    parser.add_argument("--iters", type=int, default=100)
    parser.add_argument("--recipe", default="fast-w4a4")
    parser.add_argument("--candidates", type=int, help="Of the scale search, in place of the recipe's.")
    parser.add_argument("--width", type=int, default=96)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    stopwatch.time = SimpleNamespace(monotonic=time.process_time)
    keep_freed_memory()
    set_fused_attn(enable=True, experimental=True)
    recipe = load_recipe(arguments.recipe).with_overrides(iters=arguments.iters)
    candidates = arguments.candidates or recipe.calibrate.candidates
    recipe = replace(recipe, calibrate=replace(recipe.calibrate, candidates=candidates))
    measure(2, recipe, arguments.width)  # the first run of anything is slow
    probes = min(recipe.fisher.rank, recipe.reconstruct.iterations)
    sys.stdout.write(
        f"| blocks | calibrate | {' | '.join(PARTS)} | reconstruct | outside the steps at {PUBLISHED_STEPS:,} |\n"
        f"|{'---|' * (len(PARTS) + 4)}\n"
    )
    for depth in arguments.depths:
        calibration, blocks, whole = measure(depth, recipe, arguments.width)
        mean = {part: statistics.mean(block[part] for block in blocks) for part in PARTS}
        steps = mean["steps"] * PUBLISHED_STEPS / recipe.reconstruct.iterations
        outside = mean["advance"] + mean["probes"] * PUBLISHED_PROBES / probes + mean["bookkeeping"]
        sys.stdout.write(
            f"| {depth} | {calibration / depth:.2f} | {' | '.join(f'{mean[part]:.2f}' for part in PARTS)} | "
            f"{whole / depth:.2f} | {100 * outside / (outside + steps):.1f} % |\n"
        )


if __name__ == "__main__":
    main()
