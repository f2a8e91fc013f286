"""The scale search against brute force in float64, and what calibration promises of a whole model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.layers import set_fused_attn
from torch import Tensor, nn

from fimaq.toolchain.calibrate import calibrate, restore_grids, run_block
from fimaq.toolchain.calibrate import collect as collecting
from fimaq.toolchain.calibrate import linear as searching
from fimaq.toolchain.calibrate.candidates import candidate_grids, grid_from_range
from fimaq.toolchain.calibrate.collect import observing, unfold
from fimaq.toolchain.calibrate.layernorm import fold_channel_scales
from fimaq.toolchain.calibrate.linear import (
    INPUT_QUANTILE,
    WEIGHT_QUANTILE,
    fake_quantize,
    search_channels,
    search_linear,
)
from fimaq.toolchain.calibrate.matmul import OPERAND_QUANTILE, search_matmul
from fimaq.toolchain.data.demo_set import DEMO_MODELS, load_digits
from fimaq.toolchain.families import QuantModel, wrap
from fimaq.toolchain.model import load_float
from fimaq.toolchain.nn import QuantConv2d, QuantLinear, QuantMatMul, float_layers, quantizer_slots
from fimaq.toolchain.progress import NullProgress
from fimaq.toolchain.quantizers import UniformQuantizer
from fimaq.toolchain.recipe import Recipe
from fimaq.toolchain.spec import QuantSpec

REFERENCE = load_file(Path(__file__).parent / "data" / "reference.safetensors")
WORSE = 1 + 1e-4
"""A float32 search may take a candidate that is this much worse: Gram matrices of a few hundred rows lose 1e-6 of the
largest error, and among a hundred candidates the two best are often closer than that."""


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantized(x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, qmax: int) -> np.ndarray:
    """Fake-quantization in float64."""
    codes = np.clip(np.rint(x / scale) + zero_point, 0, qmax)
    return (codes - zero_point) * scale


def f64(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().double().numpy() for tensor in tensors]


def recipe(wbits: int = 4, abits: int = 4, **tables: dict) -> Recipe:
    """A recipe whose search is small."""
    values = {
        "name": "test",
        "weights": {"bits": wbits},
        "activations": {"bits": abits},
        "calibrate": {"samples": 8, "candidates": 16, "rounds": 2},
        "reconstruct": {"iterations": 0},
    }
    for table, changes in tables.items():
        values[table] = values.get(table, {}) | changes
    return Recipe.from_dict(values)


# ---------------------------------------------------------------- candidates


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_grid_spans_its_range_and_zero(bits):
    qmax = 2**bits - 1
    low = torch.tensor([-1.0, 0.5, -3.0, 0.0, -1e-12, -2e5])
    high = torch.tensor([2.0, 3.0, -1.0, 0.0, 1e-12, 1e5])
    scale, zero = grid_from_range(low, high, qmax)
    assert (scale > 0).all()
    assert torch.equal(zero, zero.round())
    assert zero.min() >= 0
    assert zero.max() <= qmax
    # both ends, and zero, are within half a step of a level (a range on one side of zero is widened to it)
    for end in (low.clamp(max=0), high.clamp(min=0), torch.zeros(6)):
        error = fake_quantize(end, (scale, zero), qmax) - end
        assert (error.abs() <= 0.5001 * scale + 1e-7 * end.abs()).all()
    assert torch.equal(fake_quantize(torch.zeros(6), (scale, zero), qmax), torch.zeros(6))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("count", [1, 16, 128])
def test_candidates_shrink_from_the_full_range(bits, count):
    qmax = 2**bits - 1
    rows = torch.cat([noise(3, 1000), torch.zeros(1, 1000), noise(1, 1000).abs() + 1, -noise(1, 1000).abs()])
    scales, zeros = candidate_grids(rows, 0.9, count, qmax)
    assert scales.shape == zeros.shape
    assert scales.shape[1] == len(rows)
    assert count <= len(scales) <= max(count, 16)
    assert (scales > 0).all()
    assert torch.equal(zeros, zeros.round())
    assert zeros.min() >= 0
    assert zeros.max() <= qmax
    full, zero = grid_from_range(rows.amin(1), rows.amax(1), qmax)
    torch.testing.assert_close(scales[0], full, rtol=0, atol=0)
    torch.testing.assert_close(zeros[0], zero, rtol=0, atol=0)
    low = torch.quantile(rows, 0.1, dim=1, interpolation="nearest")
    high = torch.quantile(rows, 0.9, dim=1, interpolation="nearest")
    torch.testing.assert_close(scales.amin(0), grid_from_range(low, high, qmax)[0])
    assert (scales <= scales[0] * 1.00001).all()


def test_candidates_of_a_single_value():
    scales, zeros = candidate_grids(torch.tensor([[3.0], [-2.0], [0.0]]), 0.9, 16, 15)
    assert scales.isfinite().all()
    assert (scales > 0).all()
    torch.testing.assert_close(
        fake_quantize(torch.tensor([3.0, -2.0, 0.0]), (scales[0], zeros[0]), 15), torch.tensor([3.0, -2.0, 0.0])
    )


def test_long_rows_are_thinned_evenly():
    row = torch.linspace(-1, 3, 3 << 20).view(1, -1)
    scales, _ = candidate_grids(row, 0.9, 16, 255)
    torch.testing.assert_close(scales[0], torch.tensor([4 / 255]), rtol=1e-6, atol=0)
    torch.testing.assert_close(scales.amin(0), torch.tensor([3.2 / 255]), rtol=1e-3, atol=0)


def test_the_sample_of_a_long_row_sees_every_channel():
    """768 channels of which one is massive in a few tokens: no stride may hide it, and the range must hold it."""
    rows = noise(4096, 768)
    rows[::64, 418] = 190.0
    scales, _ = candidate_grids(rows.view(1, -1), 0.9999, 16, 255)
    assert scales[0] * 255 > 190  # the full range
    rows[:, 418] = 190.0  # 1 value of 768: inside the 0.99 quantile no longer, inside the 0.9995 quantile still
    scales, _ = candidate_grids(rows.view(1, -1), 0.9995, 16, 255)
    assert scales.amin() * 255 > 190


# ---------------------------------------------------------------- linear layers


def problem(o: int, i: int, n: int = 64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weight and input rows with the outliers and the uneven channels that make a search worth it."""
    weight = noise(o, i, seed=seed) * (1 + noise(o, 1, seed=seed + 1).abs())
    rows = noise(n, i, seed=seed + 2) * (0.2 + noise(1, i, seed=seed + 3).abs()) + 0.3
    rows[0, 0], weight[0, 0] = 9.0, 7.0
    return weight, rows


