"""Is a quantized file ever slower than the float one? Every batch size, with the batch open and fixed.

    python benchmarks/batches.py FLOAT.onnx FILE.onnx... [--batch-size 1 2 4 8 16 32 64] [--threads 1 2] [--rounds 5]

Times are the process's processor time with threads that sleep while they wait, which a busy machine disturbs less than
the wall clock. Files take turns; a number is the median over the rounds of float's time by the file's, with the least
of the rounds, both with the batch open or both with it fixed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.tools.onnx_model_utils import make_dim_param_fixed
from tabulate import tabulate

from fimaq.toolchain.runtime import open_session

WARM_UP = 1


def fixed(path: Path, batch: int) -> bytes:
    """The file with its batch size written into the graph."""
    model = onnx.load(path)
    make_dim_param_fixed(model.graph, "batch", batch)
    return model.SerializeToString()


def measure(models: list[Path | bytes], images: np.ndarray, threads: int, rounds: int) -> list[list[float]]:
    """Seconds of processor time of each model in each round."""
    sessions = [open_session(model, threads=threads, spin=False) for model in models]
    times: list[list[float]] = [[] for _ in models]
    for turn in range(WARM_UP + rounds):
        for session, own in zip(sessions, times, strict=True):
            began = time.process_time()
            session.run(None, {"image": images})
            if turn >= WARM_UP:
                own.append(time.process_time() - began)
    return times


def main() -> None:
    """Measure and print a markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="the float file first")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    size = [dim.dim_value for dim in onnx.load(arguments.files[0]).graph.input[0].type.tensor_type.shape.dim][1:]
    rows = {(path, batch): [path.stem, str(batch)] for path in arguments.files[1:] for batch in arguments.batch_size}
    headers = ["file", "batch"]
    for threads in arguments.threads:
        headers += [f"{kind}, {threads} thread{'s' * (threads > 1)}" for kind in ("open", "fixed")]
        for batch in arguments.batch_size:
            images = np.random.default_rng(0).standard_normal((batch, *size), dtype=np.float32)
            for models in (arguments.files, [fixed(path, batch) for path in arguments.files]):
                reference, *others = measure(models, images, threads, arguments.rounds)
                for path, own in zip(arguments.files[1:], others, strict=True):
                    ratios = [slow / mine for slow, mine in zip(reference, own, strict=True)]
                    rows[path, batch].append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f})")
    sys.stdout.write(tabulate(rows.values(), headers, tablefmt="github", disable_numparse=True) + "\n")


if __name__ == "__main__":
    main()
