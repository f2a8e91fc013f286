"""Random element-wise skipping of quantization (QDrop, arXiv:2203.05740)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..distributed.share import Share
from .uniform import UniformQuantizer


def random_mask(
    shape: torch.Size, probability: float, generator: torch.Generator, share: Share | None = None
) -> Float[Tensor, "..."]:
    """Float mask that is 1 with ``probability`` (else 0), rounded to a multiple of 1/256.

    One 64-bit draw serves eight elements: the mask is drawn at every step for every activation, and
    a float draw per element costs several times as much on a CPU. With ``share``, ``shape`` is what that share of a
    batch's images makes (first axis image by image) and the mask is its part of the one drawn for the whole batch.
    """
    threshold = round(probability * 256)
    if threshold == 256:  # a uint8 comparison would take it for 0
        return torch.ones(shape, device=generator.device)
    own = shape.numel()
    each = own // len(share) if share else own
    first, count = (share.start * each, share.of * each) if share else (0, own)
    words = torch.empty((count + 7) // 8, dtype=torch.int64, device=generator.device)
    words.random_(-(2**63), None, generator=generator)
    draws = words.view(torch.uint8)[first : first + own]
    return draws.lt_(threshold).view(shape).to(torch.float32)  # in place: turning bools into floats is ten times slower


class DropQuantizer(nn.Module):
    """A UniformQuantizer that leaves each element float with probability ``drop``; ``share`` as in ``random_mask``."""

    def __init__(
        self, quantizer: UniformQuantizer, drop: float, generator: torch.Generator, share: Share | None = None
    ) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.drop = drop
        self.generator = generator
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantize a random part of ``x`` (all of it with ``drop`` = 0); same shape."""
        keep = random_mask(x.shape, self.drop, self.generator, self.share) if self.drop > 0 else None
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
