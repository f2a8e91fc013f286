"""The rules of tensorrt and qnn: our own files keep them, and each, broken once, is found by its name."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_runs import SIZE, lowered, small_model

from fimaq.toolchain.errors import InputError
from fimaq.toolchain.export.errors import ExportError
from fimaq.toolchain.export.targets import TARGETS
from fimaq.toolchain.export.targets.lint import check_rules, violations
from fimaq.toolchain.export.targets.qnn_rules import RULES as QNN
from fimaq.toolchain.export.targets.tensorrt_rules import RULES as TENSORRT

Break = Callable[[onnx.ModelProto], None]
FC1 = "blocks.1.mlp.fc1"


def for_tensorrt(name: str) -> onnx.ModelProto:
    return lowered(small_model(name, 4, 4, (True, True)), "tensorrt")


def for_qnn(name: str) -> onnx.ModelProto:
    images = np.random.default_rng(0).standard_normal((3, *SIZE), dtype=np.float32)
    return lowered(small_model(name, 4, 8, (True, False)), "qnn", images)


@pytest.fixture(scope="module")
def tensorrt() -> onnx.ModelProto:
    return for_tensorrt("vit")


@pytest.fixture(scope="module")
def qnn() -> onnx.ModelProto:
    return for_qnn("vit")


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def first(model: onnx.ModelProto, op_type: str, start: str = "") -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == op_type and node.name.startswith(start))


def dequantizer(model: onnx.ModelProto, layer: str, place: int) -> onnx.NodeProto:
    product = node(model, f"{layer}/MatMul")
    return next(node for node in model.graph.node if product.input[place] in node.output)


def quantizer(model: onnx.ModelProto, layer: str) -> onnx.NodeProto:
    """The QuantizeLinear of the layer's own grid."""
    return first(model, "QuantizeLinear", f"{layer}/input/")


def constant(model: onnx.ModelProto, array: np.ndarray, data_type: int | None = None) -> str:
    name = f"broken{len(model.graph.initializer)}"
    if data_type is None:
        tensor = numpy_helper.from_array(array, name)
    else:
        tensor = helper.make_tensor(name, data_type, array.shape, array.flatten().tolist())
    model.graph.initializer.append(tensor)
    return name


def set_input(find: Callable[[onnx.ModelProto], onnx.NodeProto], place: int, array: np.ndarray, kind=None) -> Break:
    def broken(model: onnx.ModelProto) -> None:
        find(model).input[place] = constant(model, array, kind)

    return broken


def weight_of(model: onnx.ModelProto) -> onnx.NodeProto:
    return dequantizer(model, FC1, 1)


def input_of(model: onnx.ModelProto) -> onnx.NodeProto:
    return quantizer(model, FC1)


def other_axis(model: onnx.ModelProto) -> None:
    next(attribute for attribute in weight_of(model).attribute if attribute.name == "axis").i = 0


def around(model: onnx.ModelProto) -> None:
    """The product reads what should have been quantized."""
    node(model, f"{FC1}/MatMul").input[0] = first(model, "LayerNormalization").output[0]


def between(model: onnx.ModelProto) -> None:
    quantize = input_of(model)
    moved = helper.make_node("Transpose", [quantize.output[0]], ["moved"], "between", perm=[0, 1, 2])
    for reader in model.graph.node:
        for place, name in enumerate(reader.input):
            if name == quantize.output[0]:
                reader.input[place] = "moved"
    model.graph.node.append(moved)


def other_operator(model: onnx.ModelProto) -> None:
    first(model, "Softmax").domain = "com.microsoft"


def old_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 26


def quantized_bias(model: onnx.ModelProto) -> None:
    add = first(model, "Add", FC1)
    parts = [np.zeros(4, np.int8), np.array(1, np.float32), np.array(0, np.int8)]
    names = [constant(model, part) for part in parts]
    model.graph.node.append(helper.make_node("DequantizeLinear", names, ["bias"], "bias"))
    add.input[1] = "bias"


def any_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"


def negative_index(model: onnx.ModelProto) -> None:
    made = helper.make_node("Gather", ["image", constant(model, np.array([-1]))], ["gathered"], "gathered")
    model.graph.node.append(made)


def narrow_result(model: onnx.ModelProto) -> None:
    product = node(model, f"{FC1}/MatMul").output[0]
    reader = next(node for node in model.graph.node if product in node.input)
    reader.input[2] = constant(model, np.array(7, np.uint8))


