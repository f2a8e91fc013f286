"""What one step reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..distributed.share import Share
from ..quantizers import random_mask
from .cache import BlockCache


@final
@dataclass(frozen=True)
class Batch:
    """Numbers of images in the cache, the block's input for them, and what its output is held to."""

    images: Int[Tensor, "b"]
    x: Float[Tensor, "b ..."]
    target: Float[Tensor, "b ..."]

    def copy_(self, other: Batch) -> None:
        """Take the values of ``other`` into these tensors."""
        for mine, value in ((self.images, other.images), (self.x, other.x), (self.target, other.target)):
            mine.copy_(value)


def mixed_batch(
    cache: BlockCache,
    images: Int[Tensor, "b"],
    quantized_input: float,
    generator: torch.Generator,
    share: Share | None = None,
) -> Batch:
    """The batch of ``images`` in new tensors, whose inputs mix the quantized and the float prefix element by element.

    ``images`` are ``share`` of the batch that the mix is drawn for; None: all of it.
    """
    clean, quant, target = cache.batch(images)
    x = torch.lerp(clean, quant, random_mask(clean.shape, quantized_input, generator, share))
    return Batch(images, x, target)
