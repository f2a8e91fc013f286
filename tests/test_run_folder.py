"""The run folder: what is stored is what runs, and a folder that does not fit its model says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fimaq.toolchain import run_folder
from fimaq.toolchain.artifact import Artifact
from fimaq.toolchain.calibrate import calibrate
from fimaq.toolchain.checkpoint import Checkpoint
from fimaq.toolchain.errors import InputError
from fimaq.toolchain.families import QuantModel, wrap
from fimaq.toolchain.model import rebuild
from fimaq.toolchain.nn import QuantConv2d, QuantLinear, QuantMatMul
from fimaq.toolchain.preprocess import Preprocessing
from fimaq.toolchain.progress import NullProgress
from fimaq.toolchain.quantizers import CodedWeight, UniformQuantizer
from fimaq.toolchain.recipe import Recipe
from fimaq.toolchain.reconstruct import reconstruct
from fimaq.toolchain.reconstruct.cache import BlockInputs
from fimaq.toolchain.reconstruct.store import RamStore
from fimaq.toolchain.run_folder import layer_rows, load_run, run_tensors

VIT = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
SWIN = {
    "img_size": 16, "patch_size": 4, "window_size": 2, "embed_dim": 8, "depths": [2, 1], "num_heads": [1, 2],
    "num_classes": 5,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", VIT),
    "vit-no-bias": ("vit_tiny_patch16_224", VIT | {"qkv_bias": False}),  # folding gives qkv one
    "vit-attention-pool": ("vit_tiny_patch16_224", VIT | {"class_token": False, "global_pool": "map"}),
    "deit-distilled": ("deit_tiny_distilled_patch16_224", VIT),
    "swin": ("swin_tiny_patch4_window7_224", SWIN),  # the reduction gets a bias
}
CLASSES = {"wnids": None, "names": list("abcde")}
PREPROCESSING = Preprocessing(8, 8, 1.0, "center", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def recipe(granularity: str = "token", matmul: str = "head-token", iterations: int = 2) -> Recipe:
    return Recipe.from_dict(
        {
            "name": "test",
            "weights": {"bits": 3},
            "activations": {"bits": 5, "granularity": granularity, "matmul_granularity": matmul},
            "calibrate": {"samples": 4, "candidates": 8, "rounds": 1},
            "fisher": {"samples": 4, "rank": 1},
            "reconstruct": {"samples": 4, "iterations": iterations, "batch_size": 4},
        }
    )


def images(size: int, n: int = 4) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def quantized(name: str, folder: Path, settings: Recipe) -> tuple[QuantModel, Artifact, dict[str, Tensor]]:
    """A small model, quantized; the artifact that quantize() would save; the float state dict it began with."""
    timm_name, kwargs = MODELS[name]
    size = kwargs["img_size"]
    description = {"name": name, "timm_name": timm_name, "kwargs": kwargs, "input_size": [3, size, size]}
    torch.manual_seed(0)
    module = rebuild(description)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    state = {key: value.clone() for key, value in module.state_dict().items()}
    model = wrap(module, (3, size, size))
    calibrate(model, images(size), settings, NullProgress())
    folder.mkdir(exist_ok=True)
    inputs = BlockInputs(images(size), images(size))
    reconstruct(model, inputs, settings, NullProgress(), lambda row: None, Checkpoint(folder), RamStore())
    manifest = {
        "model": description,
        "layers": layer_rows(model),
        "preprocessing": json.loads(PREPROCESSING.to_json()),
        "classes": CLASSES,
        "recipe": settings.to_dict(),
    }
    return model, Artifact(manifest, run_tensors(model)), state


@pytest.fixture(scope="module")
def vit(tmp_path_factory) -> Artifact:
    return quantized("vit", tmp_path_factory.mktemp("checkpoint"), recipe())[1]


# ---------------------------------------------------------------- there and back


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_runs_as_before_to_the_last_bit(name, tmp_path):
    model, artifact, _ = quantized(name, tmp_path / "checkpoint", recipe())
    saved = artifact.save(tmp_path / "run")
    loaded = load_run(tmp_path / "run")
    x = images(MODELS[name][1]["img_size"], 6)
    with torch.no_grad():
        assert torch.equal(loaded.model(x), model(x))
    assert loaded.preprocessing == PREPROCESSING
    assert loaded.classes == CLASSES
    assert loaded.manifest == saved.manifest
    assert layer_rows(loaded.model) == artifact.manifest["layers"]
    again = Artifact(artifact.manifest, run_tensors(loaded.model))
    assert again.content_sha256() == artifact.content_sha256()
    assert not any(module.training for module in loaded.model.modules())
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


@pytest.mark.parametrize("iterations", [0, 1])
@pytest.mark.parametrize(("linear", "matmul"), [("tensor", "tensor"), ("tensor", "head"), ("token", "head-token")])
def test_every_granularity_and_rounding_to_nearest_come_back(linear, matmul, iterations, tmp_path):
    model, artifact, _ = quantized("vit", tmp_path / "checkpoint", recipe(linear, matmul, iterations))
    artifact.save(tmp_path / "run")
    loaded = load_run(tmp_path / "run").model
    with torch.no_grad():
        assert torch.equal(loaded(images(8)), model(images(8)))
    for name, layer in model.layers.items():
        other = loaded.layers[name]
        slots = ("a_quantizer", "b_quantizer") if isinstance(layer, QuantMatMul) else ("input_quantizer",)
        for slot in slots:
            one, two = getattr(layer, slot), getattr(other, slot)
            assert type(two) is UniformQuantizer
            assert one.spec == two.spec
            assert one.scale.shape == two.scale.shape
            assert torch.equal(one.scale, two.scale)
            assert torch.equal(one.zero_point, two.zero_point.to(one.zero_point.dtype))


def test_a_loaded_model_has_codes_for_weights_and_nothing_else(vit, tmp_path):
    vit.save(tmp_path / "run")
    for layer in load_run(tmp_path / "run").model.layers.values():
        if isinstance(layer, QuantLinear | QuantConv2d):
            assert layer.weight is None
            assert type(layer.weight_quantizer) is CodedWeight


# ---------------------------------------------------------------- what is stored


@pytest.mark.parametrize("name", MODELS)
def test_the_tensors_are_those_of_the_documentation(name, tmp_path):
    model, artifact, state = quantized(name, tmp_path / "checkpoint", recipe())
    weights = {f"{path}.weight" for path, layer in model.layers.items() if not isinstance(layer, QuantMatMul)}
    new_biases = {
        f"{path}.bias"
        for path, layer in model.layers.items()
        if not isinstance(layer, QuantMatMul) and layer.bias is not None and f"{path}.bias" not in state
    }
    wanted: dict[str, str] = {f"model.{key}": "float32" for key in state.keys() - weights | new_biases}
    for path, layer in model.layers.items():
        matmul = isinstance(layer, QuantMatMul)
        for operand in ("a", "b") if matmul else ("input", "weight"):
            wanted[f"{path}.{operand}.scale"] = "float32"
            wanted[f"{path}.{operand}.zero_point"] = "uint8"
        if not matmul:
            wanted[f"{path}.weight.codes"] = "uint8"
    assert {key: str(value.dtype) for key, value in artifact.tensors.items()} == wanted
    for key in weights:
        assert artifact.tensors[f"{key}.codes"].shape == state[key].shape
        assert artifact.tensors[f"{key}.scale"].shape == artifact.tensors[f"{key}.zero_point"].shape
        assert artifact.tensors[f"{key}.scale"].shape == state[key].shape[:1]
        assert artifact.tensors[f"{key}.codes"].max() <= 7
    assert new_biases == {
        "vit-no-bias": {"blocks.0.attn.qkv.bias", "blocks.1.attn.qkv.bias"},
        "swin": {"layers.1.downsample.reduction.bias"},
    }.get(name, set())
    assert all(tensor.flags["C_CONTIGUOUS"] for tensor in artifact.tensors.values())


def test_what_the_layers_say_is_what_they_are(vit):
    rows = {row["name"]: row for row in vit.manifest["layers"]}
    assert list(rows)[:3] == ["patch_embed.proj", "blocks.0.attn.qkv", "blocks.0.attn.qk"]
    conv = {"op": "conv2d", "weight_bits": 3, "activation_bits": 8, "weight_granularity": "channel"}
    assert rows["patch_embed.proj"] == {"name": "patch_embed.proj", **conv, "granularity": "tensor"}
    linear = {"op": "linear", "weight_bits": 3, "activation_bits": 5, "weight_granularity": "channel"}
    assert rows["blocks.0.mlp.fc1"] == {"name": "blocks.0.mlp.fc1", **linear, "granularity": "token"}
    assert rows["head"] == {"name": "head", **linear, "granularity": "tensor"}
    matmul = {"op": "matmul", "weight_bits": None, "activation_bits": 5, "weight_granularity": None}
    for product in ("qk", "av"):
        name = f"blocks.1.attn.{product}"
        assert rows[name] == {"name": name, **matmul, "granularity": "head-token"}
    assert len(rows) == 14
    json.dumps(vit.manifest)  # plain values


# ---------------------------------------------------------------- what does not fit


def refused(artifact: Artifact, folder: Path, change: Callable[[dict[str, np.ndarray]], object], message: str) -> None:
    tensors = dict(artifact.tensors)
    change(tensors)
    Artifact(artifact.manifest, tensors).save(folder / "run")
    with pytest.raises(InputError, match=message):
        load_run(folder / "run")


@pytest.mark.parametrize(
    "name",
    [
        "blocks.0.attn.qkv.weight.codes",
        "blocks.0.attn.qkv.weight.scale",
        "blocks.0.attn.qkv.weight.zero_point",
        "blocks.0.attn.qkv.input.scale",
        "blocks.1.attn.av.b.zero_point",
        "model.blocks.0.norm1.weight",
        "model.head.bias",
        "model.pos_embed",
    ],
)
def test_a_missing_tensor_is_named(name, vit, tmp_path):
    refused(vit, tmp_path, lambda tensors: tensors.pop(name), name.removeprefix("model."))


@pytest.mark.parametrize("name", ["model.extra", "blocks.0.attn.extra.input.scale", "blocks.0.attn.qk.codes"])
def test_a_tensor_too_many_is_named(name, vit, tmp_path):
    extra = np.zeros(1, np.float32)
    refused(vit, tmp_path, lambda tensors: tensors.update({name: extra}), name.removeprefix("model."))


@pytest.mark.parametrize(
    "name",
    [
        "blocks.0.attn.qkv.weight.codes",
        "patch_embed.proj.weight.codes",
        "blocks.0.attn.qkv.weight.scale",
        "blocks.0.attn.qkv.weight.zero_point",
        "model.blocks.0.norm1.weight",
        "model.pos_embed",
        "model.head.bias",
    ],
)
@pytest.mark.parametrize("cut", [1, 3])
def test_a_tensor_of_another_shape_is_refused_and_never_broadcast(name, cut, vit, tmp_path):
    key = name.removeprefix("model.").removesuffix(".codes").removesuffix(".scale").removesuffix(".zero_point")
    refused(vit, tmp_path, lambda tensors: tensors.update({name: tensors[name][..., :cut].copy()}), key)


def other_timm(**changes: Any) -> Callable[[dict[str, Any]], nn.Module]:
    return lambda description: rebuild(description | {"kwargs": description["kwargs"] | changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 3}, "holds layers that 'vit_tiny_patch16_224' of the installed timm does not have"),
        ({"depth": 1}, "Install the timm version named in its manifest, or quantize again"),
        ({"embed_dim": 32}, "Install the timm version it was made with"),
        ({"qk_norm": True}, "does not fit its model: blocks.0.attn.k_norm.*Install the timm version it was made with"),
        ({"class_token": False, "global_pool": "avg"}, "does not fit its model"),
    ],
)
def test_another_timm_than_the_runs_is_refused(changes, message, vit, tmp_path, monkeypatch):
    vit.save(tmp_path / "run")
    monkeypatch.setattr(run_folder, "rebuild", other_timm(**changes))
    with pytest.raises(InputError, match=message):
        load_run(tmp_path / "run")


def test_a_folder_that_is_none_or_was_changed_is_refused(vit, tmp_path):
    with pytest.raises(InputError, match="is not a run folder"):
        load_run(tmp_path)
    vit.save(tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    manifest["layers"][0]["weight_bits"] = 4
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="was changed after it was saved"):
        load_run(tmp_path / "run")
