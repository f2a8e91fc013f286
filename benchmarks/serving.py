"""The server against a plain ``session.run`` loop: throughput, its own overhead, and what overload leaves of it.

    python benchmarks/serving.py MODEL.onnx [--seconds 5] [--rounds 3] [--others PYTHON ...] [--out RESULTS.jsonl]

The loop and the servers have core 0, one after the other within a round; the clients have core 1. Clients keep their
connection, send one binary tensor of noise, floats or pixels as the file takes them, and, when they have the answer,
the next. ``null`` is a model that computes next to nothing on such images: what is left is the server's own work.
``--others`` are the Pythons of environments with ``benchmarks/others/requirements*.txt`` (they cannot share one), whose
servers take part then.

Overload is three things. Four times as many clients as the queue holds, each of whom waits for its answer or, refused,
for as long as it is told; and requests that come by the clock, four times as many as the server answered before, on top
of which those that were refused come again, once on connections that are kept, once each on a new one. Linux, and two
cores that nothing else uses.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from load import (
    Images,
    answers,
    closed_loop,
    json_request,
    on_core,
    open_loop,
    patient_clients,
    tensor_request,
    upload_request,
)
from onnx import TensorProto, helper, numpy_helper
from tabulate import tabulate

from fimaq.toolchain.environment import environment
from fimaq.toolchain.evaluate import OrtPredictor
from fimaq.toolchain.evaluate.ort import CLASSES, PREPROCESSING
from fimaq.toolchain.runtime import open_session

SERVER_CORE, CLIENT_CORE = 0, 1
CLIENTS = (1, 8, 32)
OVERLOAD = 4
QUEUE = 64
"""The server's own default."""

KINDS = PATIENT, KEPT, NEW = "patient clients", "by the clock, kept connections", "by the clock, new connections"
LONGEST_START = 60.0
OTHERS = Path(__file__).parent / "others"
OTHERS_REQUESTS = {"kserve": tensor_request, "litserve": upload_request, "mlserver": json_request}
"""The servers of others, each a script in that folder, and the quickest kind of request it takes over HTTP."""


@dataclass(frozen=True)
class Contender:
    """A server: how it is started on a model and a port, and what its requests are."""

    name: str
    command: Callable[[Path, int], list[str]]
    request: Callable[[Images], bytes]


def ours(model: Path, port: int) -> list[str]:
    """``fimaq-tool serve``."""
    options = ["--name", "model", "--port", str(port), "--threads", "1", "--log-level", "warning"]
    return [sys.executable, "-m", "fimaq.cli.main", "serve", str(model), *options]


def contenders(pythons: list[str]) -> list[Contender]:
    """Ours, and the others that there is an environment for."""
    found = [Contender("fimaq-tool", ours, tensor_request)]
    for python in pythons:
        for name, request in OTHERS_REQUESTS.items():
            absent = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is None)"
            if subprocess.run([python, "-c", absent]).returncode == 0:
                start = [python, str(OTHERS / f"{name}_server.py")]
                found.append(Contender(name, lambda model, port, start=start: [*start, str(model), str(port)], request))
    return found


@contextlib.contextmanager
def served(contender: Contender, model: Path) -> Iterator[tuple[int, int, float]]:
    """A server on core 0: its port, its process id, and the seconds until it answered a request."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["taskset", "-c", str(SERVER_CORE), *contender.command(model, port)]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    request = contender.request(noise(model))
    try:
        while not answers(port, request):
            if process.poll() is not None or time.perf_counter() - began > LONGEST_START:
                raise SystemExit(f"{contender.name} does not answer: {' '.join(command)}")
            time.sleep(0.02)
        yield port, process.pid, time.perf_counter() - began
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def resident(pid: int) -> float:
    """Megabytes of memory in use."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def noise(model: Path) -> Images:
    """A batch of one image in the model's form."""
    image = OrtPredictor(model, threads=1).image
    random, shape = np.random.default_rng(0), (1, *image.shape)
    if image.kind == "uint8":
        return random.integers(0, 256, shape, dtype=np.uint8)
    return random.standard_normal(shape, dtype=np.float32)


def loop_rate(model: Path, seconds: float) -> dict[str, float]:
    """Images a second of ``session.run`` at batch 1."""
    session = open_session(model, threads=1, spin=False)
    feed = {session.get_inputs()[0].name: noise(model)}
    session.run(None, feed)
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        session.run(None, feed)
        done += 1
    return {"rate": done / (time.perf_counter() - began)}


