"""Wrapping: every architecture it takes is cut into a chain that computes the model, and nothing is half-quantized."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import RmsNorm, SwiGLUPacked, set_fused_attn
from timm.models import vision_transformer as vit
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fimaq.toolchain.errors import UnsupportedModelError
from fimaq.toolchain.families import FAMILIES, QuantModel, find_family, wrap
from fimaq.toolchain.families.inspect import module_stack
from fimaq.toolchain.nn import QuantAttention, QuantConv2d, QuantLinear, QuantMatMul

VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
SWIN = {
    "img_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2),
    "num_classes": 5,
}  # fmt: skip

# A timm architecture, what is changed of it, its images' size; all at a size that runs in milliseconds.
MODELS: dict[str, tuple[str, dict[str, Any], tuple[int, int]]] = {
    "vit": ("vit_tiny_patch16_224", VIT, (16, 16)),
    "vit-wide-image": ("vit_tiny_patch16_224", VIT | {"img_size": (8, 24)}, (8, 24)),
    "vit-qk-norm": ("vit_tiny_patch16_224", VIT | {"qk_norm": True}, (16, 16)),
    "vit-no-biases": ("vit_tiny_patch16_224", VIT | {"qkv_bias": False, "proj_bias": False}, (16, 16)),
    "vit-average-pool": ("vit_tiny_patch16_224", VIT | {"class_token": False, "global_pool": "avg"}, (16, 16)),
    "vit-attention-pool": ("vit_tiny_patch16_224", VIT | {"class_token": False, "global_pool": "map"}, (16, 16)),
    "vit-inner-norms": ("vit_tiny_patch16_224", VIT | {"scale_mlp_norm": True, "scale_attn_norm": True}, (16, 16)),
    "vit-rms-norm": ("vit_tiny_patch16_224", VIT | {"norm_layer": RmsNorm}, (16, 16)),
    "vit-swiglu": ("vit_tiny_patch16_224", VIT | {"mlp_layer": SwiGLUPacked}, (16, 16)),
    "vit-dynamic-size": ("vit_tiny_patch16_224", VIT | {"dynamic_img_size": True}, (16, 16)),
    "vit-dropout": ("vit_tiny_patch16_224", VIT | {"drop_rate": 0.5, "patch_drop_rate": 0.5, "drop_path_rate": 0.5},
                    (16, 16)),
    "vit-post-norm": ("vit_tiny_patch16_224", VIT | {"block_fn": vit.ResPostBlock}, (16, 16)),
    "vit-parallel-scaling": ("vit_tiny_patch16_224", VIT | {"block_fn": vit.ParallelScalingBlock}, (16, 16)),
    "vit-parallel-things": ("vit_tiny_patch16_224", VIT | {"block_fn": vit.ParallelThingsBlock}, (16, 16)),
    "deit-distilled": ("deit_tiny_distilled_patch16_224", VIT, (16, 16)),
    "deit3-layer-scale": ("deit3_small_patch16_224", VIT, (16, 16)),
    "dinov2": ("vit_small_patch14_dinov2", VIT, (16, 16)),
    "dinov2-registers": ("vit_small_patch14_reg4_dinov2", VIT, (16, 16)),
    "clip-norm-pre": ("vit_base_patch16_clip_224", VIT, (16, 16)),
    "siglip": ("vit_base_patch16_siglip_224", VIT, (16, 16)),
    "swin-shifted": ("swin_tiny_patch4_window7_224", SWIN, (32, 32)),
    "swin-padded": ("swin_tiny_patch4_window7_224", SWIN | {"window_size": 3}, (32, 32)),
    "swin-padded-merging": ("swin_tiny_patch4_window7_224", SWIN | {"img_size": 40, "depths": (2, 2, 1),
                                                                    "num_heads": (1, 2, 2)}, (40, 40)),
    "swin-wide-image": ("swin_tiny_patch4_window7_224", SWIN | {"img_size": (40, 24)}, (40, 24)),
}  # fmt: skip

NAMED = {
    "vit_small_patch16_224": 384, "vit_base_patch16_224": 768, "deit_tiny_patch16_224": 192,
    "deit_small_patch16_224": 384, "deit_base_patch16_224": 768, "swin_small_patch4_window7_224": 96,
    "swin_base_patch4_window7_224": 128,
}  # fmt: skip
"""Models of the published results, with their widths."""


@pytest.fixture(autouse=True)
def _fused_attention() -> Iterator[None]:
    """As ``load_float`` builds models."""
    set_fused_attn(enable=True, experimental=True)
    yield
    set_fused_attn(enable=True, experimental=False)  # timm's default


def build(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """A float model whose every parameter matters: what timm starts at zero or one is drawn at random."""
    timm_name, kwargs, size = MODELS[name]
    torch.manual_seed(0)
    model = timm.create_model(timm_name, pretrained=False, **kwargs).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model, (3, *size)


@functools.cache
def built(name: str) -> tuple[QuantModel, nn.Module, tuple[int, int, int]]:
    """Wrapped, as it was before, and its images' size: for tests that only look."""
    model, size = build(name)
    return wrap(copy.deepcopy(model), size), model, size


