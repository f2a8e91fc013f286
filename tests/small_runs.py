"""Small quantized models of random weights and their runs, for the tests of export: grids by minimum and maximum."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import timm
import torch
from PIL import Image
from timm.layers import set_fused_attn
from timm.models.vision_transformer import ResPostBlock

from fimaq.toolchain.artifact import Artifact
from fimaq.toolchain.calibrate.candidates import grid_from_range
from fimaq.toolchain.export.passes.tidy import after_lowering, before_lowering
from fimaq.toolchain.export.targets import TARGETS
from fimaq.toolchain.export.traced.trace import trace
from fimaq.toolchain.families import QuantModel, wrap
from fimaq.toolchain.nn import QuantConv2d, QuantLayer, QuantLinear, QuantMatMul
from fimaq.toolchain.preprocess import Preprocessing
from fimaq.toolchain.quantizers import CodedWeight, UniformQuantizer, encode
from fimaq.toolchain.run_folder import layer_rows, run_tensors
from fimaq.toolchain.spec import QuantSpec

SIZE = (3, 32, 32)
MODELS = {
    "vit": ("vit_tiny_patch16_224", {"depth": 2, "img_size": 32, "patch_size": 8, "num_classes": 5}),
    "unbiased": (
        "vit_tiny_patch16_224",
        {"depth": 1, "img_size": 32, "patch_size": 8, "num_classes": 5, "qkv_bias": False},
    ),
    "respost": (
        "vit_tiny_patch16_224",
        {"depth": 2, "img_size": 32, "patch_size": 8, "num_classes": 5, "block_fn": ResPostBlock},
    ),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {
            "img_size": 32,
            "patch_size": 2,
            "window_size": 4,
            "depths": (2, 2),
            "embed_dim": 24,
            "num_heads": (2, 4),
            "num_classes": 5,
        },
    ),
}
PREPROCESSING = Preprocessing(32, 32, 1.0, "center", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLASSES = {"wnids": None, "names": list("abcde")}


def grid(x: torch.Tensor, bits: int, granularity: str) -> UniformQuantizer:
    """Minimum and maximum over the axes that are not kept; one zero point a head (or tensor), as recipes have it."""
    kept = {"tensor": (), "token": (1,), "head": (1,), "head-token": (1, 2)}[granularity]
    reduced = [axis for axis in range(x.dim()) if axis not in kept]
    low, high = (f(x, reduced, keepdim=True) for f in (torch.amin, torch.amax))
    scale = ((high.clamp(min=0) - low.clamp(max=0)) / (2**bits - 1)).clamp(min=1e-6)
    one = [axis for axis in range(x.dim()) if axis != 1 or granularity in ("tensor", "token")]
    least, most = low.amin(one, keepdim=True).clamp(max=0), high.amax(one, keepdim=True).clamp(min=0)
    zero_point = torch.round(-least / ((most - least).clamp(min=1e-6) / (2**bits - 1)))
    if granularity == "tensor":
        scale, zero_point = scale.reshape(()), zero_point.reshape(())
    return UniformQuantizer(QuantSpec(bits, granularity), scale, zero_point)


def coded(weight: torch.Tensor, bits: int) -> CodedWeight:
    flat = weight.detach().flatten(1)
    low, high = flat.amin(1).clamp(max=0), flat.amax(1).clamp(min=0)
    scale = ((high - low) / (2**bits - 1)).view(-1, *[1] * (weight.dim() - 1))
    zero_point = torch.round(-low / scale.flatten()).view_as(scale)
    codes = encode(weight.detach(), scale, zero_point, 2**bits - 1).to(torch.uint8)
    return CodedWeight(QuantSpec(bits, "channel"), codes, scale, zero_point)


def filled(
    name: str,
    operand: Callable[[torch.Tensor], UniformQuantizer],
    read: Callable[[QuantLayer, torch.Tensor], UniformQuantizer],
    coded_weight: Callable[[torch.Tensor], CodedWeight],
) -> QuantModel:
    """A model of ``MODELS`` after ``fill_quantizers``."""
    timm_name, kwargs = MODELS[name]
    set_fused_attn(enable=True, experimental=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = wrap(timm.create_model(timm_name, **kwargs), SIZE)
        image = torch.randn(4, *SIZE)
    return fill_quantizers(model, image, operand, read, coded_weight)


def fill_quantizers(
    model: QuantModel,
    image: torch.Tensor,
    operand: Callable[[torch.Tensor], UniformQuantizer],
    read: Callable[[QuantLayer, torch.Tensor], UniformQuantizer],
    coded_weight: Callable[[torch.Tensor], CodedWeight],
) -> QuantModel:
    """The model, its layers with quantizers from what they see of ``image``.

    ``operand`` makes those of a product's operands, ``read`` that of what another layer reads.
    """

    def fill(layer: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if isinstance(layer, QuantMatMul):
            layer.a_quantizer, layer.b_quantizer = (operand(x) for x in args)
        else:
            layer.input_quantizer = read(layer, args[0])
            layer.weight_quantizer, layer.weight = coded_weight(layer.weight), None

    hooks = [layer.register_forward_pre_hook(fill) for layer in model.layers.values()]
    with torch.no_grad():
        model(image)
    for hook in hooks:
        hook.remove()
    return model


def quantized(name: str, bits: int, linear: str, product: str) -> QuantModel:
    """All layers at ``bits``; ``linear`` and ``product`` are the granularities of what they read."""

    def read(layer: QuantLayer, x: torch.Tensor) -> UniformQuantizer:
        spatial = isinstance(layer, QuantLinear) and x.dim() == 3
        return grid(x, bits, linear if spatial else "tensor")

    return filled(name, lambda x: grid(x, bits, product), read, lambda weight: coded(weight, bits))


def small_model(name: str, wbits: int, abits: int, symmetric: tuple[bool, bool]) -> QuantModel:
    """One scale an activation; ``symmetric`` is for weights and for activations."""

    def activation(x: torch.Tensor, bits: int) -> UniformQuantizer:
        return UniformQuantizer(QuantSpec(bits), *grid_from_range(x.min(), x.max(), 2**bits - 1, symmetric[1]))

    def read(layer: QuantLayer, x: torch.Tensor) -> UniformQuantizer:
        return activation(x, 8 if isinstance(layer, QuantConv2d) else abits)

    def weight(w: torch.Tensor) -> CodedWeight:
        flat = w.detach().flatten(1)
        grid = grid_from_range(flat.amin(1), flat.amax(1), 2**wbits - 1, symmetric[0])
        scale, zero_point = (part.view(-1, *[1] * (w.dim() - 1)) for part in grid)
        codes = encode(w.detach(), scale, zero_point, 2**wbits - 1).to(torch.uint8)
        return CodedWeight(QuantSpec(wbits, "channel"), codes, scale, zero_point)

    return filled(name, lambda x: activation(x, abits), read, weight)


def save_run(folder: Path, name: str, model: QuantModel, images: Path) -> Path:
    timm_name, kwargs = MODELS[name]
    described = {
        "name": "toy",
        "timm_name": timm_name,
        "input_size": SIZE,
        "kwargs": kwargs,
        "weights_sha256": "0" * 64,
    }
    calibration = {"source": str(images), "sample_ids": [f"{i}.png" for i in range(12)]}
    manifest = {
        "model": described,
        "preprocessing": json.loads(PREPROCESSING.to_json()),
        "classes": CLASSES,
        "recipe": {"name": "toy"},
        "layers": layer_rows(model),
        "calibration": calibration,
    }
    Artifact(manifest, run_tensors(model)).save(folder)
    return folder


def save_images(folder: Path) -> Path:
    """The twelve calibration images that ``save_run`` names."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def small_run(folder: Path, name: str, wbits: int, abits: int, symmetric: tuple[bool, bool]) -> Path:
    """``small_model`` as a run folder, its calibration images beside it."""
    return save_run(folder / "run", name, small_model(name, wbits, abits, symmetric), save_images(folder / "images"))


def lowered(model: QuantModel, target: str, images: np.ndarray | None = None) -> onnx.ModelProto:
    """The model in a target's form; with ``images`` after its calibrated passes too."""
    graph = trace(model.model, model.layers, SIZE, 21)
    calibrated = [] if images is None else TARGETS[target].calibrated(images)
    for step in (*before_lowering(), *TARGETS[target].passes(), *calibrated, *after_lowering()):
        graph = step(graph).model
    return ir.serde.serialize_model(graph)
