"""Turning a timm model into a QuantModel: replace layers, cut into blocks, prove that nothing was left out."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..nn import QuantAttention, QuantConv2d, QuantLayer, QuantLinear, QuantMatMul
from .base import Block, Family
from .inspect import attention_callers, refuse_float_products
from .swin import SwinFamily
from .vit import VitFamily

FAMILIES: tuple[Family, ...] = (VitFamily(), SwinFamily())
"""Tried in order; one file adds one."""


@final
class QuantModel(nn.Module):
    """A timm model with quantized layers in place, and its cut into blocks.

    ``layers`` maps names (timm's module paths; ``<attention>.qk`` and ``<attention>.av`` for the products)
    to layers in the order they run; ``block_layers`` maps block names to the names of their layers.
    """

    def __init__(self, model: nn.Module, family: str, blocks: list[Block], layers: dict[str, QuantLayer]) -> None:
        super().__init__()
        self.model = model
        self.family = family
        self.blocks = blocks
        self.layers = layers
        self.block_layers = {
            block.name: [name for name, layer in layers.items() if layer in set(block.module.modules())]
            for block in blocks
        }

    def forward(self, image: Tensor) -> Tensor:
        """``[b, 3, h, w]`` to logits ``[b, classes]``."""
        return self.model(image)


def public_name(path: str) -> str:
    """The timm module path of a module inside wrappers."""
    return ".".join(part for part in path.split(".") if part != "wrapped")


def find_family(model: nn.Module) -> Family:
    """The first family that handles the model; raises UnsupportedModelError."""
    for family in FAMILIES:
        if family.matches(model):
            return family
    raise UnsupportedModelError(
        f"no family handles {type(model).__name__}: wanted a timm VisionTransformer (ViT, DeiT) or SwinTransformer. "
        "Another architecture needs one file in toolchain/families (see CONTRIBUTING.md)."
    )


def wrap(model: nn.Module, input_size: tuple[int, int, int]) -> QuantModel:
    """Wrap ``model`` (timm's fused attention on) in place; it ends in evaluation mode and without gradients.

    ``input_size`` is ``(3, h, w)``. Raises UnsupportedModelError for an architecture without a family, for any
    product that would stay float, and where the chain of blocks does not compute what the model computes.
    """
    family = find_family(model)
    model.eval().requires_grad_(False)
    parameter = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, *input_size, generator=generator).to(parameter)
    with torch.no_grad():
        expected = model(image)
    _replace(model, attention_callers(model, image))
    blocks = family.blocks(model)
    refuse_float_products(model, image)
    layers = _layers_in_order(model, image)
    _refuse_shared_weights(layers)
    wrapped = QuantModel(model, family.name, blocks, layers).eval()
    _check_chain(wrapped, image, expected)
    return wrapped


def _replace(model: nn.Module, attention: list[nn.Module]) -> None:
    """Put quantized layers in the place of float ones, keeping parameters; a layer with two places stays one layer."""
    made: dict[nn.Module, nn.Module] = {}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child not in made:
                if type(child) is nn.Linear:
                    made[child] = QuantLinear.from_float(child)
                elif type(child) is nn.Conv2d:
                    made[child] = QuantConv2d.from_float(child)
                elif child in attention:
                    made[child] = QuantAttention(child)
            if child in made:
                setattr(parent, name, made[child])


def _layers_in_order(model: nn.Module, image: Tensor) -> dict[str, QuantLayer]:
    """Quantized layers by name, in the order in which they first run; one that runs twice is refused."""
    names = {module: public_name(path) for path, module in model.named_modules()}
    order: list[QuantLayer] = []
    hooks = [
        module.register_forward_pre_hook(lambda layer, args: order.append(layer))
        for module in model.modules()
        if isinstance(module, QuantLayer)
    ]
    try:
        with torch.no_grad():
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    for layer in order:
        if order.count(layer) > 1:
            raise UnsupportedModelError(
                f"layer {names[layer]!r} runs {order.count(layer)} times in one forward: wanted once, since it has one "
                "input scale. This architecture needs a family of its own."
            )
    return {names[layer]: layer for layer in order}


def _refuse_shared_weights(layers: dict[str, QuantLayer]) -> None:
    """Two layers of one weight would each round it and fold scales into it."""
    owners: dict[int, str] = {}
    for name, layer in layers.items():
        owner = name if isinstance(layer, QuantMatMul) else owners.setdefault(id(layer.weight), name)
        if owner != name:
            raise UnsupportedModelError(
                f"layers {owner!r} and {name!r} share one weight: wanted a weight of its own for each. "
                "This architecture needs a family of its own."
            )


def _check_chain(wrapped: QuantModel, image: Tensor, expected: Tensor) -> None:
    """Blocks must compose to the model, and hold every layer exactly once."""
    held = [name for names in wrapped.block_layers.values() for name in names]
    odd = sorted({name for name in held if held.count(name) > 1} | (set(wrapped.layers) - set(held)))
    if odd:
        raise UnsupportedModelError(
            f"layers {', '.join(odd)} are in no block or in two: wanted each in exactly one. "
            f"The {wrapped.family} family does not fit this model."
        )
    with torch.no_grad():
        x = image
        for block in wrapped.blocks:
            x = block.module(x)
    scale = expected.abs().max().clamp_min(1e-6)
    if x.shape != expected.shape or not bool(((x - expected).abs().max() / scale) < 1e-3):
        raise UnsupportedModelError(
            f"the {wrapped.family} family's blocks do not compute what {type(wrapped.model).__name__} computes "
            "(its forward differs from the plain architecture). The model is refused."
        )
