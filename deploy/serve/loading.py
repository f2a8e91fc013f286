"""From a file to a model that is known to run, in the predictor that ``evaluate`` uses."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from fimaq.toolchain.errors import EnvironmentProblem, InputError
from fimaq.toolchain.evaluate import OrtPredictor
from fimaq.toolchain.runtime import Provider, onnxruntime_module

CONFINES_SINCE = (1, 24)
"""From this version on ONNX Runtime refuses weights outside the model's folder, by any path or link."""


def load(path: Path, provider: Provider, threads: int | None) -> OrtPredictor:
    """Open a file and run it once on a black image and once on two.

    Raises InputError for a file that is damaged, carries no preprocessing or class names, keeps weights outside its
    folder, fails when run or gives logits of the wrong shape or not finite; EnvironmentProblem for a missing provider
    or an ONNX Runtime that would read files anywhere.
    """
    _require_confinement()
    predictor = OrtPredictor(path, provider, threads)
    names = predictor.classes["names"]
    if not all(isinstance(name, str) for name in names):
        raise InputError(f"{path} has classes whose names are no strings. Export it again with fimaq-tool export.")
    for images in (1, 2):
        logits = predictor(np.zeros((images, *predictor.image.shape), predictor.image.dtype))
        if logits.shape != (images, len(names)) or not np.isfinite(logits).all():
            state = "finite" if np.isfinite(logits).all() else "not finite"
            raise InputError(
                f"{path} gives {list(logits.shape)} numbers, {state}, for {images} black image(s); wanted "
                f"[{images}, {len(names)}], finite. Export it again with fimaq-tool export."
            )
    return predictor


def _require_confinement() -> None:
    version = onnxruntime_module().__version__
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < CONFINES_SINCE:
        wanted = ".".join(map(str, CONFINES_SINCE))
        raise EnvironmentProblem(
            f"onnxruntime is {version}; wanted {wanted} or newer to serve, since older ones let a model file read any "
            "other file. pip install --upgrade onnxruntime-gpu"
        )
