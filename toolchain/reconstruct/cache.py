"""What one block's reconstruction reads: its inputs and its target, for all images."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass
class BlockCache:
    """Inputs and target of the current block, first axis the image.

    ``clean_in`` is what the float network in front gives, ``quant_in`` what the quantized one gives, ``target`` the
    float block's output for ``clean_in``. Each advances block by block, so no step runs the network in front again.
    """

    clean_in: Float[Tensor, "n ..."]
    quant_in: Float[Tensor, "n ..."]
    target: Float[Tensor, "n ..."]