def output_error(weight: Tensor, rows: Tensor, weight_grid: tuple, input_grid: tuple, spec: tuple) -> np.ndarray:
    """``||Wq xq - W x||^2`` per output channel, rows weighed by ``1 / (e + median e)``, by brute force in float64."""
    (w, x), (ws, wz), (xs, xz) = f64(weight, rows), f64(*weight_grid), f64(*input_grid)
    output = x @ w.T
    energy = (output**2).sum(1)
    error = quantized(x, xs, xz, spec[1].qmax) @ quantized(w, ws, wz, spec[0].qmax).T - output
    return (error**2 / (energy + np.sort(energy)[(len(energy) - 1) // 2])[:, None]).sum(0)


@pytest.mark.parametrize("shape", [(3, 6), (9, 4)])  # fewer and more outputs than inputs: two ways to the same cost
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_search_ends_at_the_best_candidate_given_the_other_side(shape, bits):
    """With enough rounds it has converged: each side is then the brute-force optimum given the other."""
    weight, rows = problem(*shape)
    spec = QuantSpec(bits, "channel"), QuantSpec(bits)
    weight_grid, input_grid = search_linear(weight, rows, *spec, candidates=64, rounds=20)
    chosen = output_error(weight, rows, weight_grid, input_grid, spec)
    scales, zeros = candidate_grids(weight, WEIGHT_QUANTILE, 64, spec[0].qmax)
    others = np.stack(
        [
            output_error(weight, rows, (s[:, None], z[:, None]), input_grid, spec)
            for s, z in zip(scales, zeros, strict=True)
        ]
    )
    assert (chosen <= others.min(0) * WORSE).all()
    assert (chosen.sum() < others[0].sum()) or bits == 8  # the full range is rarely the best
    scales, zeros = candidate_grids(rows.reshape(1, -1), INPUT_QUANTILE, 64, spec[1].qmax)
    others = np.array(
        [output_error(weight, rows, weight_grid, (s, z), spec).sum() for s, z in zip(scales, zeros, strict=True)]
    )
    assert chosen.sum() <= others.min() * WORSE


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_every_round_ends_with_the_best_weights_for_its_input(rounds):
    weight, rows = problem(5, 7, seed=3)
    spec = QuantSpec(3, "channel"), QuantSpec(3)
    weight_grid, input_grid = search_linear(weight, rows, *spec, candidates=32, rounds=rounds)
    chosen = output_error(weight, rows, weight_grid, input_grid, spec)
    candidates = zip(*candidate_grids(weight, WEIGHT_QUANTILE, 32, 7), strict=True)
    for scale, zero in candidates:
        other = output_error(weight, rows, (scale[:, None], zero[:, None]), input_grid, spec)
        assert (chosen <= other * WORSE).all()


def test_the_searched_grids_are_candidates():
    weight, rows = problem(5, 7)
    (w_scale, w_zero), (x_scale, x_zero) = search_linear(weight, rows, QuantSpec(4, "channel"), QuantSpec(4), 32, 3)
    scales, zeros = candidate_grids(weight, WEIGHT_QUANTILE, 32, 15)
    assert w_scale.shape == w_zero.shape == (5, 1)
    for o in range(5):
        assert ((scales[:, o] == w_scale[o]) & (zeros[:, o] == w_zero[o])).any()
    scales, zeros = candidate_grids(rows.reshape(1, -1), INPUT_QUANTILE, 32, 15)
    assert x_scale.shape == x_zero.shape == ()
    assert ((scales[:, 0] == x_scale) & (zeros[:, 0] == x_zero)).any()


def test_a_starting_grid_is_one_of_the_candidates():
    weight, rows = problem(3, 6)
    spec = QuantSpec(8, "channel"), QuantSpec(2)
    # two levels close together at the end of the range: the best scale, between them, is no shrunken range's
    rows = torch.tensor([0.0, 0.6, 0.62])[torch.randint(0, 3, rows.shape, generator=torch.Generator().manual_seed(0))]
    start = torch.tensor(0.61), torch.tensor(0.0)
    assert search_linear(weight, rows, *spec, 16, 3, start)[1] == start
    assert search_linear(weight, rows, *spec, 16, 3)[1] != start
    bad = torch.tensor(1e-3), torch.tensor(0.0)
    assert search_linear(weight, rows, *spec, 16, 3, bad)[1] != bad


def test_search_beats_the_full_range():
    weight, rows = problem(16, 24, 256)
    spec = QuantSpec(3, "channel"), QuantSpec(3)
    searched = output_error(weight, rows, *search_linear(weight, rows, *spec, 128, 3), spec).sum()
    naive = (
        tuple(t[:, None] for t in grid_from_range(weight.amin(1), weight.amax(1), 7)),
        grid_from_range(rows.min(), rows.max(), 7),
    )
    assert searched < 0.5 * output_error(weight, rows, *naive, spec).sum()


@pytest.mark.parametrize("judged", [512, 256])  # all rows, and every other one: each with its own weight
def test_massive_tokens_do_not_stretch_the_grid_of_the_others(judged, monkeypatch):
    """Two tokens of 512 hold values a hundred times larger; the grid must serve the other 510."""
    monkeypatch.setattr(searching, "INPUT_ROWS", judged)
    weight, rows = noise(32, 48), noise(512, 48, seed=1)
    rows[[8, 300], 5] = 300.0
    spec = QuantSpec(8, "channel"), QuantSpec(8)
    weight_grid, (scale, zero) = search_linear(weight, rows, *spec, 128, 3)
    w, x, s, z = f64(weight, rows, scale, zero)
    ordinary = np.delete(x, [8, 300], axis=0)
    error = (quantized(ordinary, s, z, 255) - ordinary) @ w.T
    assert (error**2).mean() < 0.01 * ((ordinary @ w.T) ** 2).mean()
    assert float(scale) * 255 < 100
    assert weight_grid[0].isfinite().all()


@pytest.mark.parametrize("empty", [0.4, 0.6, 0.95])
def test_rows_of_zeros_change_nothing(empty):
    """Swin pads its windows with zeros, often more than half of them; they have no error on any grid."""
    weight, rows = problem(3, 6, 200)
    spec = QuantSpec(3, "channel"), QuantSpec(3)
    zeros = torch.zeros(round(len(rows) * empty / (1 - empty)), 6)
    weight_grid, input_grid = search_linear(weight, torch.cat([rows, zeros]), *spec, 64, 20)
    found = output_error(weight, rows, weight_grid, input_grid, spec).sum()
    alone = output_error(weight, rows, *search_linear(weight, rows, *spec, 64, 20), spec).sum()
    assert found <= 1.1 * alone, (found, alone)  # ranges shrink to quantiles, of which zeros take some


def test_channel_search_is_brute_force():
    rows = problem(1, 6, 300)[1]
    scale, zero = search_channels(rows, QuantSpec(3), 64)
    scales, zeros = candidate_grids(rows.T.contiguous(), INPUT_QUANTILE, 64, 7)
    columns, s, z = f64(rows.T, scales, zeros)
    errors = ((quantized(columns, s[:, :, None], z[:, :, None], 7) - columns) ** 2).sum(-1)
    chosen = ((quantized(columns, *f64(scale[:, None], zero[:, None]), 7) - columns) ** 2).sum(-1)
    np.testing.assert_allclose(chosen, errors.min(0), rtol=1e-4)
    assert scale.shape == zero.shape == (6,)


@pytest.mark.parametrize("dead", [0.0, 0.25])
def test_a_constant_input_channel_does_no_harm(dead):
    weight, rows = problem(3, 6)
    rows[:, 2] = dead
    for grid in (
        *search_linear(weight, rows, QuantSpec(3, "channel"), QuantSpec(3), 16, 2),
        search_channels(rows, QuantSpec(3), 16),
    ):
        assert grid[0].isfinite().all()
        assert (grid[0] > 0).all()


# ---------------------------------------------------------------- attention products


def product_error(a: Tensor, b: Tensor, grid_a: tuple, grid_b: tuple, qmax: int) -> np.ndarray:
    """``||aq bq - a b||^2`` per head, by brute force in float64."""
    (x, y), ga, gb = f64(a, b), f64(*grid_a), f64(*grid_b)
    return ((quantized(x, *ga, qmax) @ quantized(y, *gb, qmax) - x @ y) ** 2).sum((0, 2, 3))


def operands(tokens: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A softmax and its values: the heads differ in range."""
    spread = torch.tensor([0.3, 1.0, 4.0]).view(1, 3, 1, 1)
    a = (noise(2, 3, tokens, tokens, seed=seed) * 2).softmax(-1)
    return a, noise(2, 3, tokens, width, seed=seed + 1) * spread


@pytest.mark.parametrize("granularity", ["tensor", "head", "head-token"])
@pytest.mark.parametrize(("tokens", "width"), [(5, 9), (9, 4)])
def test_product_search_ends_at_the_best_candidate_given_the_other_side(granularity, tokens, width):
    a, b = operands(tokens, width)
    spec, count = QuantSpec(3, granularity), 48
    grid_a, grid_b = search_matmul(a, b, spec, count, rounds=12)
    shape = () if granularity == "tensor" else (1, 3, 1, 1)
    assert all(t.shape == shape for t in (*grid_a, *grid_b))

    def sums(error: np.ndarray) -> np.ndarray:
        return error.sum() if granularity == "tensor" else error

    chosen = sums(product_error(a, b, grid_a, grid_b, 7))
    for side, x in enumerate((a, b)):
        groups = x.reshape(1, -1) if granularity == "tensor" else x.transpose(0, 1).flatten(1)
        for scale, zero in zip(*candidate_grids(groups, OPERAND_QUANTILE, count, 7), strict=True):
            grid = scale.view(1, -1, 1, 1), zero.view(1, -1, 1, 1)
            grids = (grid, grid_b) if side == 0 else (grid_a, grid)
            assert np.all(chosen <= sums(product_error(a, b, *grids, 7)) * WORSE)


def test_a_grid_for_each_head_is_the_search_on_each_head_alone():
    a, b = operands(6, 4)
    together = search_matmul(a, b, QuantSpec(4, "head"), 32, 3)
    for head in range(3):
        alone = search_matmul(a[:, head : head + 1], b[:, head : head + 1], QuantSpec(4, "tensor"), 32, 3)
        for grid, one in zip(together, alone, strict=True):
            assert torch.equal(grid[0][0, head, 0, 0], one[0])
            assert torch.equal(grid[1][0, head, 0, 0], one[1])


def test_grids_for_heads_that_differ_beat_one_for_all():
    a, b = operands(9, 6)
    by_head = product_error(a, b, *search_matmul(a, b, QuantSpec(3, "head"), 64, 4), 7).sum()
    by_tensor = product_error(a, b, *search_matmul(a, b, QuantSpec(3, "tensor"), 64, 4), 7).sum()
    assert by_head < by_tensor


# ---------------------------------------------------------------- LayerNorm re-parameterisation


def reference_pair() -> tuple[nn.LayerNorm, QuantLinear]:
    norm, linear = nn.LayerNorm(24), QuantLinear.from_float(nn.Linear(24, 36))
    norm.load_state_dict({"weight": REFERENCE["reparam.ln_weight"], "bias": REFERENCE["reparam.ln_bias"]})
    linear.load_state_dict({"weight": REFERENCE["reparam.weight"], "bias": REFERENCE["reparam.bias"]})
    return norm, linear


def test_folding_equals_the_published_one():
    norm, linear = reference_pair()
    r = {key.removeprefix("reparam."): value for key, value in REFERENCE.items() if key.startswith("reparam.")}
    scale, zero_point = fold_channel_scales(norm, linear, r["channel_scale"], r["channel_zero_point"])
    got = {
        "scale": scale.view(1),
        "zero_point": zero_point.view(1),
        "ln_weight_out": norm.weight,
        "ln_bias_out": norm.bias,
        "weight_out": linear.weight,
        "bias_out": linear.bias,
    }
    for name, value in got.items():
        atol = 1e-6 * float(r[name].abs().max())  # float32; the bias sums 24 products
        torch.testing.assert_close(value.detach(), r[name], rtol=0, atol=atol, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("bias", [True, False])
def test_folding_keeps_the_function_and_moves_every_channel_to_one_grid(bias):
    norm, linear = reference_pair()
    if not bias:
        linear.bias = None
    x = noise(50, 24)
    scale, zero = REFERENCE["reparam.channel_scale"], REFERENCE["reparam.channel_zero_point"]
    with torch.no_grad():
        between, expected = norm(x), linear(norm(x))
        one_scale, one_zero = fold_channel_scales(norm, linear, scale, zero)
        # float32 sums of 24 products of order one
        torch.testing.assert_close(linear(norm(x)), expected, rtol=1e-4, atol=1e-4)
        by_channel = torch.round(between / scale) + zero
        by_tensor = torch.round(norm(x) / one_scale) + one_zero
    assert torch.equal(one_zero, one_zero.round())
    # the same codes as before but for values that float32 moves across a rounding boundary
    assert (by_channel != by_tensor).float().mean() < 0.01
    assert norm.weight.requires_grad


# ---------------------------------------------------------------- what is collected


@pytest.mark.parametrize(
    "how", [{}, {"stride": 2}, {"padding": (1, 2)}, {"dilation": 2}, {"stride": (1, 2), "padding": 1}], ids=str
)
def test_an_unfolded_convolution_is_a_linear_layer(how):
    conv = nn.Conv2d(3, 5, (3, 2), bias=False, **how)
    x = noise(2, 3, 8, 7)
    rows = unfold(QuantConv2d.from_float(conv), x)
    expected = conv(x).permute(0, 2, 3, 1).reshape(-1, 5)
    # float32 sums of 18 products
    torch.testing.assert_close(rows @ conv.weight.flatten(1).T, expected, rtol=1e-5, atol=1e-6)


def test_samples_are_thinned_over_all_calls(monkeypatch):
    monkeypatch.setattr(collecting, "ROWS", 40)
    monkeypatch.setattr(collecting, "OPERAND_ELEMENTS", 4 * 3 * 5 * 4)  # four images of a
    linear, product = QuantLinear.from_float(nn.Linear(4, 2)), QuantMatMul(transpose_b=True)
    with observing({"linear": linear, "product": product}, 2, torch.Generator().manual_seed(0)) as seen:
        for call in range(2):
            linear(torch.full((3, 50, 4), float(call)))
            product(torch.full((4, 3, 5, 4), float(call)), noise(4, 3, 5, 4, seed=call))
    rows = torch.cat(seen["linear"].rows)
    assert rows.shape == (40, 4)
    assert float(rows.mean()) == 0.5  # as many from each call
    assert seen["linear"].shape == (3, 50, 4)
    a, b = torch.cat(seen["product"].a), torch.cat(seen["product"].b)
    assert a.shape == (4, 3, 5, 4)
    assert float(a.mean()) == 0.5
    # as multiplied, of the same images as a, and every third one: an even step would see half of Swin's windows
    assert torch.equal(b, torch.cat([noise(4, 3, 5, 4, seed=call)[::3].mT for call in range(2)]))
    linear(noise(1, 4))
    assert len(seen["linear"].rows) == 2


def test_observing_ends_on_an_error():
    linear = QuantLinear.from_float(nn.Linear(4, 2))

    def fail() -> None:
        with observing({"linear": linear}, 1, torch.Generator()):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not linear._forward_pre_hooks


# ---------------------------------------------------------------- whole models


@pytest.fixture(autouse=True)
def _fused_attention() -> Iterator[None]:
    """As ``load_float`` builds models."""
    set_fused_attn(enable=True, experimental=True)
    yield
    set_fused_attn(enable=True, experimental=False)  # timm's default


def swin(window: int, size: int) -> QuantModel:
    torch.manual_seed(0)
    kwargs = {"window_size": window, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2), "num_classes": 5}
    model = timm.create_model("swin_tiny_patch4_window7_224", img_size=size, **kwargs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return wrap(model, (3, size, size))


def demo(name: str) -> QuantModel:
    loaded = load_float(name)
    return wrap(loaded.module, loaded.input_size)


MODELS = {
    "demo_vit": lambda: demo("demo_vit"),
    "demo_swin": lambda: demo("demo_swin"),
    "swin-padded": lambda: swin(3, 32),
}


def all_quantizers(model: QuantModel) -> dict[str, UniformQuantizer]:
    return {
        f"{name}.{slot}": getattr(layer, slot)
        for name, layer in model.layers.items()
        for slot in quantizer_slots(layer)
    }


@pytest.mark.parametrize("name", MODELS)
def test_calibration_keeps_the_float_function(name):
    model, x = MODELS[name](), noise(8, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)
        norms = [norm.weight.clone() for block in model.blocks for norm, _ in block.norm_pairs]
        calibrate(model, x, recipe(), NullProgress())
        assert norms
        moved = [norm.weight for block in model.blocks for norm, _ in block.norm_pairs]
        assert not any(torch.equal(old, new) for old, new in zip(norms, moved, strict=True))
        with float_layers(model.layers.values()):
            close = {"rtol": 0, "atol": 1e-4 * float(expected.abs().max())}  # float32 through up to six folded blocks
            torch.testing.assert_close(model(x), expected, **close)
            torch.testing.assert_close(model(noise(3, 3, 32, 32, seed=5)).shape, torch.Size([3, expected.shape[1]]))
        assert (model(x) - expected).abs().max() > 1e-3  # and outside it is quantized


@pytest.mark.parametrize("matmul", ["tensor", "head", "head-token"])
@pytest.mark.parametrize("linear", ["tensor", "token"])
def test_every_layer_gets_a_grid_of_the_shape_it_says(linear, matmul):
    model, x = demo("demo_vit"), noise(4, 3, 32, 32)
    settings = recipe(3, 5, activations={"granularity": linear, "matmul_granularity": matmul})
    calibrate(model, x, settings, NullProgress())
    tokens, heads = 65, DEMO_MODELS["demo_vit"].kwargs["num_heads"]
    for name, quantizer in all_quantizers(model).items():
        if "weight" in name:
            bits, granularity, shape = 3, "channel", quantizer.scale.shape[:1] + (1,) * (quantizer.scale.ndim - 1)
        elif name == "patch_embed.proj.input_quantizer":
            bits, granularity, shape = 8, "tensor", ()
        elif name == "head.input_quantizer":  # its input is [b, c]: there are no tokens
            bits, granularity, shape = 5, "tensor", ()
        elif ".input" in name:
            bits, granularity = 5, linear
            shape = (1, tokens, 1) if linear == "token" else ()
        else:
            bits, granularity = 5, matmul
            shape = {"tensor": (), "head": (1, heads, 1, 1), "head-token": (1, heads, tokens, 1)}[matmul]
        assert quantizer.spec == QuantSpec(bits, granularity), name
        assert quantizer.scale.shape == shape, name
        assert quantizer.scale.is_contiguous()
        assert (quantizer.scale > 0).all(), name
        zero = quantizer.zero_point
        assert torch.equal(zero, zero.round()), name
        assert zero.min() >= 0, name
        assert zero.max() <= quantizer.spec.qmax, name
        assert not quantizer.scale.requires_grad
    assert model(x).isfinite().all()


def test_swins_inputs_have_a_scale_for_each_place():
    model, x = demo("demo_swin"), noise(2, 3, 32, 32)
    calibrate(
        model, x, recipe(activations={"granularity": "token", "matmul_granularity": "head-token"}), NullProgress()
    )
    grids = all_quantizers(model)
    assert grids["layers.0.blocks.0.mlp.fc1.input_quantizer"].scale.shape == (1, 64, 1)
    assert grids["layers.0.blocks.0.attn.qkv.input_quantizer"].scale.shape == (1, 16, 1)  # within a window
    assert grids["layers.1.downsample.reduction.input_quantizer"].scale.shape == (1, 4, 4, 1)
    assert grids["layers.0.blocks.0.attn.qk.b_quantizer"].scale.shape == (1, 2, 16, 1)
    for batch in (1, 5):
        assert model(noise(batch, 3, 32, 32)).isfinite().all()


def test_the_same_seed_gives_the_same_grids(monkeypatch):
    monkeypatch.setattr(collecting, "ROWS", 64)  # so that the draw of rows matters

    def grids(seed: int) -> list[Tensor]:
        model = demo("demo_vit")
        settings = Recipe.from_dict(recipe().to_dict() | {"seed": seed})
        calibrate(model, noise(4, 3, 32, 32), settings, NullProgress())
        return [t for quantizer in all_quantizers(model).values() for t in (quantizer.scale, quantizer.zero_point)]

    first = grids(0)
    assert all(torch.equal(one, other) for one, other in zip(first, grids(0), strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(first, grids(1), strict=True))


def test_a_layer_behind_a_norm_can_keep_the_grid_its_norm_was_folded_to():
    """On that grid a folded bias has moved by whole steps in every channel; on a range of the input it would not."""
    model = demo("demo_vit")
    pairs = [pair for block in model.blocks for pair in block.norm_pairs]
    before = [(norm.weight.clone(), norm.bias.clone()) for norm, _ in pairs]
    calibrate(model, noise(8, 3, 32, 32), recipe(), NullProgress())
    for (norm, linear), (weight, bias) in zip(pairs, before, strict=True):
        steps = (norm.bias - bias * norm.weight / weight) / linear.input_quantizer.scale
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)  # float32, over a scale of a tenth
        assert steps.abs().max() >= 1


def test_products_are_searched_for_as_many_rounds_as_the_recipe_says():
    """With enough of them both sides of every product are the best given the other; after one round they are not."""
    model, x, settings = demo("demo_vit"), noise(2, 3, 32, 32), recipe(calibrate={"rounds": 12})
    calibrate(model, x, settings, NullProgress())
    products = {name: layer for name, layer in model.layers.items() if isinstance(layer, QuantMatMul)}
    read: dict[str, tuple[Tensor, Tensor]] = {}
    for name, layer in products.items():
        layer.register_forward_pre_hook(lambda _, operands, name=name: read.update({name: operands}))
    with torch.no_grad(), float_layers(model.layers.values()):
        model(x)
    for name, layer in products.items():
        a, b = read[name][0], read[name][1].mT if layer.transpose_b else read[name][1]
        grids = [(quantizer.scale, quantizer.zero_point) for quantizer in (layer.a_quantizer, layer.b_quantizer)]
        chosen = product_error(a, b, *grids, 15).sum()
        for side, operand in enumerate((a, b)):
            for scale, zero in zip(*candidate_grids(operand.reshape(1, -1), OPERAND_QUANTILE, 16, 15), strict=True):
                other = [(scale, zero) if place == side else grid for place, grid in enumerate(grids)]
                assert chosen <= product_error(a, b, *other, 15).sum() * WORSE, name


def test_without_reparameterisation_norms_stay():
    model = demo("demo_vit")
    before = [
        t.clone() for block in model.blocks for norm, linear in block.norm_pairs for t in (norm.weight, linear.weight)
    ]
    calibrate(model, noise(2, 3, 32, 32), recipe(calibrate={"reparam_layernorm": False}), NullProgress())
    after = [t for block in model.blocks for norm, linear in block.norm_pairs for t in (norm.weight, linear.weight)]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_searching_brings_the_model_closer_to_float_than_full_ranges_do():
    """A real effect on real digits, at 4 bits: the search against min-max grids for everything."""
    digits = torch.from_numpy(load_digits()[0][:256:8].astype(np.float32))
    x = torch.nn.functional.interpolate((digits / 8 - 1)[:, None], size=32, mode="bicubic").expand(-1, 3, -1, -1)

    def error(candidates: int, reparam: bool) -> float:
        model = demo("demo_vit")
        with torch.no_grad():
            expected = model(x)
            changes = {"candidates": candidates, "rounds": 2, "reparam_layernorm": reparam}
            calibrate(model, x[:16], recipe(4, 4, calibrate=changes), NullProgress())
            return float((model(x) - expected).square().mean())

    assert error(64, True) < 0.7 * error(1, False)


@pytest.mark.parametrize("channel", [0, 2])
def test_a_grouped_convolutions_input_grid_spans_its_input(channel):
    """Groups see different channels, one of them with a larger range than the rest: none may be averaged away."""
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=1, num_classes=2
    )
    model.patch_embed.proj = nn.Sequential(nn.Conv2d(3, 9, 4, 4, groups=3), nn.Conv2d(9, 8, 1))
    wrapped = wrap(model, (3, 8, 8))
    x = noise(4, 3, 8, 8)
    x[:, channel] *= 10
    calibrate(wrapped, x, recipe(8, 8), NullProgress())
    quantizer = wrapped.layers["patch_embed.proj.0"].input_quantizer
    error = (quantizer(x) - x).abs().max()
    assert float(error) <= 0.1 * float(x.abs().max())


def test_a_block_runs_in_chunks_without_gradients():
    model, x = demo("demo_vit"), noise(7, 3, 32, 32)
    whole, parts = run_block(model.blocks[0], x), run_block(model.blocks[0], x, chunk=3)
    torch.testing.assert_close(whole, parts, rtol=1e-5, atol=1e-6)  # float32; the batch decides how a product is cut
    assert not whole.requires_grad


EVERYWHERE = {"granularity": "token", "matmul_granularity": "head-token"}


@pytest.mark.parametrize(
    ("name", "tables"),
    [
        *((name, {}) for name in MODELS),
        ("demo_vit", {"activations": EVERYWHERE}),
        ("demo_swin", {"activations": EVERYWHERE}),
        ("demo_vit", {"activations": {"symmetric": True}, "weights": {"symmetric": True}}),
        ("demo_vit", {"calibrate": {"reparam_layernorm": False}}),
    ],
)
def test_grids_restore_a_calibrated_model_to_the_bit(name, tables):
    model, again, x = MODELS[name](), MODELS[name](), noise(4, 3, 32, 32)
    settings = recipe(4, 5, **tables)
    grids = calibrate(model, x, settings, NullProgress())
    for array in grids.values():
        array.flags.writeable = False  # as from a file
    restore_grids(again, grids, settings)
    wanted, restored = all_quantizers(model), all_quantizers(again)
    assert {name: quantizer.spec for name, quantizer in restored.items()} == {n: q.spec for n, q in wanted.items()}
    states = model.model.state_dict(), again.model.state_dict()
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
    assert torch.equal(model(x), again(x))
