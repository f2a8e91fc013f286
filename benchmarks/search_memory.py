"""Peak memory and processor time of the scale search of a wide model, cut to its first block, beside the estimate.

    python benchmarks/search_memory.py [MODEL] [--images 8]

Random weights and images, one thread. The search's memory does not grow with depth, its time does.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import sys
import time

import timm
import torch

from fimaq.toolchain.allocator import keep_freed_memory
from fimaq.toolchain.calibrate import calibrate
from fimaq.toolchain.families import wrap
from fimaq.toolchain.progress import NullProgress
from fimaq.toolchain.recipe import load_recipe
from fimaq.toolchain.reconstruct.estimate import estimate_memory


def peak() -> float:
    """Of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="vit_base_patch16_224")
    parser.add_argument("--images", type=int, default=8)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = timm.create_model(arguments.model, depth=1).eval()
    size = module.pretrained_cfg["input_size"]
    model = wrap(module, size)
    recipe = load_recipe("fast-w4a4").with_overrides(iters=0, calib_samples=arguments.images)
    estimate = estimate_memory(model, size, recipe, arguments.images).search / 1e9
    held, began = peak(), time.process_time()
    calibrate(model, torch.randn(arguments.images, *size), recipe, NullProgress())
    seconds = time.process_time() - began
    grids = hashlib.sha256(b"".join(value.numpy().tobytes() for value in model.state_dict().values())).hexdigest()
    sys.stdout.write(
        f"{arguments.model}, first block, {arguments.images} images: {seconds:.0f} s, peak {peak() - held:.2f} GB over "
        f"the {held:.2f} GB before, estimate {estimate:.2f} GB, grids {grids[:12]}\n"
    )


if __name__ == "__main__":
    main()