def null_model(like: Path, folder: Path) -> Path:
    """A model with the same input and outputs that hands out the first numbers of the image."""
    predictor = OrtPredictor(like, threads=1)
    classes = len(predictor.classes["names"])
    kind = helper.np_dtype_to_tensor_dtype(predictor.image.dtype)
    constants = {"flat": [0, -1], "begin": [0], "end": [classes], "axis": [1]}
    graph = helper.make_graph(
        [
            helper.make_node("Reshape", ["image", "flat"], ["numbers"]),
            helper.make_node("Slice", ["numbers", "begin", "end", "axis"], ["first"]),
            helper.make_node("Cast", ["first"], ["logits"], to=TensorProto.FLOAT),
        ],
        "null",
        [helper.make_tensor_value_info("image", kind, ["batch", *predictor.image.shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {key: predictor.metadata[key] for key in (PREPROCESSING, CLASSES)})
    path = folder / "null.onnx"
    onnx.save(model, path)
    return path


def throughput(model: Path, found: list[Contender], seconds: float, rounds: int) -> list[dict[str, Any]]:
    """For every server and number of clients the medians over rounds, and of the ratio to that round's loop."""
    measured: dict[tuple[str, int], list[dict[str, float]]] = {}
    images = noise(model)
    for _ in range(rounds):
        for contender in found:
            for clients in CLIENTS:
                loop = on_core(SERVER_CORE, loop_rate, model, seconds)["rate"]
                with served(contender, model) as (port, _, _):
                    arguments = (port, contender.request(images), clients)
                    on_core(CLIENT_CORE, closed_loop, *arguments, min(1.0, seconds))
                    rates = on_core(CLIENT_CORE, closed_loop, *arguments, seconds)
                row = {"loop": loop, **rates, "ratio": rates["rate"] / loop}
                measured.setdefault((contender.name, clients), []).append(row)
    return [
        {
            "model": model.stem,
            "server": name,
            "clients": clients,
            **{key: statistics.median(row[key] for row in rows) for key in rows[0]},
            "ratios": [row["ratio"] for row in rows],
        }
        for (name, clients), rows in measured.items()
    ]


def overload(model: Path, seconds: float, kind: str) -> dict[str, Any]:
    """Goodput at four times the capacity; ``kind`` is one of KINDS.

    ``share`` is what is left of the capacity; ``mb`` memory before, and its maxima in the second and the last third.
    """
    contender = contenders([])[0]
    request = contender.request(noise(model))
    samples: list[tuple[float, float]] = []
    over = threading.Event()
    with served(contender, model) as (port, pid, started):
        capacity = on_core(CLIENT_CORE, closed_loop, port, request, 8, seconds / 3)["rate"]
        before, began = resident(pid), time.perf_counter()

        def watch() -> None:
            while not over.wait(0.1):
                samples.append(((time.perf_counter() - began) / seconds, resident(pid)))

        watching = threading.Thread(target=watch)
        watching.start()
        if kind == PATIENT:
            found = on_core(CLIENT_CORE, patient_clients, port, request, OVERLOAD * QUEUE, seconds)
        else:
            found = on_core(CLIENT_CORE, open_loop, port, request, OVERLOAD * capacity, seconds, kind == KEPT)
        over.set()
        watching.join()
    thirds = [max(mb for at, mb in samples if low <= at < low + 1 / 3) for low in (1 / 3, 2 / 3)]
    return {
        "load": kind,
        "start_seconds": started,
        "capacity": capacity,
        **found,
        "share": found["goodput"] / capacity,
        "mb_before": before,
        "mb_second_third": thirds[0],
        "mb_last_third": thirds[1],
    }


def main() -> None:
    """Measure and print markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--overload-seconds", type=float, default=30.0)
    parser.add_argument(
        "--others", metavar="PYTHON", nargs="+", default=[], help="of environments that have servers of others"
    )
    parser.add_argument("--out", type=Path, help="append one JSON line with everything")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = throughput(arguments.model, contenders(arguments.others), arguments.seconds, arguments.rounds)
        null = null_model(arguments.model, Path(folder))
        rows += throughput(null, contenders([]), arguments.seconds, arguments.rounds)
    overloads = [overload(arguments.model, arguments.overload_seconds, kind) for kind in KINDS]
    keys = ("model", "server", "clients", "loop", "rate", "ratio", "p50_ms", "p99_ms")
    print(tabulate([[row[key] for key in keys] for row in rows], keys, tablefmt="github", floatfmt=".2f"), "\n")
    print(tabulate(overloads, "keys", tablefmt="github", floatfmt=".2f"))
    if arguments.out is not None:
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"environment": environment(), "throughput": rows, "overload": overloads}) + "\n")


if __name__ == "__main__":
    main()
