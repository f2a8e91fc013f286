"""Files that take uint8 images: the same numbers behind the normalisation, whoever computes it."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from onnx import helper
from onnx.reference import ReferenceEvaluator
from PIL import Image
from small_runs import quantized, save_run

from fimaq.cli.main import cli
from fimaq.deploy.serve.loading import load
from fimaq.toolchain.bench import bench
from fimaq.toolchain.data import open_dataset
from fimaq.toolchain.errors import UsageError
from fimaq.toolchain.evaluate import OrtPredictor, evaluate
from fimaq.toolchain.export import export_run
from fimaq.toolchain.export.errors import ExportError
from fimaq.toolchain.export.passes.activations import FLOAT
from fimaq.toolchain.export.passes.raw_image import TakeRawImage
from fimaq.toolchain.preprocess import Preprocessing
from fimaq.toolchain.runtime import open_session

CHECKED = ["ort-cpu"]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i in range(12):
        (folder / "ab"[i % 2]).mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "ab"[i % 2] / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, images) -> Path:
    return save_run(tmp_path_factory.mktemp("runs") / "run", "vit", quantized("vit", 4, "tensor", "tensor"), images)


@pytest.fixture(scope="module", params=CHECKED)
def pair(request, tmp_path_factory, run, images):
    """The file for normalised images, and the one for bytes."""
    folder = tmp_path_factory.mktemp("files")
    for kind in ("float", "uint8"):
        out = folder / f"{kind}.onnx"
        export_run(run, out, target=request.param, images=8, data=str(images), image=kind)
    return folder / "float.onnx", folder / "uint8.onnx"


def with_outputs(path: Path, op_type: str) -> onnx.ModelProto:
    """The file, with what the first operator of a kind makes as its only output."""
    model = onnx.load(path)
    name = next(node.output[0] for node in model.graph.node if node.op_type == op_type)
    del model.graph.output[:]
    model.graph.output.append(onnx.ValueInfoProto(name=name))
    return model


def every_byte(predictor: OrtPredictor) -> np.ndarray:
    """Images that hold each value of each channel."""
    size = (2, *predictor.image.shape)
    return np.random.default_rng(1).permuted(np.resize(np.arange(256, dtype=np.uint8), size), axis=1)


@pytest.mark.parametrize("optimize", [True, False])
def test_the_first_codes_are_those_of_normalised_images(pair, optimize):
    floats, raw = pair
    pixels = every_byte(OrtPredictor(raw, threads=1))
    assert all(len(np.unique(pixels[..., channel])) == 256 for channel in range(3))
    preprocessing = OrtPredictor(raw, threads=1).preprocessing
    batch = np.stack([preprocessing.normalize(image) for image in pixels])
    codes = [
        open_session(with_outputs(path, "QuantizeLinear").SerializeToString(), optimize=optimize).run(
            None, {"image": feed}
        )[0]
        for path, feed in ((floats, batch), (raw, pixels))
    ]
    assert len(np.unique(codes[0])) > 3
    np.testing.assert_array_equal(*codes)


def test_the_normalisation_is_the_same_bit_for_bit():
    size = Preprocessing(32, 32, 1.0, "center", "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    pixels = np.random.default_rng(1).permuted(np.resize(np.arange(256, dtype=np.uint8), (2, 32, 32, 3)), axis=1)
    names = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 3, 32, 32]) for name in ("image", "logits")
    ]
    graph = helper.make_graph([helper.make_node("Identity", ["image"], ["logits"])], "g", names[:1], names[1:])
    plain = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    model = ir.to_proto(TakeRawImage(size)(ir.from_proto(plain)).model)
    onnx.checker.check_model(model, full_check=True)
    mean, std = np.float32(size.mean), np.float32(size.std)
    wanted = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    assert wanted.dtype == np.float32
    results = [ReferenceEvaluator(model).run(None, {"image": pixels})[0]]
    for optimize in (True, False):
        results += open_session(model.SerializeToString(), optimize=optimize).run(None, {"image": pixels})
    for found in results:
        np.testing.assert_array_equal(found, wanted.transpose(0, 3, 1, 2))


def test_an_image_of_another_size_is_refused():
    size = Preprocessing(32, 32, 1.0, "center", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    names = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["n", 3, 32, 16]) for n in ("image", "logits")]
    graph = helper.make_graph([helper.make_node("Identity", ["image"], ["logits"])], "g", names[:1], names[1:])
    with pytest.raises(ir.passes.PreconditionError, match=r"\[\[3, 32, 16\]\], not one image of the model's size"):
        TakeRawImage(size)(ir.from_proto(helper.make_model(graph)))


def test_evaluate_bench_and_inspect_take_either(pair, images):
    floats, raw = (OrtPredictor(path, threads=1) for path in pair)
    assert (raw.image.kind, raw.image.shape, floats.image.shape) == ("uint8", (32, 32, 3), (3, 32, 32))
    assert raw.preprocessing == floats.preprocessing
    names = floats.classes["names"]
    data = open_dataset(str(images), labels_file=None, classes={"wnids": None, "names": names[:2]})
    one, other = (evaluate(item, data, batch_size=5, keep_logits=True) for item in (floats, raw))
    np.testing.assert_array_equal(one.predictions.logits, other.predictions.logits)
    assert one.preprocessing_sha256 == other.preprocessing_sha256
    assert [row["batch_size"] for row in bench(pair, (2,), threads=1, rounds=2)["models"]] == [2, 2]
    found = CliRunner().invoke(cli, ["inspect", str(pair[1]), "--json"])
    assert {layer["kernel"] for layer in json.loads(found.output)["layers"]} <= {"integer", "float"}


def test_another_normalisation_is_not_written(run, images, tmp_path, monkeypatch):
    monkeypatch.setattr(TakeRawImage, "_planes", lambda self, emit, name: emit.constant(name, np.array(0.49), FLOAT))
    with pytest.raises(ExportError, match=r"logits differ by up to .* Leave out --input uint8"):
        export_run(run, tmp_path / "x.onnx", images=8, data=str(images), image="uint8")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["tensorrt", "qnn"])
def test_targets_with_documented_rules_refuse_bytes(run, tmp_path, target):
    with pytest.raises(UsageError, match=f"target {target} takes normalised images"):
        export_run(run, tmp_path / "x.onnx", target=target, image="uint8")


def test_the_command_writes_one_that_the_server_takes(run, images, tmp_path):
    out = tmp_path / "raw.onnx"
    arguments = ["export", str(run), "-o", str(out), "--input", "uint8", "--images", "8", "--data", str(images)]
    result = CliRunner().invoke(cli, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    tensor = onnx.load(out).graph.input[0].type.tensor_type
    assert tensor.elem_type == onnx.TensorProto.UINT8
    assert [dim.dim_value for dim in tensor.shape.dim[1:]] == [32, 32, 3]
    assert load(out, "cpu", 1).image.kind == "uint8"
