"""Quantized layers against torch's and timm's own modules, and against float64 numpy once they quantize."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.layers import set_fused_attn
from timm.models.swin_transformer import WindowAttention
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from fimaq.toolchain.errors import UnsupportedModelError
from fimaq.toolchain.nn import (
    QuantAttention,
    QuantConv2d,
    QuantLinear,
    QuantMatMul,
    float_layers,
    quantizer_slots,
)
from fimaq.toolchain.quantizers import UniformQuantizer
from fimaq.toolchain.spec import QuantSpec

CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # float32 sums of up to 64 products of order one, taken in another order


@pytest.fixture(autouse=True)
def _fused_attention() -> Iterator[None]:
    """As ``load_float`` builds models: timm's attention modules then call ``scaled_dot_product_attention``."""
    set_fused_attn(enable=True, experimental=True)
    yield
    set_fused_attn(enable=True, experimental=False)  # timm's default


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantizer(bits: int, scale: float, zero_point: float) -> UniformQuantizer:
    return UniformQuantizer(QuantSpec(bits), torch.tensor(scale), torch.tensor(float(zero_point)))


def quantized(x: Tensor, bits: int, scale: float, zero_point: float) -> np.ndarray:
    """Fake-quantization in numpy: codes from float32 as ONNX defines them, values in float64."""
    codes = np.clip(np.rint(x.detach().numpy() / np.float32(scale)) + zero_point, 0, 2**bits - 1)
    return (codes - zero_point).astype(np.float64) * np.float32(scale)


# ---------------------------------------------------------------- linear and convolution


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 6), (3, 5, 6), (2, 3, 4, 6)])
def test_linear_starts_as_the_float_layer(shape, bias):
    linear = nn.Linear(6, 4, bias=bias)
    ours, x = QuantLinear.from_float(linear), noise(*shape)
    assert torch.equal(ours(x), linear(x))
    assert ours.weight is linear.weight
    assert ours.bias is linear.bias
    assert {key for key, _ in ours.state_dict().items()} == set(linear.state_dict())  # timm's names stay


def test_linear_quantizes_both_of_its_operands():
    linear, x = nn.Linear(6, 4), noise(2, 5, 6)
    ours = QuantLinear.from_float(linear)
    ours.input_quantizer, ours.weight_quantizer = quantizer(3, 0.4, 3), quantizer(4, 0.05, 8)
    wanted = quantized(x, 3, 0.4, 3) @ quantized(linear.weight, 4, 0.05, 8).T + linear.bias.detach().numpy()
    np.testing.assert_allclose(ours(x).detach().numpy(), wanted, **CLOSE)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"stride": 2},
        {"stride": (2, 3)},
        {"padding": 1},
        {"padding": (2, 0)},
        {"dilation": 2},
        {"dilation": (1, 2)},
        {"groups": 2},
        {"groups": 4},
        {"bias": False},
        {"stride": (1, 2), "padding": (1, 2), "dilation": (2, 1), "groups": 2},
    ],
    ids=str,
)
def test_convolution_starts_as_the_float_layer(how):
    conv, x = nn.Conv2d(4, 8, (3, 2), **how), noise(2, 4, 11, 9)
    ours = QuantConv2d.from_float(conv)
    assert torch.equal(ours(x), conv(x))
    assert ours.weight is conv.weight
    assert set(ours.state_dict()) == set(conv.state_dict())


def test_convolution_quantizes_before_it_pads():
    """A padded zero stays zero whatever the grid: the oracle pads the quantized input."""
    conv, x = nn.Conv2d(2, 3, 3, padding=1, stride=2), noise(2, 2, 6, 6) + 3
    ours = QuantConv2d.from_float(conv)
    ours.input_quantizer, ours.weight_quantizer = quantizer(4, 0.4, 2), quantizer(3, 0.1, 4)
    padded = np.pad(quantized(x, 4, 0.4, 2), ((0, 0), (0, 0), (1, 1), (1, 1)))
    weight = quantized(conv.weight, 3, 0.1, 4)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2, ::2]
    wanted = np.einsum("bcyxij,ocij->boyx", windows, weight) + conv.bias.detach().numpy()[:, None, None]
    np.testing.assert_allclose(ours(x).detach().numpy(), wanted, **CLOSE)


@pytest.mark.parametrize("how", [{"padding_mode": "reflect", "padding": 1}, {"padding": "same"}], ids=str)
def test_convolution_with_other_than_zero_padding_is_refused(how):
    with pytest.raises(UnsupportedModelError, match=r"padding=.*is not supported: wanted explicit zero padding"):
        QuantConv2d.from_float(nn.Conv2d(2, 2, 3, **how))


# ---------------------------------------------------------------- products


