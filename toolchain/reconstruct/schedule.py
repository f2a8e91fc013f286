"""When things happen in a reconstruction: the rounding regulariser's annealing, the rates, the Fisher probes."""

from __future__ import annotations

import math

from ..recipe import FisherConfig, ReconstructConfig


def rounding_beta(step: int, recipe: ReconstructConfig) -> float | None:
    """The exponent beta at ``step``: linear from start to end; None during the warm-up, which has no regulariser."""
    begin = recipe.warmup * recipe.iterations
    if step < begin:
        return None
    remaining = max(0.0, 1 - (step - begin) / (recipe.iterations - begin))
    return recipe.beta_end + (recipe.beta_start - recipe.beta_end) * remaining


def scale_rate(step: int, recipe: ReconstructConfig) -> float:
    """The learning rate of activation scales at ``step``: a cosine from the recipe's to 0."""
    return recipe.scale_lr * (1 + math.cos(math.pi * step / recipe.iterations)) / 2


def probe_steps(fisher: FisherConfig, wanted: int | None, iterations: int) -> list[int]:
    """Steps before which a probe is taken; ``wanted`` is the approximation's own number, None for the rank.

    ``spread``: 0, I/k, 2I/k, ... as published; ``first``: the first k steps. No step twice.
    """
    count = min(fisher.rank if wanted is None else wanted, iterations)
    if fisher.schedule == "first":
        return list(range(count))
    return [i * iterations // count for i in range(count)]
