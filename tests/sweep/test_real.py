"""A sweep over a real model: what it measures is what the single commands measure, and it goes on inside a run."""

import json

import pytest

from fimaq.toolchain.data import open_dataset
from fimaq.toolchain.data.demo_set import materialise
from fimaq.toolchain.evaluate import evaluate
from fimaq.toolchain.evaluate.torch_backend import TorchPredictor
from fimaq.toolchain.reconstruct import run as reconstructing
from fimaq.toolchain.sweep.plan import load_plan
from fimaq.toolchain.sweep.run import sweep

RECIPE = """
base = "fast-w4a4"
[calibrate]
samples = 16
candidates = 8
rounds = 1
[fisher]
samples = 8
rank = 1
[reconstruct]
samples = 16
iterations = 2
batch_size = 4
"""
PLAN = """
calib = "digits/train"
val = "digits/val"
[[run]]
model = "demo_vit"
recipe = "tiny.toml"
"""


@pytest.mark.slow
def test_a_killed_sweep_goes_on_inside_its_run(tmp_path, monkeypatch):
    materialise(tmp_path / "digits")
    (tmp_path / "tiny.toml").write_text(RECIPE)
    (tmp_path / "plan.toml").write_text(PLAN)
    plan = load_plan(tmp_path / "plan.toml")
    original, begun = reconstructing.reconstruct_block, []

    def spy(name, *arguments):
        begun.append(name)
        if begun.count("blocks.2") == 1 and name == "blocks.2":
            raise KeyboardInterrupt
        return original(name, *arguments)

    monkeypatch.setattr(reconstructing, "reconstruct_block", spy)
    with pytest.raises(KeyboardInterrupt):
        sweep(plan, tmp_path / "out", device="cpu")
    assert begun == ["patch_embed", "blocks.0", "blocks.1", "blocks.2"]
    begun[:] = ["blocks.2"]
    result = sweep(plan, tmp_path / "out", device="cpu")
    assert begun[1:3] == ["blocks.2", "blocks.3"]
    (row,) = result["runs"]
    predictor = TorchPredictor(tmp_path / "out" / row["run"], "cpu")
    in_torch = evaluate(predictor, open_dataset(str(tmp_path / "digits" / "val"), classes=predictor.classes))
    assert (row["n"], row["top1"]) == (797, pytest.approx(in_torch.top1, abs=0.5))
    assert row["bytes"] == (tmp_path / "out" / f"{row['run']}.onnx").stat().st_size
    saved = json.loads((tmp_path / "out" / f"{row['run']}.json").read_text())
    assert saved["top1_interval"] == row["top1_interval"]
