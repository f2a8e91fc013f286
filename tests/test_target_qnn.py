"""Target qnn: one image, 16-bit grids round about, encodings beside the file, and Qualcomm's emulator of the HTP."""

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from small_runs import SIZE, lowered, small_model, small_run

from fimaq.toolchain.artifact import Artifact
from fimaq.toolchain.errors import InputError
from fimaq.toolchain.evaluate import OrtPredictor
from fimaq.toolchain.export import export_run
from fimaq.toolchain.export.checks.parity import snr_db
from fimaq.toolchain.export.errors import ExportError
from fimaq.toolchain.export.passes.annotate import LEVELS, AnnotateActivations, grid_over
from fimaq.toolchain.export.passes.fixed_batch import FixBatch
from fimaq.toolchain.runtime import open_session

SYMMETRIC_WEIGHTS = (True, False)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("qnn"), "vit", 4, 8, SYMMETRIC_WEIGHTS)


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "model.onnx"
    return out, export_run(run, out, target="qnn", images=12)


def logits(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = open_session(model.SerializeToString(), threads=1)
    return np.concatenate([session.run(None, {"image": image[None]})[0] for image in images])


def test_a_run_becomes_a_file_for_one_image_and_its_encodings(exported):
    out, result = exported
    beside = out.with_suffix(".encodings.json")
    assert result["target"] == "qnn"
    assert result["encodings"] == str(beside)
    assert result["parity"]["codes_equal"] is True
    assert sorted(path.name for path in out.parent.iterdir()) == ["model.encodings.json", "model.onnx"]
    predictor = OrtPredictor(out)
    assert predictor.fixed_batch == 1
    assert predictor(np.zeros((3, *SIZE), np.float32)).shape == (3, 5)


def test_encodings_are_the_grids_of_the_run(exported, run):
    out, _ = exported
    read = json.loads(out.with_suffix(".encodings.json").read_text())
    tensors, graph = Artifact.load(run).tensors, onnx.load(out).graph
    assert read["version"] == "0.6.1"
    assert set(read) == {"version", "activation_encodings", "param_encodings", "quantizer_args"}
    names = {name for node in graph.node for name in (*node.input, *node.output)}
    assert set(read["activation_encodings"]) | set(read["param_encodings"]) <= names
    weights = {name: value for name, value in read["param_encodings"].items() if name.endswith(".weight.codes")}
    assert len(weights) == sum(name.endswith(".weight.codes") for name in tensors)
    for name, entries in weights.items():
        scale = tensors[name.replace(".codes", ".scale")]
        assert [entry["scale"] for entry in entries] == scale.tolist()
        for entry in entries:
            assert (entry["bitwidth"], entry["offset"], entry["is_symmetric"]) == (4, -8, "True")
            assert entry["min"] == -8 * entry["scale"]
            assert entry["max"] == 7 * entry["scale"]
    quantizers = {node.name: node for node in graph.node if node.op_type == "QuantizeLinear"}
    for name in (name for name in tensors if name.endswith(".input.scale")):
        layer = name.removesuffix(".input.scale")
        (entry,) = read["activation_encodings"][quantizers[f"{layer}/input/QuantizeLinear"].input[0]]
        assert entry["bitwidth"] == 8
        assert entry["scale"] == float(tensors[name])
        assert entry["offset"] == -int(tensors[name.replace(".scale", ".zero_point")])
        assert entry["max"] - entry["min"] == pytest.approx(255 * entry["scale"])


def test_nothing_is_left_half_written(run, tmp_path):
    out, beside = tmp_path / "model.onnx", tmp_path / "model.encodings.json"
    beside.write_text("mine")
    with pytest.raises(InputError, match=r"encodings\.json exists"):
        export_run(run, out, target="qnn", images=2)
    assert [path.name for path in tmp_path.iterdir()] == ["model.encodings.json"]
    assert beside.read_text() == "mine"
    export_run(run, out, target="qnn", images=2, force=True)
    assert json.loads(beside.read_text())["version"] == "0.6.1"


def test_sixteen_bits_round_about_change_little():
    """Off the 8-bit ties the annotated graph computes the plain one up to 16 bits; on some a code moves."""
    model = small_model("vit", 4, 8, SYMMETRIC_WEIGHTS)
    images = np.random.default_rng(1).standard_normal((8, *SIZE), dtype=np.float32)
    plain, annotated = lowered(model, "qnn"), lowered(model, "qnn", images[:4])
    found = logits(annotated, images)
    assert snr_db(logits(plain, images), found) > 30
    # The same codes and grids of the layers are in both.
    constants = [{t.name: numpy_helper.to_array(t) for t in proto.graph.initializer} for proto in (plain, annotated)]
    kept = [name for name in constants[0] if name.endswith((".weight.codes", ".weight.scale", ".input.scale"))]
    assert len(kept) == 30
    for name in kept:
        np.testing.assert_array_equal(constants[0][name], constants[1][name])


def whole_graph(nodes: list[onnx.NodeProto], out: list, **constants: np.ndarray) -> ir.Model:
    """From ``image`` ``["batch", 3, 4, 4]`` to ``logits``."""
    values = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("image", ["batch", 3, 4, 4]), ("logits", out))
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], tensors)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


