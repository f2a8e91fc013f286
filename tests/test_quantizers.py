"""Quantizers against the published values, ONNX's QuantizeLinear, plain autograd and float64 numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from safetensors.torch import load_file
from torch import Tensor

from fimaq.toolchain.errors import UsageError
from fimaq.toolchain.quantizers import (
    AdaRoundWeight,
    CodedWeight,
    DropQuantizer,
    UniformQuantizer,
    random_mask,
    without_drop,
)
from fimaq.toolchain.spec import QuantSpec

REFERENCE = load_file(Path(__file__).parent / "data" / "reference.safetensors")
PUBLISHED_BITS = (2, 3, 4, 6, 8)
BITS = range(2, 9)

# name of the granularity -> (shape quantized, shape of the scale)
SHAPES = {
    "tensor": ((3, 5, 8), ()),
    "channel": ((6, 4, 3, 3), (6, 1, 1, 1)),
    "token": ((3, 5, 8), (1, 5, 1)),
    "head": ((2, 3, 5, 8), (1, 3, 1, 1)),
    "head-token": ((2, 3, 5, 8), (1, 3, 5, 1)),
}


def assert_published(got: Tensor, wanted: Tensor) -> None:
    """Within 1e-6 of the largest value: both are float32, and theirs may divide in another order."""
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6 * float(wanted.abs().max()))


def some_quantizer(
    bits: int, granularity: str = "tensor", *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[UniformQuantizer, Tensor]:
    """A quantizer with random scales and zero points, and a tensor of which about a third lies off its grid."""
    shape, kept = SHAPES[granularity]
    generator = torch.Generator().manual_seed(seed * 100 + bits)
    scale = torch.rand(kept, generator=generator, dtype=dtype) * 0.3 + 0.01
    zero_point = torch.randint(0, 2**bits, kept, generator=generator).to(dtype)
    levels = torch.rand(shape, generator=generator, dtype=dtype) * 1.5 * 2**bits - 0.25 * 2**bits
    return UniformQuantizer(QuantSpec(bits, granularity), scale, zero_point), (levels - zero_point) * scale


def onnx_codes(x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, qmax: int) -> np.ndarray:
    """ONNX's QuantizeLinear to uint8 (per element, by its reference implementation) cut off at ``qmax``."""
    flat, scales = x.ravel(), np.broadcast_to(scale, x.shape).ravel()
    zeros = np.broadcast_to(zero_point, x.shape).ravel().astype(np.uint8)
    node = helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"], axis=0)
    graph = helper.make_graph(
        [node],
        "quantize",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [flat.size]),
            helper.make_tensor_value_info("scale", TensorProto.FLOAT, [flat.size]),
            helper.make_tensor_value_info("zero", TensorProto.UINT8, [flat.size]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [flat.size])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    (codes,) = ReferenceEvaluator(model).run(None, {"x": flat, "scale": scales, "zero": zeros})
    return np.minimum(codes, qmax).reshape(x.shape)


# ---------------------------------------------------------------- the published implementation


@pytest.mark.parametrize("bits", PUBLISHED_BITS)
@pytest.mark.parametrize(("key", "granularity"), [("uniform", "channel"), ("token", "token")])
def test_uniform_equals_the_published_one(key, granularity, bits):
    x, scale, zero_point, y = (REFERENCE[f"{key}.{bits}.{name}"] for name in ("x", "scale", "zero_point", "y"))
    quantizer = UniformQuantizer(QuantSpec(bits, granularity), scale, zero_point)
    assert_published(quantizer(x), y)
    assert_published((quantizer.to_codes(x) - zero_point) * scale, y)


@pytest.mark.parametrize("bits", PUBLISHED_BITS)
def test_adaround_equals_the_published_one(bits):
    """Ours clamps to the grid where the published one does not: its values are clamped before they are compared.

    (On this data none of them leaves the grid, so for once the two agree everywhere; the clamp has tests of its own.)
    """
    r = {
        name: REFERENCE[f"adaround.{bits}.{name}"]
        for name in ("w", "scale", "zero_point", "alpha_init", "h_init", "soft_init", "alpha", "soft", "hard")
    }
    scale, zero_point = r["scale"], r["zero_point"]
    low, high = -zero_point * scale, (2**bits - 1 - zero_point) * scale
    rounding = AdaRoundWeight(QuantSpec(bits, "channel"), r["w"], scale, zero_point)
    assert_published(rounding.alpha.detach(), r["alpha_init"])
    assert_published(rounding.soft_rounding().detach(), r["h_init"])
    assert_published(rounding(r["w"]).detach(), r["soft_init"].clamp(low, high))
    rounding.alpha.data.copy_(r["alpha"])
    assert_published(rounding(r["w"]).detach(), r["soft"].clamp(low, high))
    assert_published((rounding.harden() - zero_point) * scale, r["hard"].clamp(low, high))


