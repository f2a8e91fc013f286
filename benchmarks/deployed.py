"""Everything side by side in one run: ONNX Runtime's own 8 bits, this tool's files, and OpenVINO.

    python benchmarks/deployed.py build DIR --data CALIB --weights FILE [--model deit_tiny_patch16_224]
    python benchmarks/deployed.py measure DIR --threads 1 --batches 1 8 --rounds 20
    python benchmarks/deployed.py agree DIR --data VAL [--images N]
    python benchmarks/deployed.py table
    python benchmarks/deployed.py plot
    python benchmarks/deployed.py profile DIR [--files w8a8 w4a4] [--batches 8]

``build`` makes the files, as long as it takes and on a machine as busy as it may be; begun again, it goes on with what
is missing. ``measure`` wants a quiet machine. All contestants take turns in every round, warmed up; a ratio is the
median of the ratios within rounds. ``--clock processor`` counts the process's processor time instead of the wall
clock's, which other programs disturb less; with one thread on a quiet machine the two are the same. ``agree`` says what
the same files predict. Both add lines to ``--results``, of which ``table`` and ``plot`` take the newest. ``--only``
leaves out all files but some and float.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from contestants.agreement import agreement
from contestants.figures import plot, table
from contestants.lineup import CONTESTANTS, FLOAT, Contestant
from contestants.profiling import by_operator
from contestants.runtimes import opened
from tabulate import tabulate

from fimaq.toolchain.bench import speed, take_turns
from fimaq.toolchain.environment import cpu, versions
from fimaq.toolchain.errors import FimaqError
from fimaq.toolchain.evaluate import OrtPredictor

ROOT = Path(__file__).resolve().parent
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def images(folder: Path, batch: int) -> np.ndarray:
    """Random normalised images of the models' size."""
    shape = OrtPredictor(folder / f"{FLOAT.file}.onnx", threads=1).image.shape
    return np.random.default_rng(0).standard_normal((batch, *shape), dtype=np.float32)


def measure(given: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each contestant and batch size."""
    everyone = opened(chosen(given.only), given.folder, given.threads)
    common = {
        "kind": "speed",
        "measurement": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "clock": given.clock,
        "threads": given.threads,
        "rounds": given.rounds,
        "cpu": cpu(),
        "versions": {**versions(), "openvino": version("openvino")},
    }
    rows = []
    for batch in given.batches:
        fed = images(given.folder, batch)
        calls = [partial(one.predict, fed) for one in everyone]
        times = take_turns(calls, given.rounds, CLOCKS[given.clock])
        rows += [
            common | one.to_json() | {"batch_size": batch} | speed(own, times[0], batch)
            for one, own in zip(everyone, times, strict=True)
        ]
    return rows


def agree(given: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each contestant."""
    everyone = opened(chosen(given.only), given.folder, given.threads)
    return [{"kind": "agreement"} | row for row in agreement(everyone, given.data, given.images)]


def profile(given: argparse.Namespace) -> str:
    """Markdown: milliseconds and percent of each file's time by operator, without operators under 1 % everywhere."""
    paths = [given.folder / f"{name}.onnx" for name in given.files]
    titles, columns = [], []
    for batch in given.batches:
        spent = by_operator(paths, images(given.folder, batch), given.rounds)
        titles += [f"{path.stem}, batch {batch}: {own.total():.1f} ms" for path, own in zip(paths, spent, strict=True)]
        columns += spent
    most = {name: max(own[name] / own.total() for own in columns) for own in columns for name in own}
    body = [
        [name, *(f"{own[name]:.1f} ({100 * own[name] / own.total():.0f} %)" for own in columns)]
        for name in sorted(most, key=lambda name: -most[name])
        if most[name] >= 0.01
    ]
    return tabulate(body, ["operator", *titles], tablefmt="github", disable_numparse=True)


def chosen(only: list[str] | None) -> list[Contestant]:
    """The float file in ONNX Runtime and the contestants of some files; all of them for None."""
    return [one for one in CONTESTANTS if only is None or one is FLOAT or one.file in only]


def add(results: Path, rows: list[dict[str, Any]]) -> None:
    """Append, all lines at once, so that a results file never holds half a measurement."""
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, *, folder: bool = True, results: bool = True) -> argparse.ArgumentParser:
        own = commands.add_parser(name)
        if folder:
            own.add_argument("folder", type=Path, metavar="DIR")
        if results:
            own.add_argument("--results", type=Path, default=ROOT / "results" / "deployed.jsonl")
        return own

    names = sorted({one.file for one in CONTESTANTS})
    own = command("build", results=False)
    own.add_argument("--model", default="deit_tiny_patch16_224")
    own.add_argument("--data", type=Path, required=True, help="calibration images")
    own.add_argument("--weights", type=Path, help="a state dict; else the hub's")
    own.add_argument("--samples", type=int, default=128, help="calibration images to take")
    own.add_argument("--only", nargs="+", choices=names)
    own = command("measure")
    own.add_argument("--threads", type=int, default=1)
    own.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    own.add_argument("--rounds", type=int, default=20)
    own.add_argument("--clock", choices=CLOCKS, default="wall")
    own.add_argument("--only", nargs="+", choices=names)
    own = command("agree")
    own.add_argument("--data", type=Path, required=True, help="validation images")
    own.add_argument("--images", type=int, help="as many of them; else all")
    own.add_argument("--threads", type=int, default=1)
    own.add_argument("--only", nargs="+", choices=names)
    command("table", folder=False)
    own = command("plot", folder=False)
    own.add_argument("--out", type=Path, default=ROOT.parent / "docs" / "deployed.svg")
    own = command("profile", results=False)
    own.add_argument("--files", nargs="+", default=["w8a8", "w4a4", "paper-w4a4"])
    own.add_argument("--batches", type=int, nargs="+", default=[8])
    own.add_argument("--rounds", type=int, default=10)
    return parser.parse_args()


def main() -> None:
    """Do what was asked."""
    given = read_arguments()
    if given.command == "build":
        from contestants.files import Source, build  # loads torch, which a measurement does without

        files = dict.fromkeys(one.file for one in chosen(given.only))
        build(given.folder, Source(given.model, given.data, given.weights, given.samples), files)
    elif given.command == "measure":
        add(given.results, measure(given))
    elif given.command == "agree":
        add(given.results, agree(given))
    elif given.command == "table":
        print(table(given.results))
    elif given.command == "plot":
        given.out.write_text(plot(given.results))
    else:
        print(profile(given))


if __name__ == "__main__":
    try:
        main()
    except FimaqError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
