"""The layer oracle: fed equal input, every lowered layer computes what the torch layer computes.

Two properties, for every target, bit-width and granularity, in ONNX Runtime at both optimisation levels and in
onnx.reference. Codes: with the other operand an identity, a product returns the quantized operand itself, compared
bit by bit, ties and saturation included. Products: against float64, within the rounding of one float32 sum.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from oracles import MatMulIntegerToFloat

from fimaq.toolchain.export.errors import ExportError
from fimaq.toolchain.export.passes.emit import Emitter
from fimaq.toolchain.export.passes.tidy import after_lowering, before_lowering
from fimaq.toolchain.export.targets import TARGETS
from fimaq.toolchain.export.targets.target import ExportTarget
from fimaq.toolchain.export.traced.ops import DOMAIN, VERSION
from fimaq.toolchain.nn import QuantConv2d, QuantLinear, QuantMatMul
from fimaq.toolchain.quantizers import CodedWeight, UniformQuantizer
from fimaq.toolchain.runtime import open_session
from fimaq.toolchain.spec import Granularity, QuantSpec

FLOAT = ir.TensorType(ir.DataType.FLOAT)
Layer = QuantLinear | QuantConv2d | QuantMatMul


def uniform(bits: int, granularity: Granularity, scale: np.ndarray, zero_point: np.ndarray) -> UniformQuantizer:
    return UniformQuantizer(
        QuantSpec(bits, granularity),
        torch.from_numpy(np.asarray(scale, np.float32)),
        torch.from_numpy(np.asarray(zero_point, np.float32)),
    )


def linear(
    codes: np.ndarray,
    bits: int,
    scale: np.ndarray,
    zero_point: np.ndarray,
    bias: np.ndarray | None,
    quantizer: UniformQuantizer,
) -> QuantLinear:
    layer = QuantLinear(None, None if bias is None else torch.nn.Parameter(torch.from_numpy(bias)))
    layer.weight_quantizer = coded(codes, bits, scale, zero_point)
    layer.input_quantizer = quantizer
    return layer


def coded(codes: np.ndarray, bits: int, scale: np.ndarray, zero_point: np.ndarray) -> CodedWeight:
    ones = [1] * (codes.ndim - 1)
    return CodedWeight(
        QuantSpec(bits, "channel"),
        torch.from_numpy(codes.astype(np.uint8)),
        torch.from_numpy(scale.astype(np.float32).reshape(-1, *ones)),
        torch.from_numpy(zero_point.astype(np.float32).reshape(-1, *ones)),
    )


def matmul(a: UniformQuantizer, b: UniformQuantizer, transpose_b: bool) -> QuantMatMul:
    layer = QuantMatMul(transpose_b)
    layer.a_quantizer, layer.b_quantizer = a, b
    return layer


def graph_of(layer: Layer, shapes: Sequence[Sequence[int]], out: Sequence[int], target: ExportTarget) -> bytes:
    """The layer alone, with a dynamic batch, lowered for ``target``: inputs x0, x1, output y."""
    inputs = [
        ir.Value(name=f"x{i}", type=FLOAT, shape=ir.Shape(["batch", *shape[1:]])) for i, shape in enumerate(shapes)
    ]
    node = _operator(layer, inputs)
    node.outputs[0].name, node.outputs[0].type = "y", FLOAT
    node.outputs[0].shape = ir.Shape(["batch", *out[1:]])
    constants = [value for value in node.inputs[len(inputs) :] if value is not None]
    graph = ir.Graph(
        inputs,
        node.outputs,
        nodes=[node],
        initializers=constants,
        name="layer",
        opset_imports={"": 21, DOMAIN: VERSION},
    )
    model = ir.Model(graph, ir_version=10)
    for step in (*before_lowering(), *target.passes(), *after_lowering()):
        model = step(model).model
    proto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString()


def _operator(layer: Layer, inputs: list[ir.Value]) -> ir.Node:
    def constant(name: str, tensor: torch.Tensor | None) -> ir.Value | None:
        if tensor is None:
            return None
        array = tensor.detach().numpy()
        return ir.Value(
            name=f"traced.{name}",
            shape=ir.Shape(array.shape),
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            const_value=ir.tensor(array, name=f"traced.{name}"),
        )

    def grid(name: str, quantizer: UniformQuantizer) -> list[ir.Value | None]:
        return [constant(f"{name}.scale", quantizer.scale), constant(f"{name}.zero_point", quantizer.zero_point)]

    if isinstance(layer, QuantMatMul):
        a, b = layer.a_quantizer, layer.b_quantizer
        attributes = {"a_bits": a.spec.bits, "b_bits": b.spec.bits, "transpose_b": int(layer.transpose_b)}
        return _node("QMatMul", [*inputs, *grid("a", a), *grid("b", b)], attributes)
    weight, quantizer = layer.weight_quantizer, layer.input_quantizer
    attributes = {"weight_bits": weight.spec.bits, "activation_bits": quantizer.spec.bits}
    constants = [constant("codes", weight.codes), *grid("weight", weight), constant("bias", layer.bias)]
    operands = [*inputs, *constants, *grid("input", quantizer)]
    if isinstance(layer, QuantLinear):
        return _node("QLinear", operands, attributes)
    attributes |= {"groups": layer.groups}
    for name in ("stride", "padding", "dilation"):
        attributes[name] = list(getattr(layer, name))
    return _node("QConv", operands, attributes)


def _node(kind: str, inputs: list[ir.Value | None], attributes: Mapping[str, object]) -> ir.Node:
    return ir.node(kind, inputs, {"layer": "layer", **attributes}, domain=DOMAIN, version=VERSION)


def run_everywhere(content: bytes, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """The graph's result in ONNX Runtime, optimised and not, and in onnx.reference."""
    feeds = {f"x{i}": array for i, array in enumerate(arrays)}
    reference = ReferenceEvaluator(onnx.load_from_string(content), new_ops=[MatMulIntegerToFloat])
    return {
        "optimised": open_session(content, threads=1).run(None, feeds)[0],
        "not optimised": open_session(content, threads=1, optimize=False).run(None, feeds)[0],
        "reference": reference.run(None, feeds)[0],
    }