# ---------------------------------------------------------------- the contract of the uniform quantizer


@pytest.mark.parametrize("granularity", SHAPES)
@pytest.mark.parametrize("bits", BITS)
def test_codes_and_values_equal_onnx(bits, granularity):
    quantizer, x = some_quantizer(bits, granularity)
    scale, zero_point = quantizer.scale.numpy(), quantizer.zero_point.numpy()
    codes = onnx_codes(x.numpy(), scale, zero_point, 2**bits - 1)
    np.testing.assert_array_equal(quantizer.to_codes(x).numpy(), codes)
    assert {0, 2**bits - 1} <= set(codes.ravel().tolist())  # both ends are met
    assert quantizer.to_codes(x).dtype == torch.uint8
    # DequantizeLinear: (code - zero point) as integers, times the scale, in float32.
    values = (codes.astype(np.int32) - zero_point.astype(np.int32)).astype(np.float32) * scale
    np.testing.assert_array_equal(quantizer(x).numpy(), values)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("scale", [0.5, 0.1, 0.3, 1 / 49])
def test_ties_round_to_even_after_a_true_division(bits, scale):
    qmax = 2**bits - 1
    zero_point = torch.tensor(float(qmax // 2))
    scale = torch.tensor(scale)
    ties = (torch.arange(-qmax, qmax + 1) + 0.5) * scale  # ties, or what float32 makes of them
    near = torch.cat([ties, torch.nextafter(ties, torch.tensor(torch.inf)), torch.nextafter(ties, -ties)])
    quantizer = UniformQuantizer(QuantSpec(bits), scale, zero_point)
    wanted = onnx_codes(near.numpy(), scale.numpy(), zero_point.numpy(), qmax)
    np.testing.assert_array_equal(quantizer.to_codes(near).numpy(), wanted)
    torch.testing.assert_close(quantizer(near), (torch.from_numpy(wanted) - zero_point) * scale, rtol=0, atol=0)


def test_the_tie_test_can_tell_a_multiplication_from_a_division():
    """At 1/49 a product with the reciprocal gives other codes, so the test above is not empty."""
    scale = torch.tensor(1 / 49)
    ties = (torch.arange(-255, 256) + 0.5) * scale
    assert (torch.round(ties / scale) != torch.round(ties * (1 / scale))).any()


@pytest.mark.parametrize("granularity", SHAPES)
@pytest.mark.parametrize("bits", BITS)
def test_idempotent(bits, granularity):
    for seed in range(5):
        quantizer, x = some_quantizer(bits, granularity, seed=seed)
        once = quantizer(x)
        assert torch.equal(quantizer(once), once)
        assert torch.equal(quantizer.to_codes(once), quantizer.to_codes(x))


@pytest.mark.parametrize("bits", BITS)
def test_saturates_at_both_ends(bits):
    for zero_point in {0, 1, 2 ** (bits - 1), 2**bits - 1}:
        quantizer = UniformQuantizer(QuantSpec(bits), torch.tensor(0.1), torch.tensor(float(zero_point)))
        far = torch.tensor([-torch.inf, -1e30, -1e3, 1e3, 1e30, torch.inf])
        low, high = -zero_point * torch.tensor(0.1), (2**bits - 1 - zero_point) * torch.tensor(0.1)
        assert torch.equal(quantizer(far), torch.stack([low, low, low, high, high, high]))
        assert quantizer.to_codes(far).tolist() == [0, 0, 0, *[2**bits - 1] * 3]


@pytest.mark.parametrize("bits", BITS)
def test_zero_is_exact_at_every_zero_point(bits):
    zeros = torch.arange(2**bits, dtype=torch.float32)
    quantizer = UniformQuantizer(QuantSpec(bits, "channel"), torch.full((2**bits,), 0.0371), zeros)
    assert torch.equal(quantizer(torch.zeros(2**bits)), torch.zeros(2**bits))
    assert torch.equal(quantizer.to_codes(torch.zeros(2**bits)), zeros.to(torch.uint8))


@pytest.mark.parametrize("granularity", SHAPES)
def test_shape_and_dtype_stay(granularity):
    for dtype in (torch.float32, torch.float64):
        quantizer, x = some_quantizer(4, granularity, dtype=dtype)
        assert quantizer(x).shape == x.shape
        assert quantizer(x).dtype == dtype


def test_each_granularity_uses_its_own_scale():
    """Quantizing slice by slice with scalars is the same."""
    for granularity, (shape, kept) in SHAPES.items():
        quantizer, x = some_quantizer(3, granularity)
        scale, zero_point = (t.expand(shape) for t in (quantizer.scale.detach(), quantizer.zero_point))
        by_element = torch.stack(
            [
                UniformQuantizer(QuantSpec(3), s, z)(v)
                for v, s, z in zip(x.ravel(), scale.ravel(), zero_point.ravel(), strict=True)
            ]
        )
        assert torch.equal(quantizer(x).ravel(), by_element), (granularity, kept)


# ---------------------------------------------------------------- gradients


def straight_through(x: Tensor, scale: Tensor, zero_point: Tensor, qmax: int, keep: Tensor | None = None) -> Tensor:
    """The quantizer in plain torch operations, its rounding passing gradients on: autograd does the rest.

    The first and the last level are inside the grid and pass gradients. ``torch.clamp`` did so when the authors' code
    was written; newer versions stop the gradient there or halve it, so the ends are selected by hand.
    """
    ratio = x / scale
    rounded = (ratio - ratio.detach()) + ratio.detach().round()  # exactly an integer, so that the clamp sees one
    below, above = rounded < -zero_point, rounded > qmax - zero_point
    y = torch.where(below, -zero_point, torch.where(above, qmax - zero_point, rounded)) * scale
    return y if keep is None else torch.where(keep.bool(), x, y)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("granularity", SHAPES)
@pytest.mark.parametrize("bits", BITS)
def test_gradients_equal_autograd_through_a_straight_through_rounding(bits, granularity, kept):
    quantizer, x = some_quantizer(bits, granularity, dtype=torch.float64)
    generator = torch.Generator().manual_seed(bits)
    keep = torch.randint(0, 2, x.shape, generator=generator).double() if kept else None
    weight = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    x.requires_grad_()
    quantizer.scale.requires_grad_()
    ours = torch.autograd.grad((quantizer(x, keep) * weight).sum(), [x, quantizer.scale])
    surrogate = straight_through(x, quantizer.scale, quantizer.zero_point, 2**bits - 1, keep)
    theirs = torch.autograd.grad((surrogate * weight).sum(), [x, quantizer.scale])
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-12, atol=0)  # theirs divides by the scale and multiplies
    # float64 sums of a few hundred products; the surrogate adds and subtracts the zero point and the ratio
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-9, atol=1e-9)
    assert ours[1].shape == quantizer.scale.shape


