"""The JSON of ``fimaq-tool bench``: median latencies by model, and the hardware they were measured on."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from fimaq.toolchain.errors import InputError


@final
@dataclass(frozen=True, eq=False)
class Bench:
    """One measurement, in which models took turns.

    ``medians`` are milliseconds by the sha256 of the model's file and the batch size; ``hardware`` is equal where times
    can be compared.
    """

    path: Path
    hardware: str
    medians: Mapping[str, Mapping[int, float]]


def read_bench(path: Path) -> Bench:
    """Read ``{"hardware": ..., "models": [{"sha256", "batch_size", "median_ms"}, ...]}``; other keys are left alone.

    Raises InputError where the file is missing, damaged, or says nothing of the hardware.
    """
    if not path.exists():
        raise InputError(f"{path} is not there. Write it with `fimaq-tool bench BASELINE.onnx NEW.onnx -o {path}`.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        medians: dict[str, dict[int, float]] = defaultdict(dict)
        for row in values["models"]:
            medians[row["sha256"]][row["batch_size"]] = _median(row)
        if not values["hardware"]:
            raise ValueError("hardware is empty")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path} is not what `fimaq-tool bench -o` writes ({type(error).__name__}: {error}). Measure again."
        ) from error
    return Bench(path, json.dumps(values["hardware"], sort_keys=True), medians)


def _median(row: Mapping[str, Any]) -> float:
    median = row["median_ms"]
    if type(median) not in (int, float) or not 0 < median < math.inf:
        raise ValueError(f"median_ms is {median!r}, wanted a number above 0")
    return float(median)
