"""Small quantized models and runs for the tests of export targets: grids by minimum and maximum, symmetric or not."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import timm
import torch
from PIL import Image
from test_export import MODELS, SIZE, save_run
from timm.layers import set_fused_attn

from fimaq.toolchain.calibrate.candidates import grid_from_range
from fimaq.toolchain.export.targets import TARGETS
from fimaq.toolchain.export.tidy import after_lowering, before_lowering
from fimaq.toolchain.export.trace import trace
from fimaq.toolchain.families import QuantModel, wrap
from fimaq.toolchain.nn import QuantConv2d, QuantMatMul
from fimaq.toolchain.quantizers import CodedWeight, UniformQuantizer, encode
from fimaq.toolchain.spec import QuantSpec


def small_model(name: str, wbits: int, abits: int, symmetric: tuple[bool, bool]) -> QuantModel:
    """A model of random weights; ``symmetric`` is for weights and for activations."""
    timm_name, kwargs = MODELS[name]
    set_fused_attn(enable=True, experimental=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = wrap(timm.create_model(timm_name, **kwargs), SIZE)
        image = torch.randn(4, *SIZE)

    def activation(x: torch.Tensor, bits: int) -> UniformQuantizer:
        return UniformQuantizer(QuantSpec(bits), *grid_from_range(x.min(), x.max(), 2**bits - 1, symmetric[1]))

    def weight(w: torch.Tensor) -> CodedWeight:
        flat = w.detach().flatten(1)
        grid = grid_from_range(flat.amin(1), flat.amax(1), 2**wbits - 1, symmetric[0])
        scale, zero_point = (part.view(-1, *[1] * (w.dim() - 1)) for part in grid)
        codes = encode(w.detach(), scale, zero_point, 2**wbits - 1).to(torch.uint8)
        return CodedWeight(QuantSpec(wbits, "channel"), codes, scale, zero_point)

    def fill(layer: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if isinstance(layer, QuantMatMul):
            layer.a_quantizer, layer.b_quantizer = (activation(x, abits) for x in args)
        else:
            layer.input_quantizer = activation(args[0], 8 if isinstance(layer, QuantConv2d) else abits)
            layer.weight_quantizer, layer.weight = weight(layer.weight), None

    hooks = [layer.register_forward_pre_hook(fill) for layer in model.layers.values()]
    with torch.no_grad():
        model(image)
    for hook in hooks:
        hook.remove()
    return model


def small_run(folder: Path, name: str, wbits: int, abits: int, symmetric: tuple[bool, bool]) -> Path:
    """The model as a run folder, its calibration images beside it."""
    images, rng = folder / "images", np.random.default_rng(0)
    images.mkdir(parents=True)
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(images / f"{i}.png")
    return save_run(folder / "run", name, small_model(name, wbits, abits, symmetric), images)


def lowered(model: QuantModel, target: str, images: np.ndarray | None = None) -> onnx.ModelProto:
    """The model in a target's form; with ``images`` after its calibrated passes too."""
    graph = trace(model.model, model.layers, SIZE, 21)
    calibrated = [] if images is None else TARGETS[target].calibrated(images)
    for step in (*before_lowering(), *TARGETS[target].passes(), *calibrated, *after_lowering()):
        graph = step(graph).model
    return ir.serde.serialize_model(graph)
