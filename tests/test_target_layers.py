"""The layer oracle for targets that take one scale a tensor: fed equal input, a lowered layer computes the torch layer.

As in test_export_layers, in ONNX Runtime at both levels and in onnx.reference; openvino also in OpenVINO itself.
"""

import warnings

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_export_layers import (
    BITS,
    FEW,
    SEEDS,
    UNIT_ROUNDOFF,
    awkward,
    graph_of,
    linear,
    matmul,
    quantized,
    run_everywhere,
    uniform,
)

from fimaq.toolchain.export.errors import ExportError
from fimaq.toolchain.export.targets import TARGETS
from fimaq.toolchain.recipe import load_recipe

NAMES = ("openvino", "tensorrt")


def scalar(rng: np.random.Generator, bits: int, symmetric: bool):
    zero_point = 2 ** (bits - 1) if symmetric else rng.integers(0, 2**bits)
    return uniform(bits, "tensor", np.exp(rng.uniform(-4, 3)), zero_point)


def bound(left: np.ndarray, right: np.ndarray, shifts: np.ndarray, terms: int) -> np.ndarray:
    """One rounded sum, and another of the same length for what zero points beside the product contribute."""
    return (2 * terms + 16) * UNIT_ROUNDOFF * (abs(left) @ abs(right) + shifts) + 1e-30


@pytest.mark.parametrize("target", NAMES)
@FEW
@given(bits=BITS, weight_bits=BITS, seed=SEEDS, rank=st.sampled_from([2, 3, 4]))
def test_codes_are_read_exactly(target, bits, weight_bits, seed, rank):
    rng = np.random.default_rng(seed)
    shape = (*(2, 3, 5, 6)[: rank - 1], 7)
    quantizer, middle = scalar(rng, bits, target == "tensorrt"), 2 ** (weight_bits - 1)
    layer = linear(np.eye(7) + middle, weight_bits, np.ones(7), np.full(7, middle), None, quantizer)
    x = awkward(rng, quantizer, shape)
    expected = quantized(quantizer, x)
    for name, found in run_everywhere(graph_of(layer, [shape], shape, TARGETS[target]), [x]).items():
        np.testing.assert_array_equal(found, expected, err_msg=name)


def linear_case(rng: np.random.Generator, bits: int, weight_bits: int, symmetric: bool):
    shape, outputs = (2, 5, 33), 9
    quantizer = scalar(rng, bits, symmetric)
    zero_point = np.full(outputs, 2 ** (weight_bits - 1)) if symmetric else rng.integers(0, 2**weight_bits, outputs)
    scale = np.exp(rng.uniform(-5, 1, outputs)).astype(np.float32)
    offset = rng.standard_normal(outputs).astype(np.float32)
    layer = linear(rng.integers(0, 2**weight_bits, (outputs, 33)), weight_bits, scale, zero_point, offset, quantizer)
    return layer, quantizer, shape, (*shape[:-1], outputs), offset


