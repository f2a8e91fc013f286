"""Sessions: that they compute what the file says, say what is wrong, and keep quiet."""

import os
import subprocess
import sys

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from fimaq.toolchain import runtime
from fimaq.toolchain.errors import EnvironmentProblem, InputError, UsageError
from fimaq.toolchain.runtime import available_providers, open_session, run_session, usable_cores


def model(nodes, shape=("b", 64), constants=None, out_type=TensorProto.FLOAT, opset=21, ir_version=10) -> bytes:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("y", out_type, None)],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("fimaq", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version).SerializeToString()


RELU = model([helper.make_node("Relu", ["x"], ["y"])])


def quantize(x, scale, zero):
    """QuantizeLinear and DequantizeLinear as the operators are defined."""
    codes = np.clip(np.rint(x / np.float32(scale)) + zero, 0, 255)
    return ((codes - zero) * np.float32(scale)).astype(np.float32)


@pytest.mark.parametrize("optimize", [True, False])
def test_two_quantizers_in_a_row_both_count(optimize):
    constants = {
        "s1": np.float32(0.031),
        "z1": np.uint8(120),
        "s2": np.float32(0.047),
        "z2": np.uint8(131),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s1", "z1"], ["q1"]),
        helper.make_node("DequantizeLinear", ["q1", "s1", "z1"], ["d1"]),
        helper.make_node("QuantizeLinear", ["d1", "s2", "z2"], ["q2"]),
        helper.make_node("DequantizeLinear", ["q2", "s2", "z2"], ["y"]),
    ]
    x = np.random.default_rng(0).standard_normal((50, 64)).astype(np.float32)
    session = open_session(model(nodes, constants=constants), optimize=optimize)
    expected = quantize(quantize(x, 0.031, 120), 0.047, 131)
    np.testing.assert_array_equal(run_session(session, {"x": x}, "test")[0], expected)


@pytest.mark.parametrize("optimize", [True, False])
def test_weight_only_quantization_multiplies_in_float(optimize):
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 256, (64, 32), dtype=np.uint8)
    scale = rng.uniform(0.01, 0.02, 32).astype(np.float32)
    zero = np.full(32, 128, dtype=np.uint8)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], axis=1),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    x = rng.standard_normal((20, 64)).astype(np.float32)
    session = open_session(model(nodes, constants={"w": codes, "s": scale, "z": zero}), optimize=optimize)
    exact = x.astype(np.float64) @ ((codes.astype(np.float64) - 128) * scale)
    # One float32 product of 64 terms; int8 activations (the default accuracy level) would be 5e-3 off.
    np.testing.assert_allclose(run_session(session, {"x": x}, "test")[0], exact, atol=2e-5)


def test_optimization_can_be_left_out():
    nodes = [helper.make_node("Identity", ["x"], ["i"]), helper.make_node("Relu", ["i"], ["y"])]
    levels = {
        optimize: open_session(model(nodes), optimize=optimize).get_session_options().graph_optimization_level.name
        for optimize in (True, False)
    }
    assert levels == {True: "ORT_ENABLE_ALL", False: "ORT_DISABLE_ALL"}


def test_threads_are_what_was_asked_and_by_default_every_core_of_the_process():
    def threads_of(session):
        return session.get_session_options().intra_op_num_threads

    assert threads_of(open_session(RELU, threads=1)) == 1
    assert threads_of(open_session(RELU)) == usable_cores()
    assert 1 <= usable_cores() <= os.cpu_count()
    with pytest.raises(UsageError, match="threads is 0"):
        open_session(RELU, threads=0)


