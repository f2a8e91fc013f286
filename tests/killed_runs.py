"""Quantize in child processes that are killed at random moments, and resume until the run is there.

    python tests/killed_runs.py DATA FOLDER TRIALS KILLS SEED

KILLS is the most a trial is killed; it ends when the run is there. Prints a JSON list: for each trial the content hash,
the log without what was measured, the kills, and what was left. The process imports everything once and forks; it
computes nothing itself, so a child starts without a thread pool.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from fimaq.toolchain.errors import InputError
from fimaq.toolchain.quantize import QuantizeRequest, quantize
from fimaq.toolchain.recipe import Recipe

RECIPE = {
    "name": "killed",
    "weights": {"bits": 4},
    "activations": {"bits": 4},
    "calibrate": {"samples": 4, "candidates": 8, "rounds": 1},
    "fisher": {"samples": 4, "rank": 1},
    "reconstruct": {"samples": 8, "iterations": 2, "batch_size": 4},
}

WRITES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}
"""Audit events (Python's table of them) of a run's own files, each before it happens."""


def run(request: QuantizeRequest, events: int | None, torn: int | None, counter: Path) -> None:
    """Quantize in this process, dying before file event number ``events``, or half-way through sync number ``torn``."""
    seen = {"events": 0, "syncs": 0}
    folder = str(request.out.parent)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in WRITES or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        if not os.fsdecode(arguments[0]).startswith(folder):
            return
        seen["events"] += 1
        if seen["events"] == events:
            os.kill(os.getpid(), signal.SIGKILL)

    original = os.fsync

    def fsync(descriptor: int) -> None:
        seen["syncs"] += 1
        if seen["syncs"] == torn:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        original(descriptor)

    sys.addaudithook(audit)
    os.fsync = fsync
    torch.set_num_threads(1)
    quantize(request)
    seen["finished"] = 1
    counter.write_text(json.dumps(seen))


def child(request: QuantizeRequest, wait: float | None, events: int | None, torn: int | None, counter: Path) -> int:
    """Run in a fork, killed after ``wait`` seconds unless None; returns the wait status."""
    process = os.fork()
    if process == 0:
        status = 70
        try:
            run(request, events, torn, counter)
            status = 0
        except InputError as error:
            sys.stderr.write(f"{error}\n")
            status = error.exit_code
        finally:
            os._exit(status)
    if wait is not None:
        time.sleep(wait)
        os.kill(process, signal.SIGKILL)  # a zombie, if it was quicker
    return os.waitpid(process, 0)[1]


def begun(out: Path) -> bool:
    """Whether there is something to resume."""
    return (out.with_name(f".{out.name}.unfinished") / "identity.json").is_file()


def outcome(out: Path, kills: list[str]) -> dict[str, Any]:
    """What is compared."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    measured = ("seconds", "seconds_by_part", "peak_bytes")
    manifest = json.loads((out / "manifest.json").read_text())
    return {
        "sha256": manifest["sha256"],
        "log": [
            {key: value for key, value in line.items() if key not in measured}
            for line in lines
            if line["event"] != "memory"  # where the caches of the last attempt were
        ],
        "seconds": manifest["seconds"],
        "block_seconds": sum(row["seconds"] for row in manifest["blocks"]),
        "kills": kills,
        "left": sorted(path.name for path in out.parent.iterdir()),
    }


def main() -> None:
    """The whole run first, then the killed ones."""
    data, folder, (trials, most, seed) = sys.argv[1], Path(sys.argv[2]), map(int, sys.argv[3:])
    draw = random.Random(seed)
    counter = folder / "counted.json"

    def request(out: Path, resume: bool) -> QuantizeRequest:
        cache = "disk" if resume else "auto"  # where caches lie may change on the way
        return QuantizeRequest(
            "demo_vit", data, out, Recipe.from_dict(RECIPE), device="cpu", resume=resume, cache=cache
        )

    began = time.monotonic()
    out = folder / "whole" / "run"
    if status := child(request(out, False), None, None, None, counter):
        raise SystemExit(f"the whole run ended with {status}")
    took = time.monotonic() - began
    counted = json.loads(counter.read_text())
    results = [outcome(out, [])]
    for trial in range(trials):
        out = folder / f"trial{trial}" / "run"
        kills: list[str] = []
        while True:
            counter.unlink(missing_ok=True)
            wait = events = torn = None
            match draw.choice(["time", "event", "sync"]) if len(kills) < most else "none":
                case "time":
                    wait = draw.uniform(0.0, took)
                case "event":
                    events = draw.randint(1, counted["events"])
                case "sync":
                    torn = draw.randint(1, counted["syncs"])
            resume = begun(out)
            status = child(request(out, resume), wait, events, torn, counter)
            if os.WIFSIGNALED(status):
                kills.append(f"wait={wait} event={events} sync={torn}")
            elif status:
                raise SystemExit(f"trial {trial} after {kills}: status {status}, resume {resume}")
            if (out / "manifest.json").is_file() and not begun(out):
                break
        if os.WIFSIGNALED(status):  # killed while it cleared up: the next start does that, and finds nothing to do
            status = child(request(out, True), None, None, None, counter)
            if os.waitstatus_to_exitcode(status) != InputError.exit_code:
                raise SystemExit(f"trial {trial} after {kills}: a finished run was resumed with status {status}")
        results.append(outcome(out, kills))
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
