"""Does a second runtime agree? OpenVINO against ONNX Runtime and the torch model, on a whole validation set.

    python benchmarks/second_runtime.py RUN [RUN ...] --data VAL --out RESULTS.jsonl [--limit N]
    python benchmarks/second_runtime.py table RESULTS.jsonl

For every run: its `ort-cpu` file in ONNX Runtime, its `openvino` file in both runtimes (OpenVINO's inference precision
f32, and bf16, its default on CPUs that have it), each against the fake-quantized torch model in float64 and in
float32. Beside them the noise floor, those two against each other: what two right implementations agree on, of which
one is as good as exact; two that both round agree on less. Top-1 differences are from ONNX Runtime's `ort-cpu` file,
with the paired 95 % interval of the gate (Tango).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from openvino_cpu import compiled_model
from tabulate import tabulate
from torch_reference import Predict, TorchReference, logits, torch_reference

from fimaq.deploy.gate.statistics import paired_interval
from fimaq.toolchain.export import export_run
from fimaq.toolchain.export.checks.parity import Agreement, snr_db
from fimaq.toolchain.runtime import open_session

PRODUCTS = ("FullyConnected", "MatMul", "Convolution", "Subgraph")


def in_onnx_runtime(path: Path) -> Predict:
    """A file in ONNX Runtime, one thread."""
    session = open_session(path, threads=1)
    return lambda batch: session.run(None, {"image": batch})[0]


def in_openvino(path: Path, precision: str) -> tuple[Predict, dict[str, int]]:
    """A file in OpenVINO, one thread; and how many products run on which kernels."""
    compiled = compiled_model(path, threads=1, precision=precision)
    infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    names = [(info["layerType"].astype(str), info["primitiveType"].astype(str)) for info in infos]
    kernels = Counter(f"{layer} {kernel}" for layer, kernel in names if layer in PRODUCTS)
    return lambda batch: compiled({"image": batch})[0], dict(kernels)


def compared(found: np.ndarray, reference: TorchReference, base: np.ndarray) -> Any:
    """One runtime against the torch model and against ``base``, ONNX Runtime's ``ort-cpu`` file."""
    labels, floor = reference.labels, reference.floor
    right, before = found.argmax(1) == labels, base.argmax(1) == labels
    fixed, broken, n = int((right & ~before).sum()), int((before & ~right).sum()), len(labels)
    low, high = paired_interval(fixed, broken, n, 0.95)
    agrees = found.argmax(1) == reference.exact.argmax(1)
    return {
        "top1": 100 * float(right.mean()),
        "difference": 100 * (fixed - broken) / n,
        "interval": [100 * float(low), 100 * float(high)],
        "agrees_with_float64": 100 * float(agrees.mean()),
        "agrees_with_float32": 100 * float((found.argmax(1) == reference.logits.argmax(1)).mean()),
        "below_floor_p": Agreement(agrees, floor, 0.0, 0.0).p_value,
        "agrees_with_ort": 100 * float((found.argmax(1) == base.argmax(1)).mean()),
        "snr_db": snr_db(reference.exact, found),
    }


def measure(run: Path, data: Path, limit: int | None) -> dict[str, Any]:
    """One row."""
    reference = torch_reference(run, data, limit)
    images = reference.images
    row = dict(reference.row)
    with tempfile.TemporaryDirectory() as folder:
        ort, openvino = Path(folder, "ort.onnx"), Path(folder, "openvino.onnx")
        export_run(run, ort, images=16)
        export_run(run, openvino, target="openvino", images=16)
        base = logits(in_onnx_runtime(ort), images)
        results = {"ort-cpu file, ONNX Runtime": base}
        results["openvino file, ONNX Runtime"] = logits(in_onnx_runtime(openvino), images)
        for precision in ("f32", "bf16"):
            predict, row[f"kernels {precision}"] = in_openvino(openvino, precision)
            results[f"openvino file, OpenVINO {precision}"] = logits(predict, images)
    row["runtimes"] = {name: compared(found, reference, base) for name, found in results.items()}
    return row


def table(path: Path) -> str:
    """The rows of a results file as Markdown."""
    lines = []
    for row in map(json.loads, path.read_text().splitlines()):
        for name, found in row["runtimes"].items():
            low, high = found["interval"]
            lines.append(
                [
                    f"{row['model']}, {row['recipe']}",
                    name,
                    f"{found['top1']:.2f}",
                    f"{found['difference']:+.2f} ({low:+.2f} to {high:+.2f})",
                    f"{found['agrees_with_float64']:.1f}",
                    f"{found['agrees_with_float32']:.1f}",
                    f"{found['agrees_with_ort']:.1f}",
                    f"{row['noise_floor']:.1f}",
                    f"{found['snr_db']:.1f}",
                ]
            )
    agrees = ["agrees with float64", "with float32", "with ORT", "floor"]
    heads = ["run", "where", "top-1", "difference (95 %)", *agrees, "SNR dB"]
    return tabulate(lines, headers=heads, tablefmt="github", disable_numparse=True)


def main() -> None:
    """Measure, or print the table."""
    if sys.argv[1:2] == ["table"]:
        print(table(Path(sys.argv[2])))
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int)
    given = parser.parse_args()
    for run in given.runs:
        row = measure(run, given.data, given.limit)
        with given.out.open("a") as out:
            out.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
