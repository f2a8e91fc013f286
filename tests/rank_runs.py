"""Jobs of several processes, forked from one that has imported everything and computed nothing.

    python tests/rank_runs.py FOLDER

Prints a JSON object: for each job the exit code and the words of each process. Runs and results stay in FOLDER.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fimaq.toolchain import quantize as quantizing
from fimaq.toolchain.data import open_dataset
from fimaq.toolchain.data.demo_set import materialise
from fimaq.toolchain.distributed.launch import read_launch
from fimaq.toolchain.distributed.ranks import joined
from fimaq.toolchain.errors import FimaqError
from fimaq.toolchain.evaluate import OrtPredictor, evaluate
from fimaq.toolchain.evaluate.torch_backend import TorchPredictor
from fimaq.toolchain.export.run import export_run
from fimaq.toolchain.progress import NullProgress
from fimaq.toolchain.quantize import QuantizeRequest, quantize
from fimaq.toolchain.recipe import Recipe
from fimaq.toolchain.reconstruct import run as running

RECIPE = {
    "name": "ranks",
    "weights": {"bits": 4},
    "activations": {"bits": 4},
    "calibrate": {"samples": 8, "candidates": 8, "rounds": 1},
    "fisher": {"samples": 7, "rank": 2},
    "reconstruct": {"samples": 17, "iterations": 6, "batch_size": 7, "alpha_lr": 0.05},
}
"""No number of images is a multiple of 2 or 3; six steps at this rate change codes."""

SECONDS = 60
"""No job here may take longer; one that hangs is killed, which its exit codes show."""

Code = int | str


def job(size: int, action: Callable[[int], None], words: Path) -> dict[str, Any]:
    """Run ``action(rank)`` in each of ``size`` processes; their exit codes (or signals), words and seconds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began, processes = time.monotonic(), []
    for rank in range(size):
        process = os.fork()
        if process == 0:
            place = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
            os.environ |= {name: str(value) for name, value in place.items()} if size > 1 else {}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            _child(action, rank, words.with_suffix(f".{rank}"))
        processes.append(process)
    codes: dict[int, Code] = {}
    while len(codes) < size:
        process, status = os.waitpid(-1, os.WNOHANG)
        if process:
            code = os.waitstatus_to_exitcode(status)
            codes[process] = signal.Signals(-code).name if code < 0 else code
        elif time.monotonic() - began > SECONDS:
            for late in set(processes) - set(codes):
                os.kill(late, signal.SIGKILL)
        time.sleep(0.01)
    told = [words.with_suffix(f".{rank}").read_text() for rank in range(size)]
    return {"codes": [codes[p] for p in processes], "words": told, "seconds": time.monotonic() - began}


def _child(action: Callable[[int], None], rank: int, words: Path) -> None:
    status = 70
    try:
        torch.set_num_threads(1)
        with words.open("w") as said:
            os.dup2(said.fileno(), 2)
            try:
                action(rank)
                status = 0
            except FimaqError as error:
                sys.stderr.write(f"{type(error).__name__}: {error}\n")
                sys.stderr.flush()
                status = error.exit_code
    finally:
        os._exit(status)


