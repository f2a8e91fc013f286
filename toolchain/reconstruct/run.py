"""Reconstruction of a whole model, block by block in network order."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..calibrate import run_block
from ..checkpoint import Checkpoint, FinishedBlock
from ..families import Block, QuantModel
from ..nn import QuantLayer, float_layers
from ..progress import Progress
from ..recipe import Recipe
from ..run_folder import layer_row, quantizer_tensors, restore_quantizers
from .block import reconstruct_block, round_to_nearest
from .cache import BlockCache
from .fidelity import SAMPLE, grid_lines, snr_db
from .objective import FisherObjective, HeadObjective, Objective
from .peak_memory import PeakMemory

Log = Callable[[dict[str, Any]], None]


def reconstruct(
    model: QuantModel,
    images: Tensor,
    recipe: Recipe,
    progress: Progress,
    log: Log,
    checkpoint: Checkpoint,
) -> list[dict[str, Any]]:
    """Reconstruct every block of a calibrated model; returns a row per block for the manifest.

    ``images`` is ``[n, 3, h, w]``, preprocessed; Fisher probes use the first ``recipe.fisher.samples`` of them. Three
    caches advance with the blocks (float input, quantized input, target), so the cost of advancing is linear in depth;
    a probe runs only the blocks behind its own. Blocks that ``checkpoint`` holds are taken from there, log lines and
    all, and each finished one is put there. With 0 iterations weights are rounded to nearest.
    """
    if recipe.reconstruct.iterations == 0:
        return _rounded_to_nearest(model, images[:SAMPLE], log)
    rows = []
    logits = _float_logits(model, images[: recipe.fisher.samples])
    clean, quant = images, images
    with progress.task("reconstruct", len(model.blocks) * recipe.reconstruct.iterations) as task:
        for number, block in enumerate(model.blocks):
            began = time.monotonic()
            memory = PeakMemory(images.device)
            layers = {name: model.layers[name] for name in model.block_layers[block.name]}
            with float_layers(layers.values()):
                cache = BlockCache(clean, quant, run_block(block, clean))
            if (finished := checkpoint.load(block.name)) is None:
                lines: list[dict[str, Any]] = []
                objective: Objective = (
                    HeadObjective() if block.kind == "head" else FisherObjective(recipe, _tail(model, number), logits)
                )
                snr_first = snr_db(run_block(block, quant[:SAMPLE]), cache.target[:SAMPLE])
                first, last = reconstruct_block(
                    block.name, block.module, layers, cache, objective, recipe, lines.append, task
                )
                lines += grid_lines(block, layers, clean)
                clean, quant = cache.target, run_block(block, quant)
                row = {
                    **_row(block),
                    "loss_first": first,
                    "loss_last": last,
                    "snr_db_first": snr_first,
                    "snr_db_last": snr_db(quant[:SAMPLE], clean[:SAMPLE]),
                    "seconds": round(time.monotonic() - began, 3),
                    "peak_bytes": memory.bytes(),
                }
                finished = FinishedBlock(quantizer_tensors(layers), row, [*lines, {"event": "block", **row}])
                checkpoint.save(block.name, finished)
            else:
                _restore(layers, finished, images.device)
                clean, quant = cache.target, run_block(block, quant)
                task.advance(recipe.reconstruct.iterations, block=block.name)
            rows.append(dict(finished.row))
            for line in finished.log:
                log(line)
    return rows


def _restore(layers: dict[str, QuantLayer], finished: FinishedBlock, device: torch.device) -> None:
    restore_quantizers(layers, {name: layer_row(name, layer) for name, layer in layers.items()}, finished.tensors)
    for layer in layers.values():
        layer.to(device)


def _float_logits(model: QuantModel, images: Tensor) -> Tensor:
    with float_layers(model.layers.values()):
        x = images
        for block in model.blocks:
            x = run_block(block, x)
        return x


def _tail(model: QuantModel, number: int) -> Callable[[Tensor], Tensor]:
    """The float network after block ``number``: block output to logits."""
    blocks = model.blocks[number + 1 :]
    layers = [model.layers[name] for block in blocks for name in model.block_layers[block.name]]

    def run(x: Tensor) -> Tensor:
        with float_layers(layers):
            for block in blocks:
                x = block.module(x)
        return x

    return run


def _rounded_to_nearest(model: QuantModel, images: Tensor, log: Log) -> list[dict[str, Any]]:
    """Weights as calibrated, and what that did to each block."""
    round_to_nearest(model.layers)
    rows = []
    clean, quant = images, images
    for block in model.blocks:
        layers = {name: model.layers[name] for name in model.block_layers[block.name]}
        for line in grid_lines(block, layers, clean):
            log(line)
        with float_layers(layers.values()):
            clean = run_block(block, clean)
        quant = run_block(block, quant)
        rows.append({**_row(block), "snr_db_last": snr_db(quant, clean)})
    return rows


def _row(block: Block) -> dict[str, Any]:
    """A block's row in the manifest before anything was learned; a figure that was not measured is None."""
    return {
        "name": block.name,
        "kind": block.kind,
        "loss_first": None,
        "loss_last": None,
        "snr_db_first": None,
        "snr_db_last": None,
        "seconds": 0.0,
        "peak_bytes": None,
    }