@pytest.mark.parametrize("bits", BITS)
def test_the_scales_gradient_is_that_of_lsq(bits):
    """LSQ eq. 3: -Q_N below, Q_P above, round(v/s) - v/s between; what rounds to an end is between, as published."""
    qmax, zero_point = 2**bits - 1, 2 ** (bits - 1) - 1
    quantizer = UniformQuantizer(
        QuantSpec(bits), torch.tensor(0.25, dtype=torch.float64), torch.tensor(float(zero_point), dtype=torch.float64)
    )
    quantizer.scale.requires_grad_()
    for level in (
        -zero_point - 3.3,
        -zero_point - 0.4,
        0.0,
        0.2,
        0.7,
        qmax - zero_point + 0.4,
        qmax - zero_point + 9.0,
    ):
        x = torch.tensor([level * 0.25], dtype=torch.float64, requires_grad=True)
        by_x, by_scale = torch.autograd.grad(quantizer(x).sum(), [x, quantizer.scale])
        inside = -zero_point <= round(level) <= qmax - zero_point
        assert float(by_x) == float(inside)
        wanted = round(level) - level if inside else (-zero_point if level < 0 else qmax - zero_point)
        assert float(by_scale) == pytest.approx(wanted, abs=1e-12)


def test_the_scales_gradient_is_a_finite_difference_of_what_is_held_fixed():
    """With the rounding error held the surrogate is smooth in the scale, but for values that rest on an end."""
    quantizer, x = some_quantizer(3, "channel", dtype=torch.float64)
    at_ends = torch.isin(torch.round(x / quantizer.scale) + quantizer.zero_point, torch.tensor([0.0, 7.0]).double())
    x = torch.where(at_ends, 0.0, x)
    quantizer.scale.requires_grad_()
    (by_scale,) = torch.autograd.grad(quantizer(x).square().sum(), quantizer.scale)
    scale, zero = quantizer.scale.detach().numpy(), quantizer.zero_point.numpy()
    ratio = x.numpy() / scale
    error = np.rint(ratio) - ratio

    def value(s: np.ndarray) -> np.ndarray:
        level = np.clip(x.numpy() / s + error, -zero, 7 - zero)
        return ((level * s) ** 2).sum(axis=(1, 2, 3), keepdims=True)

    step = 1e-6 * scale
    np.testing.assert_allclose(by_scale.numpy(), (value(scale + step) - value(scale - step)) / (2 * step), rtol=1e-6)


