"""Random element-wise skipping of quantization (QDrop, arXiv:2203.05740)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .uniform import UniformQuantizer


def random_mask(shape: torch.Size, probability: float, generator: torch.Generator) -> Float[Tensor, "..."]:
    """Float mask that is 1 with ``probability`` (else 0), rounded to a multiple of 1/256.

    One 64-bit draw serves eight elements: the mask is drawn at every step for every activation, and
    a float draw per element costs several times as much on a CPU.
    """
    threshold = round(probability * 256)
    if threshold == 256:  # a uint8 comparison would take it for 0
        return torch.ones(shape, device=generator.device)
    count = shape.numel()
    words = torch.empty((count + 7) // 8, dtype=torch.int64, device=generator.device)
    words.random_(-(2**63), None, generator=generator)
    draws = words.view(torch.uint8)[:count]
    return draws.lt_(threshold).view(shape).to(torch.float32)  # in place: turning bools into floats is ten times slower


class DropQuantizer(nn.Module):
    """A UniformQuantizer that leaves each element float with probability ``drop``."""

    def __init__(self, quantizer: UniformQuantizer, drop: float, generator: torch.Generator) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.drop = drop
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantize a random part of ``x`` (all of it with ``drop`` = 0); same shape."""
        keep = random_mask(x.shape, self.drop, self.generator) if self.drop > 0 else None
        return self.quantizer(x, keep)


@contextmanager
def without_drop(quantizers: Iterable[DropQuantizer]) -> Iterator[None]:
    """Quantize everything inside the context: the block as it would be deployed."""
    saved = [(quantizer, quantizer.drop) for quantizer in quantizers]
    try:
        for quantizer, _ in saved:
            quantizer.drop = 0.0
        yield
    finally:
        for quantizer, drop in saved:
            quantizer.drop = drop