def test_a_file_and_its_bytes_are_the_same_model(tmp_path):
    (tmp_path / "m.onnx").write_bytes(RELU)
    x = np.array([[-1.0] * 32 + [2.0] * 32], dtype=np.float32)
    for source in (RELU, tmp_path / "m.onnx", str(tmp_path / "m.onnx")):
        np.testing.assert_array_equal(run_session(open_session(source), {"x": x}, "m")[0], np.maximum(x, 0))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a usable ONNX model"),
        (b"no model at all" * 20, "not a usable ONNX model"),
        (RELU[: len(RELU) // 2], "not a usable ONNX model"),
        (model([helper.make_node("Relu", ["nothing"], ["y"])]), "not a usable ONNX model"),
        (model([helper.make_node("Quantize", ["x"], ["y"], domain="fimaq")]), "fimaq:Quantize"),
        (model([helper.make_node("Relu", ["x"], ["y"])], opset=99), "cannot be loaded"),
        (model([helper.make_node("Relu", ["x"], ["y"])], ir_version=99), "Unsupported model IR version"),
    ],
)
def test_what_is_no_model_is_an_input_error_that_names_the_file(tmp_path, content, message, capfd):
    (tmp_path / "bad.onnx").write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        open_session(tmp_path / "bad.onnx")
    assert "bad.onnx" in str(error.value)
    assert "fimaq-tool export" in str(error.value)
    assert "onnxruntime_src" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="not there"):
        open_session(tmp_path / "nothing.onnx")
    with pytest.raises(InputError, match="a folder"):
        open_session(tmp_path)


def test_an_operator_without_a_kernel_says_so():
    cast = model([helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT4E2M1)], opset=23, ir_version=11)
    with pytest.raises(InputError, match=r"(lacks|cannot be loaded|not a usable)"):
        open_session(cast)


def test_a_model_that_fails_when_it_runs_is_an_input_error():
    reshape = model([helper.make_node("Reshape", ["x", "shape"], ["y"])], constants={"shape": np.array([7], np.int64)})
    session = open_session(reshape)
    with pytest.raises(InputError, match=r"m\.onnx loads but fails when run on x float32 \[2, 64\]"):
        run_session(session, {"x": np.zeros((2, 64), np.float32)}, "m.onnx")


def test_a_provider_this_build_lacks(monkeypatch):
    monkeypatch.setattr(runtime, "available_providers", lambda: ["cpu"])
    with pytest.raises(
        EnvironmentProblem, match=r"provider cuda is not in this onnxruntime, which has cpu.*--provider"
    ):
        open_session(RELU, "cuda")
    with pytest.raises(UsageError, match="wanted one of cpu, cuda, tensorrt"):
        open_session(RELU, "gpu")


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_does_not_load_is_never_replaced_by_the_cpu(provider, capfd):
    if provider not in available_providers():
        pytest.skip(f"this onnxruntime is built without {provider}")
    try:
        session = open_session(RELU, provider)
    except EnvironmentProblem as error:
        message = str(error)
        assert f"provider {provider} was asked for and did not load" in message
        assert "--provider cpu" in message
        assert capfd.readouterr() == ("", "")
    else:  # a machine that has the device
        assert runtime.EXECUTION_PROVIDERS[provider] in session.get_providers()


def test_a_bad_model_is_not_blamed_on_the_provider():
    if "cuda" not in available_providers():
        pytest.skip("this onnxruntime is built without cuda")
    with pytest.raises(InputError, match="fimaq:Quantize"):
        open_session(model([helper.make_node("Quantize", ["x"], ["y"], domain="fimaq")]), "cuda")


def test_what_was_loaded_is_compared_with_what_was_asked():
    with pytest.raises(EnvironmentProblem, match="cuda was asked for"):
        runtime._require_loaded(["CPUExecutionProvider"], "cuda")
    runtime._require_loaded(["CUDAExecutionProvider", "CPUExecutionProvider"], "cuda")


def test_a_fresh_process_writes_nothing_at_home_and_nothing_to_the_screen(tmp_path):
    (tmp_path / "m.onnx").write_bytes(RELU)
    home = tmp_path / "home"
    home.mkdir()
    code = "import sys; from fimaq.toolchain.runtime import open_session; open_session(sys.argv[1])"
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m.onnx")],
        env={**environment, "HOME": str(home), "XDG_CACHE_HOME": str(home), "XDG_DATA_HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert list(home.iterdir()) == []


def test_what_is_said_on_stderr_during_import_is_dropped_and_stderr_comes_back(capfd):
    with runtime._native_stderr_unheard():
        os.write(2, b"device discovery failed\n")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"
