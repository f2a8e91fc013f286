"""What each pass for speed is worth: the graph of a run without it, against the whole graph, in ONNX Runtime.

    python benchmarks/passes.py RUN [--batch-size 8] [--rounds 15]

One thread; times are the process's processor time, which a busy machine disturbs less than the wall clock. Graphs take
turns; a ratio is the median of the ratios within rounds, with its quartiles.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from tabulate import tabulate

from fimaq.toolchain.export.build import build_quantized
from fimaq.toolchain.export.metadata import Description
from fimaq.toolchain.export.passes.qdq import LowerToQdq
from fimaq.toolchain.export.targets.ort_cpu import OrtCpu
from fimaq.toolchain.export.targets.target import ExportTarget
from fimaq.toolchain.run_folder import load_run
from fimaq.toolchain.runtime import open_session

WARM_UP = 3


@dataclass(frozen=True)
class Without(ExportTarget):
    """The ort-cpu target less the passes of some names; of LowerToQdq, only its integers for scale arrays."""

    name: str = "ort-cpu"
    default_opset: int = 21
    left_out: Sequence[str] = ()

    def passes(self) -> Sequence[ir.passes.PassBase]:
        """The others, in order."""
        return [self._less(step) for step in OrtCpu().passes() if self._stays(step)]

    def _stays(self, step: ir.passes.PassBase) -> bool:
        return isinstance(step, LowerToQdq) or type(step).__name__ not in self.left_out

    def _less(self, step: ir.passes.PassBase) -> ir.passes.PassBase:
        if isinstance(step, LowerToQdq) and "LowerToQdq" in self.left_out:
            return LowerToQdq(step.containers, before_layout=step.before_layout)
        return step


def graphs(run: Path) -> dict[str, bytes]:
    """Serialized models: whole, without each pass, without any."""
    loaded = load_run(run)
    model = loaded.manifest["model"]
    description = Description(model["name"], model["weights_sha256"], "ort-cpu", loaded.preprocessing, loaded.classes)
    names = [type(step).__name__ for step in OrtCpu().passes() if not isinstance(step, LowerToQdq)]
    choices: dict[str, Sequence[str]] = {"all passes": (), **{f"without {n}": (n,) for n in names}, "none": names}
    if loaded.manifest["recipe"]["activations"]["granularity"] == "token":
        # What the general lowering cannot read is the scale of one token alone.
        choices["scale arrays on floats, without KeepReadToken"] = ("LowerToQdq", "KeepReadToken")
        choices["none"] = (*names, "LowerToQdq")
    c, h, w = model["input_size"]
    layers = loaded.model.layers
    return {
        title: ir.serde.serialize_model(
            build_quantized(loaded.model.model, layers, (c, h, w), Without(left_out=choice), None, description)
        ).SerializeToString()
        for title, choice in choices.items()
    }


def measure(models: dict[str, bytes], shape: tuple[int, ...], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of processor time of each model in each round."""
    sessions = {title: open_session(model, threads=1) for title, model in models.items()}
    feed = {"image": np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}
    times: dict[str, list[float]] = {title: [] for title in models}
    for turn in range(WARM_UP + rounds):
        for title, session in sessions.items():
            began = time.process_time()
            session.run(None, feed)
            if turn >= WARM_UP:
                times[title].append(1e3 * (time.process_time() - began))
    return times


def main() -> None:
    """Measure and print a markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    models = graphs(arguments.run)
    size = load_run(arguments.run).manifest["model"]["input_size"]
    rows: dict[str, list[str]] = {title: [title] for title in models}
    for batch in arguments.batch_size:
        times = measure(models, (batch, *size), arguments.rounds)
        whole = times["all passes"]
        for title, own in times.items():
            ratios = [mine / reference for mine, reference in zip(own, whole, strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            rows[title] += [f"{statistics.median(own):.2f}", f"{middle:.2f} ({low:.2f} to {high:.2f})"]
    headers = ["graph", *(text for b in arguments.batch_size for text in (f"ms, batch {b}", "times the whole"))]
    sys.stdout.write(tabulate(rows.values(), headers, tablefmt="github", disable_numparse=True) + "\n")


if __name__ == "__main__":
    main()
