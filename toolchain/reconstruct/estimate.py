"""How much memory a quantization will take, by part, found by running a piece of it on a few images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import final

import torch
from torch import Tensor

from ..calibrate.collect import OPERAND_ELEMENTS, ROWS
from ..calibrate.run import CHUNK
from ..families import QuantModel
from ..nn import QuantConv2d, QuantLayer, QuantLinear, QuantMatMul, float_layers, quantizer_slots
from ..quantizers import UniformQuantizer
from ..recipe import Recipe
from ..spec import QuantSpec
from .batch import mixed_batch
from .block import learning
from .cache import BlockCache
from .fidelity import SAMPLE, grid_lines
from .meter import TensorMeter
from .objective import FisherObjective, HeadObjective, Objective
from .optimizer import BlockOptimizer
from .probe import CHUNK as PROBE_CHUNK
from .stopwatch import Stopwatch
from .store import FLOAT, RamStore
from .tail import tail_after

FEW, MORE = 4, 8
"""Images of the two runs. With fewer, what a small model's weights take for themselves hides what an image takes."""

ROW_BYTES = 48
"""Of a probe's row, per element: two rows, their factor, and in float64 what the factor is made of."""

SEARCH_COPIES, OPERAND_COPIES = 4, 10
"""Of a layer's sampled inputs, and of the operands of a product, that the scale search has at once, as measured."""


@final
@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by part. Caches and probes lie where ``--cache`` says, the rest on the device."""

    model: int
    """Parameters and buffers."""
    caches: int
    """Block inputs and targets, all images of them."""
    probes: int
    """Errors and gradients of the images of a Fisher probe, while it is learned from."""
    fisher: int
    """What the Fisher approximation keeps of the probes."""
    step: int
    """A gradient step or, where that is more, a chunk of a probe's images or what the log says of the grids."""
    search: int
    """The scale search, which is over before the first step."""

    @property
    def stored(self) -> int:
        """Bytes that ``--cache`` places."""
        return self.caches + self.probes

    @property
    def fixed(self) -> int:
        """Bytes on the device wherever the caches are."""
        return self.model + max(self.fisher + self.step, self.search)


@final
@dataclass(frozen=True)
class _Needs:
    """Peaks of one block, as ``fixed + images * each`` bytes; of a recipe without steps only the first two."""

    forward: tuple[int, int]
    grids: tuple[int, int]
    """Of what the log says of the grids."""
    step: tuple[int, int]
    probe: tuple[int, int]
    search: int
    """Bytes of a scale search of its layers."""
    output: int
    """Elements of the block's output, of an image."""


def estimate_memory(model: QuantModel, input_size: tuple[int, int, int], recipe: Recipe, images: int) -> MemoryEstimate:
    """The memory of quantizing ``model`` (float, on the CPU) with ``images`` images."""
    blocks = _blocks(model, input_size, recipe)
    sizes = [input_size[0] * input_size[1] * input_size[2], *(needs.output for needs in blocks)]
    calibrated = min(images, recipe.calibrate.samples)
    forward = max(_at(needs.forward, min(CHUNK, images)) for needs in blocks)
    forward = max(forward, *(_at(needs.grids, min(SAMPLE, images)) for needs in blocks))
    # A chunk's outputs are gathered and then joined; a block's input and its output are there together.
    search = max(sizes[1:]) * calibrated * 3 * FLOAT + max(forward, *(needs.search for needs in blocks))
    parameters = sum(value.nbytes for value in model.state_dict().values())
    if recipe.reconstruct.iterations == 0:
        return MemoryEstimate(parameters, sizes[0] * images * FLOAT, 0, 0, 0, search)
    probed, wide = recipe.fisher.samples, max(sizes[1:-1])
    kept = recipe.fisher.rank * wide * ROW_BYTES + (3 * probed * wide * FLOAT if recipe.fisher.kind == "brecq" else 0)
    step = max(_at(needs.step, recipe.reconstruct.batch_size) for needs in blocks)
    probe = max(_at(needs.probe, min(PROBE_CHUNK, probed)) for needs in blocks)
    return MemoryEstimate(
        model=parameters,
        caches=max(_cached(first, before, after, images) for first, before, after in _around(sizes)),
        probes=2 * probed * wide * FLOAT,
        fisher=kept,
        step=max(step, probe, forward),
        search=search,
    )


def _around(sizes: list[int]) -> list[tuple[bool, int, int]]:
    """Of each block: whether it is the first, and the elements of an image before and after it."""
    return [(number == 0, *pair) for number, pair in enumerate(pairwise(sizes))]


def _cached(first: bool, before: int, after: int, images: int) -> int:
    """While a block learns there are both its inputs (one, in front of the first) and its target; then two outputs."""
    learning = (before if first else 2 * before) + after
    return max(learning, before + 2 * after) * images * FLOAT


