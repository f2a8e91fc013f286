"""Triton's repository, read by Triton's own parser, and models that Triton would compute otherwise."""

import hashlib
import json

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import json_format, text_format
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from fimaq.deploy.package import Docker, Triton, package
from fimaq.deploy.package.triton import quoted
from fimaq.toolchain.errors import InputError, UsageError


def cast_logits(path, elem):
    """The same model with logits of another type."""
    model = onnx.load(path)
    model.graph.node.append(helper.make_node("Cast", ["logits"], ["cast"], to=elem))
    model.graph.output[0].name, model.graph.output[0].type.tensor_type.elem_type = "cast", elem
    onnx.save(model, path)
    return path


def twice_quantized(onnx_file, path, pixels=False):
    """A model whose image passes two Q/DQ pairs with different scales, which ONNX Runtime merges unless told not to.

    Pixels are brought down to 0 to 2.55 first.
    """
    scales = {"fine": 0.05, "coarse": 0.73}
    constants = [helper.make_node("Constant", [], [name], value_float=scale) for name, scale in scales.items()]
    constants.append(
        helper.make_node("Constant", [], ["zero"], value=numpy_helper.from_array(np.asarray(128, np.uint8)))
    )
    pairs, tensor = [], "image"
    if pixels:
        constants.append(helper.make_node("Constant", [], ["hundredth"], value_float=0.01))
        pairs = [helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT)]
        pairs.append(helper.make_node("Mul", ["floats", "hundredth"], ["small"]))
        tensor = "small"
    for scale in scales:
        pairs.append(helper.make_node("QuantizeLinear", [tensor, scale, "zero"], [f"{scale}_q"]))
        tensor = "x" if scale == "coarse" else f"{scale}_dq"
        pairs.append(helper.make_node("DequantizeLinear", [f"{scale}_q", scale, "zero"], [tensor]))
    return onnx_file(path, steps=[*constants, *pairs], pixels=pixels)


def run(path, images, **options):
    """ONNX Runtime alone."""
    settings = onnxruntime.SessionOptions()
    for key, value in options.items():
        settings.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


@pytest.fixture
def read_config(triton_model_config):
    """What Triton understands of a packaged model's config.pbtxt; fails where it understands nothing."""

    def read(folder):
        (path,) = folder.glob("*/config.pbtxt")
        return json_format.MessageToDict(
            text_format.Parse(path.read_text(), triton_model_config()), preserving_proto_field_name=True
        )

    return read


def test_triton_reads_what_was_meant(model, tmp_path, read_config):
    package(model, tmp_path / "out", Triton())
    config = read_config(tmp_path / "out")
    carried = {item.key: item.value for item in onnx.load(model).metadata_props}
    about = {key: value["string_value"] for key, value in config.pop("parameters").items()}
    assert about == {
        "fimaq.preprocessing": carried["fimaq.preprocessing"],
        "fimaq.classes": json.dumps(json.loads(carried["fimaq.classes"]), separators=(",", ":")),
        "fimaq.sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "fimaq.bytes": str(model.stat().st_size),
        "fimaq.bits": "float",
        "fimaq.provider": "cpu",
    }
    assert config == {
        "name": "tiny",
        "backend": "onnxruntime",
        "max_batch_size": 32,
        "input": [{"name": "image", "data_type": "TYPE_FP32", "dims": ["3", "8", "6"]}],
        "output": [{"name": "logits", "data_type": "TYPE_FP32", "dims": ["7"], "label_filename": "labels.txt"}],
        "instance_group": [{"count": 1, "kind": "KIND_CPU"}],
        "dynamic_batching": {
            "default_queue_policy": {
                "max_queue_size": 64,
                "default_timeout_microseconds": "30000000",
                "allow_timeout_override": True,
            }
        },
        "model_warmup": [
            {
                "name": "one request",
                "batch_size": 1,
                "inputs": {"image": {"data_type": "TYPE_FP32", "dims": ["3", "8", "6"], "zero_data": True}},
            }
        ],
    }


@pytest.mark.parametrize(("batch", "fixed"), [("batch", []), (4, ["4"])])
def test_triton_is_told_that_a_file_takes_pixels(onnx_file, tmp_path, read_config, batch, fixed):
    package(onnx_file(tmp_path / "tiny.onnx", pixels=True, batch=batch), tmp_path / "out", Triton())
    config = read_config(tmp_path / "out")
    entry = {"data_type": "TYPE_UINT8", "dims": [*fixed, "8", "6", "3"]}
    assert config["input"] == [{"name": "image", **entry}]
    assert config["model_warmup"][0]["inputs"] == {"image": {**entry, "zero_data": True}}
    assert config["output"][0]["data_type"] == "TYPE_FP32"
    assert "Clients send the pixels of the scaled" in (tmp_path / "out" / "README.md").read_text()


