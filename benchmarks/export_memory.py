"""Peak memory of exporting a large float model with random weights, and of loading the file.

    python benchmarks/export_memory.py vit_huge_patch14_clip_224 --folder DIR

Each step is a process of its own; its peak is what the system says it held at most (maximum resident set size).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from tabulate import tabulate

WEIGHTS = """
import sys, timm, torch
from safetensors.torch import save_model
torch.manual_seed(0)
save_model(timm.create_model(sys.argv[1]), sys.argv[2])
"""
EXPORT = """
import sys, pathlib
from fimaq.toolchain.export import run
run.FLOAT_IMAGES = int(sys.argv[4])
found = run.export_float(sys.argv[1], pathlib.Path(sys.argv[3]), weights=pathlib.Path(sys.argv[2]))
print(found["bytes"], found["parity"])
"""
LOAD = """
import sys, numpy
from fimaq.toolchain.evaluate import OrtPredictor
predictor = OrtPredictor(sys.argv[1], threads=1)
print(predictor(numpy.zeros((1, *predictor.image.shape), numpy.float32)).shape)
"""


def measured(script: str, *arguments: object) -> tuple[float, float]:
    """Seconds and peak GiB of a Python script in a process of its own; raises SystemExit where it fails."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", script, *map(str, arguments)])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"a step failed with status {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - began, usage.ru_maxrss / 2**20


def main() -> None:
    """Print a row for each step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--folder", type=Path, required=True, help="Where weights and the file go; kept.")
    parser.add_argument("--images", type=int, default=2, help="Random images that the export is checked on.")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    weights, out = (arguments.folder / f"{arguments.model}.{kind}" for kind in ("safetensors", "onnx"))
    rows = [("random weights", *measured(WEIGHTS, arguments.model, weights))]
    rows.append(("export --float", *measured(EXPORT, arguments.model, weights, out, arguments.images)))
    rows.append(("load and run once", *measured(LOAD, out)))
    for path in (weights, *sorted(arguments.folder.glob(f"{out.name}*"))):
        print(f"{path.name}: {path.stat().st_size / 2**30:.2f} GiB")
    print(tabulate(rows, headers=["step", "seconds", "peak GiB"], floatfmt=".1f", tablefmt="github"))


if __name__ == "__main__":
    main()
