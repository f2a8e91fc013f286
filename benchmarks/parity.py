"""Does the deployed file predict what was optimised? ONNX Runtime against the torch model, on a whole validation set.

    python benchmarks/parity.py RUN [RUN ...] --data VAL --out RESULTS.jsonl [--limit N]
    python benchmarks/parity.py table RESULTS.jsonl

For every run: its ONNX file in ONNX Runtime, optimised and with optimisation off, against the fake-quantized torch
model in float32; beside it the noise floor, that model against its own float64 copy. Differences of top-1, and of the
agreement from the floor, come with the paired 95 % interval (Wald, from the images on which just one of the two is
right, or agrees).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accuracy import commit
from tabulate import tabulate
from torch_reference import logits, torch_reference

from fimaq.toolchain.export import export_run
from fimaq.toolchain.export.checks.parity import Agreement, snr_db
from fimaq.toolchain.runtime import open_session


def paired(one: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Difference of two accuracies on the same images in points, with its 95 % interval; inputs are 'is right'."""
    n, only_one, only_other = len(one), int((one & ~other).sum()), int((other & ~one).sum())
    delta = (only_one - only_other) / n
    half = 1.96 * math.sqrt(max(only_one + only_other - n * delta**2, 0)) / n
    return 100 * delta, 100 * (delta - half), 100 * (delta + half)


def measure(run: Path, data: Path, limit: int | None) -> dict[str, Any]:
    """One row."""
    reference = torch_reference(run, data, limit)
    images, labels, single, floor = reference.images, reference.labels, reference.logits, reference.floor
    row = {"commit": commit()} | reference.row
    with tempfile.TemporaryDirectory() as folder:
        onnx = Path(folder, "model.onnx")
        row["codes_equal"] = export_run(run, onnx, images=16, allow_float=True)["parity"]["codes_equal"]
        for name, optimize in (("optimised", True), ("plain", False)):
            session = open_session(onnx, threads=1, optimize=optimize)
            found = logits(lambda batch, session=session: session.run(None, {"image": batch})[0], images)
            right, agrees = found.argmax(1) == labels, found.argmax(1) == single.argmax(1)
            row[name] = {
                "top1": 100 * float(right.mean()),
                "agreement": 100 * float(agrees.mean()),
                "beyond_floor": paired(agrees, floor),
                "p_value": Agreement(agrees, floor, 0.0, 0.0).p_value,
                "snr_db": snr_db(single, found),
                "difference": paired(right, single.argmax(1) == labels),
            }
    return row


def table(results: Path) -> str:
    """Markdown, a line a run, and the median of all runs' distance from their floors."""
    found = sorted((json.loads(line) for line in results.read_text().splitlines()), key=lambda row: row["run"])
    rows = [
        [
            row["run"],
            f"{row['torch_top1']:.2f}",
            f"{row['optimised']['top1']:.2f}",
            _points(row["optimised"]["difference"]),
            f"{row['noise_floor']:.2f}",
            f"{row['optimised']['agreement']:.2f}",
            _points(row["optimised"]["beyond_floor"]),
            f"{row['plain']['agreement']:.2f}",
            _points(row["plain"]["beyond_floor"]),
            f"{row['floor_snr_db']:.0f} / {row['optimised']['snr_db']:.0f}",
            "all" if row["codes_equal"] else "NO",
        ]
        for row in found
    ]
    levels = ("optimised", "plain")
    middle = {level: statistics.median(row[level]["beyond_floor"][0] for row in found) for level in levels}
    rows.append(["median", *[""] * 5, f"{middle['optimised']:+.2f}", "", f"{middle['plain']:+.2f}", "", ""])
    headers = [
        "run",
        "torch top-1",
        "ORT top-1",
        "difference (paired 95 %)",
        "noise floor",
        "agreement",
        "from the floor (paired 95 %)",
        "not optimised",
        "from the floor (paired 95 %)",
        "SNR dB floor / ORT",
        "codes equal",
    ]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def _points(interval: Sequence[float]) -> str:
    return "{:+.2f} ({:+.2f} to {:+.2f})".format(*interval)


def main() -> None:
    """Parse and dispatch."""
    if sys.argv[1:2] == ["table"]:
        sys.stdout.write(table(Path(sys.argv[2])) + "\n")
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for run in arguments.runs:
        began = time.monotonic()
        row = measure(run, arguments.data, arguments.limit)
        with arguments.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        sys.stderr.write(f"{run.name}: {time.monotonic() - began:.0f} s\n")


if __name__ == "__main__":
    main()