@pytest.mark.parametrize("transpose", [True, False])
def test_product(transpose):
    a, b = noise(2, 3, 5, 4), noise(2, 3, 6, 4, seed=1) if transpose else noise(2, 3, 4, 6, seed=1)
    product = QuantMatMul(transpose_b=transpose)
    flip = (lambda t: np.swapaxes(t, -1, -2)) if transpose else (lambda t: t)
    np.testing.assert_allclose(product(a, b).numpy(), a.double().numpy() @ flip(b.double().numpy()), **CLOSE)
    product.a_quantizer, product.b_quantizer = quantizer(3, 0.4, 3), quantizer(4, 0.2, 7)
    wanted = quantized(a, 3, 0.4, 3) @ flip(quantized(b, 4, 0.2, 7))
    np.testing.assert_allclose(product(a, b).numpy(), wanted, **CLOSE)


def test_the_key_is_quantized_token_by_token_before_its_transpose():
    """A head-token scale is ``[1, h, t, 1]`` for both operands, so it must meet the key as ``[b, h, t, c]``."""
    q, k = noise(2, 3, 5, 4), noise(2, 3, 5, 4, seed=1)
    scale = torch.rand(1, 3, 5, 1, generator=torch.Generator().manual_seed(2)) + 0.1
    product = QuantMatMul(transpose_b=True)
    product.b_quantizer = UniformQuantizer(QuantSpec(4, "head-token"), scale, torch.full((1, 3, 1, 1), 8.0))
    rows = torch.stack(
        [torch.clamp((k[:, :, t] / scale[:, :, t]).round(), -8, 7) * scale[:, :, t] for t in range(5)], 2
    )
    torch.testing.assert_close(product(q, k), q @ rows.transpose(-2, -1), rtol=0, atol=0)


# ---------------------------------------------------------------- attention


def by_hand(attention: nn.Module, *args: Tensor, **kwargs: Tensor) -> Tensor:
    """timm's own unfused code path of a copy of the module: softmax and two products, nothing intercepted."""
    plain = copy.deepcopy(attention)
    plain.fused_attn = False
    return plain(*args, **kwargs)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"qkv_bias": True},
        {"qkv_bias": True, "qk_norm": True, "norm_layer": nn.LayerNorm},
        {"scale_norm": True, "norm_layer": nn.LayerNorm, "proj_bias": False},
    ],
    ids=str,
)
def test_vit_attention_starts_as_timms(how):
    torch.manual_seed(0)
    attention, x = Attention(24, num_heads=3, **how).eval(), noise(2, 7, 24)
    ours = QuantAttention(attention)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), by_hand(attention, x), **CLOSE)
        torch.testing.assert_close(ours(x), attention(x), **CLOSE)  # the fused kernel


@pytest.mark.parametrize("kind", ["float", "bool", "none"])
def test_masked_vit_attention_is_timms(kind):
    attention, x = Attention(16, num_heads=2).eval(), noise(2, 6, 16)
    allowed = torch.ones(6, 6, dtype=torch.bool).tril()
    mask = {"float": torch.zeros(6, 6).masked_fill(~allowed, -100.0), "bool": allowed, "none": None}[kind]
    with torch.no_grad():
        torch.testing.assert_close(QuantAttention(attention)(x, mask), attention(x, mask), **CLOSE)
        torch.testing.assert_close(QuantAttention(attention)(x, attn_mask=mask), by_hand(attention, x, mask), **CLOSE)


@pytest.mark.parametrize("masked", [False, True])
def test_swin_attention_with_bias_and_mask_starts_as_timms(masked):
    torch.manual_seed(0)
    attention = WindowAttention(24, num_heads=3, window_size=(4, 3)).eval()
    nn.init.normal_(attention.relative_position_bias_table)  # timm's start is nearly zero: a lost bias would not show
    x = noise(2 * 4, 12, 24)  # two images of four windows
    mask = torch.where(noise(4, 12, 12, seed=1) > 1, -100.0, 0.0) if masked else None
    with torch.no_grad():
        wanted = by_hand(attention, x, mask)
        torch.testing.assert_close(QuantAttention(attention)(x, mask), wanted, **CLOSE)
        torch.testing.assert_close(attention(x, mask), wanted, **CLOSE)
    bare = copy.deepcopy(attention)
    nn.init.zeros_(bare.relative_position_bias_table)
    assert (by_hand(bare, x, mask) - wanted).abs().max() > 0.01


