"""Models by name and weights from files: what is loaded, and what each thing that can be wrong with them says."""

from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.layers import set_fused_attn, use_fused_attn
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from fimaq.toolchain.data.demo_set import DEMO_MODELS, LABEL_NAMES
from fimaq.toolchain.errors import InputError
from fimaq.toolchain.model import load_float, rebuild
from fimaq.toolchain.weights import load_into, read_state_dict, state_dict_sha256


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """The bundled ViT's state dict."""
    return load_file(DEMO_MODELS["demo_vit"].weights)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# ---------------------------------------------------------------- models


@pytest.mark.parametrize("name", DEMO_MODELS)
def test_a_demo_model_is_timms_with_the_bundled_weights(name):
    loaded, demo = load_float(name), DEMO_MODELS[name]
    assert equal(loaded.module.state_dict(), load_file(demo.weights))
    assert not loaded.module.training
    assert loaded.input_size == (3, 32, 32)
    assert loaded.classes == {"wnids": None, "names": list(LABEL_NAMES)}
    assert (loaded.preprocessing.height, loaded.preprocessing.mean) == (32, (0.5, 0.5, 0.5))
    assert loaded.timm_name == demo.timm_name
    plain = timm.create_model(demo.timm_name, **demo.kwargs).eval()
    plain.load_state_dict(load_file(demo.weights))
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # float32; ours calls fused attention, Swin by timm's default does not
        torch.testing.assert_close(loaded.module(x), plain(x), rtol=1e-4, atol=1e-4)


def test_what_a_manifest_says_rebuilds_the_architecture():
    for name in DEMO_MODELS:
        loaded = load_float(name)
        description = {"name": name, "timm_name": loaded.timm_name, "kwargs": loaded.kwargs}
        again = rebuild(description)
        assert {k: v.shape for k, v in again.state_dict().items()} == {
            k: v.shape for k, v in loaded.module.state_dict().items()
        }
        again.load_state_dict(loaded.module.state_dict())
        assert state_dict_sha256(again) == loaded.weights_sha256


def test_attention_is_fused_in_what_is_built_and_timms_setting_stays():
    set_fused_attn(enable=True, experimental=False)  # timm's default, whatever ran before
    before = use_fused_attn(), use_fused_attn(experimental=True)
    assert before == (True, False)
    for name in DEMO_MODELS:
        modules = load_float(name).module.modules()
        assert all(module.fused_attn for module in modules if getattr(module, "fused_attn", None) is not None)
    assert (use_fused_attn(), use_fused_attn(experimental=True)) == before
    with pytest.raises(InputError):
        load_float("vit_tiny_patch16_224")
    assert (use_fused_attn(), use_fused_attn(experimental=True)) == before


def test_imagenet_classes_have_names_and_wnids(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=1000)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    loaded = load_float("vit_tiny_patch16_224", tmp_path / "w.safetensors")
    assert loaded.classes["wnids"][0] == "n01440764"
    assert loaded.classes["names"][0].startswith("tench")
    assert len(loaded.classes["wnids"]) == len(loaded.classes["names"]) == 1000
    assert loaded.input_size == (3, 224, 224)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("deit_tiny_patch16_22", "Nearest: deit_tiny_patch16_224"),
        ("demo_vti", "Nearest: demo_vit"),
        ("timm/vit_small_patch16_224", "vit_small_patch16_224"),
        ("qqqqqqqq", r"demo_swin\.$"),
        ("", "unknown model ''"),
    ],
)
def test_an_unknown_model_names_near_ones(name, near):
    with pytest.raises(InputError, match=f"unknown model '{name}': wanted a timm model name or one of demo_vit") as got:
        load_float(name)
    assert got.match(near)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "hf-hub:somebody/something", "vit_tiny_patch16_224.no_tag"])
def test_a_hub_that_gives_no_weights_points_to_a_local_file(name):
    """The tests run offline (HF_HUB_OFFLINE): nothing can be fetched."""
    with pytest.raises(InputError, match=r"could not be fetched from the hub .* --weights FILE\.safetensors") as got:
        load_float(name)
    assert name in str(got.value)
    assert len(str(got.value)) < 500


@pytest.mark.parametrize("name", ["hf-hub:somebody/something", "vit_tiny_patch16_224.no_tag", "no-source:x"])
def test_a_model_that_timm_cannot_build_is_no_traceback(name, tmp_path, state):
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=f"timm cannot build '{name}' .* model name the installed timm knows"):
        load_float(name, tmp_path / "w.safetensors")


def test_a_model_without_a_classifier_is_refused(tmp_path):
    """Self-supervised models have none by default: there are no logits to keep, and no layer in the last block."""
    with torch.device("meta"):
        wanted = timm.create_model("vit_small_patch14_dinov2").state_dict()
    save_file({key: torch.zeros(value.shape) for key, value in wanted.items()}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="'vit_small_patch14_dinov2' has no classifier: wanted logits"):
        load_float("vit_small_patch14_dinov2", tmp_path / "w.safetensors")


# ---------------------------------------------------------------- weights files


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
def test_every_kind_of_file_gives_the_same_tensors(suffix, tmp_path, state):
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    assert equal(read_state_dict(path), state)
    assert load_float("demo_vit", path).weights_sha256 == load_float("demo_vit").weights_sha256


@pytest.mark.parametrize("key", ["state_dict", "model", "model_ema", "state_dict_ema"])
def test_what_training_scripts_wrap_around_is_taken_off(key, tmp_path, state):
    torch.save({key: {f"module.{name}": value for name, value in state.items()}, "epoch": 3}, tmp_path / "w.pth")
    assert equal(read_state_dict(tmp_path / "w.pth"), state)


