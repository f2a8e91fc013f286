"""How fast exported files are in ONNX Runtime: interleaved runs, medians, and the ratio to the first file.

    python benchmarks/latency.py FLOAT.onnx [OTHER.onnx ...] [--batch-size 1 8] [--threads 1] [--rounds 30]

Files take turns within a round, so that a change of the machine's speed meets all of them; a ratio is the median of the
ratios within rounds, with its quartiles.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from tabulate import tabulate

from fimaq.toolchain.environment import cpu
from fimaq.toolchain.runtime import open_session

WARM_UP = 3


def measure(files: list[Path], batch: int, threads: int, rounds: int) -> list[list[float]]:
    """Milliseconds of each file in each round."""
    sessions = [open_session(path, threads=threads) for path in files]
    feeds = []
    for session in sessions:
        image = session.get_inputs()[0]
        shape = (batch, *image.shape[1:])
        feeds.append({image.name: np.random.default_rng(0).standard_normal(shape, dtype=np.float32)})
    times: list[list[float]] = [[] for _ in files]
    for turn in range(WARM_UP + rounds):
        for session, feed, kept in zip(sessions, feeds, times, strict=True):
            began = time.perf_counter()
            session.run(None, feed)
            if turn >= WARM_UP:
                kept.append(1e3 * (time.perf_counter() - began))
    return times


def main() -> None:
    """Measure and print a markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--batch-size", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    processor = cpu()
    sys.stderr.write(f"{processor['name']}, {arguments.threads} thread(s), {', '.join(processor['features'])}\n")
    rows = []
    for batch in arguments.batch_size:
        times = measure(arguments.files, batch, arguments.threads, arguments.rounds)
        for path, own in zip(arguments.files, times, strict=True):
            ratios = [first / mine for first, mine in zip(times[0], own, strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            size = path.stat().st_size / 1e6
            rows.append(
                [
                    path.stem,
                    batch,
                    f"{statistics.median(own):.2f}",
                    f"{middle:.2f} ({low:.2f} to {high:.2f})",
                    f"{size:.2f}",
                ]
            )
    headers = ["file", "batch", "median ms", "speed against the first (quartiles)", "MB"]
    sys.stdout.write(tabulate(rows, headers, tablefmt="github", disable_numparse=True) + "\n")


if __name__ == "__main__":
    main()
