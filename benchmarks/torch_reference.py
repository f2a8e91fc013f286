"""What a run's torch model says of a validation set, in float32 and in float64: what files in a runtime are held to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fimaq.toolchain.data import open_dataset
from fimaq.toolchain.export.checks.parity import snr_db, torch_predictor
from fimaq.toolchain.run_folder import load_run

BATCH = 16

Predict = Callable[[np.ndarray], np.ndarray]
"""Logits ``[b, classes]`` of preprocessed images ``[b, 3, h, w]``."""


def logits(predict: Predict, images: np.ndarray) -> np.ndarray:
    """Logits ``[n, classes]`` of images ``[n, 3, h, w]``, ``BATCH`` at a time."""
    return np.concatenate([predict(images[i : i + BATCH]) for i in range(0, len(images), BATCH)])


@dataclass(frozen=True)
class TorchReference:
    """The fake-quantized model of a run on a validation set of n images."""

    images: np.ndarray
    """``[n, 3, h, w]``, preprocessed."""
    labels: np.ndarray
    """``[n]``."""
    logits: np.ndarray
    """``[n, classes]``, in float32."""
    exact: np.ndarray
    """The same in float64."""
    floor: np.ndarray
    """``[n]``: whether the float64 copy predicts the same class. Its mean is the noise floor."""
    row: dict[str, Any]
    """What a row of results says of it; accuracies and agreement in percent."""


def torch_reference(run: Path, data: Path, limit: int | None) -> TorchReference:
    """Evaluate a run folder's model on the first ``limit`` images of ``data`` (None: all)."""
    loaded = load_run(run)
    dataset = open_dataset(str(data), classes=loaded.classes).take(limit)
    images = np.stack([loaded.preprocessing.apply(dataset.load(i)) for i in range(len(dataset))])
    labels = np.asarray(dataset.labels)
    single = logits(torch_predictor(loaded.model, torch.float32), images)
    double = logits(torch_predictor(loaded.model, torch.float64), images)
    floor = single.argmax(1) == double.argmax(1)
    row = {
        "run": run.name,
        "recipe": loaded.manifest["recipe"]["name"],
        "model": loaded.manifest["model"]["name"],
        "n": len(labels),
        "torch_top1": 100 * float((single.argmax(1) == labels).mean()),
        "noise_floor": 100 * float(floor.mean()),
        "floor_snr_db": snr_db(single, double),
    }
    return TorchReference(images, labels, single, double, floor, row)
