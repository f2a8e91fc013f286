"""The README's path for real: quantize, export, evaluate, as processes, on what is bundled."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from oracles import MatMulIntegerToFloat
from safetensors.numpy import load_file

from fimaq.toolchain.data.demo_set import materialise

TOOL = [sys.executable, "-m", "fimaq.cli.main"]
GATED = Path(__file__).parent.parent / "examples" / "gated-model"
QUICK = ["--recipe", str(GATED / "recipe.toml")]


def tool(*arguments, code=0):
    done = subprocess.run([*TOOL, *map(str, arguments), "--json"], capture_output=True, text=True, timeout=600)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if code == 0 else done.stderr


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return materialise(tmp_path_factory.mktemp("digits") / "digits")


@pytest.fixture(scope="module")
def done(digits, tmp_path_factory):
    """One quantized, exported and evaluated Swin: the model with shifted windows and patch merging."""
    folder = tmp_path_factory.mktemp("swin")
    run, onnx_file, result = folder / "run", folder / "swin.onnx", folder / "swin.json"
    return {
        "run": run,
        "onnx": onnx_file,
        "result": result,
        "quantized": tool("quantize", "demo_swin", "--data", digits.train, "-o", run, *QUICK),
        "exported": tool("export", run, "-o", onnx_file),
        "ort": tool("evaluate", onnx_file, "--data", digits.val, "-o", result),
        "torch": tool("evaluate", run, "--backend", "torch", "--data", digits.val),
    }


def test_the_json_objects_have_the_keys_of_the_contract(done):
    assert {"run", "model", "wbits", "abits", "fisher", "seed", "seconds", "blocks", "sha256"} <= set(done["quantized"])
    assert set(done["quantized"]["seconds"]) == {"calibrate", "reconstruct", "total"}
    assert {"onnx", "target", "opset", "bytes", "layers", "parity"} <= set(done["exported"])
    assert {"images", "top1_agreement", "noise_floor", "snr_db", "codes_equal"} <= set(done["exported"]["parity"])
    assert {"model", "sha256", "bytes", "dataset", "preprocessing_sha256", "n", "top1", "top5"} <= set(done["ort"])
    assert done["exported"]["bytes"] == done["onnx"].stat().st_size


def test_what_was_measured_is_what_was_optimised(done):
    """The digits' noise floor is 100 %, so the two runtimes may differ on a handful of images at most."""
    assert done["exported"]["parity"]["codes_equal"] is True
    assert done["ort"]["n"] == done["torch"]["n"] == 797
    assert abs(done["ort"]["top1"] - done["torch"]["top1"]) < 1.0
    assert done["ort"]["top1"] > 50
    assert done["ort"]["preprocessing_sha256"] == done["torch"]["preprocessing_sha256"]


def test_every_layer_is_quantized_and_runs_on_integers(done):
    manifest = json.loads((done["run"] / "manifest.json").read_text())
    names = {layer["name"] for layer in manifest["layers"]}
    for block in ("layers.0.blocks.1", "layers.1.blocks.0"):
        parts = ("attn.qkv", "attn.qk", "attn.av", "attn.proj", "mlp.fc1", "mlp.fc2")
        assert {f"{block}.{part}" for part in parts} <= names
    assert {"patch_embed.proj", "layers.1.downsample.reduction", "head.fc"} <= names
    assert all(layer["activation_bits"] == (8 if layer["op"] == "conv2d" else 3) for layer in manifest["layers"])
    assert done["exported"]["layers"]["float"] == 0


def test_the_codes_in_the_file_are_the_codes_of_the_run(done):
    """Read with onnx alone: every weight's codes, as multisets and shapes, whatever its layout and offset."""
    codes = {
        name: array
        for name, array in load_file(done["run"] / "tensors.safetensors").items()
        if name.endswith(".weight.codes")
    }
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(done["onnx"]).graph.initializer}
    for name, array in codes.items():
        layer = re.escape(name.removesuffix(".weight.codes"))
        parts = [t for key, t in stored.items() if re.fullmatch(rf"{layer}(\.\d)?\.weight\.codes", key)]
        found = np.sort(np.concatenate([part.astype(np.int64).ravel() for part in parts]))
        wanted = np.sort(array.astype(np.int64).ravel())
        np.testing.assert_array_equal(found - found.min(), wanted - wanted.min(), err_msg=name)


