"""Contestants as functions from images to logits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from openvino_cpu import compiled_model

from fimaq.toolchain.errors import InputError
from fimaq.toolchain.runtime import open_session, run_session

from .lineup import Contestant

Predict = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Opened:
    """A contestant that is ready. ``where`` is its runtime, of OpenVINO with the precision that it took."""

    contestant: Contestant
    predict: Predict
    where: str
    path: Path

    def to_json(self) -> dict[str, Any]:
        """Who it is and which file it has."""
        return {
            "key": self.contestant.key,
            "title": self.contestant.title,
            "where": self.where,
            "sha256": hashlib.sha256(self.path.read_bytes()).hexdigest(),
            "bytes": self.path.stat().st_size,
        }


def opened(contestants: Iterable[Contestant], folder: Path, threads: int) -> list[Opened]:
    """Each contestant with ``threads`` threads. Raises InputError for a file that ``build`` has not made yet."""
    return [_opened(contestant, folder / f"{contestant.file}.onnx", threads) for contestant in contestants]


def _opened(contestant: Contestant, path: Path, threads: int) -> Opened:
    if not path.is_file():
        raise InputError(f"{path} is not there. Make it: python benchmarks/deployed.py build {path.parent} ...")
    if contestant.runtime == "OpenVINO":
        return _in_openvino(contestant, path, threads)
    session = open_session(path, threads=threads)
    return Opened(
        contestant, lambda images: run_session(session, {"image": images}, str(path))[0], contestant.runtime, path
    )


def _in_openvino(contestant: Contestant, path: Path, threads: int) -> Opened:
    compiled = compiled_model(path, threads, contestant.precision)
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    name = {"bfloat16": "bf16", "float16": "f16"}.get(precision, precision)
    request = compiled.create_infer_request()

    def predict(images: np.ndarray) -> np.ndarray:
        # A copy: the tensor belongs to the request and the next call overwrites it.
        return np.array(request.infer({"image": images})[0])

    return Opened(contestant, predict, f"OpenVINO {name}", path)