def test_the_averaged_weights_are_preferred(tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(1)}, "state_dict_ema": {"a": torch.ones(1)}}, tmp_path / "w.pth")
    assert read_state_dict(tmp_path / "w.pth")["a"] == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_widened(dtype, tmp_path, state):
    save_file({key: value.to(dtype) for key, value in state.items()}, tmp_path / "w.safetensors")
    loaded = load_float("demo_vit", tmp_path / "w.safetensors").module.state_dict()
    assert equal(loaded, {key: value.to(dtype).float() for key, value in state.items()})


class RunsCode:
    """What a pickle can do when it is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_file_that_would_run_code_is_refused_and_does_not(how, tmp_path):
    trace, path = tmp_path / "it-ran", tmp_path / "w.pth"
    if how == "torch":
        torch.save({"state_dict": RunsCode(trace)}, path)
    else:
        path.write_bytes(pickle.dumps(RunsCode(trace), protocol=2))
    with pytest.raises(InputError, match=r"w\.pth .*could run code when loaded; it was refused. Save the bare state"):
        read_state_dict(path)
    assert not trace.exists()
    pickle_works = pickle.loads(pickle.dumps(RunsCode(trace)))
    assert pickle_works is None
    assert trace.exists()  # so the file was dangerous


def test_more_than_tensors_is_refused(tmp_path, state):
    torch.save({"model": state, "args": argparse.Namespace(lr=0.1)}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="holds more than tensors"):
        read_state_dict(tmp_path / "w.pth")
    torch.save(VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=1), tmp_path / "w.pth")
    with pytest.raises(InputError, match="holds more than tensors"):
        read_state_dict(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "content", [b"", b"garbage garbage", b"\x80\x02.", b"PK\x03\x04" + bytes(50), bytes(range(256)) * 8], ids=range(5)
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_damaged_file_is_no_traceback(suffix, content, tmp_path):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"weights file .*w\.\w+ (cannot be read|is damaged)"):
        read_state_dict(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file_is_no_traceback(suffix, tmp_path, state):
    whole, path = tmp_path / f"whole{suffix}", tmp_path / f"w{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, whole)
    for keep in (10, 1000, whole.stat().st_size // 2, whole.stat().st_size - 1):
        path.write_bytes(whole.read_bytes()[:keep])
        with pytest.raises(InputError, match=r"w\.\w+ (cannot be read|is damaged)"):
            read_state_dict(path)


@pytest.mark.parametrize("what", [torch.zeros(3), {}, [torch.zeros(1)], {"a": 1.0}, {1: torch.zeros(2)}, {"model": {}}])
def test_a_file_without_a_state_dict_is_refused(what, tmp_path):
    torch.save(what, tmp_path / "w.pth")
    with pytest.raises(InputError, match="holds no state dict"):
        read_state_dict(tmp_path / "w.pth")


def test_a_missing_file_is_named(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(InputError, match=f"weights file {path} does not exist"):
            read_state_dict(path)


# ---------------------------------------------------------------- weights that do not fit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("head.bias"), r"missing head\.bias\. Check"),
        (lambda s: s.update(extra=torch.zeros(1)), r"unexpected extra\. Check"),
        (lambda s: s.update({"head.bias": torch.zeros(7)}), r"wrong shape: head\.bias is \[7\], wanted \[10\]"),
        (
            lambda s: [s.pop(key) for key in list(s) if key.startswith("blocks.0.")],
            r"missing blocks\.0\.attn\.proj\.bias, .* and 7 more",
        ),
        (
            lambda s: (s.pop("norm.bias"), s.update(new=torch.zeros(1)), s.update({"norm.weight": torch.zeros(3)})),
            r"missing norm\.bias; unexpected new; wrong shape: norm\.weight is \[3\], wanted \[32\]",
        ),
    ],
)
def test_weights_that_do_not_fit_say_where(change, message, tmp_path, state):
    odd = dict(state)
    change(odd)
    save_file(odd, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=rf"w\.safetensors does not fit VisionTransformer: .*{message}"):
        load_float("demo_vit", tmp_path / "w.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_numbers_are_refused(value, tmp_path, state):
    odd = {key: tensor.clone() for key, tensor in state.items()}
    odd["blocks.1.mlp.fc1.weight"][0, 0] = value
    save_file(odd, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"holds NaN or infinity: in blocks\.1\.mlp\.fc1\.weight\. Use intact"):
        load_float("demo_vit", tmp_path / "w.safetensors")


def test_nothing_is_loaded_where_something_does_not_fit(state):
    model = timm.create_model(DEMO_MODELS["demo_vit"].timm_name, **DEMO_MODELS["demo_vit"].kwargs)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(InputError, match="a test does not fit"):
        load_into(model, {**state, "extra": torch.zeros(1)}, "a test")
    assert equal(model.state_dict(), before)


def test_the_hash_is_of_names_shapes_and_values(state):
    def sha(change: dict[str, Tensor] | None = None) -> str:
        model = torch.nn.ParameterDict({"a": torch.zeros(2, 3), "b": torch.ones(2)} | (change or {}))
        return state_dict_sha256(model)

    assert sha() == sha()
    others = [
        {"a": torch.zeros(3, 2)},
        {"b": torch.tensor([1.0, -1.0])},
        {"c": torch.zeros(1)},
        {"b": torch.ones(2).double()},
    ]
    assert len({sha(), *map(sha, others)}) == 5
