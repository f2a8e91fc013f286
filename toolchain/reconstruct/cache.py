"""What one block's reconstruction reads: its inputs and its target, for all images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..calibrate.run import CHUNK
from ..distributed.ranks import ALONE, Ranks
from .store import Store


@dataclass
class BlockInputs:
    """What the network in front of a block gives, float and quantized, first axis the image.

    It starts as the images and is replaced block by block; whoever hands it over keeps no other reference, so that what
    lies behind is freed.
    """

    clean: Float[Tensor, "n ..."]
    quant: Float[Tensor, "n ..."]


@dataclass
class BlockCache:
    """Inputs and target of the current block, first axis the image.

    ``clean_in`` is what the float network in front gives, ``quant_in`` what the quantized one gives, ``target`` the
    float block's output for ``clean_in``. Each advances block by block, so no step runs the network in front again.
    They may lie elsewhere than where the block computes.
    """

    clean_in: Float[Tensor, "n ..."]
    quant_in: Float[Tensor, "n ..."]
    target: Float[Tensor, "n ..."]

    def batch(self, numbers: Int[Tensor, "b"]) -> tuple[Tensor, Tensor, Tensor]:
        """Clean input, quantized input and target of the images ``numbers``, on the device of ``numbers``."""
        here, there = numbers.to(self.target.device), numbers.device
        clean, quant, target = (rows[here].to(there) for rows in (self.clean_in, self.quant_in, self.target))
        return clean, quant, target


@torch.no_grad()
def advance(
    block: Callable[[Tensor], Tensor],
    x: Float[Tensor, "n ..."],
    store: Store,
    device: torch.device,
    ranks: Ranks = ALONE,
) -> Tensor:
    """The block's output for all images, computed on ``device`` a chunk at a time and kept in ``store``.

    Each of ``ranks`` computes its share of the images and gets the others' from them.
    """
    out: Tensor | None = None
    share = ranks.share(len(x))
    for start in range(share.start, share.stop, CHUNK):
        stop = min(start + CHUNK, share.stop)
        part = block(x[start:stop].to(device))
        if out is None:
            out = store.empty(len(x), *part.shape[1:])
        out[start:stop] = part
    assert out is not None, "no images"
    ranks.fill(out)
    return out
