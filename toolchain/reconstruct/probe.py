"""A Fisher probe: error and KL gradient at a block's output (method notes, section 3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ..distributed.ranks import ALONE, Ranks
from ..fisher import kl_divergence
from .store import Store

CHUNK = 32
"""Images a forward and backward through the rest of the network."""


def probe(
    block: Callable[[Tensor], Tensor],
    tail: Callable[[Tensor], Tensor],
    clean_in: Float[Tensor, "n ..."],
    target: Float[Tensor, "n ..."],
    logits: Float[Tensor, "n classes"],
    temperature: float,
    store: Store,
    ranks: Ranks = ALONE,
) -> tuple[Float[Tensor, "n a"], Float[Tensor, "n a"]]:
    """Error ``e_n = z_q - z`` and gradient ``g_n = d KL(p || q) / d z_q`` for each image, in ``store``.

    ``block`` is the block as quantized now, fed with its float input; ``tail`` is the float network after it (only that
    part runs); ``logits`` are the float model's for the same images, on the device that computes. Each of ``ranks``
    runs its share of the images and gets the others' rows from them.
    """
    n, a = len(target), target[0].numel()
    errors, gradients = store.empty(n, a), store.empty(n, a)
    share = ranks.share(n)
    for start in range(share.start, share.stop, CHUNK):
        part = slice(start, min(start + CHUNK, share.stop))
        p = logits[part]
        x, z = clean_in[part].to(p.device), target[part].to(p.device)
        with torch.no_grad():
            quantized = block(x)
        leaf = quantized.detach().requires_grad_()
        with torch.enable_grad():
            divergence = kl_divergence(p, tail(leaf), temperature).sum()
        (gradient,) = torch.autograd.grad(divergence, leaf)
        errors[part] = (quantized - z).flatten(1)
        gradients[part] = gradient.flatten(1)
    ranks.fill(errors)
    ranks.fill(gradients)
    return errors, gradients
