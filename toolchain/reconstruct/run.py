"""Reconstruction of a whole model, block by block in network order."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..calibrate import run_block
from ..checkpoint import Checkpoint, FinishedPart
from ..distributed.ranks import ALONE, Ranks
from ..errors import InputError
from ..families import Block, QuantModel
from ..nn import QuantLayer, float_layers
from ..progress import Progress
from ..recipe import Recipe
from ..run_folder import layer_row, quantizer_tensors, restore_quantizers
from .block import reconstruct_block, round_to_nearest
from .cache import BlockCache, BlockInputs, advance
from .fidelity import SAMPLE, grid_lines, snr_db
from .objective import FisherObjective, HeadObjective, Objective
from .peak_memory import PeakMemory
from .stopwatch import Stopwatch
from .store import DeviceStore, Store
from .tail import tail_after

Log = Callable[[dict[str, Any]], None]


def reconstruct(
    model: QuantModel,
    inputs: BlockInputs,
    recipe: Recipe,
    progress: Progress,
    log: Log,
    checkpoint: Checkpoint,
    store: Store,
    ranks: Ranks = ALONE,
) -> list[dict[str, Any]]:
    """Reconstruct every block of a calibrated model; returns a row per block for the manifest.

    ``inputs`` start as the images ``[n, 3, h, w]``, preprocessed, and end as the logits; Fisher probes use the first
    ``recipe.fisher.samples`` of them. Three caches in ``store`` advance with the blocks (float input, quantized input,
    target), so the cost of advancing is linear in depth; a probe runs only the blocks behind its own. Blocks that
    ``checkpoint`` holds are taken from there, log lines and all, and each finished one is put there. With 0 iterations
    weights are rounded to nearest.

    Only the first of ``ranks`` uses ``checkpoint``. Raises EnvironmentProblem where they come to different results.
    """
    device = next(model.parameters()).device
    if recipe.reconstruct.iterations == 0:
        return _rounded_to_nearest(model, inputs.clean[:SAMPLE].to(device), log)
    probes = store if device.type == "cpu" else DeviceStore(device)  # sums over images must not depend on the store
    rows = []
    logits = _float_logits(model, inputs.clean[: recipe.fisher.samples], store, device, ranks)
    with progress.task("reconstruct", len(model.blocks) * recipe.reconstruct.iterations) as task:
        for number, block in enumerate(model.blocks):
            watch, memory = Stopwatch(device), PeakMemory(device)
            layers = {name: model.layers[name] for name in model.block_layers[block.name]}
            with watch.timing("advance"), float_layers(layers.values()):
                target = advance(block.module, inputs.clean, store, device, ranks)
            if (finished := ranks.by_first(partial(checkpoint.load, block.name))) is None:
                lines: list[dict[str, Any]] = []
                objective: Objective = (
                    HeadObjective()
                    if block.kind == "head"
                    else FisherObjective(recipe, tail_after(model, number), logits, probes, watch, ranks)
                )
                wanted = target[:SAMPLE].to(device)
                snr_first = snr_db(run_block(block, inputs.quant[:SAMPLE].to(device)), wanted)
                with watch.timing("steps"):
                    cache = BlockCache(inputs.clean, inputs.quant, target)
                    first, last = reconstruct_block(
                        block.name, block.module, layers, cache, objective, recipe, lines.append, task, ranks
                    )
                    del cache
                _require_finite(block.name, layers, last)
                lines += grid_lines(block, layers, inputs.clean[:SAMPLE].to(device))
                _advance_quantized(block, inputs, target, store, device, watch, ranks)
                row = {
                    **_row(block),
                    "loss_first": first,
                    "loss_last": last,
                    "snr_db_first": snr_first,
                    "snr_db_last": snr_db(inputs.quant[:SAMPLE].to(device), wanted),
                    "seconds": round(sum((parts := watch.seconds()).values()), 3),
                    "seconds_by_part": parts,
                    "peak_bytes": memory.bytes(),
                }
                finished = FinishedPart(quantizer_tensors(layers), row, [*lines, {"event": "block", **row}])
                _require_agreement(block.name, finished, ranks)
                ranks.by_first(partial(checkpoint.save, block.name, finished))
            else:
                _restore(layers, finished, device)
                _advance_quantized(block, inputs, target, store, device, watch, ranks)
                task.advance(recipe.reconstruct.iterations, block=block.name)
            del target
            rows.append(dict(finished.row))
            for line in finished.log:
                log(line)
    return rows


def _advance_quantized(
    block: Block,
    inputs: BlockInputs,
    target: Tensor,
    store: Store,
    device: torch.device,
    watch: Stopwatch,
    ranks: Ranks,
) -> None:
    """Make ``inputs`` those of the next block: the target and what the block as it is now gives."""
    inputs.clean = target
    with watch.timing("advance"):
        inputs.quant = advance(block.module, inputs.quant, store, device, ranks)


def _require_finite(block: str, layers: dict[str, QuantLayer], loss: float) -> None:
    """A block that diverged is no input for the next one (codes alone do not show it). Raises InputError."""
    values = quantizer_tensors(layers) | {f"the loss of {block}": np.array(loss)}
    for name, array in values.items():
        if not np.isfinite(array).all():
            raise InputError(
                f"quantization gave NaN or infinity in {name}. Lower the recipe's learning rates, or check the images."
            )


def _require_agreement(block: str, finished: FinishedPart, ranks: Ranks) -> None:
    """Every process steps by the same sums, so it must have learned the same bits."""
    ranks.require_same(finished.sha256(), f"results in {block}")


def _restore(layers: dict[str, QuantLayer], finished: FinishedPart, device: torch.device) -> None:
    restore_quantizers(layers, {name: layer_row(name, layer) for name, layer in layers.items()}, finished.tensors)
    for layer in layers.values():
        layer.to(device)


def _float_logits(model: QuantModel, images: Tensor, store: Store, device: torch.device, ranks: Ranks) -> Tensor:
    with float_layers(model.layers.values()):
        x = images
        for block in model.blocks:
            x = advance(block.module, x, store, device, ranks)
    return x.to(device)


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
        "seconds_by_part": None,
        "peak_bytes": None,
    }
