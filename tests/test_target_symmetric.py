"""Symmetric grids: the zero point is the middle code, the search is the same otherwise."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from timm.layers import set_fused_attn

from fimaq.toolchain.calibrate import calibrate
from fimaq.toolchain.calibrate.candidates import candidate_grids, grid_from_range
from fimaq.toolchain.calibrate.linear import WEIGHT_QUANTILE, fake_quantize, search_channels, search_linear
from fimaq.toolchain.calibrate.matmul import search_matmul
from fimaq.toolchain.export.checks.parity import snr_db
from fimaq.toolchain.families import wrap
from fimaq.toolchain.nn import QuantMatMul
from fimaq.toolchain.progress import NullProgress
from fimaq.toolchain.recipe import load_recipe
from fimaq.toolchain.spec import QuantSpec


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_symmetric_grid_is_the_smallest_that_holds_both_ends(bits):
    qmax, middle = 2**bits - 1, 2 ** (bits - 1)
    low, high = torch.tensor([-3.0, -0.1, 0.5, 0.0]), torch.tensor([1.0, 2.0, 3.0, 0.0])
    scale, zero = grid_from_range(low, high, qmax, symmetric=True)
    assert zero.tolist() == [middle] * 4
    # In float64, from the definition: code 0 reaches low and the last code high, and a smaller scale would not do.
    least, most = np.minimum(low.double().numpy(), 0), np.maximum(high.double().numpy(), 0)
    wanted = np.maximum(-least / middle, most / (qmax - middle))
    np.testing.assert_allclose(scale, np.maximum(wanted, 1e-8), rtol=1e-6)


def test_every_candidate_is_symmetric_and_as_many_as_asked_for():
    rows = torch.randn(3, 500, generator=torch.Generator().manual_seed(0))
    scales, zeros = candidate_grids(rows, 0.9, 24, 15, symmetric=True)
    assert scales.shape == zeros.shape == (24, 3)
    assert torch.all(zeros == 8)
    assert torch.all(scales[1:] <= scales[:-1])


def test_the_searches_choose_among_symmetric_grids():
    generator = torch.Generator().manual_seed(1)
    weight, rows = torch.randn(6, 9, generator=generator) + 0.3, torch.randn(400, 9, generator=generator).relu()
    spec = QuantSpec(4, "channel", symmetric=True), QuantSpec(4, symmetric=True)
    (scale, zero), (_, in_zero) = search_linear(weight, rows, *spec, candidates=32, rounds=2)
    assert torch.all(zero == 8)
    assert in_zero == 8
    assert torch.all(search_channels(rows, spec[1], 32)[1] == 8)
    a, b = torch.randn(2, 2, 5, 6, generator=generator).softmax(-1), torch.randn(2, 2, 6, 4, generator=generator)
    assert all(grid[1] == 8 for grid in search_matmul(a, b, spec[1], 16, 2))
    # The grid of least output error, channel by channel, by trying each.
    grid = scale, zero
    scales, zeros = candidate_grids(weight, WEIGHT_QUANTILE, 32, 15, symmetric=True)
    x = rows.double()
    start = search_linear(weight, rows, *spec, candidates=32, rounds=1)[1]
    quantized = fake_quantize(rows, start, 15).double()
    errors = torch.stack(
        [
            (quantized @ fake_quantize(weight, (s[:, None], z[:, None]), 15).double().T - x @ weight.double().T)
            .square()
            .sum(0)
            for s, z in zip(scales, zeros, strict=True)
        ]
    )
    found = (quantized @ fake_quantize(weight, grid, 15).double().T - x @ weight.double().T).square().sum(0)
    assert torch.all(found <= errors.amin(0) * 1.05)


@pytest.mark.parametrize(("preset", "activations"), [("symmetric-w8a8", True), ("symmetric-w4a8", False)])
def test_the_presets_calibrate_to_grids_without_zero_points(preset, activations):
    set_fused_attn(enable=True, experimental=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = wrap(timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32, num_classes=5), (3, 32, 32))
    recipe = load_recipe(preset)
    recipe = replace(recipe, calibrate=replace(recipe.calibrate, samples=8, candidates=16, rounds=1))
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = model(images).detach()
    calibrate(model, images, recipe, NullProgress())
    middles = []
    for layer in model.layers.values():
        if not isinstance(layer, QuantMatMul):
            zero, spec = layer.weight_quantizer.zero_point, layer.weight_quantizer.spec
            assert torch.all(zero == 2 ** (spec.bits - 1))
            assert spec.bits == recipe.weights.bits
        for slot in ("a_quantizer", "b_quantizer") if isinstance(layer, QuantMatMul) else ("input_quantizer",):
            quantizer = getattr(layer, slot)
            middles.append(bool((quantizer.zero_point == 2 ** (quantizer.spec.bits - 1)).all()))
    assert all(middles) == activations
    assert snr_db(before.numpy(), model(images).detach().numpy()) > 15
