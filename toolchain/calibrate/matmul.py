"""Scale search for the two operands of an attention product by the product's error."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..spec import QuantSpec
from .candidates import candidate_grids
from .linear import Grid, fake_quantize

OPERAND_QUANTILE = 0.99
"""How far operand ranges are shrunk (method notes, section 5)."""


def search_matmul(
    a: Float[Tensor, "b h t k"],
    b: Float[Tensor, "b h k n"],
    spec: QuantSpec,
    candidates: int,
    rounds: int,
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Grids of both operands, shape ``[1, h, 1, 1]`` when ``spec`` keeps heads, else scalars.

    Each starts at its full range; ``rounds`` rounds alternate between them, each judged by ``||aq bq - a b||^2``
    given the other. ``b`` is as multiplied (a key already transposed).
    """
    per_head = spec.granularity != "tensor"
    options_a, options_b = (_options(x, per_head, candidates, spec) for x in (a, b))
    grid_a, grid_b = (
        _pick(options, torch.zeros_like(options[0][0], dtype=torch.long)) for options in (options_a, options_b)
    )
    b_columns = b.transpose(-2, -1)
    for _ in range(rounds):
        grid_a = _best(a, b, fake_quantize(b, grid_b, spec.qmax), options_a, per_head, spec.qmax)
        quantized = fake_quantize(a, grid_a, spec.qmax).transpose(-2, -1)
        grid_b = _best(b_columns, a.transpose(-2, -1), quantized, options_b, per_head, spec.qmax)
    if per_head:
        return grid_a, grid_b
    return (grid_a[0].reshape(()), grid_a[1].reshape(())), (grid_b[0].reshape(()), grid_b[1].reshape(()))


def _options(x: Tensor, per_head: bool, candidates: int, spec: QuantSpec) -> Grid:
    groups = x.transpose(0, 1).flatten(1) if per_head else x.reshape(1, -1)
    return candidate_grids(groups, OPERAND_QUANTILE, candidates, spec.qmax, spec.symmetric)


def _pick(options: Grid, best: Tensor) -> Grid:
    group = torch.arange(best.numel(), device=best.device)
    return options[0][best, group].view(1, -1, 1, 1), options[1][best, group].view(1, -1, 1, 1)


def _best(rows: Tensor, other: Tensor, quantized: Tensor, options: Grid, per_head: bool, qmax: int) -> Grid:
    """Per group the grid of ``rows [b h t k]`` with the smallest ``||rows_q quantized - rows other||^2``.

    With ``e = rows_q - rows`` that is ``e gram e^T + 2 e cross^T + const`` where ``gram = quantized quantized^T`` and
    ``cross = rows (quantized - other) quantized^T``, or computed directly where the product is the smaller one.
    """
    width, outputs = rows.shape[-1], quantized.shape[-1]
    rest = rows @ (quantized - other)
    columns = quantized.transpose(-2, -1)
    gram, cross = (quantized @ columns, 2 * (rest @ columns)) if width <= outputs else (None, rest)
    costs = torch.empty_like(options[0])  # a tensor kept from each turn would split the memory that the next one needs
    for number, (scale, zero) in enumerate(zip(*options, strict=True)):
        error = fake_quantize(rows, (scale.view(1, -1, 1, 1), zero.view(1, -1, 1, 1)), qmax) - rows
        product = (error @ gram + cross) * error if gram is not None else (error @ quantized + cross).square()
        costs[number] = product.sum((0, 2, 3)) if per_head else product.sum()
    return _pick(options, costs.argmin(0))