UNIT_ROUNDOFF = 2.0**-24
FEW = settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
BITS = st.integers(2, 8)
SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 20))
LINEAR = st.sampled_from(["tensor", "token"])
MATMUL = st.sampled_from(["tensor", "head", "head-token"])

ANY_RECIPE = ("ort-cpu", "portable")
"""Targets that refuse no grids; the others have tests of their own."""

targets = pytest.mark.parametrize("target", [TARGETS[name] for name in ANY_RECIPE], ids=ANY_RECIPE)


def grid(rng: np.random.Generator, bits: int, granularity: str, shape: tuple[int, ...]) -> UniformQuantizer:
    """Scales over three orders of magnitude; zero points differ where scales do (per head for head-token)."""
    scale_shape = {
        "tensor": (),
        "token": (1, *shape[1:-1], 1),
        "head": (1, shape[1], 1, 1),
        "head-token": (1, *shape[1:3], 1),
    }[granularity]
    zero_shape = (1, shape[1], 1, 1) if granularity == "head-token" else scale_shape
    scale = np.exp(rng.uniform(-4, 3, scale_shape)).astype(np.float32)
    zero_point = rng.integers(0, 2**bits, zero_shape)
    if rng.random() < 0.5:
        zero_point = np.full(zero_shape, rng.integers(0, 2**bits))
    return uniform(bits, granularity, scale, zero_point)


def awkward(rng: np.random.Generator, quantizer: UniformQuantizer, shape: tuple[int, ...]) -> np.ndarray:
    """Values in, on the edge of and far outside the grid; every third sits on a tie."""
    scale = np.broadcast_to(quantizer.scale.detach().numpy(), shape)
    span = 2**quantizer.spec.bits
    steps = rng.uniform(-1.3 * span, 1.3 * span, shape)
    steps = np.where(rng.random(shape) < 1 / 3, np.floor(steps) + 0.5, steps)
    steps = np.where(rng.random(shape) < 1 / 50, rng.choice([-1e6, 1e6], shape), steps)
    return (steps.astype(np.float32) * scale).astype(np.float32)


def bound(magnitude: np.ndarray, terms: int) -> np.ndarray:
    """Of ``terms`` rounded products summed in float32 in any order, plus scales and bias applied after."""
    return (terms + 8) * UNIT_ROUNDOFF * magnitude + 1e-30


