"""The export pipeline on small whole models: what is in the file, what ONNX Runtime makes of it, what is refused."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper, numpy_helper
from onnxruntime.tools.onnx_model_utils import make_dim_param_fixed
from small_runs import CLASSES, PREPROCESSING, SIZE, coded, quantized, save_images, save_run

from fimaq.toolchain.errors import InputError, UsageError
from fimaq.toolchain.evaluate import OrtPredictor
from fimaq.toolchain.export import export_float, export_run
from fimaq.toolchain.export.checks.kernels import layer_kernels
from fimaq.toolchain.export.checks.parity import snr_db, torch_predictor
from fimaq.toolchain.export.checks.stored import stored_differences
from fimaq.toolchain.export.checks.unrounded import without_rounding
from fimaq.toolchain.export.errors import ExportError
from fimaq.toolchain.export.metadata import Description
from fimaq.toolchain.export.passes.integer_linear import MICROSOFT, OPERATOR
from fimaq.toolchain.export.passes.qdq import LowerToQdq
from fimaq.toolchain.export.passes.read_tokens import KeepReadToken
from fimaq.toolchain.export.passes.tidy import after_lowering, before_lowering
from fimaq.toolchain.export.passes.two_bits import StoreTwoBits
from fimaq.toolchain.export.run import operand_bits, parity_images
from fimaq.toolchain.export.targets import TARGETS
from fimaq.toolchain.export.targets.ort_cpu import OrtCpu
from fimaq.toolchain.export.traced.ops import DOMAIN
from fimaq.toolchain.export.traced.trace import trace
from fimaq.toolchain.families import QuantModel
from fimaq.toolchain.nn import QuantLinear, QuantMatMul, float_layers
from fimaq.toolchain.quantizers import UniformQuantizer
from fimaq.toolchain.run_folder import layer_rows, load_run, run_tensors
from fimaq.toolchain.runtime import open_session
from fimaq.toolchain.spec import QuantSpec

ANY_RECIPE = ("ort-cpu", "portable")
"""Targets that refuse no grids; the others have tests of their own."""
CASES = [("vit", "tensor", "tensor"), ("vit", "token", "head-token"), ("swin", "tensor", "tensor")]


def lowered(traced: onnx.ModelProto, target: str, model: QuantModel) -> onnx.ModelProto:
    graph = ir.serde.deserialize_model(traced)
    for step in (*before_lowering(), *TARGETS[target].passes(), *after_lowering()):
        graph = step(graph).model
    Description("toy", "0" * 64, target, PREPROCESSING, CLASSES, {}, layer_rows(model)).write_to(graph)
    return ir.serde.serialize_model(graph)


def products(model: onnx.ModelProto, layer: str) -> list[onnx.NodeProto]:
    """The layer's product, or those of its parts."""
    name = rf"{re.escape(layer)}(\.\d+)?/(MatMul|Conv|{OPERATOR})"
    return [node for node in model.graph.node if re.fullmatch(name, node.name)]


@pytest.fixture(scope="module", params=CASES, ids=["-".join(case) for case in CASES])
def case(request):
    name, linear, product = request.param
    model = quantized(name, 4, linear, product)
    return model, ir.serde.serialize_model(trace(model.model, model.layers, SIZE, 21)), product


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return save_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, images) -> Path:
    return save_run(tmp_path_factory.mktemp("runs") / "run", "vit", quantized("vit", 4, "tensor", "tensor"), images)


def test_tracing_makes_one_operator_of_each_layer_and_leaves_the_model_alone(case):
    model, traced, _ = case
    layers = [a.s.decode() for n in traced.graph.node if n.domain == DOMAIN for a in n.attribute if a.name == "layer"]
    assert sorted(layers) == sorted(model.layers)
    assert {id(layer) for layer in model.layers.values()} <= {id(module) for module in model.model.modules()}
    assert {"Div", "Round", "MatMul", "Gemm", "Conv"}.isdisjoint(n.op_type for n in traced.graph.node if not n.domain)


