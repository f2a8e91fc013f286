"""A world without models: what quantize, export and evaluate would leave behind, in no time, and a record of calls."""

import hashlib
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fimaq.toolchain.evaluate.metrics import wilson_interval
from fimaq.toolchain.sweep import run as sweeping

RECIPE = 'base = "fast-w4a4"\n[reconstruct]\niterations = 7\n'


@pytest.fixture
def folder(tmp_path):
    """Two folders of images, one of weights, a recipe, and a place for a plan."""
    for name in ("calib", "val"):
        (tmp_path / name / "0").mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", (4, 4)).save(tmp_path / name / "0" / f"{index}.png")
    (tmp_path / "weights").mkdir()
    for model in ("a", "b"):
        (tmp_path / "weights" / f"{model}.safetensors").write_bytes(model.encode())
    (tmp_path / "mine.toml").write_text(RECIPE)
    return tmp_path


@pytest.fixture
def plan(folder):
    """Writes a plan whose data are in place; ``text`` are its [[run]] tables."""

    def write(text: str, data: str = 'calib = "calib"\nval = "val"\nweights = "weights"\n'):
        (folder / "plan.toml").write_text(data + text)
        return folder / "plan.toml"

    return write


class World:
    """Stands for the three steps. ``fail`` maps a step and model to what it raises."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.requests: list[Any] = []
        self.fail: dict[tuple[str, str], BaseException] = {}
        self.top1 = {"float": 90.0, 8: 89.0, 4: 80.0, 3: 50.0}

    def step(self, name: str, model: str) -> None:
        self.calls.append((name, model))
        if (name, model) in self.fail:
            raise self.fail[name, model]

    def quantize(self, request, progress):
        self.step("quantize", request.model)
        self.requests.append(request)
        request.out.mkdir(parents=True)
        manifest = {
            "format_version": 1, "model": {"name": request.model}, "seconds": {"total": 12.4}, "sha256": "f" * 64,
            "recipe": request.recipe.to_dict(), "layers": [], "preprocessing": {}, "classes": {},
        }  # fmt: skip
        (request.out / "manifest.json").write_text(json.dumps(manifest))

    def export_run(self, run, out, **options):
        recipe = json.loads((run / "manifest.json").read_text())
        self.step("export", recipe["model"]["name"])
        return self.export(out, recipe["recipe"]["weights"]["bits"])

    def export_float(self, model, out, **options):
        self.step("export", model)
        return self.export(out, "float")

    def export(self, out, bits):
        out.write_text(str(bits))
        parity = {"top1_agreement": 99.0, "noise_floor": 98.0}
        size = 32_000_000 if bits == "float" else 1_000_000 * bits
        return {"bytes": size, "layers": {"integer": 1, "float": 0}, "parity": parity}

    def predictor(self, onnx):
        return SimpleNamespace(classes=None, bits=onnx.read_text(), name=onnx.name)

    def evaluate(self, predictor, images, progress):
        self.step("evaluate", predictor.name.split("-")[0])
        bits = predictor.bits if predictor.bits == "float" else int(predictor.bits)
        top1 = self.top1[bits]
        interval = wilson_interval(int(top1), 100)
        return SimpleNamespace(n=100, top1=top1, top1_interval=interval, save=lambda path, force: path.write_text("{}"))


@pytest.fixture
def world(monkeypatch):
    made = World()
    for name in ("quantize", "export_run", "export_float", "evaluate"):
        monkeypatch.setattr(sweeping, name, getattr(made, name))
    monkeypatch.setattr(sweeping, "OrtPredictor", made.predictor)
    rate = iter(np.arange(100.0, 1000.0, 100.0))
    bench = {"called": []}

    def timed(files, progress):
        bench["called"].append([path.name for path in files])
        hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
        return {
            "models": [
                {"model": str(path), "sha256": sha256, "images_per_second": float(next(rate))}
                for path, sha256 in zip(files, hashes, strict=True)
            ]
        }

    monkeypatch.setattr(sweeping, "bench", timed)
    made.benched = bench["called"]
    return made