def quantized(quantizer: UniformQuantizer, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return quantizer(torch.from_numpy(x)).numpy()


@targets
@FEW
@given(bits=BITS, weight_bits=BITS, granularity=LINEAR, seed=SEEDS, rank=st.sampled_from([2, 3, 4]))
def test_linear_reads_exact_codes(target, bits, weight_bits, granularity, seed, rank):
    rng = np.random.default_rng(seed)
    shape = (*(2, 3, 5, 6)[: rank - 1], 7)
    quantizer = grid(rng, bits, granularity, shape)
    layer = linear(np.eye(7), weight_bits, np.ones(7), np.zeros(7), None, quantizer)
    x = awkward(rng, quantizer, shape)
    expected = quantized(quantizer, x)
    content = graph_of(layer, [shape], shape, target)
    for name, found in run_everywhere(content, [x]).items():
        np.testing.assert_array_equal(found, expected, err_msg=name)


@targets
@FEW
@given(bits=BITS, weight_bits=BITS, granularity=LINEAR, seed=SEEDS, bias=st.booleans(), rank=st.sampled_from([2, 3, 4]))
def test_linear_is_one_rounded_sum(target, bits, weight_bits, granularity, seed, bias, rank):
    rng = np.random.default_rng(seed)
    shape, outputs = (*(2, 3, 5, 6)[: rank - 1], 33), 9
    quantizer = grid(rng, bits, granularity, shape)
    codes = rng.integers(0, 2**weight_bits, (outputs, 33))
    scale = np.exp(rng.uniform(-5, 1, outputs)).astype(np.float32)
    offset = rng.standard_normal(outputs).astype(np.float32) if bias else None
    layer = linear(codes, weight_bits, scale, rng.integers(0, 2**weight_bits, outputs), offset, quantizer)
    x = awkward(rng, quantizer, shape)
    with torch.no_grad():
        in_torch = layer(torch.from_numpy(x)).numpy()
        weight = layer.weight_quantizer(None).double().numpy()
    operand = quantized(quantizer, x).astype(np.float64)
    exact = operand @ weight.T + (0 if offset is None else offset)
    allowed = bound(abs(operand) @ abs(weight).T + (0 if offset is None else abs(offset)), 33)
    content = graph_of(layer, [shape], (*shape[:-1], outputs), target)
    for name, found in {**run_everywhere(content, [x]), "torch": in_torch}.items():
        assert np.all(abs(found - exact) <= allowed), name


@targets
@FEW
@given(a_bits=BITS, b_bits=BITS, a_kind=MATMUL, b_kind=MATMUL, transpose=st.booleans(), seed=SEEDS, sizes=SIZES)
def test_matmul_is_one_rounded_sum(target, a_bits, b_bits, a_kind, b_kind, transpose, seed, sizes):
    rng = np.random.default_rng(seed)
    t, n, k = sizes
    a_shape, b_shape = (2, 3, t, k), (2, 3, n, k) if transpose else (2, 3, k, n)
    a_grid, b_grid = grid(rng, a_bits, a_kind, a_shape), grid(rng, b_bits, b_kind, b_shape)
    layer = matmul(a_grid, b_grid, transpose)
    a, b = awkward(rng, a_grid, a_shape), awkward(rng, b_grid, b_shape)
    with torch.no_grad():
        in_torch = layer(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    left, right = quantized(a_grid, a).astype(np.float64), quantized(b_grid, b).astype(np.float64)
    right = right.swapaxes(-1, -2) if transpose else right
    content = graph_of(layer, [a_shape, b_shape], (2, 3, t, n), target)
    for name, found in {**run_everywhere(content, [a, b]), "torch": in_torch}.items():
        assert np.all(abs(found - left @ right) <= bound(abs(left) @ abs(right), k)), name


@targets
@FEW
@given(bits=BITS, kind=MATMUL, transpose=st.booleans(), side=st.sampled_from(["a", "b"]), seed=SEEDS)
def test_matmul_reads_exact_codes(target, bits, kind, transpose, side, seed):
    rng = np.random.default_rng(seed)
    shape = (2, 3, 6, 6)
    quantizer, plain = grid(rng, bits, kind, shape), uniform(2, "tensor", np.float32(1), np.float32(0))
    x, eye = awkward(rng, quantizer, shape), np.broadcast_to(np.eye(6, dtype=np.float32), shape)
    layer = matmul(quantizer, plain, transpose) if side == "a" else matmul(plain, quantizer, transpose)
    feeds = [x, eye] if side == "a" else [eye, x]
    expected = quantized(quantizer, x)
    expected = expected.swapaxes(-1, -2) if side == "b" and transpose else expected
    content = graph_of(layer, [shape, shape], shape, target)
    for name, found in run_everywhere(content, feeds).items():
        np.testing.assert_array_equal(found, expected, err_msg=name)


def forms(layer: Layer, shapes: Sequence[Sequence[int]]) -> str:
    """The operators between the first input and the first product of the ort-cpu graph, in order."""
    proto = onnx.load_from_string(graph_of(layer, shapes, (*shapes[0][:-1], shapes[-1][-2]), TARGETS["ort-cpu"]))
    producers = {output: node for node in proto.graph.node for output in node.output}
    node, found = next(n for n in proto.graph.node if n.op_type in ("MatMul", "MatMulIntegerToFloat")), []
    while node.input[0] in producers:
        node = producers[node.input[0]]
        found.insert(0, node.op_type)
    return " ".join(found)


SHAPE = (2, 3, 5, 16)
FORMS = {  # bits, scales differ, zero points differ
    "one zero point": (4, True, False, "Reshape QuantizeLinear Reshape Clip DequantizeLinear"),
    "own zero points": (4, True, True, "Reshape QuantizeLinear Reshape Max Min DequantizeLinear"),
    "eight bits": (8, True, False, "Reshape QuantizeLinear Reshape DequantizeLinear"),
    "no room": (8, True, True, "Div Max Min Round"),
    "one scale": (4, False, False, "QuantizeLinear Clip DequantizeLinear"),
}


@pytest.mark.parametrize("case", FORMS)
def test_scale_arrays_take_the_form_that_is_documented(case):
    bits, scales, zeros, expected = FORMS[case]
    scale = np.linspace(0.1, 0.2, 15, dtype=np.float32).reshape(1, 3, 5, 1) if scales else np.float32(0.1)
    zero_point = np.array([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1) if zeros else np.float32(2)
    layer = matmul(uniform(bits, "tensor", scale, zero_point), uniform(4, "tensor", 1, 0), transpose_b=True)
    assert forms(layer, [SHAPE, SHAPE]) == expected


SUMMED = {
    "head-token": ((1, 3, 5, 1), ["Reshape", "QuantizeLinear", "Clip", "DequantizeLinear", "Reshape"]),
    "token": ((1, 1, 5, 1), ["Div", "Max", "Min", "Round", "Mul"]),
}


@pytest.mark.parametrize("case", SUMMED)
def test_a_scale_along_the_sum_stays_with_its_operand(case):
    shape, expected = SUMMED[case]
    scale = np.linspace(0.1, 0.2, np.prod(shape), dtype=np.float32).reshape(shape)
    layer = matmul(uniform(4, "tensor", 1, 0), uniform(4, "tensor", scale, 2), transpose_b=False)
    content = graph_of(layer, [(2, 3, 5, 5), SHAPE], SHAPE, TARGETS["ort-cpu"])
    nodes = onnx.load_from_string(content).graph.node
    assert [node.op_type for node in nodes if node.name.startswith("layer/b/")] == expected
    x, eye = awkward(np.random.default_rng(0), layer.b_quantizer, SHAPE), np.broadcast_to(np.eye(5), (2, 3, 5, 5))
    for name, found in run_everywhere(content, [eye.astype(np.float32), x]).items():
        np.testing.assert_array_equal(found, quantized(layer.b_quantizer, x), err_msg=name)


def test_own_zero_points_may_need_the_whole_container():
    """Seven bits around 0 and 127 take all of int8."""
    zero_point = np.array([0.0, 64.0, 127.0]).reshape(1, 3, 1, 1)
    layer = matmul(uniform(2, "tensor", 1, 0), uniform(7, "head", 0.5, zero_point), transpose_b=False)
    content = graph_of(layer, [(2, 3, 5, 5), SHAPE], SHAPE, TARGETS["ort-cpu"])
    assert {t.data_type for t in onnx.load_from_string(content).graph.initializer} >= {onnx.TensorProto.INT8}
    x, eye = awkward(np.random.default_rng(0), layer.b_quantizer, SHAPE), np.broadcast_to(np.eye(5), (2, 3, 5, 5))
    for name, found in run_everywhere(content, [eye.astype(np.float32), x]).items():
        np.testing.assert_array_equal(found, quantized(layer.b_quantizer, x), err_msg=name)


@targets
def test_own_zero_points_that_need_nine_bits_do_not_go_into_eight(target):
    """Eight bits around 127 and 128 are 257 codes, one more than a container holds."""
    zero_point = np.array([127.0, 128.0, 127.0]).reshape(1, 3, 1, 1)
    layer = matmul(uniform(8, "head", 0.5, zero_point), uniform(2, "tensor", 1, 0), transpose_b=False)
    x, eye = awkward(np.random.default_rng(0), layer.a_quantizer, SHAPE), np.broadcast_to(np.eye(16), (2, 3, 16, 16))
    content = graph_of(layer, [SHAPE, eye.shape], SHAPE, target)
    for name, found in run_everywhere(content, [x, eye.astype(np.float32)]).items():
        np.testing.assert_array_equal(found, quantized(layer.a_quantizer, x), err_msg=name)


@pytest.mark.parametrize(("a_bits", "b_bits"), [(7, 7), (8, 7), (7, 8), (8, 8)])
def test_the_right_operand_is_signed_unless_two_products_may_exceed_sixteen_bits(a_bits, b_bits):
    """x86 without VNNI adds two neighbouring products of unsigned and signed bytes in int16 and saturates."""
    layer = matmul(uniform(a_bits, "tensor", 1, 0), uniform(b_bits, "tensor", 1, 0), transpose_b=True)
    graph = onnx.load_from_string(graph_of(layer, [SHAPE, SHAPE], (2, 3, 5, 5), TARGETS["ort-cpu"])).graph
    (zero_point,) = (tensor for tensor in graph.initializer if tensor.name == "layer.b.zero_point")
    codes = np.arange(2**b_bits, dtype=np.int64) - 2 ** (b_bits - 1)
    pairs = 2 * (2**a_bits - 1) * codes
    exact = np.array_equal(pairs, pairs.astype(np.int16))
    assert zero_point.data_type == (onnx.TensorProto.INT8 if exact else onnx.TensorProto.UINT8)
    assert exact == ((a_bits, b_bits) != (8, 8))


def test_one_name_has_one_content():
    emit = Emitter(ir.Graph([], [], nodes=[], name="g"), "layer")
    first = emit.constant("layer.scale", np.array([1.0, 2.0]), ir.DataType.FLOAT)
    assert emit.constant("layer.scale", np.array([1.0, 2.0]), ir.DataType.FLOAT) is first
    for array, dtype in (([1.0, 3.0], ir.DataType.FLOAT), ([1.0, 2.0], ir.DataType.DOUBLE)):
        with pytest.raises(ExportError, match=r"two different constants want the name 'layer\.scale'"):
            emit.constant("layer.scale", np.array(array), dtype)


CONVOLUTIONS = {  # stride, padding, dilation, groups, input side
    "patches": ((4, 4), (0, 0), (1, 1), 1, 12),
    "uneven": ((4, 4), (0, 0), (1, 1), 1, 13),
    "overlapping": ((2, 2), (0, 0), (1, 1), 1, 12),
    "padded": ((4, 4), (1, 2), (1, 1), 1, 12),
    "grouped": ((4, 4), (0, 0), (1, 1), 2, 12),
    "dilated": ((1, 1), (0, 0), (2, 2), 1, 12),
}


@targets
@pytest.mark.parametrize("how", CONVOLUTIONS)
@settings(FEW, max_examples=4)
@given(bits=BITS, weight_bits=BITS, seed=SEEDS)
def test_convolution_is_one_rounded_sum(target, how, bits, weight_bits, seed):
    rng = np.random.default_rng(seed)
    *options, side = CONVOLUTIONS[how]
    inputs, outputs, shape = 4, 6, (2, 4, side, side)
    quantizer = grid(rng, bits, "tensor", shape)
    codes = rng.integers(0, 2**weight_bits, (outputs, inputs // options[3], 4, 4))
    scale = np.exp(rng.uniform(-5, 1, outputs))
    bias = torch.nn.Parameter(torch.from_numpy(rng.standard_normal(outputs).astype(np.float32)))
    layer = QuantConv2d(None, bias, *options)
    layer.weight_quantizer = coded(codes, weight_bits, scale, rng.integers(0, 2**weight_bits, outputs))
    layer.input_quantizer = quantizer
    x = awkward(rng, quantizer, shape)
    with torch.no_grad():
        in_torch = layer(torch.from_numpy(x)).numpy()
        operand, weight = torch.from_numpy(quantized(quantizer, x)).double(), layer.weight_quantizer(None).double()
        exact = F.conv2d(operand, weight, bias.double(), *options).numpy()
        magnitude = F.conv2d(operand.abs(), weight.abs(), bias.double().abs(), *options).numpy()
    content = graph_of(layer, [shape], in_torch.shape, target)
    for name, found in {**run_everywhere(content, [x]), "torch": in_torch}.items():
        assert np.all(abs(found - exact) <= bound(magnitude, codes[0].size)), name
