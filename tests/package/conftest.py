"""A classifier to package."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fimaq.toolchain.preprocess import Preprocessing

PREPROCESSING = Preprocessing(8, 6, 1.0, "center", "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
NAMES = [f"class {index}" for index in range(7)]


def write(
    path,
    *,
    batch="batch",
    image="image",
    logits="logits",
    names=NAMES,
    steps=(),
    metadata=None,
    pixels=False,
    **saving,
):
    """A classifier of 8x6 images, with weights in a node and in an initializer; ``steps`` lead from image to "x"."""
    weights = np.random.default_rng(5).standard_normal((3 * 8 * 6, len(names))).astype(np.float32)
    bias = numpy_helper.from_array(np.linspace(0, 1, len(names), dtype=np.float32), "bias")
    form = (TensorProto.UINT8, [batch, 8, 6, 3]) if pixels else (TensorProto.FLOAT, [batch, 3, 8, 6])
    steps = steps or [helper.make_node("Cast", [image], ["x"], to=TensorProto.FLOAT)]
    nodes = [
        *steps,
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("Constant", [], ["weights"], value=numpy_helper.from_array(weights, "w")),
        helper.make_node("MatMul", ["flat", "weights"], ["product"]),
        helper.make_node("Add", ["product", "bias"], [logits]),
    ]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(image, *form)],
        [helper.make_tensor_value_info(logits, TensorProto.FLOAT, [batch, len(names)])],
        [bias],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    props = {
        "fimaq.preprocessing": PREPROCESSING.to_json(),
        "fimaq.classes": json.dumps({"wnids": None, "names": names}),
    }
    helper.set_model_props(model, props if metadata is None else metadata)
    path.parent.mkdir(exist_ok=True)
    onnx.save_model(model, path, **saving)
    return path


@pytest.fixture(scope="session")
def onnx_file():
    """Writes an ONNX file that can be served."""
    return write


@pytest.fixture
def model(tmp_path):
    return write(tmp_path / "in" / "tiny.onnx")