def test_attention_quantizes_the_scaled_query_the_key_the_softmax_and_the_value():
    torch.manual_seed(0)
    attention, x = Attention(12, num_heads=3, qkv_bias=True).eval(), noise(2, 5, 12)
    ours = QuantAttention(attention)
    grids = {"q": (4, 0.06, 8), "k": (4, 0.11, 7), "p": (3, 0.14, 0), "v": (4, 0.13, 9)}
    ours.qk.a_quantizer, ours.qk.b_quantizer = quantizer(*grids["q"]), quantizer(*grids["k"])
    ours.av.a_quantizer, ours.av.b_quantizer = quantizer(*grids["p"]), quantizer(*grids["v"])
    with torch.no_grad():
        got = ours(x)
        q, k, v = attention.qkv(x).reshape(2, 5, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        q = q * 4**-0.5
        scores = quantized(q, *grids["q"]) @ np.swapaxes(quantized(k, *grids["k"]), -1, -2)
        softmax = torch.from_numpy(scores).softmax(-1).float()
        mixed = torch.from_numpy(quantized(softmax, *grids["p"]) @ quantized(v, *grids["v"])).float()
        wanted = attention.proj(mixed.transpose(1, 2).reshape(2, 5, 12))
    torch.testing.assert_close(got, wanted, **CLOSE)
    assert (got - attention(x)).abs().max() > 1e-3


def test_attention_with_a_scale_of_its_own():
    class Own(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, scale=0.37)

    q, k, v = (noise(2, 2, n, 4, seed=n) for n in (3, 5, 5))  # as many keys as values, fewer queries
    v = noise(2, 2, 5, 6)  # and values of another width
    torch.testing.assert_close(QuantAttention(Own())(q, k, v), Own()(q, k, v), **CLOSE)


@pytest.mark.parametrize(
    ("option", "value"), [("is_causal", True), ("dropout_p", 0.1), ("enable_gqa", True)], ids=lambda v: str(v)
)
def test_attention_that_would_be_computed_wrongly_is_refused(option, value):
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x, **{option: value})

    with pytest.raises(UnsupportedModelError, match=f"{option}={value}.*wanted plain attention in evaluation mode"):
        QuantAttention(Odd())(noise(1, 2, 3, 4))


def test_only_the_wrapped_module_is_intercepted():
    """Nothing stays switched on: neither after a forward nor after one that failed."""
    attention = Attention(16, num_heads=2).eval()
    ours, x = QuantAttention(attention), noise(1, 4, 16)
    calls: list[int] = []
    ours.qk.register_forward_hook(lambda *_: calls.append(1))
    ours(x)
    assert len(calls) == 1
    attention(x)
    with pytest.raises(RuntimeError):
        ours(noise(1, 4, 15))
    F.scaled_dot_product_attention(*[noise(1, 1, 2, 3)] * 3)
    assert len(calls) == 1


def test_attention_within_attention_goes_to_the_inner_one():
    inner = QuantAttention(Attention(8, num_heads=2).eval())

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            heads = self.inner(x)[:, None]
            return F.scaled_dot_product_attention(heads, heads, heads)

    outer, calls = QuantAttention(Outer()), []
    inner.qk.register_forward_hook(lambda *_: calls.append("inner"))
    outer.qk.register_forward_hook(lambda *_: calls.append("outer"))
    outer(noise(1, 3, 8))
    assert calls == ["inner", "outer"]


# ---------------------------------------------------------------- running as float for a while


def three_layers() -> list[QuantLinear | QuantConv2d | QuantMatMul]:
    layers = [QuantLinear.from_float(nn.Linear(3, 3)), QuantConv2d.from_float(nn.Conv2d(3, 3, 1)), QuantMatMul(False)]
    for layer in layers:
        for slot in quantizer_slots(layer):
            setattr(layer, slot, quantizer(2, 0.5, 1))
    return layers


def test_float_layers_are_float_inside_and_restored_after():
    layers = three_layers()
    before = [getattr(layer, slot) for layer in layers for slot in quantizer_slots(layer)]
    linear, x = layers[0], noise(4, 3)
    rounded = linear(x)
    with float_layers(layers):
        assert torch.equal(linear(x), F.linear(x, linear.weight, linear.bias))
        with float_layers(layers[:1]):  # nested, as a probe inside a float pass is
            pass
        assert torch.equal(linear(x), F.linear(x, linear.weight, linear.bias))
    after = [getattr(layer, slot) for layer in layers for slot in quantizer_slots(layer)]
    assert all(one is other for one, other in zip(before, after, strict=True))
    assert torch.equal(linear(x), rounded)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_float_layers_are_restored_on_an_error(error):
    layers = three_layers()
    before = [getattr(layer, slot) for layer in layers for slot in quantizer_slots(layer)]
    with pytest.raises(error), float_layers(layers):
        raise error
    after = [getattr(layer, slot) for layer in layers for slot in quantizer_slots(layer)]
    assert all(one is other for one, other in zip(before, after, strict=True))
