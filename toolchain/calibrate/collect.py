"""Collecting a thinned sample of what each layer of a block reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nn import QuantConv2d, QuantLayer, QuantMatMul

ROWS = 8192
"""Rows of a linear layer's input that its Gram matrices are built from."""

OPERAND_ELEMENTS = 1 << 20
"""Elements kept of an attention operand (9 images of DeiT-Tiny's softmax)."""


@dataclass
class Observed:
    """Thinned inputs of one layer: ``rows`` [n, i] of a linear or unfolded convolution, operands of a product."""

    rows: list[Tensor] = field(default_factory=list)
    a: list[Tensor] = field(default_factory=list)
    b: list[Tensor] = field(default_factory=list)
    shape: tuple[int, ...] = ()
    """Shape of the layer's (first) input in the last batch."""


@contextmanager
def observing(layers: dict[str, QuantLayer], calls: int, generator: torch.Generator) -> Iterator[dict[str, Observed]]:
    """Record inputs while the context lasts; ``calls`` forwards will run, each giving its share of the sample."""
    seen = {name: Observed() for name in layers}

    def record(name: str, layer: QuantLayer, args: tuple[Tensor, ...]) -> None:
        seen[name].shape = args[0].shape
        if isinstance(layer, QuantMatMul):
            other = args[1].transpose(-2, -1) if layer.transpose_b else args[1]
            # Odd, so that it walks over all window positions of an image (64, 16, 4 in Swin), not over one of them.
            step = -(-max(args[0].numel(), other.numel()) * calls // OPERAND_ELEMENTS) | 1
            seen[name].a.append(args[0][::step].clone())
            seen[name].b.append(other[::step].clone())
        else:
            rows = unfold(layer, args[0]) if isinstance(layer, QuantConv2d) else args[0].reshape(-1, args[0].shape[-1])
            chosen = torch.randperm(len(rows), generator=generator)[: max(1, ROWS // calls)]
            seen[name].rows.append(rows[chosen.to(rows.device)])

    hooks = [layer.register_forward_pre_hook(partial(record, name)) for name, layer in layers.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def unfold(conv: QuantConv2d, x: Tensor) -> Tensor:
    """Patches of ``x [b, c, h, w]`` as rows ``[b * positions, c * kh * kw]``."""
    assert conv.weight is not None
    kernel = (conv.weight.shape[2], conv.weight.shape[3])
    columns = F.unfold(x, kernel, dilation=conv.dilation, padding=conv.padding, stride=conv.stride)
    return columns.transpose(1, 2).reshape(-1, columns.shape[1])
