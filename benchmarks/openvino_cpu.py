"""A file in OpenVINO on the CPU, compiled in one way for all benchmarks."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from fimaq.toolchain.errors import EnvironmentProblem


def compiled_model(path: Path, threads: int, precision: str | None) -> Any:
    """OpenVINO's compiled model; ``precision`` is its hint (``f32``, ``bf16``), None leaves the choice to OpenVINO.

    Raises EnvironmentProblem where openvino is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            import openvino
    except ImportError as error:
        raise EnvironmentProblem(
            f"openvino cannot be imported ({error}). In the checkout: pip install '.[openvino]', or leave it out "
            "with --only."
        ) from error
    core = openvino.Core()
    options: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    if precision is not None:
        options["INFERENCE_PRECISION_HINT"] = precision
    return core.compile_model(core.read_model(path), "CPU", options)