def images(size: tuple[int, int, int], n: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(n, *size, generator=torch.Generator().manual_seed(seed))


def run(wrapped: QuantModel, x: Tensor) -> Tensor:
    """The chain, block by block."""
    for block in wrapped.blocks:
        x = block.module(x)
    return x


# ---------------------------------------------------------------- what is taken


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_the_chain_computes_the_float_model(name):
    wrapped, model, size = built(name)
    x = images(size)
    expected = model(x)
    # float32, unfused attention: 1e-5 of the largest logit
    close = {"rtol": 0, "atol": 1e-5 * float(expected.abs().max())}
    torch.testing.assert_close(run(wrapped, x), expected, **close)
    torch.testing.assert_close(wrapped(x), expected, **close)
    assert expected.std(0).min() > 1e-4  # logits that depend on the image


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_and_product_is_quantized_once(name):
    wrapped, model, _ = built(name)
    plain = {path: type(module) for path, module in model.named_modules()}
    linear = {path for path, kind in plain.items() if kind is nn.Linear}
    conv = {path for path, kind in plain.items() if kind is nn.Conv2d}
    attention = {path for path, module in model.named_modules() if getattr(module, "fused_attn", False)}
    assert attention
    products = {f"{path}.{product}" for path in attention for product in ("qk", "av")}
    assert set(wrapped.layers) == linear | conv | products
    for path, layer in wrapped.layers.items():
        kind = QuantLinear if path in linear else QuantConv2d if path in conv else QuantMatMul
        assert type(layer) is kind, path
    held = [path for block in wrapped.blocks for path in wrapped.block_layers[block.name]]
    assert sorted(held) == sorted(wrapped.layers)
    assert not [path for path, module in wrapped.named_modules() if type(module) in (nn.Linear, nn.Conv2d)]


@pytest.mark.parametrize("name", MODELS)
def test_blocks_are_named_and_ordered_as_they_run(name):
    wrapped, model, size = built(name)
    names = [block.name for block in wrapped.blocks]
    assert names[0] == "patch_embed"
    assert names[-1] == "head"
    assert len(set(names)) == len(names)
    assert [block.kind for block in wrapped.blocks][:: len(names) - 1] == ["patch-embed", "head"]
    paths = dict(model.named_modules())
    assert all(name in paths for name in names if name not in ("patch_embed", "head"))
    if isinstance(model, SwinTransformer):
        depths = MODELS[name][1]["depths"]
        assert names.count("layers.1.downsample") == 1
        assert [block.kind for block in wrapped.blocks].count("transformer") == sum(depths)
        assert [block.kind for block in wrapped.blocks].count("patch-merging") == len(depths) - 1
    else:
        assert names[1:-1] == ["blocks.0", "blocks.1"]
    seen: list[str] = []
    hooks = [
        layer.register_forward_hook(lambda *_, path=path: seen.append(path)) for path, layer in wrapped.layers.items()
    ]
    with torch.no_grad():
        wrapped(images(size))
    for hook in hooks:
        hook.remove()
    assert seen == list(wrapped.layers)  # execution order, which decides what is calibrated before what
    assert [path for block in names for path in wrapped.block_layers[block]] == seen


def test_parameters_are_the_models_own():
    model, size = build("vit")
    before = {name: parameter for name, parameter in model.named_parameters()}
    wrapped = wrap(model, size)
    after = {name.replace("wrapped.", ""): parameter for name, parameter in wrapped.model.named_parameters()}
    assert set(after) == set(before)
    assert all(after[name] is before[name] for name in before)


def test_wrapping_puts_the_model_in_evaluation_mode():
    model, size = build("vit-dropout")
    wrapped = wrap(model.train(), size)
    assert not any(module.training for module in wrapped.model.modules())
    x = images(size)
    assert torch.equal(wrapped(x), wrapped(x))


def test_wrapping_leaves_no_global_hooks_behind():
    model, size = build("vit")
    hooks = nn.modules.module
    before = len(hooks._global_forward_hooks), len(hooks._global_forward_pre_hooks)
    wrap(model, size)
    with pytest.raises(UnsupportedModelError):
        wrap(Extra(**VIT), (3, 16, 16))
    assert (len(hooks._global_forward_hooks), len(hooks._global_forward_pre_hooks)) == before


@pytest.mark.parametrize("name", NAMED)
def test_the_published_models_are_taken(name):
    """By name and at their full width and image size; only the depth is cut, so that the test is quick."""
    swin = name.startswith("swin")
    kwargs = {"depths": (2, 1, 1, 1)} if swin else {"depth": 1}
    model = timm.create_model(name, pretrained=False, **kwargs).eval()
    wrapped = wrap(model, (3, 224, 224))
    per_block = 6  # qkv, q k, softmax v, proj, fc1, fc2
    if swin:
        assert len(wrapped.layers) == 1 + 5 * per_block + 3 + 1
        assert wrapped.blocks[-2].module.norm2.weight.shape == (8 * NAMED[name],)
        assert wrapped.family == "swin"
    else:
        assert len(wrapped.layers) == 1 + per_block + 1
        assert wrapped.blocks[1].module.norm2.weight.shape == (NAMED[name],)
        assert wrapped.family == "vit"
    # every linear layer that reads a LayerNorm can have its scales folded into it
    pairs = [pair for block in wrapped.blocks for pair in block.norm_pairs]
    assert len(pairs) == (2 * 5 + 3 if swin else 2)
    assert wrapped.layers["head.fc" if swin else "head"].weight.shape[0] == 1000


# ---------------------------------------------------------------- what LayerNorms may be folded


def output_of(module: nn.Module, path: str, x: Tensor) -> Tensor:
    kept: list[Tensor] = []
    hook = dict(module.named_modules())[path].register_forward_hook(lambda *args: kept.append(args[2]))
    with torch.no_grad():
        module(x)
    hook.remove()
    return kept[0]


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_change_of_a_paired_norm_can_be_undone_in_its_linear_layer(name):
    """The promise of ``norm_pairs``, put to the test: scale and shift every norm, undo it behind, nothing changes."""
    model, size = build(name)
    x = images(size)
    wrapped = wrap(model, size)
    expected = wrapped(x)
    generator = torch.Generator().manual_seed(0)
    pairs = [pair for block in wrapped.blocks for pair in block.norm_pairs]
    assert len({id(norm) for norm, _ in pairs}) == len(pairs)
    for norm, linear in pairs:
        ratio = torch.rand(norm.weight.shape, generator=generator) + 0.5
        shift = torch.randn(norm.weight.shape, generator=generator)
        norm.weight.div_(ratio)
        norm.bias.div_(ratio).add_(shift)
        linear.weight.mul_(ratio)
        undo = -(linear.weight @ shift)
        linear.bias = nn.Parameter(undo if linear.bias is None else linear.bias + undo)
    # float32 through two blocks whose norms were moved by order one
    torch.testing.assert_close(wrapped(x), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_which_norms_are_paired():
    def paired(name: str) -> list[str]:
        wrapped, *_ = built(name)
        names = {module: path for path, module in wrapped.layers.items()}
        return [names[linear] for block in wrapped.blocks for _, linear in block.norm_pairs]

    vit_pairs = ["blocks.0.attn.qkv", "blocks.0.mlp.fc1", "blocks.1.attn.qkv", "blocks.1.mlp.fc1"]
    assert paired("vit") == paired("deit3-layer-scale") == paired("clip-norm-pre") == vit_pairs
    assert paired("vit-rms-norm") == []  # it has no bias to take up a shift
    assert paired("vit-post-norm") == []
    assert paired("vit-swiglu") == vit_pairs[::2]
    swin_fc1 = [f"layers.{i}.blocks.{j}.mlp.fc1" for i in (0, 1) for j in (0, 1)]
    assert "layers.1.downsample.reduction" in paired("swin-shifted")
    assert len(paired("swin-shifted")) == 2 * 4 + 1
    # padded windows hold zeros that no norm has seen: only fc1 and the reduction remain
    assert sorted(paired("swin-padded")) == sorted([*swin_fc1, "layers.1.downsample.reduction"])


# ---------------------------------------------------------------- what is refused


def test_architectures_without_a_family_are_refused():
    for name, kind in [("resnet18", "ResNet"), ("beit_base_patch16_224", "Beit")]:
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False)
        with pytest.raises(UnsupportedModelError, match=f"no family handles {kind}: wanted a timm VisionTransformer"):
            find_family(model)
        with pytest.raises(UnsupportedModelError, match=f"no family handles {kind}"):
            wrap(model, (3, 224, 224))


def test_families_have_names_of_their_own():
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


def tamper(forward: Callable[[VisionTransformer, Tensor], Tensor], prepare: Callable | None = None) -> type[nn.Module]:
    """A VisionTransformer whose forward does something more."""

    class Tampered(VisionTransformer):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            if prepare is not None:
                prepare(self)

        def forward(self, x: Tensor) -> Tensor:
            return forward(self, x)

    return Tampered


def _free_weight(model: nn.Module) -> None:
    model.free = nn.Parameter(torch.randn(16, 16))


def _tokens(model: VisionTransformer, change: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return model.forward_head(change(model.forward_features(x)))


def _last_hidden(make: Callable[[], nn.Module]) -> Callable[[nn.Module], None]:
    def prepare(model: nn.Module) -> None:
        model.extra = make()

    return prepare


Extra = tamper(lambda m, x: _tokens(m, lambda t: t @ t.transpose(1, 2) @ t, x))

HALF_QUANTIZED = {
    "matmul": (Extra, "bmm in '' \\(Tampered\\)"),
    "einsum": (tamper(lambda m, x: _tokens(m, lambda t: torch.einsum("btc,bsc,bsd->btd", t, t, t), x)), "bmm"),
    "free-linear": (tamper(lambda m, x: _tokens(m, lambda t: F.linear(t, m.free), x), _free_weight), "mm in ''"),
    "tensordot": (
        tamper(lambda m, x: _tokens(m, lambda t: torch.tensordot(t, m.free, 1), x), _free_weight),
        "mm in ''",
    ),
    "vector": (
        tamper(lambda m, x: m.forward_head(m.forward_features(x)) + m.free[:5] @ m.free[0], _free_weight),
        "mv in",
    ),
    "free-conv": (
        tamper(lambda m, x: VisionTransformer.forward(m, F.conv2d(x, torch.ones(3, 1, 1, 1), groups=3))),
        "convolution in ''",
    ),
    "linear-subclass": (
        tamper(lambda m, x: _tokens(m, m.extra, x), _last_hidden(lambda: type("Lora", (nn.Linear,), {})(16, 16))),
        "addmm in 'extra' \\(Lora\\)",
    ),
    "conv1d": (
        tamper(lambda m, x: _tokens(m, lambda t: m.extra(t.mT).mT, x), _last_hidden(lambda: nn.Conv1d(16, 16, 1))),
        "convolution in 'extra' \\(Conv1d\\)",
    ),
    "bilinear": (
        tamper(lambda m, x: _tokens(m, lambda t: m.extra(t, t), x), _last_hidden(lambda: nn.Bilinear(16, 16, 16))),
        "in 'extra' \\(Bilinear\\)",
    ),
}


INSIDE_A_BLOCK = {
    "transformer_encoder_layer_fwd": lambda: nn.TransformerEncoderLayer(16, 2, 16, batch_first=True),
    "native_multi_head_attention": lambda: Itself(nn.MultiheadAttention(16, 2, batch_first=True), 3),
    "rnn": lambda: Itself(nn.LSTM(16, 16, batch_first=True), 1),
    "addmm": lambda: Itself(nn.GRU(16, 16, batch_first=True), 1),
    "cdist": lambda: Distances(),
    "convolution": lambda: nn.ConvTranspose1d(17, 17, 1),
}


class Itself(nn.Module):
    """Calls a module that takes its input several times and returns more than one thing."""

    def __init__(self, inner: nn.Module, times: int) -> None:
        super().__init__()
        self.inner, self.times = inner, times

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(*[x] * self.times)[0]


class Distances(nn.Module):
    """Inner products in disguise."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.cdist(x, x).mean(-1, keepdim=True)


@pytest.mark.parametrize("operator", INSIDE_A_BLOCK)
def test_a_float_product_inside_a_block_is_refused(operator):
    """There the chain composes, so only the watch over operators can tell; fused ones hide the products they hold."""
    model = VisionTransformer(**VIT)
    model.blocks[1].mlp = INSIDE_A_BLOCK[operator]()
    with pytest.raises(UnsupportedModelError, match=f"would stay float: .*{operator}.* in 'blocks.1.mlp.*"):
        wrap(model, (3, 16, 16))


@pytest.mark.parametrize("name", HALF_QUANTIZED)
def test_a_product_that_would_stay_float_is_refused_by_name(name):
    kind, where = HALF_QUANTIZED[name]
    with pytest.raises(
        UnsupportedModelError, match=f"these products would stay float: .*{where}.*rather than half-quant"
    ):
        wrap(kind(**VIT), (3, 16, 16))


def test_attention_that_is_not_one_fused_call_is_refused():
    set_fused_attn(enable=False)
    model = VisionTransformer(**VIT)
    with pytest.raises(UnsupportedModelError, match=r"bmm in 'blocks\.0\.attn' \(Attention\)"):
        wrap(model, (3, 16, 16))


class TwiceAttention(vit.Attention):
    """Calls fused attention twice, and cannot say which is which."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        return super().forward(super().forward(x))


def test_two_attentions_in_a_module_are_refused():
    model = VisionTransformer(**VIT)
    model.blocks[1].attn = TwiceAttention(16, 2)
    with pytest.raises(
        UnsupportedModelError, match=r"module 'blocks\.1\.attn' \(TwiceAttention\) calls attention 2 times"
    ):
        wrap(model, (3, 16, 16))


def test_attention_in_the_models_own_forward_is_refused():
    def forward(m: VisionTransformer, x: Tensor) -> Tensor:
        return _tokens(m, lambda t: F.scaled_dot_product_attention(t[:, None], t[:, None], t[:, None])[:, 0], x)

    with pytest.raises(UnsupportedModelError, match="Tampered"):
        wrap(tamper(forward)(**VIT), (3, 16, 16))


@pytest.mark.parametrize(
    "change",
    {
        "after": lambda m, x: VisionTransformer.forward(m, x) * 1.01,
        "before": lambda m, x: VisionTransformer.forward(m, x.flip(-1)),
        "between": lambda m, x: m.forward_head(m.forward_features(x).roll(1, 1)),
        "a-block-left-out": lambda m, x: m.forward_head(m.norm(m.blocks[0](m._pos_embed(m.patch_embed(x))))),
    }.items(),
    ids=lambda item: item[0],
)
def test_a_forward_that_the_chain_does_not_compute_is_refused(change):
    torch.manual_seed(0)
    model = tamper(change[1])(**VIT)
    nn.init.normal_(model.head.weight)
    with pytest.raises(UnsupportedModelError, match=r"do not compute what Tampered computes|are in no block or in two"):
        wrap(model, (3, 16, 16))


def test_reflected_padding_is_refused():
    model = VisionTransformer(**VIT)
    model.patch_embed.proj = nn.Conv2d(3, 16, 4, 4, padding=2, padding_mode="reflect")
    model.pos_embed = nn.Parameter(torch.zeros(1, 26, 16))
    model.patch_embed.strict_img_size = False
    with pytest.raises(UnsupportedModelError, match="padding_mode='reflect'"):
        wrap(model, (3, 16, 16))


@pytest.mark.parametrize("path", ["mlp.fc1", "attn.qkv", "attn", "mlp", ""])
def test_a_layer_that_runs_twice_is_refused(path):
    """Also where the two uses have different parents: one layer has one input scale and can be folded once."""
    model = VisionTransformer(**VIT)
    first, second = model.blocks
    if not path:
        model.blocks[1] = first
    else:
        parent, _, leaf = path.rpartition(".")
        setattr(second.get_submodule(parent), leaf, first.get_submodule(path))
    with pytest.raises(UnsupportedModelError, match=r"'blocks\.[01].*' .*2 times"):
        wrap(model, (3, 16, 16))


def test_a_weight_that_two_layers_share_is_refused():
    model = VisionTransformer(**VIT)
    model.blocks[1].mlp.fc1.weight = model.blocks[0].mlp.fc1.weight
    with pytest.raises(
        UnsupportedModelError, match=r"'blocks\.0\.mlp\.fc1' and 'blocks\.1\.mlp\.fc1' share one weight"
    ):
        wrap(model, (3, 16, 16))


def test_a_layer_that_never_runs_is_no_obstacle():
    """timm keeps such layers: a wrapped attention pool's unused ones, a distillation head; they stay as they are."""
    model = VisionTransformer(**VIT)
    model.unused = nn.Linear(16, 16)
    wrapped = wrap(model, (3, 16, 16))
    assert "unused" not in wrapped.layers
    assert len(wrapped.layers) == 14
    assert isinstance(model.blocks[0].attn, QuantAttention)


def test_watching_a_forward_leaves_falsy_outputs_alone():
    """An empty Sequential is falsy; a hook that returns something replaces a module's output."""
    model = nn.Sequential(nn.Sequential(), nn.Linear(3, 2))
    x = torch.randn(2, 3)
    with module_stack() as stack:
        assert torch.equal(model(x), model[1](x))
        assert stack == []
