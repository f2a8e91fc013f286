"""Accuracy of whole runs on real images: quantize, export, evaluate; one JSON line a run, then a markdown table.

    python benchmarks/accuracy.py run PLAN.toml --data DIR --out RESULTS.jsonl --runs DIR [--jobs 2]
    python benchmarks/accuracy.py table RESULTS.jsonl

DIR holds ``calib/``, ``val/`` and ``weights/<model>.safetensors``. A plan is a list of ``[[run]]`` tables with
``model``, ``recipe`` and further ``fimaq-tool quantize`` options; a list as a value makes one run for each of its
entries. Every job has one thread, so that two jobs on two cores do not wait for each other. Run folders and ONNX files
stay in ``--runs``; runs that RESULTS.jsonl holds already are left out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

from tabulate import tabulate

TOOL = Path(sys.executable).with_name("fimaq-tool")


def configurations(plan: Path) -> list[dict[str, Any]]:
    """One flat table a run."""
    found = []
    for table in tomllib.loads(plan.read_text())["run"]:
        lists = [value if isinstance(value, list) else [value] for value in table.values()]
        found += [dict(zip(table, values, strict=True)) for values in itertools.product(*lists)]
    return found


def one_run(config: dict[str, Any], data: Path, runs: Path) -> dict[str, Any]:
    """Quantize, export and evaluate one configuration."""
    options = {key: value for key, value in config.items() if key != "model"}
    arguments = [config["model"], *(part for key, value in options.items() for part in (f"--{key}", str(value)))]
    run = runs / "-".join(str(value) for value in config.values())
    onnx = run.with_name(run.name + ".onnx")
    weights = data / "weights" / f"{config['model']}.safetensors"
    quantized = tool("quantize", *arguments, "--weights", weights, "--data", data / "calib", "-o", run, "--force")
    exported = tool("export", run, "-o", onnx, "--force")
    measured = tool("evaluate", onnx, "--data", data / "val")
    return {
        "command": f"fimaq-tool quantize {' '.join(arguments)}",
        "config": config,
        "commit": commit(),
        "run": run.name,
        "wbits": quantized["wbits"],
        "abits": quantized["abits"],
        "fisher": quantized["fisher"],
        "seed": quantized["seed"],
        "seconds": quantized["seconds"],
        "sha256": quantized["sha256"],
        "bytes": exported["bytes"],
        "layers": exported["layers"],
        "parity": exported["parity"],
        "n": measured["n"],
        "top1": measured["top1"],
        "top1_interval": measured["top1_interval"],
    }


def commit() -> str:
    """The commit of the code that made a row."""
    here = Path(__file__).parent
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=here)
    return done.stdout.strip()


def tool(*arguments: object) -> dict[str, Any]:
    """Run fimaq-tool with one thread and return its JSON object."""
    one_thread = {"OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [str(TOOL), *map(str, arguments), "--json"], capture_output=True, text=True, env=os.environ | one_thread
    )
    if done.returncode:
        raise RuntimeError(f"{arguments}: exit {done.returncode}\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def run(plan: Path, data: Path, out: Path, runs: Path, jobs: int) -> None:
    """Carry out what is missing in ``out``, ``jobs`` at a time."""
    done = [json.loads(line)["config"] for line in out.read_text().splitlines()] if out.exists() else []
    lock = Lock()

    def work(config: dict[str, Any]) -> None:
        row = one_run(config, data, runs)
        with lock, out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        sys.stderr.write(f"{row['command']}: {row['top1']:.2f}\n")

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(work, [config for config in configurations(plan) if config not in done]))


def table(out: Path) -> str:
    """Markdown, a line a run."""
    rows = []
    for line in out.read_text().splitlines():
        row = json.loads(line)
        rtn = row["config"].get("iters") == 0
        rows.append(
            [
                row["config"]["model"],
                f"W{row['wbits']}/A{row['abits']}",
                "round to nearest" if rtn else row["fisher"],
                row["seed"],
                f"{row['top1']:.2f} ({row['top1_interval'][0]:.1f} to {row['top1_interval'][1]:.1f})",
                "{top1_agreement:.1f} / {noise_floor:.1f}".format(**row["parity"]),
                round(row["seconds"]["total"]),
                f"{row['bytes'] / 1e6:.2f}",
                f"`{row['command']}`",
            ]
        )
    rows.sort(key=lambda row: (row[0], [-int(part[1:]) for part in row[1].split("/")], row[2], row[3]))
    headers = ["model", "bits", "loss", "seed", "top-1 (95 %)", "agreement / floor", "seconds", "MB", "command"]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def main() -> None:
    """Parse and dispatch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("plan", type=Path)
    runs.add_argument("--data", type=Path, required=True)
    runs.add_argument("--out", type=Path, required=True)
    runs.add_argument("--runs", type=Path, required=True)
    runs.add_argument("--jobs", type=int, default=1)
    tables = commands.add_parser("table")
    tables.add_argument("results", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "run":
        arguments.runs.mkdir(parents=True, exist_ok=True)
        run(arguments.plan, arguments.data, arguments.out, arguments.runs, arguments.jobs)
    else:
        sys.stdout.write(table(arguments.results) + "\n")


if __name__ == "__main__":
    main()
