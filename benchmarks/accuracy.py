"""Accuracy of whole runs on real images: quantize, export, evaluate; one JSON line a run, then a markdown table.

    python benchmarks/accuracy.py run PLAN.toml FOLDER --data DIR --out RESULTS.jsonl
    python benchmarks/accuracy.py table RESULTS.jsonl

DIR holds ``calib/``, ``val/`` and ``weights/<model>.safetensors``. ``run`` is ``fimaq-tool sweep`` of the plan in one
process, in which runs that calibrate alike (the same model, images, bits and seed) share one calibration; their content
hashes are those of runs made one by one. Runs that RESULTS.jsonl holds already are left out; type the same command
again to go on.
For two cores start two, with one thread, a plan and a FOLDER each (``OMP_NUM_THREADS=1``).
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from tabulate import tabulate

from fimaq.toolchain import quantize as quantizing
from fimaq.toolchain.calibrate import calibrate, restore_grids
from fimaq.toolchain.distributed.ranks import Ranks
from fimaq.toolchain.families import QuantModel
from fimaq.toolchain.progress import Progress
from fimaq.toolchain.recipe import Recipe
from fimaq.toolchain.sweep.plan import load_plan
from fimaq.toolchain.sweep.run import sweep

COLUMNS = (
    "command",
    "config",
    "run",
    "wbits",
    "abits",
    "fisher",
    "seed",
    "seconds",
    "sha256",
    "bytes",
    "layers",
    "parity",
    "n",
    "top1",
    "top1_interval",
)


class SharedCalibrations:
    """Stands in for ``calibrate``: the grids it found are kept, and put into the next model that would get them."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[str, np.ndarray]] = {}

    def __call__(
        self, model: QuantModel, images: torch.Tensor, recipe: Recipe, progress: Progress, ranks: Ranks
    ) -> dict[str, np.ndarray]:
        """As ``calibrate``."""
        decides = (recipe.calibrate, recipe.weights, recipe.activations, recipe.first_conv_input_bits, recipe.seed)
        weights = [parameter.detach().numpy() for parameter in model.parameters()]
        sha256 = hashlib.sha256(repr(decides).encode())
        for array in (images.numpy(), *weights):
            sha256.update(array.tobytes())
        key = sha256.hexdigest()
        if key in self.kept:
            restore_grids(model, self.kept[key], recipe)
        else:
            self.kept[key] = calibrate(model, images, recipe, progress, ranks)
        return self.kept[key]


def run(plan: Path, folder: Path, data: Path, out: Path) -> None:
    """Carry out what is missing in ``out``; it gets a line a run that has not failed."""
    done = [json.loads(line)["config"] for line in out.read_text().splitlines()] if out.exists() else []
    loaded = load_plan(plan, calib=str(data / "calib"), val=str(data / "val"), weights=data / "weights")
    missing = tuple(one for one in loaded.configurations if dict(one.table) not in done)
    with mock.patch.object(quantizing, "calibrate", SharedCalibrations()):
        found = sweep(dataclasses.replace(loaded, configurations=missing), folder)
    with out.open("a") as file:
        for row in found["runs"]:
            if "error" in row:
                sys.stderr.write(f"{row['command']}: {row['error']['message']}\n")
            else:
                file.write(json.dumps({"commit": commit()} | {key: row[key] for key in COLUMNS}) + "\n")


def commit() -> str:
    """The commit of the code that made a row."""
    here = Path(__file__).parent
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=here)
    return done.stdout.strip()


def table(out: Path) -> str:
    """Markdown, a line a run."""
    rows = []
    for line in out.read_text().splitlines():
        row = json.loads(line)
        rtn = row["config"].get("iters") == 0
        rows.append(
            [
                row["config"]["model"],
                row["config"]["recipe"],
                "round to nearest" if rtn else row["fisher"],
                row["seed"],
                f"{row['top1']:.2f} ({row['top1_interval'][0]:.1f} to {row['top1_interval'][1]:.1f})",
                "{top1_agreement:.1f} / {noise_floor:.1f}".format(**row["parity"]),
                round(row["seconds"]["total"]),
                f"{row['bytes'] / 1e6:.2f}",
                f"`{row['command'].removeprefix('fimaq-tool quantize ')}`",
            ]
        )
    rows.sort(key=lambda row: (row[0], -int(row[1].rpartition("a")[2]), row[1], row[2], row[3]))
    headers = ["model", "recipe", "loss", "seed", "top-1 (95 %)", "agreement / floor", "seconds", "MB", "command"]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def main() -> None:
    """Parse and dispatch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("plan", type=Path)
    runs.add_argument("folder", type=Path)
    runs.add_argument("--data", type=Path, required=True)
    runs.add_argument("--out", type=Path, required=True)
    tables = commands.add_parser("table")
    tables.add_argument("results", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "run":
        run(arguments.plan, arguments.folder, arguments.data, arguments.out)
    else:
        sys.stdout.write(table(arguments.results) + "\n")


if __name__ == "__main__":
    main()