def test_what_is_chosen_for_triton_is_in_the_config(model, tmp_path, read_config):
    package(model, tmp_path / "out", Triton(max_batch=5, instances=3, threads=2, provider="cuda"))
    config = read_config(tmp_path / "out")
    assert config["max_batch_size"] == 5
    assert config["instance_group"] == [{"count": 3, "kind": "KIND_GPU"}]
    assert config["parameters"]["intra_op_thread_count"] == {"string_value": "2"}
    assert config["parameters"]["fimaq.provider"] == {"string_value": "cuda"}


@pytest.mark.parametrize(("batch", "labelled"), [(1, True), (4, False)])
def test_a_fixed_batch_is_an_axis_and_is_not_batched(onnx_file, tmp_path, read_config, batch, labelled):
    package(onnx_file(tmp_path / "tiny.onnx", batch=batch), tmp_path / "out", Triton())
    config = read_config(tmp_path / "out")
    assert "max_batch_size" not in config
    assert "dynamic_batching" not in config
    assert config["input"][0]["dims"] == [str(batch), "3", "8", "6"]
    assert config["output"][0]["dims"] == [str(batch), "7"]
    assert config["model_warmup"][0]["inputs"]["image"]["dims"] == [str(batch), "3", "8", "6"]
    assert ("label_filename" in config["output"][0]) == labelled


def test_a_largest_batch_is_refused_where_the_file_fixes_it(onnx_file, tmp_path):
    path = onnx_file(tmp_path / "tiny.onnx", batch=4)
    with pytest.raises(UsageError, match="always takes 4 images"):
        package(path, tmp_path / "out", Triton(max_batch=8))


@pytest.mark.parametrize(("elem", "name"), [(TensorProto.FLOAT16, "TYPE_FP16"), (TensorProto.DOUBLE, "TYPE_FP64")])
def test_logits_of_another_type_are_declared(model, tmp_path, read_config, elem, name):
    package(cast_logits(model, elem), tmp_path / "out", Triton())
    assert read_config(tmp_path / "out")["output"][0]["data_type"] == name


def test_logits_that_are_no_floats_are_refused(model, tmp_path):
    with pytest.raises(InputError, match="logits of type int32"):
        package(cast_logits(model, TensorProto.INT32), tmp_path / "out", Triton())


def test_there_is_a_label_on_a_line_of_its_own_for_each_logit(onnx_file, tmp_path):
    names = ["cat", "dog\nor wolf", "", "écureuil"]
    package(onnx_file(tmp_path / "tiny.onnx", names=names), tmp_path / "out", Triton())
    labels = (tmp_path / "out" / "tiny" / "labels.txt").read_bytes()
    assert labels == "cat\ndog or wolf\n\nécureuil\n".encode()


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_name_of_a_tensor_survives_quoting(triton_model_config, text):
    assert text_format.Parse(f"name: {quoted(text)}", triton_model_config()).name == text


def test_tensors_may_be_called_anything(onnx_file, tmp_path, read_config):
    path = onnx_file(tmp_path / "tiny.onnx", image='a "quoted" \\ image', logits="$logits\n")
    package(path, tmp_path / "out", Triton())
    config = read_config(tmp_path / "out")
    assert (config["input"][0]["name"], config["output"][0]["name"]) == ('a "quoted" \\ image', "$logits\n")


def test_pixels_that_triton_would_compute_otherwise_are_refused(onnx_file, tmp_path):
    path = twice_quantized(onnx_file, tmp_path / "tiny.onnx", pixels=True)
    with pytest.raises(InputError, match="gives other logits with ONNX Runtime's default session options"):
        package(path, tmp_path / "out", Triton())


def test_a_model_that_triton_would_compute_otherwise_is_refused(onnx_file, tmp_path):
    path = twice_quantized(onnx_file, tmp_path / "tiny.onnx")
    images = np.random.default_rng(2).standard_normal((8, 3, 8, 6)).astype(np.float32)
    default, kept = run(path, images), run(path, images, **{"session.disable_double_qdq_remover": "1"})
    assert np.abs(default - kept).max() > 0.01 * np.abs(kept).max()
    with pytest.raises(InputError, match="gives other logits with ONNX Runtime's default session options"):
        package(path, tmp_path / "out", Triton())
    package(path, tmp_path / "out", Docker())