def float_constant(model: onnx.ModelProto) -> None:
    first(model, "Add", FC1).input[1] = constant(model, np.zeros(4, np.float32))


def float_left(model: onnx.ModelProto) -> None:
    first(model, "Gelu").input[0] = first(model, "LayerNormalization").output[0]


def zeros(count: int) -> np.ndarray:
    return np.zeros(count)


BROKEN_TENSORRT: dict[str, Break] = {
    "zero points are 0": set_input(input_of, 2, np.array(3, np.int8)),
    "codes are signed 8-bit integers": set_input(input_of, 2, np.array(0, np.uint8)),
    "scales are positive constants": set_input(input_of, 1, np.array(0, np.float32)),
    "an activation has one scale": set_input(input_of, 1, np.ones(17, np.float32)),
    "weight scales run along the output channels": other_axis,
    "Q and DQ stand side by side": between,
    "all inputs of a product are quantized": around,
    "biases are float": quantized_bias,
    "the opset is one the parser reads": old_opset,
    "operators are those the parser reads": other_operator,
}

BROKEN_QNN: dict[str, Break] = {
    "every size is fixed": any_batch,
    "operators are those the provider lists": other_operator,
    "Gather has indices that are not negative": negative_index,
    "scales are positive constants": set_input(input_of, 1, np.array(-1, np.float32)),
    "activations are uint8 or uint16 with one scale": set_input(input_of, 2, np.array(0, np.int8)),
    "weights are signed, without zero points, with a scale for each output": other_axis,
    "a product multiplies types the HTP has a kernel for": around,
    "a product's result is as wide as its left operand": narrow_result,
    "every tensor is on a grid": float_constant,
    "Q and DQ stand side by side": between,
}

MORE_QNN: list[tuple[str, Break]] = [
    (
        "weights are signed, without zero points, with a scale for each output",
        set_input(weight_of, 2, np.ones(4, np.int8)),
    ),
    (
        "weights are signed, without zero points, with a scale for each output",
        set_input(weight_of, 2, zeros(4), TensorProto.UINT4),
    ),
    ("activations are uint8 or uint16 with one scale", set_input(input_of, 1, np.ones(17, np.float32))),
    ("every tensor is on a grid", float_left),
    ("a product multiplies types the HTP has a kernel for", set_input(weight_of, 2, zeros(4), TensorProto.UINT16)),
]


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    return result


def broken_rules(model: onnx.ModelProto, rules) -> list[str]:
    return [line.split(":")[0] for line in violations(model, rules)]


def test_each_rule_names_its_document_and_is_broken_below():
    assert [rule.name for rule in TENSORRT] == list(BROKEN_TENSORRT)
    assert [rule.name for rule in QNN] == list(BROKEN_QNN)
    assert all(
        "documentation" in r.document or "docs/" in r.document or "API" in r.document or "SDK" in r.document
        for r in (*TENSORRT, *QNN)
    )
    assert (TARGETS["tensorrt"].rules, TARGETS["qnn"].rules) == (TENSORRT, QNN)


def test_files_keep_every_rule(tensorrt, qnn):
    assert violations(tensorrt, TENSORRT) == []
    assert violations(qnn, QNN) == []
    assert violations(for_tensorrt("swin"), TENSORRT) == []
    assert violations(for_qnn("swin"), QNN) == []


@pytest.mark.parametrize("rule", BROKEN_TENSORRT)
def test_a_broken_rule_of_tensorrt_is_named(tensorrt, rule):
    model = copied(tensorrt)
    BROKEN_TENSORRT[rule](model)
    assert rule in broken_rules(model, TENSORRT)
    with pytest.raises(ExportError, match="breaks what is documented for tensorrt") as refused:
        check_rules(model, "tensorrt", TENSORRT)
    document = next(r.document for r in TENSORRT if r.name == rule)
    assert rule in str(refused.value)
    assert document in str(refused.value)
    assert isinstance(refused.value, InputError)


@pytest.mark.parametrize(("rule", "how"), [*BROKEN_QNN.items(), *MORE_QNN])
def test_a_broken_rule_of_qnn_is_named(qnn, rule, how):
    model = copied(qnn)
    how(model)
    assert rule in broken_rules(model, QNN)
