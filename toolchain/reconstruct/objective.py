"""What a block's output is held to: a Fisher approximation, or the KL divergence itself at the head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, final

import torch
from jaxtyping import Float
from torch import Tensor

from ..distributed.ranks import ALONE, Ranks
from ..fisher import kl_divergence, make_fisher
from ..recipe import Recipe
from .cache import BlockCache
from .probe import probe
from .schedule import probe_steps
from .stopwatch import Stopwatch
from .store import Store


class Objective(Protocol):
    """A loss at a block's output, with whatever it has to look at in between."""

    def before_step(self, step: int, block: Callable[[Tensor], Tensor], cache: BlockCache) -> str | None:
        """Called before each step with the block as quantized now; returns something worth logging, or None."""

    @property
    def settled(self) -> bool:
        """Whether ``loss`` stays the same function, without a look at its values, until ``before_step`` changes it."""

    def loss(self, output: Tensor, target: Tensor, batch: Tensor) -> Tensor:
        """Scalar loss, a mean over the images of a batch; ``batch`` holds their numbers in the cache."""


@final
class HeadObjective:
    """``mean KL(p || q)`` on the logits, in nats."""

    def before_step(self, step: int, block: Callable[[Tensor], Tensor], cache: BlockCache) -> str | None:
        """Nothing to prepare."""
        return None

    @property
    def settled(self) -> bool:
        """Always."""
        return True

    def loss(self, output: Float[Tensor, "b classes"], target: Float[Tensor, "b classes"], batch: Tensor) -> Tensor:
        """KL divergence of the quantized head from the float one."""
        return kl_divergence(target, output, temperature=1.0).mean()


@final
class FisherObjective:
    """The recipe's Fisher approximation at a block's output, probed on the first ``len(logits)`` cached images.

    ``tail`` is the float network after the block; ``logits`` the float model's for those images. What a probe finds is
    kept in ``store`` while it is learned from. Each of ``ranks`` probes its share of the images and is asked for the
    loss of its share of a batch; what a loss is relative to is the value of the whole batch.
    """

    def __init__(
        self,
        recipe: Recipe,
        tail: Callable[[Tensor], Tensor],
        logits: Float[Tensor, "n classes"],
        store: Store,
        watch: Stopwatch,
        ranks: Ranks = ALONE,
    ) -> None:
        self.temperature = recipe.fisher.temperature
        self.tail = tail
        self.logits = logits
        self.store = store
        self.watch = watch
        self.ranks = ranks
        self.fisher = make_fisher(recipe.fisher.kind, p1=recipe.fisher.p1, p2=recipe.fisher.p2)
        self.steps = set(probe_steps(recipe.fisher, self.fisher.needs_probes, recipe.reconstruct.iterations))

    def before_step(self, step: int, block: Callable[[Tensor], Tensor], cache: BlockCache) -> str | None:
        """Take a probe if one is due; returns the approximation's fallback, if it had to use one."""
        if step not in self.steps:
            return None
        n = len(self.logits)
        with self.watch.timing("probes"):
            clean, target = cache.clean_in[:n], cache.target[:n]
            error, gradient = probe(
                block, self.tail, clean, target, self.logits, self.temperature, self.store, self.ranks
            )
            self.fisher.update(error, gradient, torch.arange(n, device=error.device))
        return self.fisher.fallback

    @property
    def settled(self) -> bool:
        """Whether what the loss is relative to has been found since the last probe."""
        return self.fisher.settled

    def loss(self, output: Float[Tensor, "b ..."], target: Float[Tensor, "b ..."], batch: Tensor) -> Tensor:
        """The normalised quadratic form of the output error."""
        error = (output - target).flatten(1)
        if self.ranks.size > 1 and not self.fisher.settled:
            self.fisher.loss(self.ranks.joined(error.detach()), self.ranks.joined(batch))
        return self.fisher.loss(error, batch)