def test_a_constant_as_far_below_zero_as_above_keeps_its_largest_number():
    """Both halves of 65,535 steps round up: its code would be 65,536."""
    constant = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4)
    nodes = [helper.make_node("Add", ["image", "constant"], ["logits"], "add")]
    model = FixBatch()(whole_graph(nodes, ["batch", 3, 4, 4], constant=constant)).model
    images = np.random.default_rng(0).uniform(-1, 1, (4, 3, 4, 4)).astype(np.float32)
    proto = ir.serde.serialize_model(AnnotateActivations(images)(model).model)
    np.testing.assert_allclose(logits(proto, images), images + constant, atol=2e-4)  # four grids of 4 / 65535 at most


def test_a_size_that_is_a_multiple_of_the_batch_is_found_again():
    nodes = [
        helper.make_node("Reshape", ["image", "sizes"], ["windows"], "cut"),
        helper.make_node("Relu", ["windows"], ["logits"], "relu"),
    ]
    model = whole_graph(nodes, ["4*batch", 3, 2, 2], sizes=np.array([-1, 3, 2, 2]))
    for node in model.graph:
        node.outputs[0].shape, node.outputs[0].type = ir.Shape(["4*batch", 3, 2, 2]), ir.TensorType(ir.DataType.FLOAT)
    fixed = ir.serde.serialize_model(FixBatch()(model).model)
    assert b"batch" not in fixed.SerializeToString()
    proto = onnx.shape_inference.infer_shapes(fixed, data_prop=True)
    for value in (*proto.graph.value_info, *proto.graph.output):
        if value.name in ("windows", "logits"):
            sizes = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
            assert sizes == [4, 3, 2, 2], value.name


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_norm_that_is_wrong_before_or_after_annotation_is_found(run, tmp_path, monkeypatch, moment):
    """Too little for parity of a few images."""
    step = {"before": FixBatch, "after": AnnotateActivations}[moment]
    call = step.call

    def broken(self, model):
        result = call(self, model)
        name, factor = {
            "before": ("blocks.0.norm1.weight", 0.99),
            "after": ("blocks.0.norm1.weight/16-bit.codes", 0.25),
        }[moment]
        value = result.model.graph.initializers[name]
        array = value.const_value.numpy().copy()
        array[7] = array[7] * factor
        value.const_value = ir.Tensor(array, name=name)
        return result

    monkeypatch.setattr(step, "call", broken)
    with pytest.raises(ExportError, match="apart from the rounding of activations the file does not compute"):
        export_run(run, tmp_path / "model.onnx", target="qnn", images=12)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.5, 2.0), (-3.0, -1.0), (0.0, 0.0)])
def test_a_grid_spans_its_range_and_zero(low, high):
    scale, zero_point = grid_over(low, high)
    assert 0 <= zero_point <= LEVELS
    assert zero_point == round(float(zero_point))
    ends = (0 - zero_point) * scale, (LEVELS - zero_point) * scale
    assert ends[0] <= min(low, 0) + scale
    assert ends[1] >= max(high, 0) - scale
    assert scale <= (max(high, 0) - min(low, 0)) / LEVELS * 1.0001 + 1e-12


def test_the_file_runs_whole_in_the_emulator_of_the_htp(exported):
    """Nothing falls back to the CPU, and the result is ONNX Runtime's up to the HTP's 16-bit arithmetic."""
    qnn = pytest.importorskip(
        "onnxruntime_qnn",
        reason="onnxruntime-qnn is not installed: pip install --no-deps onnxruntime-qnn (x86-64 Linux)",
    )
    import onnxruntime as ort

    out, _ = exported
    if not any(device.ep_name == "QNNExecutionProvider" for device in ort.get_ep_devices()):
        ort.register_execution_provider_library("QNNExecutionProvider", qnn.get_library_path())
    devices = [device for device in ort.get_ep_devices() if device.ep_name == "QNNExecutionProvider"]
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.add_session_config_entry("session.disable_double_qdq_remover", "1")
    options.add_provider_for_devices(devices, {"backend_path": qnn.get_qnn_htp_path()})
    session = ort.InferenceSession(out.read_bytes(), options)
    images = np.random.default_rng(2).standard_normal((3, *SIZE), dtype=np.float32)
    found = np.concatenate([session.run(None, {"image": image[None]})[0] for image in images])
    assert snr_db(logits(onnx.load(out), images), found) > 25