class Dying:
    """Progress that kills the process at the third step of a block."""

    def __init__(self, block: str) -> None:
        self.block, self.steps = block, 0

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Dying]:
        """Itself."""
        yield self

    def advance(self, n: int = 1, **info: object) -> None:
        """Count, and die."""
        self.steps += info.get("block") == self.block
        if self.steps == 3:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """All jobs, in order."""
    folder = Path(sys.argv[1])
    data = materialise(folder / "data")
    found: dict[str, Any] = {}

    def request(name: str, model: str = "demo_vit", **how: Any) -> QuantizeRequest:
        recipe = Recipe.from_dict(how.pop("recipe", RECIPE))
        return QuantizeRequest(
            model, how.pop("data", str(data.train)), folder / name / "run", recipe, device="cpu", **how
        )

    def run(title: str, size: int, action: Callable[[int], object]) -> None:
        found[title] = job(size, lambda rank: (action(rank), None)[1], folder / title)

    def write_result(rank: int, name: str, sha256: str) -> None:
        (folder / f"{name}.{rank}.sha256").write_text(sha256)

    for size in (1, 2, 3):
        name = f"vit{size}"
        run(name, size, lambda rank, name=name: write_result(rank, name, quantize(request(name))["sha256"]))
    still = RECIPE | {"reconstruct": {"iterations": 0, "samples": 17}}
    run("nearest", 1, lambda rank: quantize(request("nearest", recipe=still)))
    two = RECIPE | {"reconstruct": RECIPE["reconstruct"] | {"iterations": 2}}
    for size in (1, 2):
        name = f"swin{size}"
        run(name, size, lambda rank, name=name: quantize(request(name, "demo_swin", recipe=two, cache="disk")))

    run("lost", 2, lambda rank: quantize(request("lost"), Dying("blocks.1") if rank == 1 else NullProgress()))
    found["lost"]["left"] = sorted(path.name for path in (folder / "lost").rglob("*"))
    shutil.copytree(folder / "lost", folder / "lost3")
    run("resumed", 2, lambda rank: quantize(request("lost", resume=True)))
    run("resumed3", 3, lambda rank: quantize(request("lost3", resume=True)))

    bad = folder / "bad" / "digits"
    bad.mkdir(parents=True)
    for number, path in enumerate(sorted(data.train.rglob("*.png"))[:17]):
        shutil.copy(path, bad / f"{number:02}.png")
    for path in bad.glob("*.png"):
        path.write_bytes(path.read_bytes()[:40])
        break
    run("bad image", 2, lambda rank: quantize(request("badly", data=str(bad.parent))))
    found["bad image"]["left"] = [path.name for path in (folder / "badly").glob("*")]
    tiny = RECIPE | {"reconstruct": RECIPE["reconstruct"] | {"batch_size": 1}}
    run("idle", 2, lambda rank: quantize(request("idle", recipe=tiny)))
    run("other seed", 2, lambda rank: quantize(request("other", recipe=RECIPE | {"seed": rank})))

    def differing(rank: int) -> None:
        """The second process comes to another scale in one block."""
        original = running.reconstruct_block

        def drifted(name: str, module: Any, layers: Any, *rest: Any) -> Any:
            losses = original(name, module, layers, *rest)
            if (name, rank) == ("blocks.0", 1):
                next(iter(layers.values())).input_quantizer.scale.data.mul_(1 + 1e-6)
            return losses

        running.reconstruct_block = drifted
        quantize(request("differing", recipe=two))

    def differing_at_the_end(rank: int) -> None:
        """And here only in what it would write."""
        original = quantizing.run_tensors
        quantizing.run_tensors = lambda model: original(model) | {"model.norm.bias": np.full(3, rank)}
        quantize(request("at the end", recipe=still))

    run("differing", 2, differing)
    run("differing at the end", 2, differing_at_the_end)

    broken = sorted(data.val.rglob("*.png"))[3]
    broken.write_bytes(b"")

    def evaluated(rank: int, name: str, kind: str) -> None:
        predictor = (
            TorchPredictor(folder / "vit1" / "run") if kind == "torch" else OrtPredictor(folder / "vit.onnx", threads=1)
        )
        images = open_dataset(str(data.val), classes=predictor.classes)
        how: dict[str, Any] = {"batch_size": 16, "workers": 1, "limit": 205, "on_corrupt": "skip"}
        with joined(read_launch(), torch.device("cpu")) as ranks:
            result = evaluate(predictor, images, keep_logits=True, ranks=ranks if ranks.size > 1 else None, **how)
        result.save(folder / f"{name}.{rank}.json")

    run("export", 1, lambda rank: export_run(folder / "vit1" / "run", folder / "vit.onnx", target="portable", images=8))
    for kind, size in (("torch", 1), ("torch", 2), ("ort", 1), ("ort", 3)):
        run(name := f"{kind}{size}", size, lambda rank, name=name, kind=kind: evaluated(rank, name, kind))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