@pytest.mark.parametrize("target", ANY_RECIPE)
def test_a_lowered_model_is_standard_clean_and_named_by_layer(case, target):
    model, traced, _ = case
    proto = lowered(traced, target, model)
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    own = {node.op_type for node in proto.graph.node if node.domain == MICROSOFT}
    assert {node.domain for node in proto.graph.node} - {MICROSOFT} == {""}
    assert own == ({OPERATOR} if target == "ort-cpu" else set())
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", 21), *((MICROSOFT, 1) for _ in own)]
    shapes = [
        [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*proto.graph.input, *proto.graph.output)
    ]
    assert shapes == [["batch", *SIZE], ["batch", 5]]
    assert [v.name for v in (*proto.graph.input, *proto.graph.output)] == ["image", "logits"]
    names = Counter(node.name for node in proto.graph.node)
    assert max(names.values()) == 1
    assert all(products(proto, layer) for layer in model.layers)
    # Nothing of how it was made, or of this machine.
    content = proto.SerializeToString()
    assert not any(word in content for word in (b"site-packages", b"stack_trace", b"pkg.torch", b"wrapped", b".py"))


@pytest.mark.parametrize("target", ANY_RECIPE)
def test_constants_are_folded_used_and_stored_once(case, target):
    model, traced, _ = case
    graph = lowered(traced, target, model).graph
    read = {name for node in graph.node for name in node.input}
    assert {tensor.name for tensor in graph.initializer} <= read
    contents = Counter(t.raw_data for t in graph.initializer if len(t.raw_data) > 256 and any(t.raw_data))
    assert max(contents.values()) == 1
    computed = {"Where", "Equal", "Range", "ConstantOfShape", "Pad", "Mod"}  # masks and bias tables are folded
    assert computed.isdisjoint(node.op_type for node in graph.node)
    codes = sum(len(t.raw_data) for t in graph.initializer if t.name.endswith(".codes"))
    assert codes == sum(
        (layer.weight_quantizer.codes.numel() + 1) // 2
        for layer in model.layers.values()
        if not isinstance(layer, QuantMatMul)
    )


def test_every_scalar_product_runs_on_integer_kernels(case, tmp_path):
    model, traced, product = case
    onnx.save(lowered(traced, "ort-cpu", model), tmp_path / "model.onnx")
    kernels = layer_kernels(tmp_path / "model.onnx")
    # A scale per token of the values varies along the axis that attention sums over: it cannot leave the product.
    expected = {
        name: "float" if product == "head-token" and name.endswith(".av") else "integer" for name in model.layers
    }
    assert kernels == expected


def test_integer_kernels_and_results_survive_a_fixed_batch_and_default_options(case, tmp_path):
    import onnxruntime as ort

    model, traced, _ = case
    proto = lowered(traced, "ort-cpu", model)
    image = np.random.default_rng(0).standard_normal((2, *SIZE), dtype=np.float32)
    expected = open_session(proto.SerializeToString()).run(None, {"image": image})[0]
    defaults = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(defaults.run(None, {"image": image})[0], expected)
    onnx.save(proto, tmp_path / "dynamic.onnx")
    make_dim_param_fixed(proto.graph, "batch", 2)
    onnx.save(proto, tmp_path / "fixed.onnx")
    np.testing.assert_array_equal(open_session(tmp_path / "fixed.onnx").run(None, {"image": image})[0], expected)
    assert layer_kernels(tmp_path / "fixed.onnx") == layer_kernels(tmp_path / "dynamic.onnx")


def test_a_fused_query_key_value_is_three_products(case):
    model, traced, _ = case
    proto = lowered(traced, "ort-cpu", model)
    parts = {name: len(products(proto, name)) for name in model.layers}
    assert parts == {name: 3 if name.endswith(".qkv") else 1 for name in parts}
    assert not any(node.op_type == "Split" for node in proto.graph.node)


@pytest.mark.parametrize(("linear", "product"), [("tensor", "tensor"), ("token", "head-token")])
def test_layers_without_bias_run_on_integer_kernels(linear, product, tmp_path):
    """Left to itself ONNX Runtime keeps a product in float that only a signed QuantizeLinear reads: the key's."""
    model = quantized("unbiased", 4, linear, product)
    proto = lowered(ir.serde.serialize_model(trace(model.model, model.layers, SIZE, 21)), "ort-cpu", model)
    onnx.save(proto, tmp_path / "model.onnx")
    kernels = layer_kernels(tmp_path / "model.onnx")
    assert [name for name, kernel in kernels.items() if kernel != "integer"] == (
        ["blocks.0.attn.av"] if product == "head-token" else []
    )
    assert list(stored_differences(proto, run_tensors(model), operand_bits(layer_rows(model)))) == []
    image = np.random.default_rng(0).standard_normal((2, *SIZE), dtype=np.float32)
    continuous = without_rounding(proto, list(model.layers))
    (found,) = open_session(continuous.SerializeToString(), optimize=False).run(None, {"image": image})
    with float_layers(model.layers.values(), keep_weights=True):
        wanted = torch_predictor(model, torch.float32)(image)
    assert snr_db(wanted, found) > 110


