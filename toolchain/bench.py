"""How fast ONNX files are in ONNX Runtime, measured against each other. No torch.

Files take turns within a round, so that a change of the machine's speed meets all of them alike; a ratio is the median
of the ratios within rounds. Times of one file in two measurements differ by what else the machine did; ratios far less.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from .environment import cpu, versions
from .errors import InputError
from .external import read_data_file
from .progress import NullProgress, Progress
from .runtime import Provider, open_session, run_session, usable_cores

if TYPE_CHECKING:
    import onnxruntime

WARM_UP = 3
"""Rounds before the first that counts: memory is allocated and kernels are packed in these."""

FORMAT_VERSION = 1


@final
@dataclass(frozen=True)
class Timing:
    """One file at one batch size: milliseconds of a call, round by round."""

    path: Path
    batch_size: int
    milliseconds: tuple[float, ...]

    def to_json(self, first: Timing) -> dict[str, Any]:
        """What ``speed`` says of the times, and which file it was."""
        with self.path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return {
            "model": str(self.path),
            "sha256": sha256,
            "bytes": self.path.stat().st_size + (data.bytes if (data := read_data_file(self.path)) else 0),
            "batch_size": self.batch_size,
            **speed(self.milliseconds, first.milliseconds, self.batch_size),
        }


def speed(own: Sequence[float], first: Sequence[float], batch_size: int) -> dict[str, Any]:
    """Median and quartiles of the time, and of the speed as a multiple of the ``first`` times', round by round."""
    low, median, high = _quartiles(own)
    slower, ratio, faster = _quartiles([reference / mine for reference, mine in zip(first, own, strict=True)])
    return {
        "median_ms": median,
        "quartiles_ms": [low, high],
        "images_per_second": 1e3 * batch_size / median,
        "ratio": ratio,
        "ratio_quartiles": [slower, faster],
    }


def bench(
    files: Sequence[Path],
    batch_sizes: Iterable[int] = (1,),
    *,
    provider: Provider = "cpu",
    threads: int | None = None,
    rounds: int = 30,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time ``files`` on random images; return the JSON object of ``fimaq-tool bench``.

    ``rounds`` (2 or more) calls of each file count, after ``WARM_UP`` that do not. Raises InputError for a file that
    does not load, wants other input than one batch of images, or has a fixed batch of another size, and
    EnvironmentProblem for a provider that is not there.
    """
    threads = threads or usable_cores()
    rows = []
    for batch_size in batch_sizes:
        times = _interleaved(files, batch_size, provider, threads, rounds, progress or NullProgress())
        timings = [Timing(path, batch_size, tuple(own)) for path, own in zip(files, times, strict=True)]
        rows += [timing.to_json(timings[0]) for timing in timings]
    return {
        "format_version": FORMAT_VERSION,
        "models": rows,
        "hardware": {**cpu(), "provider": provider, "threads": threads},
        "versions": {name: number for name, number in versions().items() if name.startswith("onnxruntime")},
        "rounds": rounds,
    }


def _interleaved(
    files: Sequence[Path], batch_size: int, provider: Provider, threads: int, rounds: int, progress: Progress
) -> list[list[float]]:
    sessions = [open_session(path, provider, threads) for path in files]
    feeds = [_images(session, path, batch_size) for session, path in zip(sessions, files, strict=True)]
    calls = [
        partial(run_session, session, feed, str(path))
        for session, feed, path in zip(sessions, feeds, files, strict=True)
    ]
    return take_turns(calls, rounds, time.perf_counter, progress, f"bench, batch {batch_size}")


def take_turns(
    calls: Sequence[Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress | None = None,
    title: str = "bench",
) -> list[list[float]]:
    """Milliseconds of each call by ``clock`` (seconds) in each of ``rounds``, after ``WARM_UP`` that do not count."""
    times: list[list[float]] = [[] for _ in calls]
    with (progress or NullProgress()).task(title, WARM_UP + rounds) as task:
        for turn in range(WARM_UP + rounds):
            for call, own in zip(calls, times, strict=True):
                began = clock()
                call()
                if turn >= WARM_UP:
                    own.append(1e3 * (clock() - began))
            task.advance()
    return times


def _images(session: onnxruntime.InferenceSession, path: Path, batch_size: int) -> dict[str, np.ndarray]:
    inputs = session.get_inputs()
    batch, *shape = inputs[0].shape
    if len(inputs) != 1 or inputs[0].type not in DTYPES or not shape or not all(isinstance(n, int) for n in shape):
        got = ", ".join(f"{item.name} {item.type} {item.shape}" for item in inputs)
        raise InputError(f"{path} takes {got}; wanted one batch of images of fixed size. Bench an exported classifier.")
    if isinstance(batch, int) and batch != batch_size:
        raise InputError(
            f"{path} has a fixed batch of {batch} and was asked for {batch_size}. Give --batch-size {batch}."
        )
    dtype = DTYPES[inputs[0].type]
    noise = np.random.default_rng(0).standard_normal((batch_size, *shape), dtype=np.float32)
    return {inputs[0].name: (128 + 40 * noise).clip(0, 255).astype(dtype) if dtype == np.uint8 else noise.astype(dtype)}


DTYPES: dict[str, type] = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


def _quartiles(values: Sequence[float]) -> list[float]:
    return statistics.quantiles(values, n=4, method="inclusive")