def test_no_gradient_reaches_a_scale_that_is_not_learned_or_a_zero_point():
    quantizer, x = some_quantizer(4, "head")
    x.requires_grad_()
    quantizer(x).sum().backward()
    assert x.grad is not None
    assert quantizer.scale.grad is None
    assert not quantizer.zero_point.requires_grad
    assert [name for name, _ in quantizer.named_parameters()] == ["scale"]


# ---------------------------------------------------------------- QDrop


@pytest.mark.parametrize("granularity", SHAPES)
def test_kept_elements_are_exact_and_the_others_quantized(granularity):
    quantizer, x = some_quantizer(2, granularity)
    x = x * torch.logspace(-6, 6, x.numel()).view(x.shape)  # also where value and grid are orders of magnitude apart
    keep = torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(quantizer(x, keep), torch.where(keep.bool(), x, quantizer(x)))


def test_kept_elements_pass_their_gradient_and_give_the_scale_none():
    quantizer, x = some_quantizer(2)
    quantizer.scale.requires_grad_()
    x.requires_grad_()
    everything = torch.ones_like(x)
    by_x, by_scale = torch.autograd.grad(quantizer(x, everything).sum(), [x, quantizer.scale])
    assert torch.equal(by_x, everything)
    assert float(by_scale) == 0.0


@pytest.mark.parametrize("probability", [0.0, 1 / 256, 0.1, 0.5, 0.9, 255 / 256, 1.0])
def test_a_mask_has_its_probability(probability):
    n = 1 << 20
    mask = random_mask(torch.Size([n]), probability, torch.Generator().manual_seed(0))
    rounded = round(probability * 256) / 256
    deviation = (rounded * (1 - rounded) / n) ** 0.5
    assert abs(float(mask.double().mean()) - rounded) <= 5 * deviation  # exact at 0 and 1
    assert set(mask.unique().tolist()) <= {0.0, 1.0}


def test_mask_elements_are_independent():
    """Neighbours share a draw: neither they nor elements a multiple of eight apart may go together."""
    mask = random_mask(torch.Size([1 << 18]), 0.5, torch.Generator().manual_seed(1)) - 0.5
    for lag in (1, 2, 3, 7, 8, 16, 64):
        correlation = float((mask[lag:] * mask[:-lag]).mean()) * 4
        assert abs(correlation) < 5 / 2**9, lag  # five deviations of a mean of 2^18 signs
    places = (mask.view(-1, 8) > 0).double().mean(0)  # every byte of the draw is as good as the others
    assert (places - 0.5).abs().max() < 5 * 0.5 / 2**7.5


def test_a_mask_is_decided_by_its_seed():
    def one(seed: int, shape: tuple[int, ...] = (3, 7, 5)) -> Tensor:
        return random_mask(torch.Size(shape), 0.5, torch.Generator().manual_seed(seed))

    assert torch.equal(one(3), one(3))
    assert not torch.equal(one(3), one(4))
    assert one(3).shape == (3, 7, 5)
    assert one(3).dtype == torch.float32
    assert one(3, ()).shape == ()
    assert one(3, (0, 4)).shape == (0, 4)
    generator = torch.Generator().manual_seed(0)
    assert not torch.equal(*(random_mask(torch.Size([64]), 0.5, generator) for _ in range(2)))


