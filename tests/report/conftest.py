"""A run folder of two blocks as ``quantize`` writes it, made by hand, and results."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fimaq.toolchain.artifact import Artifact
from fimaq.toolchain.evaluate.result import DatasetRef, EvalResult, Predictions
from fimaq.toolchain.recipe import Recipe

RECIPE = Recipe.from_dict({"name": "mine", "weights": {"bits": 4}, "activations": {"bits": 3}, "seed": 7})
BLOCKS = [
    {
        "name": "blocks.0", "kind": "transformer", "loss_first": 2.5, "loss_last": 1.25, "snr_db_first": 11.5,
        "snr_db_last": 17.5, "seconds": 3.25, "peak_bytes": 123_456_789,
    },
    {
        "name": "head", "kind": "head", "loss_first": 0.5, "loss_last": 0.125, "snr_db_first": 21.0,
        "snr_db_last": 24.0, "seconds": 1.5, "peak_bytes": None,
    },
]  # fmt: skip
LAYERS = [
    {"name": "blocks.0.fc", "op": "linear", "weight_bits": 4, "activation_bits": 3, "granularity": "tensor"},
    {"name": "blocks.0.qk", "op": "matmul", "weight_bits": None, "activation_bits": 3, "granularity": "head"},
    {"name": "head", "op": "linear", "weight_bits": 4, "activation_bits": 3, "granularity": "tensor"},
]
TENSORS = {
    "blocks.0.fc.weight.codes": np.zeros((2, 1500), np.uint8),
    "blocks.0.fc.weight.scale": np.array([0.25, 0.5], np.float32),
    "blocks.0.fc.input.scale": np.array(0.125, np.float32),
    "blocks.0.qk.a.scale": np.array([0.75], np.float32),
    "blocks.0.qk.b.scale": np.array([0.875], np.float32),
    "head.weight.codes": np.zeros((2, 2), np.uint8),
    "head.weight.scale": np.ones(2, np.float32),
    "head.input.scale": np.array(1, np.float32),
}


def grid(layer: str, operand: str, bits: int, snr_db: float | None) -> dict[str, Any]:
    counts = [0] * 48
    counts[20], counts[30] = 75, 25
    block = "head" if layer == "head" else "blocks.0"
    levels = 2**bits
    return {
        "event": "grid", "block": block, "layer": layer, "operand": operand, "bits": bits, "snr_db": snr_db,
        "clipped": 0.0375, "range": [-levels / 4, levels * 5 / 4], "counts": counts,
    }  # fmt: skip


LOG = [
    {"event": "fallback", "block": "blocks.0", "step": 0, "reason": "gradients were all zero"},
    *(
        {"event": "step", "block": block, "step": step, "loss": loss, "beta": beta}
        for block in ("blocks.0", "head")
        for step, loss, beta in ((50, 4.0, None), (100, 2.0, 20.0), (150, 1.0, 2.0))
    ),
    grid("blocks.0.fc", "weight", 4, 16.25),
    grid("blocks.0.fc", "input", 3, 9.75),
    grid("blocks.0.qk", "a", 3, 12.5),
    grid("blocks.0.qk", "b", 3, None),
    grid("head", "weight", 4, 18.5),
    {"event": "block", **BLOCKS[0]},
    {"event": "some later version's", "value": 1},
]


def manifest(**changes: Any) -> dict[str, Any]:
    found = {
        "model": {"name": "demo_vit", "timm_name": "vit_tiny_patch16_224", "weights_sha256": "a" * 64},
        "preprocessing": {},
        "classes": {},
        "recipe": RECIPE.to_dict(),
        "layers": [{**row, "weight_granularity": "channel"} for row in LAYERS],
        "blocks": BLOCKS,
        "calibration": {"dataset_id": "b" * 64, "sample_ids": ["x/1.png", "x/2.png"]},
        "seconds": {"calibrate": 2.5, "reconstruct": 4.75, "total": 7.5},
        "device": "cpu",
        "environment": {"cpu": {"name": "A Processor", "cores": 2}, "system": "Linux", "versions": {"torch": "9.8.7"}},
    }
    return found | changes


@pytest.fixture
def new_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run folder; keywords replace what is in its manifest, ``log`` its log."""

    def write(name: str = "run-a", log: list[Any] = LOG, **changes: Any) -> Path:
        text = "".join(json.dumps(line) + "\n" for line in log)
        Artifact(manifest(**changes), TENSORS).save(tmp_path / name, files={"log.jsonl": text.encode()})
        return tmp_path / name

    return write


@pytest.fixture
def new_result(tmp_path: Path) -> Callable[..., Path]:
    """Writes a result of ten images; keywords replace its figures, and another ``images`` is another set of them."""

    def write(name: str = "result-a.json", images: str = "x", **changes: Any) -> Path:
        names = np.array([f"{images}/{number}.png" for number in range(10)])
        values: dict[str, Any] = {
            "model": "m.onnx", "sha256": "c" * 64, "bytes": 3_450_000,
            "dataset": DatasetRef("d" * 64, 10, 64 * images), "preprocessing_sha256": "e" * 64, "n": 10,
            "top1": 80.0, "top5": 90.0, "top1_interval": (49.02, 94.33), "images_per_second": 12.5,
            "provider": "cpu", "environment": {"cpu": {"name": "A Processor"}}, "skipped": (),
            "label_source": "folders", "batch_size": 2, "seconds": {"total": 1.0, "predict": 0.5},
            "predictions": Predictions(
                names, np.zeros(10, np.int64), np.zeros((10, 1), np.int32), np.zeros((10, 1), np.float32)
            ),
        }  # fmt: skip
        EvalResult(**(values | changes)).save(tmp_path / name)
        return tmp_path / name

    return write