def _at(line: tuple[int, int], images: int) -> int:
    fixed, each = line
    return fixed + images * each


def _blocks(model: QuantModel, input_size: tuple[int, int, int], recipe: Recipe) -> list[_Needs]:
    """Needs of every block; blocks of one shape are run once."""
    steps = min(1, recipe.reconstruct.iterations)
    alone = replace(recipe.reconstruct, iterations=steps, batch_size=1, warmup=0.0)  # a step with everything in it
    settings = replace(recipe, reconstruct=alone)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(MORE, *input_size, generator=generator)
    known: dict[object, _Needs] = {}
    found = []
    for number, block in enumerate(model.blocks):
        layers = {name: model.layers[name] for name in model.block_layers[block.name]}
        with torch.no_grad():
            y = block.module(x)
        shapes = [getattr(layer, "weight", torch.empty(0)).shape for layer in layers.values()]
        key = (x.shape, y.shape, *shapes)
        if key not in known:
            few, more = (_run(model, number, layers, settings, x[:n], y[:n], generator) for n in (FEW, MORE))
            forward, grids, step, probe = (_line(*peaks) for peaks in zip(few, more, strict=True))
            known[key] = _Needs(forward, grids, step, probe, _search(layers), y[0].numel())
        found.append(known[key])
        x = y
    return found


def _search(layers: dict[str, QuantLayer]) -> int:
    """The samples of all layers of a block, and the work on the largest of them."""
    rows = [ROWS * _read(layer) for layer in layers.values() if not isinstance(layer, QuantMatMul)]
    operands = [2 * OPERAND_ELEMENTS for layer in layers.values() if isinstance(layer, QuantMatMul)]
    work = max(SEARCH_COPIES * max(rows, default=0), OPERAND_COPIES * OPERAND_ELEMENTS if operands else 0)
    return FLOAT * (sum(rows) + sum(operands) + work)


def _read(layer: QuantLinear | QuantConv2d) -> int:
    """Elements of a row of the layer's input, unfolded where it is a convolution."""
    assert layer.weight is not None
    return layer.weight[0].numel()


def _line(few: int, more: int) -> tuple[int, int]:
    """Through the peaks of both runs."""
    each = max(0, more - few) // (MORE - FEW)
    return few - FEW * each, each


def _run(
    model: QuantModel,
    number: int,
    layers: dict[str, QuantLayer],
    recipe: Recipe,
    x: Tensor,
    y: Tensor,
    generator: torch.Generator,
) -> tuple[int, int, int, int]:
    """Peak bytes of block ``number`` for the images ``x``: a forward, the log's look at its grids, a step, a probe."""
    block = model.blocks[number]
    device = x.device
    # A probe of the first block runs the longest tail, so for the others any tail will do.
    tail = tail_after(model, number) if number == 0 else _short_tail
    with torch.no_grad():
        logits = tail(y)
    with float_layers(layers.values()), TensorMeter() as meter:
        with torch.no_grad():
            block.module(x)
        forward = meter.peak
        _give_grids(layers)
        meter.restart()
        grid_lines(block, layers, x)
        grids = meter.peak
        if recipe.reconstruct.iterations == 0:
            return forward, grids, 0, 0
        with learning(layers, recipe.reconstruct.drop_inside, generator) as (weights, drops):
            optimizer = BlockOptimizer(weights, drops, recipe.reconstruct)
            objective: Objective = (
                HeadObjective()
                if block.kind == "head"
                else FisherObjective(recipe, tail, logits, RamStore(), Stopwatch(device))
            )
            meter.restart()
            objective.before_step(0, block.module, cache := BlockCache(x, x, y))
            probe = meter.peak
            meter.restart()
            optimizer.prepare(0)
            for _ in range(2):  # the second also holds Adam's moments and what the first gave
                batch = mixed_batch(cache, torch.arange(len(x)), recipe.reconstruct.quantized_input, generator)
                output = block.module(batch.x)
                optimizer.step(objective.loss(output, batch.target, batch.images))
            return forward, grids, meter.peak, probe


def _short_tail(x: Tensor) -> Tensor:
    return x.flatten(1)[:, :2]


def _give_grids(layers: dict[str, QuantLayer]) -> None:
    """Any grids; what they cost does not depend on where they lie."""
    for layer in layers.values():
        for slot in quantizer_slots(layer):
            shape: tuple[int, ...] = ()
            if slot == "weight_quantizer":
                assert not isinstance(layer, QuantMatMul) and layer.weight is not None
                shape = (layer.weight.shape[0], *[1] * (layer.weight.ndim - 1))
            setattr(layer, slot, UniformQuantizer(QuantSpec(4), torch.ones(shape), torch.ones(shape)))