@pytest.mark.parametrize(("drop", "share"), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_drop_leaves_its_share_float(drop, share):
    quantizer = UniformQuantizer(QuantSpec(2), torch.tensor(0.7), torch.tensor(1.0))
    x = torch.randn(1 << 14, generator=torch.Generator().manual_seed(0))
    y = DropQuantizer(quantizer, drop, torch.Generator().manual_seed(1))(x)
    left = y == x
    assert abs(float(left.float().mean()) - share) < 5 * 0.5 / 2**7
    assert torch.equal(y[~left], quantizer(x)[~left])


def test_without_drop_quantizes_everything_and_ends_on_an_error():
    quantizer = UniformQuantizer(QuantSpec(2), torch.tensor(0.7), torch.tensor(1.0))
    x = torch.randn(256, generator=torch.Generator().manual_seed(0))
    drops = [DropQuantizer(quantizer, drop, torch.Generator().manual_seed(0)) for drop in (0.5, 0.25)]

    def fail() -> None:
        with without_drop(drops):
            assert all(torch.equal(drop(x), quantizer(x)) for drop in drops)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [drop.drop for drop in drops] == [0.5, 0.25]


# ---------------------------------------------------------------- learned rounding and stored codes


def some_rounding(bits: int, *, reach: float = 1.0) -> tuple[AdaRoundWeight, Tensor, Tensor, Tensor]:
    """AdaRound on weights that lie off the grid beyond 1/reach of their range; and scale, zero point, weight."""
    generator = torch.Generator().manual_seed(bits)
    weight = torch.randn(5, 4, 3, 3, generator=generator)
    low, high = (end.view(5, 1, 1, 1) for end in torch.aminmax(weight.flatten(1), dim=1))
    scale = (high - low) / (2**bits - 1) / reach
    zero_point = torch.round(-low / scale / reach).clamp(0, 2**bits - 1)
    return AdaRoundWeight(QuantSpec(bits, "channel"), weight, scale, zero_point), scale, zero_point, weight


@pytest.mark.parametrize("reach", [1.0, 2.5])
@pytest.mark.parametrize("bits", BITS)
def test_rounding_starts_at_the_float_weight_on_the_grid(bits, reach):
    rounding, scale, zero_point, weight = some_rounding(bits, reach=reach)
    low, high = -zero_point * scale, (2**bits - 1 - zero_point) * scale
    # float32: the logarithm and back costs 1e-6 of a step, a code up to 255 plus a fraction 3e-5 of it
    torch.testing.assert_close(
        rounding(weight).detach(), weight.clamp(low, high), rtol=0, atol=float(scale.max()) * 4e-5
    )
    off = (weight < low) | (weight > high)
    assert off.float().mean() < 0.1 if reach == 1 else off.float().mean() > 0.1


@pytest.mark.parametrize("reach", [1.0, 2.5])
@pytest.mark.parametrize("bits", BITS)
def test_hard_codes_are_the_two_neighbours_on_the_grid(bits, reach):
    rounding, scale, zero_point, weight = some_rounding(bits, reach=reach)
    floor = np.floor(weight.numpy() / scale.numpy()) + zero_point.numpy()
    for shift in (-100.0, 0.0, 100.0):
        rounding.alpha.data.normal_(shift, generator=torch.Generator().manual_seed(0))
        up = (rounding.alpha.detach() >= 0).numpy()
        codes = rounding.harden()
        assert codes.dtype == torch.uint8
        np.testing.assert_array_equal(codes.numpy(), np.clip(floor + up, 0, 2**bits - 1))
        # ... and is where the soft value goes when alpha is decided
        if shift:
            torch.testing.assert_close(rounding(weight).detach(), (codes - zero_point) * scale, rtol=0, atol=0)
        assert torch.equal(rounding.to_codes(weight), codes)


def test_starts_by_rounding_to_nearest():
    rounding, scale, zero_point, weight = some_rounding(4)
    nearest = UniformQuantizer(QuantSpec(4, "channel"), scale, zero_point)
    assert torch.equal(rounding.harden(), nearest.to_codes(weight))


def test_soft_rounding_and_the_regularizers_gradient_in_float64():
    rounding, scale, zero_point, weight = some_rounding(3)
    rounding.alpha.data.mul_(4)  # some h at their bounds
    alpha = rounding.alpha.detach().double().numpy()
    h = np.clip(1.2 / (1 + np.exp(-alpha)) - 0.1, 0, 1)
    # a few float32 roundings of a value up to 1.2
    np.testing.assert_allclose(rounding.soft_rounding().detach().numpy(), h, atol=1e-6)
    floor, zero, step = (x.detach().double().numpy() for x in (rounding.floor, zero_point, scale))
    soft_weight = (np.clip(floor + h + zero, 0, 7) - zero) * step
    np.testing.assert_allclose(rounding(weight).detach().numpy(), soft_weight, rtol=1e-6, atol=1e-6 * step.max())
    assert (h == 0).any()
    assert (h == 1).any()
    for beta in (20.0, 7.5, 2.0):
        exact = torch.from_numpy(alpha).requires_grad_()
        soft = (1.2 * torch.sigmoid(exact) - 0.1).clamp(0, 1)
        (wanted,) = torch.autograd.grad((1 - (2 * soft - 1).abs() ** beta).sum(), exact)
        torch.testing.assert_close(rounding.regularizer_gradient(beta).double(), wanted, rtol=1e-4, atol=1e-6)


def test_the_regularizer_pushes_away_from_one_half_until_all_is_decided():
    rounding, *_ = some_rounding(3)
    gradient = rounding.regularizer_gradient(2.0)
    h = (1.2 * torch.sigmoid(rounding.alpha.detach()) - 0.1).clamp(0, 1)
    assert (gradient[(h > 0.5) & (h < 1)] < 0).all()
    assert (gradient[(h < 0.5) & (h > 0)] > 0).all()
    rounding.alpha.data.copy_(torch.where(rounding.alpha >= 0, 50.0, -50.0))
    for beta in (20.0, 2.0):
        assert not rounding.regularizer_gradient(beta).any()


def test_alphas_gradient_equals_a_finite_difference():
    weight = torch.linspace(-1.3, 1.7, 12, dtype=torch.float64).view(3, 4)
    scale = torch.full((3, 1), 0.3, dtype=torch.float64)
    zero_point = torch.full((3, 1), 2.0, dtype=torch.float64)
    rounding = AdaRoundWeight(QuantSpec(3, "channel"), weight, scale, zero_point)
    assert torch.autograd.gradcheck(
        lambda alpha: torch.func.functional_call(rounding, {"alpha": alpha}, (weight,)), rounding.alpha, eps=1e-7
    )


def test_rounding_keeps_what_is_fixed_out_of_the_parameters():
    rounding, scale, *_ = some_rounding(3)
    assert [name for name, _ in rounding.named_parameters()] == ["alpha"]
    scale.zero_()
    assert (rounding.scale > 0).all()  # a copy, not the caller's


@pytest.mark.parametrize("bits", BITS)
def test_stored_codes_give_the_quantized_weight(bits):
    _, scale, zero_point, weight = some_rounding(bits, reach=1.5)
    quantizer = UniformQuantizer(QuantSpec(bits, "channel"), scale, zero_point)
    coded = CodedWeight(quantizer.spec, quantizer.to_codes(weight), quantizer.scale, quantizer.zero_point)
    assert torch.equal(coded(None), quantizer(weight))
    assert torch.equal(coded.to_codes(None), quantizer.to_codes(weight))
    assert torch.equal(quantizer.to_codes(coded(None)), coded.codes)
    assert list(coded.parameters()) == []
    assert coded.codes.dtype == torch.uint8


@pytest.mark.parametrize(
    ("bits", "granularity", "message"),
    [
        (1, "tensor", "bit-width 1 is out of range: wanted 2 to 8 bits"),
        (9, "tensor", "bit-width 9 is out of range: wanted 2 to 8 bits"),
        (4, "row", "granularity 'row' is unknown: wanted one of tensor, channel, token, head, head-token"),
    ],
)
def test_a_spec_without_a_grid_is_refused(bits, granularity, message):
    with pytest.raises(UsageError, match=message):
        QuantSpec(bits, granularity)
