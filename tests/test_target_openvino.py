"""Whole models in OpenVINO: every quantized layer on an integer kernel, and what ONNX Runtime and torch compute."""

import warnings

import numpy as np
import pytest
import torch
from small_runs import SIZE, lowered, small_model, small_run

from fimaq.toolchain.export import export_run
from fimaq.toolchain.export.checks.parity import snr_db, torch_predictor
from fimaq.toolchain.export.checks.stored import stored_differences
from fimaq.toolchain.export.errors import ExportError
from fimaq.toolchain.export.run import operand_bits
from fimaq.toolchain.export.targets import TARGETS
from fimaq.toolchain.families import QuantModel
from fimaq.toolchain.nn import QuantMatMul
from fimaq.toolchain.run_folder import layer_rows, run_tensors
from fimaq.toolchain.runtime import open_session

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    openvino = pytest.importorskip("openvino", reason="openvino is not installed: pip install '.[openvino]'")

OPTIONS = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
PRODUCTS = ("FullyConnected", "MatMul", "Convolution", "Subgraph")
CASES = [("vit", 4, 4, (False, False)), ("swin", 3, 3, (False, False)), ("vit", 8, 8, (True, True))]


@pytest.fixture(scope="module", params=CASES, ids=["vit-w4a4", "swin-w3a3", "vit-symmetric-w8a8"])
def model(request) -> QuantModel:
    return small_model(*request.param)


@pytest.fixture(scope="module")
def proto(model):
    return lowered(model, "openvino")


@pytest.fixture(scope="module")
def compiled(proto):
    core = openvino.Core()
    return core.compile_model(core.read_model(proto.SerializeToString()), "CPU", OPTIONS)


def test_every_layer_runs_on_an_integer_kernel(model, compiled):
    infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    kernels = [(info["layerType"].astype(str), info["primitiveType"].astype(str)) for info in infos]
    products = [(layer, kernel) for layer, kernel in kernels if layer in PRODUCTS[:3]]
    assert all(kernel.lower().endswith("i8") for _, kernel in products), products
    linear = sum(not isinstance(layer, QuantMatMul) for layer in model.layers.values())
    assert sum(layer == "FullyConnected" for layer, _ in products) >= linear
    # Two attention products are a MatMul each, or with the softmax between them one Subgraph.
    attention = sum(layer == "MatMul" for layer, _ in products)
    fused = sum(layer == "Subgraph" and kernel.lower().endswith("i8") for layer, kernel in kernels)
    assert attention + 2 * fused >= len(model.layers) - linear


def test_it_computes_what_onnx_runtime_and_torch_compute(model, proto, compiled):
    """A code that differs by a rounding shows as noise; unrelated logits would be near 0 dB."""
    images = np.random.default_rng(0).standard_normal((16, *SIZE), dtype=np.float32)
    found = compiled({"image": images})[0]
    in_torch, double = (torch_predictor(model, dtype)(images) for dtype in (torch.float32, torch.float64))
    in_ort = open_session(proto.SerializeToString(), threads=1).run(None, {"image": images})[0]
    floor = snr_db(in_torch, double)
    for reference in (in_ort, in_torch):
        assert snr_db(reference, found) > min(40.0, floor - 10)
        assert np.mean(reference.argmax(1) == found.argmax(1)) >= np.mean(in_torch.argmax(1) == double.argmax(1)) - 0.1


def test_any_changed_zero_point_is_found_in_the_file(model, proto):
    """Zero points stand beside the products, not in DequantizeLinear."""
    tensors, bits = run_tensors(model), operand_bits(layer_rows(model))
    assert list(stored_differences(proto, tensors, bits)) == []
    for name in bits:
        for part in ("codes", "scale", "zero_point") if name.endswith(".weight") else ("scale", "zero_point"):
            key = f"{name}.{part}"
            changed = tensors[key].copy()
            flat = changed.reshape(-1)
            flat[-1] = flat[-1] * 1.0001 if part == "scale" else flat[-1] ^ 1
            assert list(stored_differences(proto, {**tensors, key: changed}, bits)) == [key]


def test_a_clip_that_is_moved_or_missing_is_found_in_the_file(model, proto):
    tensors, bits = run_tensors(model), operand_bits(layer_rows(model))
    clips = [node for node in proto.graph.node if node.op_type == "Clip"]
    # Of activations every one needs a clip, but for the image: 8 bits fill their type.
    narrow = [name for name, width in bits.items() if width < 8 and not name.endswith(".weight")]
    assert len(clips) == len(narrow)
    for clip in clips:
        kept = list(clip.input)
        clip.input[1:3] = [kept[2], kept[1]]
        with pytest.raises(ExportError, match=r"is clipped to other than \d bits"):
            list(stored_differences(proto, tensors, bits))
        clip.input[:] = kept
        clip.op_type = "Neg"
        with pytest.raises(ExportError, match=r"is not clipped to \d bits"):
            list(stored_differences(proto, tensors, bits))
        clip.op_type = "Clip"


@pytest.mark.parametrize("target", ["openvino", "tensorrt"])
def test_a_run_becomes_a_checked_file(tmp_path, target):
    run = small_run(tmp_path, "vit", 4, 4, (True, True))
    result = export_run(run, tmp_path / "model.onnx", target=target, images=12)
    assert (result["target"], result["opset"]) == (target, TARGETS[target].opsets.start)
    assert result["parity"]["codes_equal"] is True
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "model.onnx", "run"]
