"""The float model in half precision, for CUDA. What is checked here is checked on a CPU."""

import json
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from fimaq.cli.main import cli
from fimaq.toolchain.errors import InputError
from fimaq.toolchain.evaluate import OrtPredictor
from fimaq.toolchain.export import export_float
from fimaq.toolchain.export.checks import check
from fimaq.toolchain.export.checks.parity import snr_db
from fimaq.toolchain.export.errors import ExportError
from fimaq.toolchain.export.passes.half import ToHalf

IMAGES = np.random.default_rng(1).standard_normal((4, 3, 32, 32), dtype=np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("half")
    export_float("demo_vit", folder / "full.onnx")
    result = export_float("demo_vit", folder / "half.onnx", dtype="float16")
    assert result["parity"]["top1_agreement"] == 100
    assert 40 < result["parity"]["snr_db"] < 80
    export_float("demo_vit", folder / "raw.onnx", dtype="float16", image="uint8")
    return folder


def test_every_weight_is_rounded_once_and_the_file_is_half_as_large(files):
    full, half = (onnx.load(files / name) for name in ("full.onnx", "half.onnx"))
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in half.graph.initializer}
    for tensor in full.graph.initializer:
        array = numpy_helper.to_array(tensor)
        wanted = array.astype(np.float16) if array.dtype == np.float32 else array
        np.testing.assert_array_equal(weights[tensor.name], wanted)
        assert weights[tensor.name].dtype == wanted.dtype
    assert {value.type.tensor_type.elem_type for value in (*half.graph.input, *half.graph.output)} == {
        TensorProto.FLOAT
    }
    casts = Counter(node.attribute[0].i for node in half.graph.node if node.op_type == "Cast")
    assert casts[TensorProto.FLOAT] == 1  # the logits
    norms = [node for node in half.graph.node if node.op_type == "LayerNormalization"]
    stash = [a.i for node in norms for a in node.attribute if a.name == "stash_type"]
    assert norms
    assert set(stash) <= {TensorProto.FLOAT}
    ratio = (files / "half.onnx").stat().st_size / (files / "full.onnx").stat().st_size
    assert ratio < 0.75  # the demo model is small beside its graph


def test_onnx_reference_agrees_and_the_file_predicts_as_the_full_one(files):
    half = OrtPredictor(files / "half.onnx")
    assert json.loads(half.metadata["fimaq.provenance"])["dtype"] == "float16"
    full = OrtPredictor(files / "full.onnx")(IMAGES)
    assert half(IMAGES).dtype == np.float32
    assert 40 < snr_db(full, half(IMAGES)) < 80
    (by_reference,) = ReferenceEvaluator(str(files / "half.onnx")).run(None, {"image": IMAGES})
    assert snr_db(full, by_reference) > 40


def test_with_pixels_it_normalises_in_float32(files):
    pixels = np.random.default_rng(2).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    half, raw = OrtPredictor(files / "half.onnx"), OrtPredictor(files / "raw.onnx")
    normalised = np.stack([half.preprocessing.normalize(image) for image in pixels])
    np.testing.assert_array_equal(raw(pixels), half(normalised))


def small_graph(weight: float) -> ir.Model:
    nodes = [helper.make_node("Mul", ["image", "w"], ["y"]), helper.make_node("Cast", ["y"], ["logits"], to=1)]
    value = [helper.make_tensor_value_info(name, 1, ["b", 2]) for name in ("image", "logits")]
    graph = helper.make_graph(
        nodes, "g", value[:1], value[1:], [numpy_helper.from_array(np.array(weight, np.float32), "w")]
    )
    return ir.serde.deserialize_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))


def test_a_weight_that_half_precision_cannot_hold_is_refused():
    with pytest.raises(ExportError, match="1 numbers of 'w' are beyond 65504"):
        ToHalf()(small_graph(7e4))
    ToHalf()(small_graph(-np.inf))  # a mask


def test_a_cast_to_single_precision_becomes_one_to_half():
    proto = ir.serde.serialize_model(ToHalf()(small_graph(0.5)).model)
    onnx.checker.check_model(proto, full_check=True)
    image = np.array([[1.75, -3.25]], np.float32)
    (found,) = ReferenceEvaluator(proto).run(None, {"image": image})
    half, full = TensorProto.FLOAT16, TensorProto.FLOAT
    np.testing.assert_array_equal(found, image / 2)
    assert [attribute.i for node in proto.graph.node for attribute in node.attribute] == [half, half, full]


def test_a_file_that_is_off_in_half_precision_is_not_written(tmp_path, monkeypatch):
    runtime = check._runtime
    for wrong in (lambda logits: logits * 1.02, lambda logits: logits * np.nan):
        monkeypatch.setattr(check, "_runtime", lambda *args, wrong=wrong: lambda x: wrong(runtime(*args)(x)))
        with pytest.raises(InputError, match=r"wanted 40 dB or more.*Leave out --dtype float16"):
            export_float("demo_vit", tmp_path / "m.onnx", dtype="float16")
        assert list(tmp_path.iterdir()) == []


def test_the_option_is_for_float_models(tmp_path):
    answer = CliRunner().invoke(cli, ["export", str(tmp_path), "--dtype", "float16", "-o", str(tmp_path / "m.onnx")])
    assert answer.exit_code == 2
    assert "--dtype is for --float" in answer.stderr