def test_onnx_s_own_reference_predicts_what_onnx_runtime_measured(done, digits):
    from fimaq.toolchain.data import open_dataset
    from fimaq.toolchain.evaluate import OrtPredictor

    predictor = OrtPredictor(done["onnx"])
    images = open_dataset(str(digits.val), classes=predictor.classes)
    batch = np.stack([predictor.preprocessing.apply(images.load(i)) for i in range(4)])
    evaluator = ReferenceEvaluator(onnx.load(done["onnx"]), new_ops=[MatMulIntegerToFloat])
    reference = evaluator.run(None, {"image": batch})[0]
    found = predictor(batch)
    assert np.array_equal(reference.argmax(1), found.argmax(1))
    # Sums in another order move a value across a rounding boundary now and then, which is one step of a 3-bit grid.
    assert np.median(np.abs(reference - found)) < 0.05 * np.abs(found).max()


def test_the_gate_holds_the_model_against_the_committed_baselines(done):
    report = tool("gate", "--candidate", done["result"], "--config", GATED / "gate.toml")
    assert report["verdict"] == "pass"
    assert {rule["reference"] for rule in report["rules"] if rule["name"] == "top1"} == {"float", "release"}


def test_one_wrong_scale_fails_the_gate(done, digits, tmp_path):
    wrong, result = tmp_path / "wrong.onnx", tmp_path / "wrong.json"
    model = onnx.load(done["onnx"])
    name = "layers.1.downsample.reduction.weight.scale"
    (scale,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    scale.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(scale), name))
    onnx.save(model, wrong)
    tool("evaluate", wrong, "--data", digits.val, "-o", result)
    message = tool("gate", "--candidate", result, "--config", GATED / "gate.toml", code=1)
    assert "the gate failed: top1 vs float, top1 vs release" in message


def test_resume_after_a_kill_ends_with_the_same_hash(digits, tmp_path):
    arguments = ["quantize", "demo_swin", "--data", digits.train, *QUICK, "--iters", "12"]
    whole = tool(*arguments, "-o", tmp_path / "whole")
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [*TOOL, *map(str, arguments), "-o", str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    unfinished = tmp_path / ".killed.unfinished"
    deadline = time.monotonic() + 300
    while len(list(unfinished.glob("*.safetensors"))) < 2 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not killed.exists()
    message = tool(*arguments, "--seed", "5", "-o", killed, "--resume", code=4)
    assert "recipe.seed was 0, now 5" in message
    assert "--resume to go on" in tool(*arguments, "-o", killed, code=4)
    assert tool(*arguments, "-o", killed, "--resume")["sha256"] == whole["sha256"]
    assert not unfinished.exists()
    assert "no unfinished run" in tool(*arguments, "-o", tmp_path / "other", "--resume", code=4)


def test_a_folder_of_splits_is_refused_and_so_are_options_that_mean_nothing(digits, tmp_path):
    message = tool("quantize", "demo_vit", "--data", digits.train.parent, "-o", tmp_path / "run", *QUICK, code=4)
    assert "train and val" in message
    assert "--data" in message
    message = tool("export", "demo_vit", "--float", "--data", "nowhere", "-o", tmp_path / "f.onnx", code=2)
    assert "random images" in message
    assert not list(tmp_path.iterdir())


@pytest.mark.imagenet
def test_real_weights_keep_their_accuracy_at_8_bits(fimaq_data, tmp_path):
    """DeiT-Tiny at W8/A8, rounded to nearest: float is right on 81.54 % of the 1,300 images."""
    weights = fimaq_data / "weights" / "deit_tiny_patch16_224.safetensors"
    images = fimaq_data / "imagenet_mini"
    run, file = tmp_path / "run", tmp_path / "deit.onnx"
    quick = ["--recipe", "fast-w8a8", "--iters", "0", "--calib-samples", "32"]
    tool("quantize", "deit_tiny_patch16_224", "--weights", weights, "--data", images / "calib", "-o", run, *quick)
    exported = tool("export", run, "-o", file)
    assert exported["parity"]["codes_equal"]
    assert exported["layers"] == {"integer": 74, "float": 0}
    assert Path(file).stat().st_size < 7e6
    measured = tool("evaluate", file, "--data", images / "val")
    assert measured["n"] == 1300
    assert abs(measured["top1"] - 81.54) < 1.0