@pytest.mark.parametrize(("linear", "product"), [("tensor", "tensor"), ("token", "head-token")])
def test_of_the_last_block_only_the_class_token_is_computed(linear, product):
    model = quantized("vit", 4, linear, product)
    proto = lowered(ir.serde.serialize_model(trace(model.model, model.layers, SIZE, 21)), "ort-cpu", model)
    outputs = [output for node in proto.graph.node for output in node.output]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs if name != "logits")
    shapes = dict(zip([o.name for o in proto.graph.output], run_all(proto), strict=True))
    results = {name.removesuffix("/output"): shape for name, shape in shapes.items() if name.endswith("/output")}
    rows = {layer: shape[-2] for layer, shape in results.items() if layer.startswith("blocks")}
    assert {name for name, count in rows.items() if count == 1} == {
        f"blocks.1.{layer}" for layer in ("attn.qkv.0", "attn.qk", "attn.av", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    assert {count for count in rows.values() if count != 1} == {17}


def test_scales_of_another_token_than_the_one_that_is_computed_are_found_in_the_file():
    model = quantized("vit", 4, "token", "head-token")
    proto = lowered(ir.serde.serialize_model(trace(model.model, model.layers, SIZE, 21)), "ort-cpu", model)
    tensors, bits = run_tensors(model), operand_bits(layer_rows(model))
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    proto.graph.initializer.extend(numpy_helper.from_array(np.array([n]), f"at.{n}") for n in (1, 2))
    slices = [node for node in proto.graph.node if node.op_type == "Slice" and node.input[0].endswith(".scale")]
    scaled = ("attn.qkv.0", "attn.qk", "attn.av", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert [node.name.partition("/")[0] for node in slices] == [f"blocks.1.{layer}" for layer in scaled]
    for node in slices:
        assert [constants[name].item() for name in node.input[1:3]] == [0, 1]
        kept = list(node.input)
        node.input[1:3] = ["at.1", "at.2"]
        with pytest.raises(ExportError, match=f"{kept[0]} is read at token 1, which is not the one that is computed"):
            list(stored_differences(proto, tensors, bits))
        node.input[:] = kept


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_scale_arrays_on_integers_compute_what_they_do_on_floats(name, monkeypatch):
    model = quantized(name, 4, "token", "head-token")
    traced = ir.serde.serialize_model(trace(model.model, model.layers, SIZE, 21))
    found = lowered(traced, "ort-cpu", model)
    assert list(stored_differences(found, run_tensors(model), operand_bits(layer_rows(model)))) == []
    steps = [step for step in TARGETS["ort-cpu"].passes() if not isinstance(step, KeepReadToken)]
    place, lowering = next((place, step) for place, step in enumerate(steps) if isinstance(step, LowerToQdq))
    steps[place] = LowerToQdq(lowering.containers, before_layout=True)
    monkeypatch.setattr(OrtCpu, "passes", lambda self: steps)
    wanted = lowered(traced, "ort-cpu", model)
    image = np.random.default_rng(0).standard_normal((3, *SIZE), dtype=np.float32)
    for optimize in (True, False):
        logits = [
            open_session(proto.SerializeToString(), optimize=optimize).run(None, {"image": image})[0]
            for proto in (found, wanted)
        ]
        np.testing.assert_allclose(*logits, rtol=1e-5, atol=1e-6)


def test_one_token_needs_a_lowering_that_reads_its_scale():
    model = quantized("vit", 4, "token", "head-token")
    graph = KeepReadToken()(trace(model.model, model.layers, SIZE, 21)).model
    with pytest.raises(ir.passes.PreconditionError, match="computes one token"):
        LowerToQdq(None, before_layout=True)(graph)


def test_a_tensor_of_which_one_token_is_read_twice_is_sliced_once():
    """The query and the residual of a ResPostBlock read the same tensor."""
    model = quantized("respost", 4, "tensor", "tensor")
    proto = lowered(ir.serde.serialize_model(trace(model.model, model.layers, SIZE, 21)), "ort-cpu", model)
    onnx.checker.check_model(proto, full_check=True)
    assert sum(node.name.startswith("token/") for node in proto.graph.node) == 1


def run_all(proto: onnx.ModelProto) -> list[tuple[int, ...]]:
    """Shapes of every output for two images."""
    session = open_session(proto.SerializeToString(), optimize=False)
    return [array.shape for array in session.run(None, {"image": np.zeros((2, *SIZE), np.float32)})]


@pytest.mark.parametrize("target", ANY_RECIPE)
def test_any_changed_number_is_found_in_the_file(case, target):
    model, traced, _ = case
    proto = lowered(traced, target, model)
    tensors, bits = run_tensors(model), operand_bits(layer_rows(model))
    assert list(stored_differences(proto, tensors, bits)) == []
    for name in bits:
        parts = ("codes", "scale", "zero_point") if name.endswith(".weight") else ("scale", "zero_point")
        for part in parts:
            key = f"{name}.{part}"
            changed = tensors[key].copy()
            changed.reshape(-1)[-1] = (
                changed.reshape(-1)[-1] * 1.0001 if part == "scale" else changed.reshape(-1)[-1] ^ 1
            )
            assert list(stored_differences(proto, {**tensors, key: changed}, bits)) == [key]


@pytest.mark.parametrize("target", ANY_RECIPE)
def test_without_rounding_the_file_computes_what_torch_computes_without(case, target):
    model, traced, _ = case
    image = np.random.default_rng(0).standard_normal((2, *SIZE), dtype=np.float32)
    continuous = without_rounding(lowered(traced, target, model), list(model.layers))
    assert not {node.op_type for node in continuous.graph.node} & {"QuantizeLinear", "Round", "Clip"}
    (found,) = open_session(continuous.SerializeToString(), optimize=False).run(None, {"image": image})
    rounded = torch_predictor(model, torch.float32)(image)
    with float_layers(model.layers.values(), keep_weights=True):
        wanted = torch_predictor(model, torch.float32)(image)
    assert snr_db(wanted, found) > 110
    assert snr_db(wanted, rounded) < 20


@pytest.mark.parametrize("target", ANY_RECIPE)
def test_weight_scales_along_the_wrong_axis_are_found_in_the_file(case, target):
    """The numbers in the file are then all as they should be."""
    model, traced, _ = case
    proto = lowered(traced, target, model)
    tensors, bits = run_tensors(model), operand_bits(layer_rows(model))
    producers = {node.output[0]: node for node in proto.graph.node}
    weighted = [name for name, layer in model.layers.items() if not isinstance(layer, QuantMatMul)]
    for product in (product for name in weighted for product in products(proto, name)):
        if product.op_type == OPERATOR:
            continue  # it knows one axis only
        (axis,) = (a for a in producers[product.input[1]].attribute if a.name == "axis")
        right, axis.i = axis.i, 1 - axis.i
        name = product.name.rpartition("/")[0]
        with pytest.raises(ExportError, match=f"layer '{name}': weight scales run along axis {axis.i}"):
            list(stored_differences(proto, tensors, bits))
        axis.i = right


@pytest.mark.parametrize("target", ANY_RECIPE)
def test_a_clip_that_is_moved_or_missing_is_found_in_the_file(case, target):
    model, traced, _ = case
    tensors, bits = run_tensors(model), operand_bits(layer_rows(model))
    proto = lowered(traced, target, model)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    clips = [node for node in proto.graph.node if node.op_type == "Clip"]
    assert bool(clips) == (target == "ort-cpu")  # native 4-bit types need none
    for clip in clips:
        for name, place in (("low", 1), ("high", 2)):
            moved = numpy_helper.from_array(constants[clip.input[place]] + np.int8(1), f"{clip.name}.{name}")
            proto.graph.initializer.append(moved)
        kept = list(clip.input)
        clip.input[1:3] = [f"{clip.name}.low", f"{clip.name}.high"]
        with pytest.raises(ExportError, match="is clipped to other than"):
            list(stored_differences(proto, tensors, bits))
        clip.input[:] = kept
        clip.op_type = "Transpose"  # one that moves nothing
        with pytest.raises(ExportError, match="is not clipped to"):
            list(stored_differences(proto, tensors, bits))
        clip.op_type = "Clip"
    assert list(stored_differences(proto, tensors, bits)) == []


@pytest.mark.parametrize("target", ["ort-cpu", "portable"])
def test_bounds_of_an_own_zero_point_that_are_moved_or_missing_are_found_in_the_file(target):
    model = quantized("vit", 4, "token", "head-token")
    tensors, bits = run_tensors(model), operand_bits(layer_rows(model))
    proto = lowered(ir.serde.serialize_model(trace(model.model, model.layers, SIZE, 21)), target, model)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    bounds = [node for node in proto.graph.node if node.op_type in ("Max", "Min")]
    assert bounds
    for node in bounds:
        end = constants[node.input[1]]
        proto.graph.initializer.append(numpy_helper.from_array(end + end.dtype.type(1), f"{node.name}.moved"))
        kept = list(node.input)
        node.input[1] = f"{node.name}.moved"
        with pytest.raises(ExportError, match="is clipped to other than"):
            list(stored_differences(proto, tensors, bits))
        node.input[:] = kept
        kind, node.op_type = node.op_type, "Transpose"  # one that moves nothing
        with pytest.raises(ExportError, match=r"clipped to|not quantized in the file"):
            list(stored_differences(proto, tensors, bits))
        node.op_type = kind
    assert list(stored_differences(proto, tensors, bits)) == []


def test_bounds_on_codes_without_a_common_zero_point_are_found_in_the_file():
    model = quantized("vit", 4, "token", "head-token")
    tensors, bits = run_tensors(model), operand_bits(layer_rows(model))
    proto = lowered(ir.serde.serialize_model(trace(model.model, model.layers, SIZE, 21)), "ort-cpu", model)
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    bounded = [
        name
        for name in constants
        if name.endswith(".zero_points") and f"{name.removesuffix('zero_points')}low" in constants
    ]
    assert bounded
    for name in bounded:
        kept = numpy_helper.to_array(constants[name])
        moved = kept.copy()
        moved[-1] += 1
        constants[name].CopyFrom(numpy_helper.from_array(moved, name))
        with pytest.raises(ExportError, match="bounds are set on codes that have no common zero point"):
            list(stored_differences(proto, tensors, bits))
        constants[name].CopyFrom(numpy_helper.from_array(kept, name))
    assert list(stored_differences(proto, tensors, bits)) == []


@pytest.mark.parametrize("target", ANY_RECIPE)
def test_a_grid_that_is_not_rounded_to_is_found_in_the_file(target):
    model = quantized("vit", 8, "token", "head-token")  # no room for an integer type: bounds and rounding are on floats
    tensors, bits = run_tensors(model), operand_bits(layer_rows(model))
    proto = lowered(ir.serde.serialize_model(trace(model.model, model.layers, SIZE, 21)), target, model)
    rounds = [node for node in proto.graph.node if node.op_type == "Round"]
    assert rounds
    for node in rounds:
        node.op_type = "Transpose"  # one that moves nothing
        with pytest.raises(ExportError, match="is not rounded"):
            list(stored_differences(proto, tensors, bits))
        node.op_type = "Round"
    assert list(stored_differences(proto, tensors, bits)) == []


def test_layers_that_are_not_finished_are_refused_and_the_model_is_left_alone(case):
    model, _, _ = case
    before = dict(model.model.named_modules())
    name = next(name for name in reversed(model.layers) if name.endswith("fc2"))
    finished, model.layers[name].input_quantizer = model.layers[name].input_quantizer, torch.nn.Identity()
    try:
        with pytest.raises(ExportError, match=f"layer '{name}' has an input in Identity: wanted fixed scales"):
            trace(model.model, model.layers, SIZE, 21)
    finally:
        model.layers[name].input_quantizer = finished
    assert dict(model.model.named_modules()) == before


def test_a_tensor_read_twice_on_one_grid_is_quantized_once():
    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = (QuantLinear(None, None) for _ in range(3))
            for layer, scale in ((self.one, 0.1), (self.two, 0.1), (self.three, 0.2)):
                layer.weight_quantizer = coded(torch.randn(4, 3), 4)
                layer.input_quantizer = UniformQuantizer(QuantSpec(4), torch.tensor(scale), torch.tensor(7.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x.relu()
            return self.one(y) + self.two(y) * self.three(y)

    model = Twice()
    layers = {"one": model.one, "two": model.two, "three": model.three}
    graph = trace(model, layers, (3, 5, 3), 21)
    for step in TARGETS["ort-cpu"].passes():
        graph = step(graph).model
    assert Counter(node.op_type for node in graph.graph)["QuantizeLinear"] == 2


def test_a_softmax_over_the_tokens_of_which_one_is_read_has_all_of_them():
    class Pooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = QuantLinear(None, torch.nn.Parameter(torch.randn(6)))
            self.linear.weight_quantizer = coded(torch.randn(6, 4), 4)
            self.linear.input_quantizer = UniformQuantizer(QuantSpec(4), torch.tensor(0.25), torch.tensor(7.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x).transpose(1, 3).softmax(-1).transpose(1, 3)[:, 0]

    torch.manual_seed(0)
    model = Pooled()
    graph = trace(model, {"linear": model.linear}, (3, 5, 4), 21)
    for step in (*TARGETS["ort-cpu"].passes(), *after_lowering()):
        graph = step(graph).model
    image = torch.randn(2, 3, 5, 4)
    session = open_session(ir.serde.serialize_model(graph).SerializeToString())
    (found,) = session.run(None, {"image": image.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, model(image).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target", ANY_RECIPE)
def test_a_tensor_times_its_own_transpose_is_read_in_both_orders(target):
    """One grid, one integer type, two operands."""

    class Gram(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.product = QuantMatMul(transpose_b=True)
            for side in ("a_quantizer", "b_quantizer"):
                setattr(self.product, side, UniformQuantizer(QuantSpec(8), torch.tensor(0.25), torch.tensor(100.0)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x * 2
            return self.product(y, y)

    model = Gram()
    graph = trace(model, {"product": model.product}, (3, 4, 4), 21)
    for step in TARGETS[target].passes():
        graph = step(graph).model
    image = np.random.default_rng(0).integers(-60, 60, (2, 3, 4, 4)).astype(np.float32) / 8
    session = open_session(ir.serde.serialize_model(graph).SerializeToString())
    found = session.run(None, {"image": image})[0]
    np.testing.assert_array_equal(found, 4 * image @ image.swapaxes(-1, -2))  # on the grid, and small sums are exact


def test_a_run_becomes_a_checked_file(run, images, tmp_path):
    out = tmp_path / "deep" / "model.onnx"
    result = export_run(run, out, images=12)
    assert set(result) == {"onnx", "target", "opset", "bytes", "layers", "parity"}
    assert (result["onnx"], result["target"], result["opset"], result["bytes"]) == (
        str(out),
        "ort-cpu",
        21,
        out.stat().st_size,
    )
    assert result["layers"] == {"integer": 14, "float": 0}
    parity = result["parity"]
    assert (parity["images"], parity["codes_equal"]) == (12, True)
    assert 0 <= parity["noise_floor"] <= 100
    assert [path.name for path in out.parent.iterdir()] == ["model.onnx"]
    predictor = OrtPredictor(out)
    manifest = load_run(run).manifest
    assert predictor.preprocessing == PREPROCESSING
    assert predictor.classes == CLASSES
    stored = {key: json.loads(value) for key, value in predictor.metadata.items()}
    assert set(stored) == {
        f"fimaq.{key}" for key in ("format", "preprocessing", "classes", "recipe", "layers", "provenance", "session")
    }
    assert stored["fimaq.layers"] == manifest["layers"]
    assert stored["fimaq.recipe"] == manifest["recipe"]
    assert stored["fimaq.provenance"]["run_sha256"] == manifest["sha256"]
    assert stored["fimaq.provenance"]["target"] == "ort-cpu"

    again = tmp_path / "again.onnx"
    export_run(run, again, images=1)
    assert again.read_bytes() == out.read_bytes()  # equal runs give equal files

    before = out.read_bytes()
    with pytest.raises(InputError, match="exists") as refused:
        export_run(run, out)
    assert refused.value.exit_code == 4
    assert out.read_bytes() == before
    assert export_run(run, out, target="portable", opset=22, force=True, images=4, data=str(images))["opset"] == 22


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"target": "tpu"}, UsageError, "target 'tpu' is unknown: wanted one of ort-cpu, portable"),
        ({"opset": 13}, UsageError, "--opset is 13; wanted 21 to 25"),
        ({"data": "/nowhere"}, InputError, "/nowhere"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(run, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        export_run(run, tmp_path / "model.onnx", images=1, **options)
    assert list(tmp_path.iterdir()) == []


def test_weights_of_two_bits_take_two_bits(images, tmp_path):
    model = quantized("vit", 2, "tensor", "tensor")
    run = save_run(tmp_path / "run", "vit", model, images)
    files = {opset: tmp_path / f"{opset}.onnx" for opset in (None, 21)}
    found = {opset: export_run(run, file, images=4, opset=opset) for opset, file in files.items()}
    assert [result["opset"] for result in found.values()] == [25, 21]
    assert [result["layers"] for result in found.values()] == [{"integer": 14, "float": 0}] * 2
    narrow, wide = ({tensor.name: tensor for tensor in onnx.load(file).graph.initializer} for file in files.values())
    names = [name for name in narrow if name.endswith(".codes")]
    assert {narrow[name].data_type for name in names} == {onnx.TensorProto.INT2}
    assert {wide[name].data_type for name in names} == {onnx.TensorProto.INT4}
    assert sum(len(wide[name].raw_data) for name in names) == 2 * sum(len(narrow[name].raw_data) for name in names)
    name = "blocks.1.mlp.fc1"
    fields = np.frombuffer(narrow[f"{name}.weight.codes"].raw_data, np.uint8)[:, None] >> [0, 2, 4, 6] & 3
    codes = model.layers[name].weight_quantizer.codes.numpy()
    assert np.array_equal((fields.reshape(codes.T.shape) + 2) % 4, codes.T)  # two's complement, offset 2
    image = np.random.default_rng(0).standard_normal((3, *SIZE), dtype=np.float32)
    logits = [open_session(file).run(None, {"image": image})[0] for file in files.values()]
    assert np.array_equal(*logits)


@pytest.mark.parametrize(
    ("wide", "narrow", "fitting"),
    [(ir.DataType.INT4, ir.DataType.INT2, range(-2, 2)), (ir.DataType.UINT4, ir.DataType.UINT2, range(4))],
    ids=["signed", "unsigned"],
)
def test_codes_are_stored_in_two_bits_only_where_all_fit(wide, narrow, fitting):
    for code in range(-8, 8) if wide == ir.DataType.INT4 else range(16):
        array = np.array([0, 1, code], wide.numpy())
        codes = ir.Value(
            name="codes", type=ir.TensorType(wide), shape=ir.Shape([3]), const_value=ir.Tensor(array, wide)
        )
        node = ir.node("Cast", [codes], {"to": ir.DataType.INT8}, name="cast")
        graph = ir.Graph([], node.outputs, nodes=[node], initializers=[codes], opset_imports={"": 25})
        StoreTwoBits()(ir.Model(graph, ir_version=12))
        assert codes.dtype == (narrow if code in fitting else wide)
        assert codes.const_value.dtype == codes.dtype
        assert codes.const_value.numpy().astype(int).tolist() == [0, 1, code]


def test_a_layer_that_stays_float_is_refused_unless_allowed(images, tmp_path):
    run = save_run(tmp_path / "run", "vit", quantized("vit", 4, "tensor", "head-token"), images)
    out = tmp_path / "model.onnx"
    message = (
        r"2 of 14 quantized layers would run on float kernels .*: blocks.0.attn.av, blocks.1.attn.av; .*--allow-float"
    )
    with pytest.raises(ExportError, match=message) as refused:
        export_run(run, out, images=1)
    assert refused.value.exit_code == 4
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert export_run(run, out, images=1, allow_float=True)["layers"] == {"integer": 12, "float": 2}
    assert export_run(run, tmp_path / "other.onnx", target="portable", images=1)["layers"]["float"] > 0


def test_missing_calibration_images_ask_for_data(tmp_path):
    manifest = {"calibration": {"source": str(tmp_path / "gone"), "sample_ids": ["0.png"]}}
    with pytest.raises(InputError, match=r"calibration images are no longer at .*gone.* --data DIR"):
        parity_images(manifest, 8, None)


def test_other_images_stand_in_for_calibration_images(images):
    manifest = {"calibration": {"source": "gone", "sample_ids": ["elsewhere.png"]}}
    assert len(parity_images(manifest, 8, str(images))) == 8
    assert len(parity_images(manifest, 64, str(images))) == 12
    manifest["calibration"]["sample_ids"] = ["7.png", "3.png", "5.png"]
    assert parity_images(manifest, 2, str(images)).sample_ids == ("7.png", "3.png")


@pytest.mark.parametrize("fault", ["codes", "bias", "clip", "wiring", "norm", "embedding", "zero point", "invalid"])
def test_a_file_that_does_not_hold_is_not_written(run, tmp_path, monkeypatch, fault):
    from fimaq.toolchain.export import model_files

    def broken(model: ir.Model) -> onnx.ModelProto:
        proto = ir.serde.serialize_model(model)
        if fault == "invalid":
            proto.graph.node[5].op_type = "Nonsense"
        if fault == "wiring":
            last = next(node for node in proto.graph.node if "logits" in node.output)
            last.output[0] = "positive"
            proto.graph.node.append(helper.make_node("Neg", ["positive"], ["logits"]))
        for tensor in proto.graph.initializer:
            if fault == "codes" and tensor.name == "blocks.1.mlp.fc2.weight.codes":
                tensor.raw_data = bytes([tensor.raw_data[0] ^ 1]) + tensor.raw_data[1:]
            if fault == "bias" and tensor.name == "blocks.0.attn.qkv.1.bias.flat":
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + 1, tensor.name))
            if fault == "clip" and tensor.name == next(n for n in proto.graph.node if n.op_type == "Clip").input[2]:
                tensor.CopyFrom(numpy_helper.from_array(np.array(255, np.uint8), tensor.name))
            if fault == "norm" and tensor.name == "blocks.0.norm1.weight":
                tensor.CopyFrom(numpy_helper.from_array(one_changed(tensor), tensor.name))
            if fault == "embedding" and tensor.name == "pos_embed":
                tensor.CopyFrom(numpy_helper.from_array(one_changed(tensor), tensor.name))
        if fault == "zero point":
            (product,) = products(proto, "blocks.1.mlp.fc1")
            moved = numpy_helper.from_array(np.array(3, np.uint8), "moved")
            proto.graph.initializer.append(moved)
            product.input[4] = moved.name
        return proto

    monkeypatch.setattr(model_files, "serialize_model", broken)
    message = {
        "codes": "would not hold blocks.1.mlp.fc2.weight.codes of the run exactly",
        "bias": "would not hold model.blocks.0.attn.qkv.bias of the run exactly",
        "clip": "is clipped to other than",
        "wiring": "apart from the rounding of activations the file does not compute",
        "norm": "apart from the rounding of activations the file does not compute",
        "embedding": "apart from the rounding of activations the file does not compute",
        "zero point": "apart from the rounding of activations the file does not compute",
        "invalid": "the exported graph is not valid ONNX",
    }[fault]
    with pytest.raises(ExportError, match=message) as refused:
        export_run(run, tmp_path / "model.onnx", images=12)
    assert refused.value.exit_code == 4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("level", ["optimised", "not optimised"])
def test_a_file_that_predicts_otherwise_at_one_level_of_optimisation_is_not_written(run, tmp_path, monkeypatch, level):
    from fimaq.toolchain.export.checks import check

    runtime = check._runtime

    def turned_around(model, optimize):
        predict = runtime(model, optimize)
        turned = model.name == "model.onnx" and optimize == (level == "optimised")
        return (lambda images: -predict(images)) if turned else predict

    monkeypatch.setattr(check, "_runtime", turned_around)
    with pytest.raises(ExportError, match=rf"in ONNX Runtime \({level}\) the file predicts the torch model's class"):
        export_run(run, tmp_path / "model.onnx", images=12)
    assert list(tmp_path.iterdir()) == []


def one_changed(tensor: onnx.TensorProto) -> np.ndarray:
    """The tensor with one number of it larger by a hundredth."""
    array = numpy_helper.to_array(tensor).copy()
    array.flat[array.size // 2] += 0.01
    return array


def test_a_float_model_has_the_same_metadata(tmp_path):
    out = tmp_path / "float.onnx"
    result = export_float("demo_vit", out)
    assert (result["target"], result["layers"]) == ("float", {"integer": 0, "float": 0})
    assert result["parity"]["codes_equal"] is None
    assert result["parity"]["snr_db"] > 90
    predictor = OrtPredictor(out)
    assert json.loads(predictor.metadata["fimaq.layers"]) == []
    assert json.loads(predictor.metadata["fimaq.recipe"]) is None
    assert predictor.classes["names"] == list("0123456789")
    with pytest.raises(InputError, match="exists"):
        export_float("demo_vit", out)


def test_importing_export_loads_no_torch():
    script = (
        "import sys, fimaq.toolchain.export, fimaq.toolchain.export.checks.kernels, "
        "fimaq.toolchain.export.checks.stored, fimaq.toolchain.export.targets; print('torch' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True).stdout == "False\n"
    )