def exact_linear(layer, quantizer, x: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The result in float64, and how far a float32 kernel may be off."""
    weight, operand = layer.weight_quantizer(None).double().numpy(), quantized(quantizer, x).astype(np.float64)
    span = 2.0**layer.weight_quantizer.spec.bits * layer.weight_quantizer.scale.double().numpy().reshape(-1)
    # An activation's zero point in the kernel's integers: exact, but its float form is as large as the whole grid.
    whole = 2.0**quantizer.spec.bits * float(quantizer.scale) * x.shape[-1]
    return operand @ weight.T + offset, bound(operand, weight.T, whole * span + abs(offset), x.shape[-1])


@pytest.mark.parametrize("target", NAMES)
@FEW
@given(bits=BITS, weight_bits=BITS, seed=SEEDS)
def test_a_linear_layer_is_a_rounded_sum(target, bits, weight_bits, seed):
    rng = np.random.default_rng(seed)
    layer, quantizer, shape, out, offset = linear_case(rng, bits, weight_bits, target == "tensorrt")
    x = awkward(rng, quantizer, shape)
    exact, allowed = exact_linear(layer, quantizer, x, offset)
    for name, found in run_everywhere(graph_of(layer, [shape], out, TARGETS[target]), [x]).items():
        assert np.all(abs(found - exact) <= allowed), name


def matmul_case(rng: np.random.Generator, bits: int, transpose: bool, symmetric: bool):
    shapes = [(2, 3, 5, 17), (2, 3, 6, 17) if transpose else (2, 3, 17, 6)]
    grids = [scalar(rng, bits, symmetric) for _ in shapes]
    return matmul(*grids, transpose), grids, shapes


def exact_matmul(grids, arrays, transpose: bool) -> tuple[np.ndarray, np.ndarray]:
    left, right = (quantized(grid, x).astype(np.float64) for grid, x in zip(grids, arrays, strict=True))
    right = right.swapaxes(-1, -2) if transpose else right
    whole = np.prod([2.0**grid.spec.bits * float(grid.scale) for grid in grids]) * left.shape[-1]
    return left @ right, bound(left, right, whole, left.shape[-1])


@pytest.mark.parametrize("target", NAMES)
@FEW
@given(bits=BITS, transpose=st.booleans(), seed=SEEDS)
def test_an_attention_product_is_a_rounded_sum(target, bits, transpose, seed):
    rng = np.random.default_rng(seed)
    layer, grids, shapes = matmul_case(rng, bits, transpose, target == "tensorrt")
    arrays = [awkward(rng, grid, shape) for grid, shape in zip(grids, shapes, strict=True)]
    exact, allowed = exact_matmul(grids, arrays, transpose)
    for name, found in run_everywhere(graph_of(layer, shapes, (2, 3, 5, 6), TARGETS[target]), arrays).items():
        assert np.all(abs(found - exact) <= allowed), name


def off_ties(rng: np.random.Generator, quantizer, shape: tuple[int, ...]) -> np.ndarray:
    """Values in, at the edge of and outside the grid, none where a reciprocal rounds to another code."""
    span = 2**quantizer.spec.bits
    steps = np.round(rng.uniform(-1.3 * span, 1.3 * span, shape)) + rng.uniform(-0.4, 0.4, shape)
    return (steps * float(quantizer.scale)).astype(np.float32)


def in_openvino(content: bytes, arrays: list[np.ndarray]) -> tuple[np.ndarray, set[str]]:
    """Result and the primitive types of the products."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        openvino = pytest.importorskip("openvino", reason="openvino is not installed: pip install '.[openvino]'")
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(openvino.Core().read_model(content), "CPU", options)
    nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    kinds = {info["primitiveType"].astype(str) for info in nodes if info["layerType"].astype(str) in PRODUCTS}
    return compiled({f"x{i}": array for i, array in enumerate(arrays)})[0], kinds


PRODUCTS = ("FullyConnected", "MatMul")


@FEW
@given(bits=BITS, weight_bits=BITS, seed=SEEDS, symmetric=st.booleans())
def test_openvino_computes_a_linear_layer_in_integers(bits, weight_bits, seed, symmetric):
    rng = np.random.default_rng(seed)
    layer, quantizer, shape, out, offset = linear_case(rng, bits, weight_bits, symmetric)
    x = off_ties(rng, quantizer, shape)
    exact, allowed = exact_linear(layer, quantizer, x, offset)
    found, kinds = in_openvino(graph_of(layer, [shape], out, TARGETS["openvino"]), [x])
    assert np.all(abs(found - exact) <= allowed)
    assert kinds
    assert all(kind.lower().endswith("i8") for kind in kinds)


@FEW
@given(bits=BITS, transpose=st.booleans(), seed=SEEDS)
def test_openvino_computes_an_attention_product_in_integers(bits, transpose, seed):
    rng = np.random.default_rng(seed)
    layer, grids, shapes = matmul_case(rng, bits, transpose, symmetric=False)
    arrays = [off_ties(rng, grid, shape) for grid, shape in zip(grids, shapes, strict=True)]
    exact, allowed = exact_matmul(grids, arrays, transpose)
    found, kinds = in_openvino(graph_of(layer, shapes, (2, 3, 5, 6), TARGETS["openvino"]), arrays)
    assert np.all(abs(found - exact) <= allowed)
    assert kinds
    assert all(kind.lower().endswith("i8") for kind in kinds)


def test_a_weight_without_zero_points_needs_no_correction():
    rng = np.random.default_rng(0)
    layer, _, shape, out, _ = linear_case(rng, 4, 4, symmetric=True)
    proto = onnx.load_from_string(graph_of(layer, [shape], out, TARGETS["openvino"]))
    assert [node.name for node in proto.graph.node if node.op_type == "MatMul"] == ["layer/MatMul"]
    with torch.no_grad():
        layer.weight_quantizer.zero_point += 1
    proto = onnx.load_from_string(graph_of(layer, [shape], out, TARGETS["openvino"]))
    assert [node.name for node in proto.graph.node if node.op_type == "MatMul"] == ["layer/MatMul", "layer/b/MatMul"]


REFUSED = {  # target, bits, symmetric weights, symmetric activations, scales, message
    "activations": (
        "tensorrt",
        8,
        True,
        False,
        1,
        "tensorrt takes symmetric activations; layer.input has a",
    ),
    "weights": ("tensorrt", 8, False, True, 1, "tensorrt takes symmetric weights; layer.weight has zero points"),
    "qnn weights": ("qnn", 8, False, True, 1, "qnn takes symmetric weights; layer.weight has zero points"),
    "qnn bits": ("qnn", 4, True, True, 1, "qnn takes activations of 8 bits; layer.input has 4 bits"),
    "tokens": ("openvino", 4, True, True, 5, "openvino takes one scale for each activation; layer.input has 5 scales"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_grids_that_do_not_fit_are_refused_and_a_preset_that_does_is_named(case):
    target, bits, weights, activations, scales, message = REFUSED[case]
    scale = np.full((1, scales, 1), 0.1) if scales > 1 else 0.1
    middle = 2 ** (bits - 1)
    quantizer = uniform(bits, "token" if scales > 1 else "tensor", scale, middle + (not activations))
    zero_points = np.full(7, 8)
    zero_points[-1] += not weights
    layer = linear(np.eye(7), 4, np.ones(7), zero_points, None, quantizer)
    preset = {"tensorrt": "symmetric-w8a8", "qnn": "symmetric-w4a8", "openvino": "deploy-w8a8"}[target]
    assert load_recipe(preset).name == preset
    shape = (2, 5, 7)
    with pytest.raises(ExportError, match=rf"target {message}.*--recipe {preset}, or give another --target"):
        graph_of(layer, [shape], shape, TARGETS[target])
