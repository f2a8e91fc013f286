"""Scale search for a linear layer (or a convolution seen as one) by its output error, through Gram matrices.

With ``A = Xq^T Xq`` and ``B = Xq^T X`` the output error of a weight candidate is
``||Wq Xq - W X||^2 = Wq A Wq^T - 2 Wq B W^T + const``, so its cost does not depend on the number of rows.
The error of an input candidate is a quadratic form in ``Xq - X`` with ``M = Wq^T Wq``.

Each row's error counts relative to the energy of its output. A vision transformer gives a few tokens massive values
(Sun et al., "Massive Activations in Large Language Models", 2024; Darcet et al., "Vision Transformers Need Registers",
2024), and the next LayerNorm divides them by as much; counted absolutely they would stretch the grid of all others.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ..quantizers import encode
from ..spec import QuantSpec
from .candidates import candidate_grids

WEIGHT_QUANTILE, INPUT_QUANTILE = 0.9, 0.95
"""How far ranges are shrunk (method notes, section 5, for the weights; found by experiment for the inputs)."""

INPUT_ROWS = 2048
"""Rows that an input candidate is judged on."""

NOTHING = 1e-30
"""Energy of an output up to which it counts as zero."""

Grid = tuple[Tensor, Tensor]
"""Scale and zero point."""

Cost = Callable[[Tensor], Tensor]
"""Of a quantized weight ``[o, i]``, the error of each output channel ``[o]``, less what no candidate changes."""


def fake_quantize(x: Tensor, grid: Grid, qmax: int) -> Tensor:
    """Quantize and dequantize, without gradients."""
    scale, zero = grid
    return (encode(x, scale, zero, qmax) - zero) * scale


def search_linear(
    weight: Float[Tensor, "o i"],
    rows: Float[Tensor, "n i"],
    weight_spec: QuantSpec,
    input_spec: QuantSpec,
    candidates: int,
    rounds: int,
    start: Grid | None = None,
) -> tuple[tuple[Float[Tensor, "o 1"], Float[Tensor, "o 1"]], tuple[Float[Tensor, ""], Float[Tensor, ""]]]:
    """Grids of the weight (per output channel) and of the input (per tensor).

    Weights start from their own error, inputs from ``start`` (or their own error); then ``rounds`` rounds alternate
    between input and weight, each judged by the layer's output error given the other, rows weighed by ``row_weights``,
    and end early when nothing moves.
    """
    options = candidate_grids(weight, WEIGHT_QUANTILE, candidates, weight_spec.qmax, weight_spec.symmetric)
    weight_grid = _best_weight(weight, options, weight_spec.qmax, lambda x: ((x - 2 * weight) * x).sum(1))
    input_options = candidate_grids(
        rows.reshape(1, -1), INPUT_QUANTILE, candidates, input_spec.qmax, input_spec.symmetric
    )
    input_grids = [(s, z) for s, z in zip(input_options[0][:, 0], input_options[1][:, 0], strict=True)]
    if start is not None:
        input_grids.append(start)
    weights = row_weights(rows @ weight.T)
    step = max(1, len(rows) // INPUT_ROWS)
    chosen = -1
    for _ in range(rounds):
        approximate = fake_quantize(weight, weight_grid, weight_spec.qmax)
        before = chosen
        chosen = _best_input(rows[::step], weights[::step], weight, approximate, input_grids, input_spec.qmax)
        input_grid = input_grids[chosen]
        if chosen == before:
            break
        quantized = fake_quantize(rows, input_grid, input_spec.qmax)
        weighted = (weights * quantized).T
        cost = _output_error(weight, weighted @ quantized, weighted @ rows)
        weight_grid = _best_weight(weight, options, weight_spec.qmax, cost)
    return weight_grid, input_grid


def row_weights(outputs: Float[Tensor, "n o"]) -> Float[Tensor, "n 1"]:
    """What a row's squared error counts: ``1 / (e + median e)`` for output energy ``e``, scaled to a mean of one.

    The median is of the rows that give anything: windows padded with zeros, or black patches, may be more than half.
    """
    energy = outputs.square().sum(1, keepdim=True)
    given = energy[energy > NOTHING]
    typical = given.median() if given.numel() else energy.new_ones(())
    weights = 1 / (energy + typical)
    return weights / weights.mean()


def _output_error(weight: Tensor, own: Tensor, cross: Tensor) -> Cost:
    """``Wq own Wq^T - 2 Wq cross W^T`` of each output channel."""
    target = 2 * (weight @ cross.T)
    return lambda x: ((x @ own - target) * x).sum(1)


def _best_weight(weight: Tensor, options: Grid, qmax: int, cost: Cost) -> Grid:
    """Per output channel, the grid whose quantized weight costs least."""
    best = torch.full_like(weight[:, 0], torch.inf)
    grid = options[0][0][:, None].clone(), options[1][0][:, None].clone()
    for scale, zero in zip(*options, strict=True):
        error = cost(fake_quantize(weight, (scale[:, None], zero[:, None]), qmax))
        better = error < best
        torch.where(better, error, best, out=best)
        grid[0][better], grid[1][better] = scale[better, None], zero[better, None]
    return grid


def _best_input(rows: Tensor, weights: Tensor, weight: Tensor, quantized: Tensor, grids: list[Grid], qmax: int) -> int:
    """Number of the input grid with the smallest weighted output error ``||Wq xq - W x||^2`` over ``rows``."""
    rest = rows @ (quantized - weight).T
    if weight.shape[0] < weight.shape[1]:

        def cost(error: Tensor) -> Tensor:
            return (weights * (error @ quantized.T + rest).square()).sum()
    else:
        gram, cross = quantized.T @ quantized, 2 * (rest @ quantized)

        def cost(error: Tensor) -> Tensor:
            return (weights * (error @ gram + cross) * error).sum()

    costs = rows.new_empty(len(grids))  # a tensor kept from each turn would split the memory that the next one needs
    for number, grid in enumerate(grids):
        costs[number] = cost(fake_quantize(rows, grid, qmax) - rows)
    return int(costs.argmin())


def search_channels(
    rows: Float[Tensor, "n i"], spec: QuantSpec, candidates: int
) -> tuple[Float[Tensor, "i"], Float[Tensor, "i"]]:
    """One grid per input channel by the channel's own error: the start of the LayerNorm re-parameterisation."""
    columns = rows[:: max(1, len(rows) // INPUT_ROWS)].T.contiguous()
    scales, zeros = candidate_grids(columns, INPUT_QUANTILE, candidates, spec.qmax, spec.symmetric)
    errors = torch.stack(
        [
            (fake_quantize(columns, (scale[:, None], zero[:, None]), spec.qmax) - columns).square().sum(1)
            for scale, zero in zip(scales, zeros, strict=True)
        ]
    )
    best = errors.argmin(0)
    channel = torch.arange(len(best), device=rows.device)
    return scales[best, channel], zeros[best, channel]
