"""Where the time goes in ONNX Runtime, by operator of the optimised graph."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fimaq.toolchain.runtime import onnxruntime_module, session_config

WARM_UP = 3


def by_operator(paths: Sequence[Path], images: np.ndarray, rounds: int) -> list[Counter[str]]:
    """Of each file, milliseconds of one call by operator: of each node the median of ``rounds`` calls, then summed.

    One thread; files take turns.
    """
    with tempfile.TemporaryDirectory() as folder:
        sessions = [_session(path, Path(folder, f"{number}-")) for number, path in enumerate(paths)]
        for _ in range(WARM_UP + rounds):
            for session in sessions:
                session.run(None, {"image": images})
        return [_summed(json.loads(Path(session.end_profiling()).read_text())) for session in sessions]


def _session(path: Path, prefix: Path) -> Any:
    ort = onnxruntime_module()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    options.profile_file_prefix = str(prefix)
    for key, value in session_config().items():
        options.add_session_config_entry(key, value)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _summed(events: Sequence[Mapping[str, Any]]) -> Counter[str]:
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            times[event["args"]["op_name"], event["name"]].append(event["dur"] / 1e3)
    total: Counter[str] = Counter()
    for (operator, _), own in times.items():
        total[operator] += statistics.median(own[WARM_UP:])
    return total
